"""Run directories in whatever state, and from whomever."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from graftwork import GraftworkError
from graftwork.report.reading import MOST_ROWS, MOST_SAMPLES, read_run


def test_a_run_without_results_json_is_finished_when_its_stages_are(make_run, tmp_path: Path) -> None:
    assert read_run(make_run(tmp_path / "a", status=None)).status == "finished"
    assert read_run(make_run(tmp_path / "b", status=None, unfinished=("method",))).status == "unfinished"
    assert read_run(make_run(tmp_path / "c", status="failed", unfinished=("method",))).status == "failed"
    assert read_run(make_run(tmp_path / "d", status="interrupted", unfinished=("method",))).status == "interrupted"
    assert read_run(make_run(tmp_path / "e", status="<b>", unfinished=("method",))).status == "unfinished"


def test_a_row_that_a_kill_cut_off_is_no_damage_and_one_in_the_middle_is(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    log = run / "metrics.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"stage": "method", "st')
    assert not read_run(run).damage
    log.write_text("not a row\n" + whole)
    assert any("1 of 81 rows" in what for what in read_run(run).damage)
    assert len(read_run(run).series[0].steps) == 40


@pytest.mark.parametrize("name", ["environment.json", "results.json", "stages/method/stage.json"])
@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null", '"text"', "[" * 100_000])
def test_a_damaged_file_is_named_and_the_rest_is_read(make_run, tmp_path: Path, name: str, content: str) -> None:
    run = make_run(tmp_path / "run")
    (run / name).write_text(content)
    found = read_run(run)
    assert any(name in what for what in found.damage)
    assert found.results["baseline"] == {"accuracy": 0.5}


@pytest.mark.parametrize(
    "row",
    [
        {"step": 1},
        {"stage": "a", "step": "x"},
        [],
        3,
        {"stage": "a", "step": 1e400},
        {"stage": "a", "step": 1, "loss": "high"},
        {"stage": "a", "step": 1, "loss": 10**400},
    ],
    ids=str,
)
def test_rows_of_any_shape_do_no_harm(make_run, tmp_path: Path, row: object) -> None:
    run = make_run(tmp_path / "run")
    log = run / "metrics.jsonl"
    log.write_text(json.dumps(row) + "\n" + log.read_text())
    assert [series.metric for series in read_run(run).series if series.stage != "a"] == ["loss", "loss"]


def test_what_was_measured_before_a_failure_comes_from_the_log_where_no_record_has_it(make_run, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", status=None, rows=[{"stage": "method", "step": -1, "time": 1.0, "accuracy": 0.3}])
    (run / "stages/method/stage.json").unlink()
    assert read_run(run).results["method"] == {"accuracy": 0.3}


@pytest.mark.parametrize("way", ["figure", "folder", "stage name", "table"])
def test_files_outside_the_run_directory_are_not_read_into_its_page(
    make_run, evaluated, picture: Callable[..., bytes], tmp_path: Path, way: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(picture())
    (outside / "secret.json").write_text(json.dumps({"columns": ["secret"], "rows": [["secret"]]}))
    run = make_run(tmp_path / "run")
    place = evaluated(run, "method", "hits")
    if way == "figure":
        (place / "secret.png").symlink_to(outside / "secret.png")
    elif way == "table":
        (place / "secret.json").symlink_to(outside / "secret.json")
    elif way == "folder":
        (run / "stages/method/other").symlink_to(outside)
    else:
        text = (run / "pipeline.yaml").read_text().replace("baseline:\n", "../../../outside:\n", 1)
        (run / "pipeline.yaml").write_text(text)
    found = read_run(run)
    shown = [one.name for stage in found.stages for each in stage.evaluations for one in (*each.figures, *each.tables)]
    assert "picture" in shown
    assert "secret" not in shown


def test_what_is_no_picture_is_named_and_not_shown(make_run, evaluated, tmp_path: Path) -> None:
    place = evaluated(make_run(tmp_path / "run"), "method", "hits")
    (place / "fake.png").write_bytes(b"<svg onload=alert(1)>")
    found = read_run(tmp_path / "run")
    assert any("fake.png is not shown: it is no PNG" in what for what in found.damage)


def test_long_tables_and_many_samples_are_cut_and_counted(make_run, evaluated, picture: Callable[..., bytes], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    evaluated(run, "method", "hits", table={"columns": ["n"], "rows": [[n] for n in range(1000)], "caption": ""})
    folder = run / "stages/method/samples"
    folder.mkdir()
    (folder / "samples.json").write_text(json.dumps({"prompts": [f"p{n}" for n in range(100)], "texts": []}))
    for index in range(100):
        (folder / f"{index:04d}.png").write_bytes(picture())
    stage = read_run(run).stages[1]
    assert (len(stage.evaluations[0].tables[0].rows), stage.evaluations[0].tables[0].left_out) == (MOST_ROWS, 1000 - MOST_ROWS)
    assert (len(stage.samples), stage.more_samples) == (MOST_SAMPLES, 100 - MOST_SAMPLES)
    assert stage.samples[3].prompt == "p3"


@pytest.mark.parametrize("pipeline", ["stages: !!python/object/apply:os.system ['true']", "- a", "stages: [", ""])
def test_a_pipeline_that_cannot_be_read_is_an_error_that_names_the_file(make_run, tmp_path: Path, pipeline: str) -> None:
    run = make_run(tmp_path / "run")
    (run / "pipeline.yaml").write_text(pipeline)
    with pytest.raises(GraftworkError, match=r"pipeline\.yaml"):
        read_run(run)


def test_what_is_no_run_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(GraftworkError, match=r"it has no pipeline\.yaml"):
        read_run(tmp_path)
    with pytest.raises(GraftworkError, match="there is no such directory"):
        read_run(tmp_path / "nowhere")
