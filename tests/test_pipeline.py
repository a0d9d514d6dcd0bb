"""Pipelines that run: what they measure, hand on and leave on disk; and that a seed decides everything."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import graftwork as gw

TRAIN = {"epochs": 10, "batch_size": 16, "optimizer": {"use": "sgd", "lr": 0.1}}
DOCUMENT = {
    "stages": {
        "first": {"dataset": "blobs", "model": "net", "objective": "fit", "train": TRAIN, "evaluate": ["hits"]},
        "second": {
            "dataset": {"from": "first"},
            "model": {"use": "net", "width": 4},
            "objective": {"use": "follow", "teacher": {"from": "first"}},
            "train": TRAIN,
            "evaluate": [{"use": "hits", "as": "held-out"}, {"use": "hits", "split": "train", "as": "seen"}],
        },
    }
}

pytestmark = pytest.mark.usefixtures("toy")


def run(document: dict, **settings: object) -> gw.Result:
    return gw.Pipeline.from_dict(document).run(device="cpu", **settings)


def test_a_stage_trains_and_measures() -> None:
    result = run(DOCUMENT)
    assert result.metrics["first/hits"] > 0.6
    assert set(result.metrics) == {"first/hits", "second/held-out/hits", "second/seen/hits"}


def test_a_metric_is_found_without_its_label_only_where_one_has_it() -> None:
    result = run(DOCUMENT)
    assert result.metric("first/hits") == result.metrics["first/hits"]
    with pytest.raises(gw.GraftworkError, match="several"):
        result.metric("second/hits")


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["stages"]["first"]["model"] = {"use": "net", "dropout": 0.3}
    one, two, other = (run(document, seed=seed).models["second"].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_a_referred_model_is_not_changed_by_the_stage_that_refers_to_it() -> None:
    alone = run({"stages": {"first": DOCUMENT["stages"]["first"]}})
    both = run(DOCUMENT)
    for key, value in alone.models["first"].state_dict().items():
        assert torch.equal(value, both.models["first"].state_dict()[key])


def test_training_on_from_a_stage_leaves_that_stages_model_alone() -> None:
    stages = {"first": DOCUMENT["stages"]["first"], "tuned": {**DOCUMENT["stages"]["first"], "model": {"from": "first"}}}
    result = run({"stages": stages})
    assert not torch.equal(result.models["first"].head.weight, result.models["tuned"].head.weight)


def test_a_run_directory_holds_all_of_the_run(tmp_path: Path) -> None:
    result = run(DOCUMENT, out=tmp_path / "run")
    folder = result.path
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"first", "second"}
    assert "plain" in rows[0]
    assert json.loads((folder / "results.json").read_text())["results"]["first"]["hits"] == result.metrics["first/hits"]
    saved = load_file(folder / "stages/first/model/model.safetensors")
    assert torch.equal(saved["head.weight"], result.models["first"].head.weight)
    for name, digest in json.loads((folder / "manifest.json").read_text()).items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert not list(folder.rglob("*.part"))
    assert "held-out/hits" in (folder / "report.html").read_text()


def test_a_run_directory_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(gw.GraftworkError, match="is not empty"):
        run(DOCUMENT, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix] == ["mine.txt"]


def test_one_stage_is_run_with_what_it_takes_from() -> None:
    result = run({"stages": {**DOCUMENT["stages"], "third": DOCUMENT["stages"]["first"]}}, stages=["second"])
    assert {name.partition("/")[0] for name in result.metrics} == {"first", "second"}


def test_an_override_reaches_into_shorthand_and_lists(tmp_path: Path) -> None:
    overrides = ["stages.first.objective.weight=2", "stages.second.evaluate.1.split=val", "stages.first.train.optimizer.lr=1e-3"]
    pipeline = gw.Pipeline.from_dict(DOCUMENT, overrides)
    assert pipeline.document.data["stages"]["first"]["objective"] == {"use": "fit", "weight": 2}
    plan = pipeline.assemble()
    assert plan.stages["second"].evaluate[1].values["split"] == "val"
    assert plan.stages["first"].train.optimizer.lr == pytest.approx(1e-3)


def test_components_are_made_from_python_with_their_parameters_checked() -> None:
    assert gw.model("net", width=5).num_features == 5
    teacher = gw.model("net")
    assert gw.objective("follow", teacher=teacher).teacher[0] is teacher
    assert gw.objective("follow", teacher={"use": "net", "width": 2}).teacher[0].num_features == 2
    with pytest.raises(gw.ConfigError, match=r"width: input should be greater than or equal to 1; found 0"):
        gw.model("net", width=0)
    with pytest.raises(gw.ConfigError, match=r'unknown parameter "widht" \(did you mean "width"\?\)'):
        gw.model("net", widht=3)


def test_evaluators_that_name_a_metric_alike_do_not_hide_each_other(toy: Path) -> None:
    more = "@hookimpl\ndef graftwork_evaluators():\n    yield Component('also-hits', 'toy_parts:Hits')\n"
    (toy / "toy_more.py").write_text(f"from graftwork import Component, hookimpl\n\n{more}")
    (toy / "graftwork_toy-1.0.dist-info/entry_points.txt").write_text("[graftwork.plugins]\ntoy = graftwork_toy\nmore = toy_more\n")
    stage = {**DOCUMENT["stages"]["first"], "evaluate": ["hits", {"use": "also-hits", "split": "train"}]}
    result = run({"stages": {"first": stage}})
    assert set(result.metrics) == {"first/hits", "first/also-hits/hits"}
