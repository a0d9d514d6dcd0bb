"""The pages as a browser shows them: Debian's Chromium, headless. Skipped where there is none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from graftwork.report import write_comparison, write_page

OUTCOMES = [(0, "finished", 0.5), (1, "failed", None)]
EVIL = "</script><script>window.ran=1</script><img src=x onerror=window.ran=1>"


@pytest.fixture
def page_of(make_run, evaluated, tmp_path: Path) -> Path:
    run = make_run(tmp_path / "run")
    evaluated(run, "method", "hits", table={"columns": ["n", "share"], "rows": [[n, 0.5] for n in range(20)], "caption": ""})
    return write_page(run)


@pytest.fixture
def sweep_of(make_run, picture, tmp_path: Path) -> Path:
    """A sweep's page, with a long value, a picture wider than a phone, and one setting that failed."""
    folder = tmp_path / "sweep"
    keys = {"stages.method.train.optimizer.lr": 0.01, "stages.method.dataset.path": "a/long/path/" * 8}
    settings = [{"name": f"trial-00{n}", "overrides": keys, "status": status, "mean": mean} for n, status, mean in OUTCOMES]
    for one in settings:
        make_run(folder / one["name"], status=one["status"])
        one["trials"] = [{"name": one["name"], "status": one["status"], "message": "" if one["mean"] else "word " * 60, "seconds": 2.0}]
    (folder / "sweep.json").write_text(json.dumps({"name": "tiny", "metric": "method/accuracy", "settings": settings}))
    (folder / "sweep.png").write_bytes(picture(1500, 400))
    return write_page(folder)


def test_the_page_of_a_sweep_is_as_readable(visit, sweep_of: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit(sweep_of, 360, color_scheme="dark")
    found = axe.run(page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert (page.said, page.asked) == ([], [])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_either_scheme(visit, page_of: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(visit(page_of, 360, color_scheme=scheme)).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []


def test_the_schemes_have_different_grounds(visit, page_of: Path) -> None:
    grounds = [visit(page_of, color_scheme=s).evaluate("getComputedStyle(document.body).backgroundColor") for s in ("light", "dark")]
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 23, 26)"]


def test_a_phone_never_scrolls_sideways_and_nothing_is_asked_or_complained_of(visit, make_run, page_of: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / ("other-" + "long" * 20), seed=1)
    for path in (page_of, write_comparison([page_of.parent, other], tmp_path / "c.html")):
        page = visit(path, 360)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert (page.said, page.asked) == ([], [])


def test_tab_reaches_every_control_with_a_visible_focus_and_enter_opens_details(visit, page_of: Path) -> None:
    page = visit(page_of, 360)
    wanted = page.evaluate("""() => [...document.querySelectorAll('a, summary, input:not([type=radio]), input:checked, [tabindex="0"]')]
        .filter((e) => e.checkVisibility()).map((e, i) => (e.dataset.n = i))""")
    reached = set()
    for _ in range(len(wanted) + 5):
        page.keyboard.press("Tab")
        number, outline = page.evaluate("[document.activeElement.dataset.n, getComputedStyle(document.activeElement).outlineStyle]")
        if number is not None:
            reached.add(int(number))
            assert outline != "none"
    assert reached == set(wanted)
    closed = page.locator("details:not([open]) > summary").first.element_handle()
    closed.focus()
    page.keyboard.press("Enter")
    assert closed.evaluate("(e) => e.parentElement.open")


def test_the_slider_reads_the_logged_values(visit, page_of: Path) -> None:
    page = visit(page_of)
    page.locator("input[type=range]").first.focus()
    page.keyboard.press("Home")
    assert page.locator(".legend .value").first.inner_text() == "2"  # 2 / (1 + step) at step 0
    page.keyboard.press("ArrowRight")
    assert page.locator(".legend .value").first.inner_text() == "1"


def test_without_a_script_curves_are_drawn_and_change_scale(visit, page_of: Path) -> None:
    page = visit(page_of, java_script_enabled=False)
    assert page.locator(".chart .linear").first.is_visible()
    page.locator("#scale-log").check()
    assert page.locator(".chart .log").first.is_visible()
    assert not page.locator(".chart .linear").first.is_visible()


def test_html_in_names_captions_and_cells_does_not_run(visit, make_run, evaluated, logged, tmp_path: Path) -> None:
    rows = logged("method", 5, **{EVIL: lambda step: 1.0 + step})
    run = make_run(tmp_path / "run", results={"method": {EVIL: 0.5}}, rows=rows, claim={"text": EVIL, "compare": []})
    evaluated(run, "method", "hits", caption=EVIL, table={"columns": [EVIL], "rows": [[EVIL]], "caption": EVIL})
    page = visit(write_page(run))
    assert page.evaluate("window.ran") is None
    assert page.said == []
    assert page.locator(".chart figcaption").first.inner_text() == EVIL


def test_a_script_or_picture_that_got_in_all_the_same_is_stopped_by_the_policy(visit, page_of: Path) -> None:
    page_of.write_text(page_of.read_text().replace("</main>", "<script>window.ran=1</script><img src='http://127.0.0.1:9/x'></main>"))
    page = visit(page_of)
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in text for text in page.said)


def test_the_page_of_ten_thousand_steps_is_under_two_megabytes_and_opens_within_a_second(visit, make_run, logged, tmp_path: Path) -> None:
    metrics = {f"metric-{n}": lambda step, n=n: 1.5 + math.sin(step * (n + 1)) / (1 + step / 999) for n in range(8)}
    path = write_page(make_run(tmp_path / "run", rows=logged("method", 10_000, **metrics)))
    assert path.stat().st_size < 2_000_000
    took = [visit(path).evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") for _ in range(3)]
    assert 0 < min(took) < 1000
