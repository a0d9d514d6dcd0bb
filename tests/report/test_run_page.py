"""The page of a run: what it says of one that came to no good end, its colours, and what plugins say of their components."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from graftwork import GraftworkError
from graftwork.report import write_page

EVIL = "<script>window.ran=1</script> & <b title='x\"'>"
STYLE = files("graftwork.report").joinpath("templates/style.css").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("status", "happened", "advice"),
    [
        ("failed", "This run failed", "What it had measured until then is below. When the cause is mended, go on with:"),
        ("interrupted", "This run was interrupted", "What it had measured until then is below. Go on with:"),
        (None, "This run is not finished: it is still going, or it was killed", "A killed one goes on with:"),
    ],
)
def test_a_run_that_is_not_finished_says_how_far_it_came_and_how_to_go_on(
    make_run, words, tmp_path: Path, status: str | None, happened: str, advice: str
) -> None:
    run = make_run(tmp_path / "run", status=status, unfinished=("method",))
    said = words(write_page(run))
    assert f"Run tiny {status or 'unfinished'} seed 0" in said
    assert f'{happened} in stage "method", after "train". {advice} graft run --resume {run}' in said


def test_a_finished_run_says_nothing_of_going_on(make_run, words, tmp_path: Path) -> None:
    said = words(write_page(make_run(tmp_path / "run")))
    assert "Run tiny finished seed 0 · cpu · torch 2.13.0 · graftwork 0.1.0 · 2 min 31 s" in said
    assert "--resume" not in said


@pytest.mark.parametrize(("status", "happened"), [("failed", "failed"), ("interrupted", "was interrupted")])
def test_how_a_run_ended_counts_more_than_that_its_stages_are_finished(make_run, words, tmp_path: Path, status: str, happened: str) -> None:
    said = words(write_page(make_run(tmp_path / "run", status=status)))
    assert f"This run {happened} after its last stage." in said


def test_a_stage_that_has_done_nothing_is_where_a_run_came_to(make_run, words, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", status="failed", unfinished=("baseline", "method"))
    (run / "stages/baseline/stage.json").unlink()
    (run / "metrics.jsonl").write_text("")
    assert 'This run failed in stage "baseline". What' in words(write_page(run))


def test_a_run_that_measured_nothing_says_so(make_run, words, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", status=None, results={"method": {}}, unfinished=("method",), rows=[])
    assert "Results Nothing was measured yet." in words(write_page(run))


def test_the_claim_stands_with_this_seeds_numbers_and_the_word_that_one_seed_is_no_test(make_run, words, tmp_path: Path) -> None:
    said = words(write_page(make_run(tmp_path / "run")))
    assert "At this one seed, which is no test: graft reproduce runs the claim over its seeds." in said
    assert "method/accuracy against baseline/accuracy for the claim 0.7500 0.5000 +0.25 higher" in said


def test_phases_stand_with_their_time_and_peak_memory(make_run, words, tmp_path: Path) -> None:
    said = words(write_page(make_run(tmp_path / "run")))
    assert "baseline model 0.50 s 512 MiB \N{EN DASH} baseline train 1 min 15 s 2.00 GiB 3.00 GiB" in said
    assert "All phases together: 2 min 31 s." in said


# -- what others have written --------------------------------------------------------------------------------------------------------

PLUGIN = f"""
from graftwork import Component, Paper, hookimpl


@hookimpl
def graftwork_models():
    yield Component("net", "evil:Net", {EVIL!r}, Paper({EVIL!r}, arxiv="0000.00000", year=2026))
"""


def test_html_in_the_summary_of_a_component_and_in_its_papers_title_is_text(make_run, words, install, tmp_path: Path) -> None:
    install("graftwork-evil", PLUGIN)
    page = write_page(make_run(tmp_path / "run"))
    assert f"net model baseline, method {EVIL} (graftwork-evil) {EVIL}, 2026, arXiv:0000.00000" in words(page)
    assert "<script>window" not in page.read_text()
    assert "<b title" not in page.read_text()


def test_a_component_that_is_not_installed_is_named_as_such(make_run, words, tmp_path: Path) -> None:
    said = words(write_page(make_run(tmp_path / "run", stage={"model": {"use": "no-such-net"}})))
    assert "no-such-net model baseline, method not installed here" in said


# -- colours -------------------------------------------------------------------------------------------------------------------------


def colours() -> dict[str, dict[str, str]]:
    """scheme -> name -> colour, as the style sheet sets them."""
    blocks = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, flags=re.S)]
    assert len(blocks) == 2
    return {"light": blocks[0], "dark": {**blocks[0], **blocks[1]}}


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" in sRGB (WCAG 2.2)."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Contrast ratio, 1 to 21 (WCAG 2.2)."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_as_wcag_has_it() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)  # the lightest grey for text on white


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colour_of_every_line_has_three_to_one_against_its_ground(scheme: str) -> None:
    found = colours()[scheme]
    lines = [f"c{index}" for index in range(8)]
    assert {name: contrast(found[name], found["paper"]) for name in lines if contrast(found[name], found["paper"]) < 3} == {}
    assert len({found[name] for name in lines}) == 8


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_colour_of_text_has_four_and_a_half_to_one_against_page_and_shade(scheme: str) -> None:
    found = colours()[scheme]
    pairs = [(text, ground) for text in ("ink", "soft", "accent", "good", "bad", "open") for ground in ("paper", "shade")]
    assert {pair: contrast(found[pair[0]], found[pair[1]]) for pair in pairs if contrast(found[pair[0]], found[pair[1]]) < 4.5} == {}


# -- the document --------------------------------------------------------------------------------------------------------------------


def test_the_policy_lets_the_page_ask_for_nothing_and_run_only_its_own_script(make_run, tmp_path: Path) -> None:
    page = write_page(make_run(tmp_path / "run")).read_text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].replace("&#39;", "'").split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    for source in ("style-src", "script-src"):
        assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", rules[source])
    assert page.index("http-equiv") < page.index("<style>") < page.index("<script")


def test_what_is_no_run_is_refused_and_runs_in_it_are_pointed_at(make_run, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/first")
    with pytest.raises(GraftworkError, match=rf"no sweep: it has no pipeline\.yaml, .* graft report {tmp_path}/runs/first, or several"):
        write_page(tmp_path / "runs")
    with pytest.raises(GraftworkError, match="nowhere is no run, no reproduction and no sweep: there is no such directory"):
        write_page(tmp_path / "nowhere")


def test_the_manifest_of_a_run_follows_its_page(make_run, tmp_path: Path) -> None:
    from graftwork.checkpoint import sha256

    run = make_run(tmp_path / "run")
    (run / "manifest.json").write_text('{"report.html": "former", "results.json": "kept"}')
    page = write_page(run)
    assert (run / "manifest.json").read_text().split() == ["{", '"report.html":', f'"{sha256(page)}",', '"results.json":', '"kept"', "}"]
