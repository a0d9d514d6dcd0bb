"""What the command line prints, and where it writes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from PIL import Image

from graftwork import ConfigError, DataError, GraftworkError, UnknownComponentError, registry
from graftwork.cli import commands

pytestmark = pytest.mark.usefixtures("toy")
Graft = Callable[..., "subprocess.CompletedProcess[str]"]

PIPELINE = """\
name: tiny
stages:
  a: {dataset: blobs, model: net, objective: fit, train: {steps: 4, log_every: 2}, evaluate: [hits]}
"""


def test_show_prints_summary_type_range_default_and_description(graft: Graft) -> None:
    shown = graft("show", "net").stdout
    for text in ("net  model of graftwork-toy", "A small net", "width", "int >= 1", "8", "hidden units", "dropout"):
        assert text in shown
    schema = json.loads(graft("show", "net", "--json").stdout)[0]["parameters"]
    assert schema["properties"]["width"]["minimum"] == 1


def test_show_lists_the_fields_of_a_parameter_that_is_a_record(graft: Graft) -> None:
    shown = " ".join(graft("show", "notes").stdout.split())
    assert "pace.stride │ int >= 1 │ 1 │ samples that are passed over" in shown
    assert "note │ artifact | None" in shown
    assert "note.type" not in shown


def test_show_names_what_a_reference_must_offer(graft: Graft) -> None:
    assert "model (Backbone)" in graft("show", "follow").stdout


def test_list_of_one_kind(graft: Graft) -> None:
    shown = graft("list", "evaluators").stdout
    assert "hits" in shown
    assert "blobs" not in shown


def test_run_prints_results_and_says_where_the_report_is(graft: Graft, tmp_path: Path) -> None:
    (tmp_path / "work/p.yaml").write_text(PIPELINE)
    done = graft("run", "p.yaml", "stages.a.train.steps=6", "--seed", "4", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "hits" in done.stdout
    report = Path(done.stdout.rsplit("report: ", 1)[1].strip())
    assert report.parts[0] == "runs"
    assert report.parts[1].startswith("tiny-")
    folder = tmp_path / "work" / report.parent
    assert (folder / "report.html").exists()
    assert json.loads((folder / "environment.json").read_text())["seed"] == 4
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, -1]


def test_json_is_all_that_run_prints(graft: Graft, tmp_path: Path) -> None:
    (tmp_path / "work/p.yaml").write_text(PIPELINE)
    done = graft("run", "p.yaml", "--out", "here", "--device", "cpu", "--json")
    assert set(json.loads(done.stdout)) == {"run", "report", "metrics"}
    assert done.stderr == ""


def test_schema_is_written_and_knows_parameters(graft: Graft, tmp_path: Path) -> None:
    assert graft("schema", "--out", "schema.json").returncode == 0
    schema = json.loads((tmp_path / "work/schema.json").read_text())
    follow = next(one for one in schema["$defs"]["objective"]["anyOf"] if one.get("title") == "follow")
    assert follow["properties"]["teacher"]["$ref"] == "#/$defs/model"
    assert follow["required"] == ["use", "teacher"]
    assert {"epochs", "steps", "validate"} <= set(schema["$defs"]["TrainConfig"]["properties"])


DRAWER = """
from graftwork import hookimpl


@hookimpl
def graftwork_dataset_figure(dataset, split):
    from matplotlib.figure import Figure

    return Figure(figsize=(len(dataset[split]), 1 + list(dataset).index(split)), dpi=10)
"""

REFUSER = """
from graftwork import hookimpl


@hookimpl(tryfirst=True)
def graftwork_dataset_figure(dataset, split):
    return None
