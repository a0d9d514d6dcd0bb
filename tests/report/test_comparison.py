"""The page that compares runs: what differs in what they were told, what they measured, what they took."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from graftwork import GraftworkError
from graftwork.report import write_comparison

BLOCK = {"dataset": "blobs", "model": {"use": "net", "width": 8}, "objective": "fit", "evaluate": ["hits"]}


@pytest.fixture
def two(make_run: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """Two runs that differ in width, seed, a part that one of them lacks, torch's version, and what came out."""
    first = make_run(tmp_path / "small", stage=BLOCK, results={"method": {"accuracy": 0.5, "loss": 1.0}})
    block = {**BLOCK, "model": {"use": "net", "width": 16, "dropout": 0.5}}
    second = make_run(tmp_path / "large", stage=block, seed=1, results={"method": {"accuracy": 0.75, "recall": 0.25}})
    environment = json.loads((second / "environment.json").read_text())
    (second / "environment.json").write_text(json.dumps({**environment, "versions": {"torch": "2.14.0", "graftwork": "0.1.0"}}))
    record = json.loads((second / "stages/method/stage.json").read_text())
    record["phases"]["train"] = {"seconds": 7500.0, "host_bytes": 2**30, "device_bytes": None}
    record["phases"]["hits"] = {"seconds": 1.0, "host_bytes": None, "device_bytes": None}
    (second / "stages/method/stage.json").write_text(json.dumps(record))
    return first, second


def test_the_settings_that_differ_stand_side_by_side_and_the_others_are_counted(two, words, tmp_path: Path) -> None:
    said = words(write_comparison(two, tmp_path / "c.html"))
    table = "Where the pipelines differ setting small large"
    rows = "seed 0 1 stages.method.model.width 8 16 stages.method.model.dropout not set 0.5"
    assert f"{table} {rows}" in said
    assert "11 other settings are the same." in said  # name, four of the stage, six of the claim


def test_what_differs_in_the_environments_stands_too_but_not_the_command_or_the_seed(two, words, tmp_path: Path) -> None:
    said = words(write_comparison(two, tmp_path / "c.html"))
    assert "Where the environments differ setting small large torch 2.13.0 2.14.0 Results" in said


def test_each_metric_stands_with_its_difference_from_the_first_run(two, words, tmp_path: Path) -> None:
    said = words(write_comparison(two, tmp_path / "c.html"))
    assert "with the difference from small metric small large difference" in said
    dash = "\N{EN DASH}"
    assert f"method/accuracy 0.5000 0.7500 +0.25 method/loss 1.0000 {dash} {dash} method/recall {dash} 0.2500 {dash}" in said
    turned = words(write_comparison(two[::-1], tmp_path / "d.html"))
    assert "method/accuracy 0.7500 0.5000 -0.25" in turned


def test_each_phase_stands_with_what_it_took_in_each_run(two, words, tmp_path: Path) -> None:
    said = words(write_comparison(two, tmp_path / "c.html"))
    dash = "\N{EN DASH}"
    assert "method, train, small 1 min 15 s 2.00 GiB 3.00 GiB" in said
    assert f"method, train, large 2 h 05 min 1.00 GiB {dash}" in said
    assert f"method, hits, small {dash} {dash} {dash}" in said
    bars = re.findall(r'class="bar"[^>]*><rect width="([\d.]+)"', (tmp_path / "c.html").read_text())
    assert bars == ["0.0", "0.0", "1.0", "100.0", "0.0"]  # of the longest phase of all: 0.5, 0.5, 75, 7500 and 1 s


def test_runs_of_one_pipeline_are_said_to_be_the_same(make_run, words, tmp_path: Path) -> None:
    said = words(write_comparison([make_run(tmp_path / "a"), make_run(tmp_path / "b")], tmp_path / "c.html"))
    assert re.search(r"The pipelines are the same in all \d+ settings. The environments are the same.", said)


def test_the_state_of_each_run_stands_with_how_far_it_came(make_run, words, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", status="interrupted", unfinished=("method",))]
    said = words(write_comparison(runs, tmp_path / "c.html"))
    assert "a tiny finished 0 2 min 31 s" in said
    assert 'b tiny interrupted in stage "method", after "train" 0' in said


def test_runs_of_one_name_in_different_folders_are_told_apart(make_run, words, tmp_path: Path) -> None:
    said = words(write_comparison([make_run(tmp_path / "x/run"), make_run(tmp_path / "y/run")], tmp_path / "c.html"))
    assert "x/run and y/run" in said


def test_a_line_a_run_in_the_chart_of_each_stages_figure(make_run, logged, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, rows=[*logged("baseline", 5), *logged("method", 5)]) for name in "abc"]
    page = write_comparison(runs, tmp_path / "c.html").read_text()
    assert re.findall(r'<figure class="chart[^"]*">\s*<figcaption>([^<]*)<', page) == ["baseline / loss", "method / loss"]
    lines = re.findall(r'<g class="line c(\d) d0"><path d="M0 4H24"/></g></svg> <span class="label">([^<]*)<', page)
    assert lines == [("0", "a"), ("1", "b"), ("2", "c")] * 2


def test_figures_that_both_drew_stand_side_by_side_with_their_captions(make_run, evaluated, words, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in "ab"]
    for run in runs:
        evaluated(run, "method", "hits", caption=f"Seen by {run.name}")
    evaluated(runs[0], "baseline", "hits")  # which the other lacks
    said = words(write_comparison(runs, tmp_path / "c.html"))
    assert "Figures method/hits/picture a: Seen by a full size of method/hits/picture of run a b: Seen by b" in said
    assert "baseline/hits/picture" not in said


def test_what_could_not_be_read_of_a_run_is_named_with_the_run(make_run, words, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name) for name in "ab"]
    (runs[1] / "environment.json").write_text("{")
    assert "What could not be read of b environment.json is no JSON" in words(write_comparison(runs, tmp_path / "c.html"))


def test_what_cannot_be_compared_is_refused(make_run, tmp_path: Path) -> None:
    run, seed = make_run(tmp_path / "run"), make_run(tmp_path / "r/seed-0")
    out = tmp_path / "c.html"
    with pytest.raises(GraftworkError, match="needs two runs or more, each given once"):
        write_comparison([run], out)
    with pytest.raises(GraftworkError, match="needs two runs or more, each given once"):
        write_comparison([run, seed, tmp_path / "r/../run"], out)
    with pytest.raises(GraftworkError, match=rf"{seed.parent} is a reproduction: compare its runs, such as {seed}, or give it alone"):
        write_comparison([run, seed.parent], out)
    with pytest.raises(GraftworkError, match="nowhere is no run: there is no such directory"):
        write_comparison([run, tmp_path / "nowhere"], out)
    assert not out.exists()
