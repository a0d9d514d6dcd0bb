"""The page of a reproduction, finished or not: verdict, values a seed, ways to the seeds' pages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from graftwork import GraftworkError
from graftwork.report import write_page

GAINS = [(0.75, 0.5), (0.7, 0.5), (0.9, 0.6)]
"""(method, baseline) of each seed: differences 0.25, 0.2, 0.3, so t = 0.25 / (0.05 / sqrt 3) = 8.66 with two degrees of freedom, and
the paired one-sided test gives p = 1 / 2 - t / (2 sqrt(2 + t^2)) = 0.0065."""


def reproduction(make_run: Callable[..., Path], folder: Path, values: Sequence[tuple[float, float]], **settings: Any) -> Path:
    for seed, (method, baseline) in enumerate(values):
        make_run(
            folder / f"seed-{seed}", seed=seed, results={"baseline": {"accuracy": baseline}, "method": {"accuracy": method}}, **settings
        )
    return folder


def judged(folder: Path, *verdicts: str, p: float | None = 0.0065) -> None:
    about = {"method": "method/accuracy", "baseline": "baseline/accuracy", "direction": "higher", "margin": 0.05, "p_value": p}
    values = {"method_values": [one for one, _ in GAINS], "baseline_values": [one for _, one in GAINS]}
    listed = [{**about, **values, "verdict": verdict} for verdict in verdicts]
    (folder / "reproduction.json").write_text(json.dumps({"recipe": "tiny", "verdicts": listed}))


def test_a_finished_one_tells_the_verdict_means_errors_and_p(make_run, words, tmp_path: Path) -> None:
    folder = reproduction(make_run, tmp_path / "r", GAINS)
    judged(folder, "holds")
    said = words(write_page(folder))
    assert "Reproduction over 3 seeds tiny holds The method beats the baseline" in said
    title = "method/accuracy against baseline/accuracy (higher is better, 0.05 worse is allowed)"
    assert f"{title} holds 0.7833 ± 0.06 0.5333 ± 0.033 0.0065" in said
    assert "In the paper: baseline 0.5, method 0.7." in said
    assert "--resume" not in said


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (("holds", "holds"), "holds"),
        (("holds", "not significant"), "does not hold as a whole"),
        (("does not hold",), "does not hold"),
        (("not significant",), "not significant"),
    ],
)
def test_a_claim_holds_when_every_comparison_does(make_run, words, tmp_path: Path, verdicts: tuple[str, ...], whole: str) -> None:
    folder = reproduction(make_run, tmp_path / "r", GAINS)
    judged(folder, *verdicts)
    assert f"Reproduction over 3 seeds tiny {whole} The method beats" in words(write_page(folder))


def test_of_an_unfinished_one_the_verdict_is_over_the_seeds_that_are_finished_and_says_so(make_run, words, tmp_path: Path) -> None:
    folder = reproduction(make_run, tmp_path / "r", GAINS[:2])
    make_run(
        folder / "seed-2", seed=2, status=None, unfinished=("method",), results={"baseline": {"accuracy": 0.6}, "method": {"accuracy": 0.1}}
    )
    said = words(write_page(folder))
    assert "tiny unfinished The method beats the baseline" in said
    assert (
        f"2 of 3 seeds are finished, and the verdict below is over these. An interrupted reproduction goes on with --resume {folder}"
        in said
    )
    assert "holds 0.725 ± 0.025 0.5 ± 0 0.035" in said  # t = 0.225 / 0.025 = 9 with one degree of freedom: p = atan(1/9) / pi


def test_one_finished_seed_is_no_test(make_run, words, tmp_path: Path) -> None:
    said = words(write_page(reproduction(make_run, tmp_path / "r", GAINS[:1])))
    assert "1 of 3 seeds are finished" in said
    assert "(higher is better) untested 0.75 0.5 \N{EN DASH}" in said


def test_with_no_seed_finished_there_is_no_verdict(make_run, words, tmp_path: Path) -> None:
    folder = reproduction(make_run, tmp_path / "r", GAINS, status=None, unfinished=("method",))
    said = words(write_page(folder))
    assert "0 of 3 seeds are finished. An interrupted" in said
    assert "Verdict" not in said


@pytest.mark.parametrize(
    "compare", [{"method": "no-slash", "baseline": "baseline/accuracy"}, {"method": "method/f1", "baseline": "x/y"}, 7]
)
def test_a_comparison_that_cannot_be_made_is_left_out(make_run, words, tmp_path: Path, compare: object) -> None:
    folder = reproduction(make_run, tmp_path / "r", GAINS[:2], claim={"text": "A claim", "compare": compare, "seeds": 3})
    said = words(write_page(folder))
    assert "tiny unfinished A claim 2 of 3 seeds are finished. An" in said


def test_runs_of_a_pipeline_without_a_claim_are_finished_when_all_are(make_run, words, tmp_path: Path) -> None:
    assert "Reproduction over 3 seeds tiny finished" in words(write_page(reproduction(make_run, tmp_path / "r", GAINS, claim=None)))


def test_values_stand_seed_by_seed_with_their_mean(make_run, words, tmp_path: Path) -> None:
    folder = reproduction(make_run, tmp_path / "r", GAINS[:2])
    make_run(folder / "seed-10", seed=10, results={"baseline": {"accuracy": None}, "method": {"accuracy": 0.8}})
    said = words(write_page(folder))
    assert "metric mean seed 0 seed 1 seed 10" in said
    assert "baseline/accuracy 0.5 ± 0 0.5000 0.5000 \N{EN DASH}" in said
    assert "method/accuracy 0.75 ± 0.029 0.7500 0.7000 0.8000" in said


def test_a_curve_a_seed_in_the_colour_of_its_stage(make_run, tmp_path: Path) -> None:
    page = write_page(reproduction(make_run, tmp_path / "r", GAINS[:2])).read_text()
    labels = re.findall(r'<g class="line c(\d) d0"><path d="M0 4H24"/></g></svg> <span class="label">([^<]*)<', page)
    assert labels == [("0", "baseline, seed 0"), ("0", "baseline, seed 1"), ("1", "method, seed 0"), ("1", "method, seed 1")]


def test_links_lead_from_wherever_the_page_stands_to_pages_that_are_there(make_run, tmp_path: Path) -> None:
    folder = reproduction(make_run, tmp_path / "of #1 & 100%", GAINS[:2])
    for page in (write_page(folder), write_page(folder, tmp_path / "elsewhere/deep/page.html")):
        links = re.findall(r'<a href="([^"#]+)">seed', page.read_text())
        assert len(links) == 2
        assert [(page.parent / unquote(link)).resolve() for link in links] == [folder / f"seed-{n}/report.html" for n in (0, 1)]
        assert all((folder / f"seed-{n}/report.html").is_file() for n in (0, 1))


def test_the_page_of_a_finished_seed_is_left_as_it_is_and_that_of_another_is_written_anew(make_run, tmp_path: Path) -> None:
    folder = reproduction(make_run, tmp_path / "r", GAINS[:1])
    make_run(folder / "seed-1", seed=1, status="failed", unfinished=("method",))
    for seed in (0, 1):
        (folder / f"seed-{seed}/report.html").write_text("former")
    write_page(folder)
    assert (folder / "seed-0/report.html").read_text() == "former"
    assert "This run failed" in (folder / "seed-1/report.html").read_text()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"verdicts": [{}]}',
        '{"verdicts": [{"verdict": "holds", "method_values": ["x"], "baseline_values": [1]}]}',
        '{"verdicts": 3}',
    ],
)
def test_a_damaged_verdict_is_named_and_made_anew_from_the_seeds(make_run, words, tmp_path: Path, content: str) -> None:
    folder = reproduction(make_run, tmp_path / "r", GAINS)
    (folder / "reproduction.json").write_text(content)
    said = words(write_page(folder))
    assert "What could not be read reproduction.json" in said
    assert "holds 0.7833 ± 0.06 0.5333 ± 0.033 0.0065" in said


def test_a_seed_whose_pipeline_cannot_be_read_is_an_error_that_names_the_file(make_run, tmp_path: Path) -> None:
    folder = reproduction(make_run, tmp_path / "r", GAINS[:2])
    (folder / "seed-1/pipeline.yaml").write_text("stages: [")
    with pytest.raises(GraftworkError, match=r"seed-1/pipeline\.yaml"):
        write_page(folder)
