"""A run writes inside its own directory, and what others have named reaches the terminal as text."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

import graftwork as gw
from graftwork import Artifact, Report
from graftwork.cli import display, progress
from graftwork.cli.terminal import literal, printable
from graftwork.document import Document
from graftwork.kinds.evaluator import Figure, Table
from graftwork.pipeline import Pipeline
from graftwork.run import Run

OUTWARD = ["../../escaped", "/tmp/graftwork-escaped", "..", "a/../../../escaped"]
HOSTILE = "[bold]loud[/] [link=http://x]y[/link] \x1b[2J\x1b]0;title\x07 \x9b31m \u202egnp \r\b"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "around" / "out"


@pytest.mark.parametrize("name", OUTWARD)
@pytest.mark.parametrize("what", ["tables", "figures", "artifacts"])
def test_what_an_evaluator_names_stays_in_its_folder(name: str, what: str, out: Path, tmp_path: Path) -> None:
    from matplotlib.figure import Figure as Drawing

    made = {
        "tables": {name: Table(["a"], [[1]])},
        "figures": {name: Figure(Drawing(), "caption")},
        "artifacts": {name: Artifact("a", {"x": torch.ones(1)})},
    }
    run = Run(out, "toy", 0, torch.device("cpu"), {"stages": {}})
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(out)}
    if name.endswith("..") and what != "artifacts":  # "...json" is a name like any other
        run.add_report("s", "label", Report({}, **{what: made[what]}), "")
    else:
        with pytest.raises(gw.GraftworkError, match="no name of a file in its folder"):
            run.add_report("s", "label", Report({}, **{what: made[what]}), "")
    run.finish("failed")
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(out)} == before
    assert not list(Path("/tmp").glob("graftwork-escaped*"))


def test_a_folder_that_is_a_link_out_of_the_run_is_not_written_through(out: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    run = Run(out, "toy", 0, torch.device("cpu"), {"stages": {}})
    (out / "stages" / "s").mkdir(parents=True)
    (out / "stages" / "s" / "label").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(gw.GraftworkError, match="leads out of the run directory"):
        run.add_report("s", "label", Report({}, tables={"t": Table(["a"], [[1]])}), "")
    run.finish("failed")
    assert list((tmp_path / "elsewhere").iterdir()) == []


BAD = ["..", ".", "../x", "/x", "a/b", "", " ", "x.part", "a" * 101, "\x1b[2J", "é\x00", ".hidden", "-rf", "a\n"]


@pytest.mark.parametrize("name", BAD)
def test_no_stage_label_or_pipeline_has_a_name_that_is_no_plain_folder(toy: Path, name: str) -> None:
    plain: dict[str, Any] = {"dataset": "blobs", "model": "net"}
    with pytest.raises(gw.PipelineError, match="a stage's name is letters"):
        Pipeline.from_dict({"stages": {name: plain}}).assemble()
    with pytest.raises(gw.PipelineError, match="`as` is a label of letters"):
        Pipeline.from_dict({"stages": {"s": {**plain, "evaluate": [{"use": "hits", "as": name}]}}}).assemble()
    if name != "x.part":
        with pytest.raises(gw.PipelineError, match="name: "):
            Pipeline.from_dict({"name": name, "stages": {"s": plain}}).assemble()


def test_a_label_is_not_the_name_of_another_file_of_the_stage(toy: Path) -> None:
    for label in ("stage.json", "checkpoints", "model"):
        with pytest.raises(gw.PipelineError, match="names something else in the stage's folder"):
            Pipeline.from_dict({"stages": {"s": {"dataset": "blobs", "model": "net", "evaluate": {"use": "hits", "as": label}}}}).assemble()


# -- the terminal --------------------------------------------------------------------------------------------------------------


def harmless(shown: str) -> bool:
    return all(one.isprintable() or one == "\n" for one in shown)


def test_control_characters_are_written_out_and_the_rest_stays() -> None:
    assert printable("é 日本\n") == "é 日本\n"
    assert printable("\x1b[2J\x9b\u202e\r\ud800\t") == "\\x1b[2J\\x9b\\u202e\\r\\ud800\\t"
    assert literal("[bold]x") == "\\[bold]x"


def test_what_a_run_and_a_claim_call_things_is_shown_as_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(display, "console", Console(emoji=False, highlight=False, width=400, color_system=None))
    display.result_table({f"{HOSTILE}/{HOSTILE}": 0.5})
    verdict = SimpleNamespace(
        method=HOSTILE, baseline=HOSTILE, direction="higher", baseline_values=[1.0], method_values=[2.0], p_value=None, verdict="untested"
    )
    found: Any = SimpleNamespace(recipe=HOSTILE, claim=HOSTILE, verdicts=[verdict], seeds=[0], paper={HOSTILE: HOSTILE})
    display.reproduction_table(found)
    shown = capsys.readouterr().out
    assert harmless(shown)
    assert shown.count("[bold]loud[/] [link=http://x]y[/link] \\x1b[2J") >= 6


def test_the_progress_of_a_run_shows_names_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = progress.Progress()
    watcher._console.width = 400
    with watcher:
        watcher.stage_started(HOSTILE, 0, 1)
        watcher.phase(HOSTILE, HOSTILE)
        watcher.tick(HOSTILE, 1, 2, {"loss": 1.0})
        watcher.note(HOSTILE, HOSTILE)
        watcher.stage_finished(HOSTILE, {HOSTILE: 1.0})
    shown = capsys.readouterr().err
    assert harmless(shown)
    assert shown.count("[bold]loud[/] [link=http://x]y[/link] \\x1b[2J") == 5


def test_a_message_on_the_command_line_carries_no_command_of_the_terminal(
    tmp_path: Path, graft: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "p.yaml").write_text('stages:\n  "\\e[31m[bold]\\u202e": {dataset: "\\e]0;x\\a"}\n')
    done = graft("run", str(tmp_path / "p.yaml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert harmless(done.stderr)
    assert "\\x1b[31m[bold]\\u202e" in done.stderr


def test_an_override_in_one_place_leaves_what_an_alias_shared_alone() -> None:
    document = Document.parse("a: &one {x: 1}\nb: *one\n")
    document.override(["a.x=2"])
    assert document.data == {"a": {"x": 2}, "b": {"x": 1}}
