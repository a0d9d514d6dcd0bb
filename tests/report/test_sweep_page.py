"""The page of a sweep: every setting, the best, what failed, ways to the trials' pages."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from graftwork import GraftworkError
from graftwork.report import write_comparison, write_page
from graftwork.spec import SweepSpec
from graftwork.sweep_results import Sweep
from graftwork.trials import Outcome, Trial

EVIL = "<script>window.ran=1</script>"
RATE, WIDTH = "stages.method.train.optimizer.lr", "stages.method.model.width"
Given = Mapping[str, float | str | None]
"""trial -> its accuracy; why it failed, in words; None while it has not ended."""


@pytest.fixture
def sweep(make_run: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """sweep({trial: accuracy or message or None}, ...): a sweep's directory; the table is written by what writes it in a real one."""

    def make(given: Given, direction: str = "higher", name: str = "sw", overrides: Mapping[str, Any] | None = None) -> Path:
        out = tmp_path / name
        numbers = {trial: int(re.match(r"trial-(\d+)", trial)[1]) for trial in given}  # type: ignore[index]
        settings = {trial: overrides or {RATE: 0.1 * (1 + n), WIDTH: 8 * (1 + n)} for trial, n in numbers.items()}
        trials = [Trial(one, {}, n, out / one, settings[one]) for n, one in enumerate(given)]
        found = Sweep.planned("tiny", SweepSpec(metric="method/accuracy", direction=direction), trials)
        for trial in trials:
            value = given[trial.name]
            if isinstance(value, float):
                make_run(out / trial.name, results={"method": {"accuracy": value}}, claim=None)
                found.add(Outcome(trial, "finished", {"method/accuracy": value}, seconds=75.0))
            elif isinstance(value, str):
                make_run(out / trial.name, results={"method": {}}, claim=None, status="failed", unfinished=("method",))
                found.add(Outcome(trial, "failed", message=value, seconds=2.0))
        out.mkdir(exist_ok=True)
        found.write(out)
        (out / "sweep.yaml").write_text("name: tiny\n")
        return out

    return make


def links(page: Path) -> list[Path]:
    """The pages that a page leads to."""
    return [(page.parent / unquote(link)).resolve() for link in re.findall(r'<a href="([^"#]+)"', page.read_text())]


def test_settings_stand_best_first_with_their_values_state_and_time(sweep, words) -> None:
    said = words(write_page(sweep({"trial-000": 0.5, "trial-001": 0.75, "trial-002": 0.25})))
    assert "Sweep over 3 settings tiny finished best: trial-001 with" in said
    assert f"{RATE}=0.2 , {WIDTH}=16 : method/accuracy 0.75" in said
    assert "The best first, by method/accuracy: higher is better setting method/accuracy lr width state time share of the longest" in said
    rows = "trial-001 best 0.75 0.2 16 finished 1 min 15 s trial-000 0.5 0.1 8 finished 1 min 15 s trial-002 0.25 0.3 24 finished"
    assert rows in said
    assert f"lr is {RATE} . width is {WIDTH} ." in said
    assert "--resume" not in said


def test_a_drawn_value_is_short_in_the_table_and_whole_where_it_is_to_be_copied(sweep, words) -> None:
    said = words(write_page(sweep({"trial-000": 0.5}, overrides={RATE: 0.0123456789, WIDTH: None, "stages.a.x": [1, "b"]})))
    assert f"{RATE}=0.0123456789 , {WIDTH}=null , stages.a.x=[1, " in said
    assert 'trial-000 best 0.5 0.012346 null [1, "b"] finished' in said


def test_where_lower_is_better_the_lowest_is_best(sweep, words) -> None:
    said = words(write_page(sweep({"trial-000": 0.5, "trial-001": 0.75, "trial-002": 0.25}, direction="lower")))
    assert "finished best: trial-002 with" in said
    assert said.index("trial-002 best") < said.index("trial-000 0.5") < said.index("trial-001 0.75")