"""


@pytest.fixture
def drawer(install: Callable[..., Path]) -> None:
    """A plugin that draws an empty page, as wide as a split has samples and as tall as its place; and one that draws nothing."""
    install("graftwork-refuser", REFUSER)
    install("graftwork-drawer", DRAWER)


def test_show_draws_a_dataset_with_its_parameters(graft: Graft, drawer: None, tmp_path: Path) -> None:
    done = graft("show", "blobs", "count=12", "seed=3", "--figure", "new/out.png", "--split", "val")
    assert (done.returncode, done.stdout, done.stderr) == (0, "new/out.png\n", "")
    with Image.open(tmp_path / "work/new/out.png") as drawn:
        assert drawn.size == (120, 20)
    assert [path.name for path in (tmp_path / "work/new").iterdir()] == ["out.png"]


def test_show_draws_the_first_split_and_says_so_in_json(drawer: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.show("toy/blobs", ["count=9"], figure=tmp_path / "a.PNG", as_json=True)
    assert json.loads(capsys.readouterr().out) == {"figure": str(tmp_path / "a.PNG"), "split": "train"}
    with Image.open(tmp_path / "a.PNG") as drawn:
        assert drawn.size == (90, 10)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "net"}, UnknownComponentError, 'no dataset "net" is installed; "net" is a model'),
        ({"name": "blob"}, UnknownComponentError, r'did you mean "blobs"\?'),
        ({"kind": "model"}, ConfigError, "--figure draws datasets; found --kind model"),
        ({"split": "trian"}, DataError, r'no split "trian" \(did you mean "train"\?\); the dataset has train, val, test'),
        ({"overrides": ["count=2"]}, ConfigError, "count: .*greater than or equal to 4; found 2\nparameters stand after the name"),
        ({"overrides": ["cuont=8"]}, ConfigError, r'unknown parameter "cuont" \(did you mean "count"\?\)'),
        ({"overrides": ["val"]}, ConfigError, 'override "val": .*=value\nparameters stand after the name: graft show blobs key=value'),
        ({"name": "image-folder"}, ConfigError, "is required\nparameters stand after the name: graft show image-folder key=value"),
        ({"figure": Path("out.xyz")}, ConfigError, r"--figure out\.xyz: a figure's file ends in one of .*\.png,.*\.svg"),
        ({"figure": Path("out")}, ConfigError, "--figure out: a figure's file ends in one of"),
    ],
)
def test_what_show_cannot_draw_is_told(
    drawer: None, arguments: dict[str, object], error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        commands.show(**{"name": "blobs", "figure": Path("out.png"), **arguments})
    assert not Path("out.png").exists()


def test_a_figure_that_cannot_be_written_leaves_nothing_behind(drawer: None, tmp_path: Path) -> None:
    (tmp_path / "out.png").mkdir()
    with pytest.raises(GraftworkError, match=r"out\.png cannot be written: Is a directory"):
        commands.show("blobs", ["count=4"], figure=tmp_path / "out.png")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(GraftworkError, match=r"file/out\.png cannot be written: "):
        commands.show("blobs", ["count=4"], figure=tmp_path / "file" / "out.png")
    assert (tmp_path / "file").read_text() == "kept"
    assert not list(tmp_path.glob("*.part"))


def test_without_a_plugin_that_draws_the_test_bed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def few(group: str) -> list[EntryPoint]:
        return [entry for entry in entry_points(group=group) if entry.dist and entry.dist.name in ("graftwork", "graftwork-toy")]

    monkeypatch.setattr(registry, "entry_points", few)
    registry.installed.cache_clear()
    with pytest.raises(GraftworkError, match="no installed plugin draws blobs: pip install graftwork-testbed"):
        commands.show("blobs", figure=tmp_path / "out.png")


@pytest.mark.parametrize(
    ("arguments", "named"), [({"overrides": ["count=8"]}, "count=8"), ({"split": "val"}, "--split val"), ({"overrides": ["val"]}, "val")]
)
def test_parameters_and_a_split_want_a_figure(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=f"^{named}: parameters and a split are for drawing a dataset; add --figure out.png"):
        commands.show("blobs", **arguments)


def test_a_bad_option_is_a_usage_error(graft: Graft) -> None:
    done = graft("run", "p.yaml", "--sed", "3")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
