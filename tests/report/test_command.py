"""`graft report`: what it writes where, what it refuses, and that it starts without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from graftwork import GraftworkError
from graftwork.cli import commands

Graft = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_of_a_run_goes_beside_it_and_is_named(make_run, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(here / "run")
    commands.report([Path("run")])
    assert capsys.readouterr().out == "report: run/report.html\n"
    assert (here / "run/report.html").is_file()


def test_out_and_json_say_where(make_run, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(here / "run")
    commands.report([Path("run")], out=Path("new/page.html"), as_json=True)
    assert json.loads(capsys.readouterr().out) == {"report": "new/page.html"}
    assert "<title>tiny" in (here / "new/page.html").read_text()
    assert not (here / "run/report.html").exists()


def test_of_several_runs_the_comparison_goes_into_the_working_directory(make_run, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(here / name) for name in "ab"]
    commands.report(runs)
    assert capsys.readouterr().out == "report: comparison.html\n"
    assert "<title>a and b" in (here / "comparison.html").read_text()


def test_a_page_of_ours_is_replaced_and_nothing_else_is(make_run, here: Path) -> None:
    runs = [make_run(here / name) for name in "ab"]
    commands.report(runs)
    commands.report(runs)
    for out, content in (("comparison.html", "<p>my own notes</p>"), ("mine.html", "")):
        (here / out).write_text(content)
        with pytest.raises(GraftworkError, match=f"{out} is not a page of graftwork: it is left as it is; choose another --out"):
            commands.report(runs, out=Path(out) if out == "mine.html" else None)
        assert (here / out).read_text() == content


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("page.txt", r"--out page\.txt: a page's file ends in \.html"),
        ("run", r"--out run: a page's file ends in \.html"),
        ("folder.html", r"--out folder\.html is a directory: name a file in it"),
        ("taken/new/page.html", r"--out taken/new/page\.html: taken is no directory"),
    ],
)
def test_a_place_that_takes_no_page_is_refused(make_run, here: Path, out: str, message: str) -> None:
    make_run(here / "run")
    (here / "folder.html").mkdir()
    (here / "taken").write_text("a file")
    with pytest.raises(GraftworkError, match=message):
        commands.report([Path("run")], out=Path(out))


def test_a_mistake_is_a_message_and_status_two(graft: Graft) -> None:
    done = graft("report", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "graft: nowhere is no run, no reproduction and no sweep: there is no such directory\n"


def test_no_run_at_all_is_a_usage_error(graft: Graft) -> None:
    done = graft("report")
    assert done.returncode == 2
    assert "Missing argument" in done.stderr
    assert "Traceback" not in done.stderr


WITHOUT_TORCH = """
import sys
from pathlib import Path

sys.modules["torch"] = None  # to import it is an error
from graftwork.cli.commands import report

single, other, reproduction, sweep = map(Path, sys.argv[1:])
for runs in ([single], [single, other], [reproduction], [sweep]):
    report(runs, out=None)
"""


def test_pages_are_written_without_torch(make_run, here: Path) -> None:
    """Of runs, comparisons, finished reproductions and sweeps; the verdict over the seeds so far needs the one that judges at the end."""
    runs = [make_run(here / name) for name in ("a", "b", "r/seed-0", "s/trial-000")]
    values = {"method_values": [0.75], "baseline_values": [0.5]}
    (here / "r/reproduction.json").write_text(json.dumps({"verdicts": [{**values, "verdict": "untested", "p_value": None}]}))
    (here / "s/sweep.yaml").write_text("name: tiny\n")
    folders = [str(runs[0]), str(runs[1]), str(here / "r"), str(here / "s")]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *folders], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("report: ") == 4
