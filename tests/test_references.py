"""What parts of a pipeline refer to: their own stage, artifacts in folders, models too dear to make twice, evaluators inside evaluators."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import graftwork as gw

pytestmark = pytest.mark.usefixtures("toy")

TRAIN = {"steps": 3, "batch_size": 16, "optimizer": {"use": "sgd", "lr": 0.1}}


def stage(**parts: Any) -> dict[str, Any]:
    return {"dataset": "blobs", "model": "net", **parts}


def run(stages: dict[str, Any], **settings: Any) -> gw.Result:
    return gw.Pipeline.from_dict({"stages": stages}).run(device="cpu", **settings)


def told(stages: dict[str, Any]) -> str:
    with pytest.raises(gw.PipelineError) as caught:
        gw.Pipeline.from_dict({"stages": stages}).assemble()
    return str(caught.value)


def test_an_evaluator_may_take_its_own_stages_trained_model() -> None:
    notes = {"use": "notes", "inner": "hits", "models": [{"from": "one"}, {"from": "zero"}]}
    stages = {"zero": stage(), "one": stage(objective="fit", train=TRAIN, evaluate=[notes])}
    metrics = run(stages).metrics
    assert (metrics["one/same-0"], metrics["one/same-1"]) == (1, 0)


def test_nothing_else_of_a_stage_may_refer_to_the_stage_itself() -> None:
    itself = "refers to itself; only what it evaluates with may take its own dataset and model"
    assert itself in told({"one": stage(objective={"use": "follow", "teacher": {"from": "one"}}, train=TRAIN)})
    assert itself in told({"one": stage(evaluate=[{"use": "notes", "inner": "hits", "note": {"from": "one/note"}}])})


def test_an_artifact_is_taken_from_the_folder_that_a_run_left(tmp_path: Path) -> None:
    made = {"use": "notes", "inner": "hits", "models": [{"from": "one"}, {"from": "one"}]}
    run({"one": stage(evaluate=[made])}, out=tmp_path / "run")
    folder = tmp_path / "run/stages/one/notes/note"
    assert run({"one": stage(evaluate=[{"use": "notes", "inner": "hits", "note": {"load": str(folder)}}])}).metrics["one/noted"] == 2
    assert gw.evaluator("notes", inner="hits", note={"load": str(folder)}).note.type == "note"


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        ({"load": "nowhere"}, "stages.one.evaluate.0.note.load: nowhere holds no artifact"),
        ({"load": "nowhere", "device": "cpu"}, "nothing else stands beside it"),
        ({"load": 3}, "`load` names the folder of an artifact"),
        ("note", "an artifact is a mapping with either `from` or `load`"),
        ({"use": "note"}, "an artifact is a mapping with either `from` or `load`"),
    ],
)
def test_an_artifact_that_cannot_be_had_is_told_before_anything_runs(note: Any, expected: str) -> None:
    assert expected in told({"one": stage(evaluate=[{"use": "notes", "inner": "hits", "note": note}])})


def test_only_artifacts_are_loaded_from_folders() -> None:
    assert "a model is a name, or a mapping with either `use` or `from`" in told({"one": stage(model={"load": "folder"})})


def test_a_deferred_model_is_made_once_by_the_run_and_not_by_assembly() -> None:
    pipeline = gw.Pipeline.from_dict(
        {"stages": {"one": stage(model="dear", evaluate=["hits"]), "two": stage(model={"from": "one"}, evaluate=["hits"])}}
    )
    pipeline.assemble()
    dear = sys.modules["toy_parts"].Dear
    assert dear.made == 0
    pipeline.run(device="cpu")
    assert dear.made == 1


def test_a_split_of_an_evaluator_inside_another_is_checked_where_it_is_given() -> None:
    notes = {"use": "notes", "inner": {"use": "hits", "split": "tst"}}
    assert 'stages.one.evaluate.0.inner.split: split is "tst", which the dataset lacks (did you mean "test"?)' in told(
        {"one": stage(evaluate=[notes])}
    )


def test_a_wrapper_that_passes_its_model_on_keeps_the_checks_of_evaluators() -> None:
    def wrapped(**settings: Any) -> dict[str, Any]:
        objective = {"use": "through", "base": "fit", **settings}
        return {"one": stage(model="plain", objective=objective, train=TRAIN, evaluate=[{"use": "notes", "inner": "hits"}])}

    unmet = 'evaluator "notes" needs a model that offers Backbone'
    assert unmet in told(wrapped())
    assert unmet not in told(wrapped(own_export=True))


def test_stages_that_differ_in_their_seed_alone_draw_apart_and_one_of_seed_n_is_a_run_of_seed_n() -> None:
    part = stage(objective="fit", train=TRAIN)
    found = run({"zero": part, "again": part, "three": {**part, "seed": 3}}).models
    alone = run({"zero": part}, seed=3).models
    weights = {name: model.head.weight for name, model in found.items()}
    assert torch.equal(weights["zero"], weights["again"])
    assert not torch.equal(weights["zero"], weights["three"])
    assert torch.equal(alone["zero"].head.weight, weights["three"])