def test_keys_of_one_ending_are_told_apart(sweep, words) -> None:
    keys = {"stages.a.train.lr": 1, "stages.b.train.lr": 2}
    assert "setting method/accuracy a.train.lr b.train.lr state" in words(write_page(sweep({"trial-000": 0.5}, overrides=keys)))


def test_what_failed_stands_last_with_its_reason_and_a_page_of_its_own(sweep, words) -> None:
    page = write_page(sweep({"trial-000": "RuntimeError: no good", "trial-001": 0.75}))
    said = words(page)
    assert "tiny finished best: trial-001" in said
    assert "Runs that did not finish, and why run state why trial-000 failed RuntimeError: no good" in said
    assert said.index("trial-001 best") < said.index("trial-000 \N{EN DASH} 0.1 8 failed 2.00 s")
    assert "This run failed" in words(page.parent / "trial-000/report.html")


def test_with_nothing_finished_there_is_no_best(sweep, words) -> None:
    said = words(write_page(sweep({"trial-000": "no good", "trial-001": "no good either"})))
    assert "Sweep over 2 settings tiny finished No setting has finished." in said
    assert "best:" not in said


def test_while_trials_wait_or_run_the_page_says_so_and_how_to_go_on(sweep, make_run, words) -> None:
    folder = sweep({"trial-000": 0.5, "trial-001": None, "trial-002": None})
    make_run(folder / "trial-001", status=None, unfinished=("method",), results={"method": {}})
    said = words(write_page(folder))
    assert "Sweep over 3 settings tiny unfinished best: trial-000" in said
    assert f"1 of 3 settings have ended. An interrupted sweep goes on with: graft sweep --resume {folder}" in said
    assert "trial-001 \N{EN DASH} 0.2 16 unfinished" in said
    assert "trial-002 \N{EN DASH} 0.3 24 waiting" in said
    assert folder / "trial-001/report.html" in links(folder / "report.html")


def test_before_any_trial_has_ended_the_trials_folders_are_what_there_is(sweep, make_run, words) -> None:
    folder = sweep({"trial-000": None, "trial-001": None})
    (folder / "sweep.json").unlink()
    make_run(folder / "trial-001", status=None, unfinished=("method",), results={"method": {}})
    (folder / "trial-001/trial.json").write_text(json.dumps({"name": "trial-001", "seed": 0, "overrides": {WIDTH: 16}}))
    said = words(write_page(folder))
    assert "Sweep over 1 setting sw unfinished No setting has finished yet." in said
    assert "trial-001 \N{EN DASH} 16 unfinished" in said


def test_of_several_seeds_the_mean_ranks_and_each_seed_has_its_page(sweep, words) -> None:
    given = {"trial-000/seed-3": 0.5, "trial-000/seed-4": 0.7, "trial-001/seed-3": 0.75, "trial-001/seed-4": "died"}
    page = write_page(sweep(given))
    said = words(page)
    assert "best: trial-000 with" in said
    assert "trial-000 best 0.6 ± 0.1 0.1 8 finished 2 min 30 s seed 3 of trial-000 , seed 4 of trial-000" in said
    assert "trial-001 0.75 0.2 16 failed" in said  # its one value is no mean over the seeds, and does not rank it
    assert set(links(page)) == {page.parent / trial / "report.html" for trial in given}
    assert all(path.is_file() for path in links(page))


def test_links_lead_from_wherever_the_page_stands_to_pages_that_are_there(sweep, tmp_path: Path) -> None:
    folder = sweep({"trial-000": 0.5, "trial-001": 0.75}, name="of #1 & 100%")
    for page in (write_page(folder), write_page(folder, tmp_path / "else/where.html")):
        assert sorted(links(page)) == [folder / "trial-000/report.html", folder / "trial-001/report.html"]
        assert all(path.is_file() for path in links(page))


def test_the_page_of_a_finished_trial_is_left_as_it_is(sweep) -> None:
    folder = sweep({"trial-000": 0.5})
    (folder / "trial-000/report.html").write_text("former")
    write_page(folder)
    assert (folder / "trial-000/report.html").read_text() == "former"


