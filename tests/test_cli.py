"""What the command line prints, and where it writes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

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


def test_a_bad_option_is_a_usage_error(graft: Graft) -> None:
    done = graft("run", "p.yaml", "--sed", "3")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