def test_the_picture_stands_in_the_page(sweep, picture) -> None:
    folder = sweep({"trial-000": 0.5})
    assert "data:image/png" not in write_page(folder).read_text()
    (folder / "sweep.png").write_bytes(picture(40, 30))
    page = write_page(folder).read_text()
    assert re.search(r'<img src="data:image/png;base64,[^"]+" width="40" height="30" alt="method/accuracy of each setting', page)


def test_curves_of_the_best_eight_are_drawn_over_each_other(sweep) -> None:
    page = write_page(sweep({f"trial-{n:03d}": n / 100 for n in range(10)})).read_text()
    labels = re.findall(r'<span class="label">([^<]*)<', page)
    assert labels == [f"trial-{n:03d}: {0.1 * (1 + n):.5g}, {8 * (1 + n)}" for n in range(9, 1, -1)]
    assert "method / loss" in page
    assert "A line a setting, of the 8 best." in page


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"settings": 3}',
        '{"settings": [3, {"name": "../../etc"}, {"name": "trial-000", "trials": [{"name": "../trial-000"}, 4]}]}',
        '{"settings": [{"name": "trial-000", "overrides": [1], "mean": "x", "trials": [{"name": "trial-000", "metrics": []}]}]}',
        '{"settings": [{"name": "trial-000", "trials": [{"name": "trial-000", "seconds": "x"}]}]}',
        '{"metric": "m/a", "settings": [{"name": "trial-000", "mean": 1e999, "trials": [{"name": "trial-000", "metrics": {"m/a": NaN}}]}]}',
    ],
)
def test_a_table_of_any_content_gives_a_page_that_leads_nowhere_else(sweep, content: str) -> None:
    folder = sweep({"trial-000": 0.5})
    (folder / "sweep.json").write_text(content)
    assert links(write_page(folder)) == [folder / "trial-000/report.html"]


def test_a_setting_has_its_own_trials_alone(sweep) -> None:
    folder = sweep({"trial-000": 0.5, "trial-001": 0.75})
    trials = [{"name": "trial-000", "status": "finished"}, {"name": "trial-001", "status": "finished"}]
    (folder / "sweep.json").write_text(json.dumps({"settings": [{"name": "trial-000", "trials": trials}]}))
    assert links(write_page(folder)) == [folder / "trial-000/report.html"]


def test_a_trial_that_cannot_be_read_is_named_and_the_others_stand(sweep, words) -> None:
    folder = sweep({"trial-000": 0.5, "trial-001": 0.75})
    (folder / "trial-001/pipeline.yaml").write_text("stages: [")
    page = write_page(folder)
    assert "What could not be read trial-001 has no page:" in words(page)
    assert links(page) == [folder / "trial-000/report.html"]


def test_a_link_that_leads_out_of_the_sweep_is_not_followed(sweep, make_run, tmp_path: Path) -> None:
    folder = sweep({"trial-000": 0.5})
    make_run(tmp_path / "outside", claim=None, results={"method": {"accuracy": 0.9}})
    shutil.rmtree(folder / "trial-000")
    (folder / "trial-000").symlink_to(tmp_path / "outside")
    assert links(write_page(folder)) == []
    assert not (tmp_path / "outside/report.html").exists()


def test_html_in_settings_and_messages_is_text(sweep, words) -> None:
    page = write_page(sweep({"trial-000": EVIL, "trial-001": 0.5}, overrides={EVIL: EVIL}))
    assert EVIL not in page.read_text()
    assert words(page).count(EVIL) >= 5


def test_a_sweep_among_runs_to_compare_is_refused_and_its_trials_are_pointed_at(sweep, make_run, tmp_path: Path) -> None:
    folder = sweep({"trial-000": 0.5})
    with pytest.raises(GraftworkError, match=rf"{folder} is a sweep: compare its runs, such as {folder}/trial-000, or give it alone"):
        write_comparison([make_run(tmp_path / "run"), folder], tmp_path / "c.html")
