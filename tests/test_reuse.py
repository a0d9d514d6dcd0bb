"""Finished stages are taken from other runs where nothing changed, and run again, saying why, where something did."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import graftwork as gw
from graftwork.reuse import changes
from graftwork.run import Observer

TRAIN = {"epochs": 3, "batch_size": 16, "log_every": 4, "optimizer": {"use": "sgd", "lr": 0.1}}
DOCUMENT: dict[str, Any] = {
    "name": "shared",
    "stages": {
        "first": {
            "dataset": "blobs",
            "model": {"use": "net", "dropout": 0.2},
            "objective": "fit",
            "train": dict(TRAIN),
            "evaluate": [{"use": "notes", "inner": "hits"}],
        },
        "second": {
            "dataset": {"from": "first"},
            "model": {"use": "net", "width": 4},
            "objective": {"use": "follow", "teacher": {"from": "first"}},
            "train": dict(TRAIN),
            "evaluate": ["hits"],
        },
    },
}

pytestmark = pytest.mark.usefixtures("toy")


class Heard(Observer):
    def __init__(self) -> None:
        self.notes: dict[str, str] = {}
        self.phases: list[tuple[str, str]] = []

    def note(self, stage: str, text: str) -> None:
        self.notes[stage] = text

    def phase(self, stage: str, phase: str) -> None:
        self.phases.append((stage, phase))


Go = Callable[..., tuple[gw.Result, Heard]]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Go:
    """go(name, "dotted=override", ...): run into a folder of that name, with what earlier calls left; the result and what was said."""
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "cache"))

    def call(name: str, *overrides: str, document: dict[str, Any] = DOCUMENT, **settings: Any) -> tuple[gw.Result, Heard]:
        heard = Heard()
        pipeline = gw.Pipeline.from_dict(document, overrides)
        return pipeline.run(tmp_path / name, device="cpu", observer=heard, reuse=True, **settings), heard

    return call


def rows(result: gw.Result) -> list[dict[str, Any]]:
    assert result.path is not None
    lines = (result.path / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]


def weights(result: gw.Result, stage: str) -> dict[str, torch.Tensor]:
    return dict(result.models[stage].state_dict())


def test_a_run_of_what_was_run_before_runs_nothing_and_is_the_same(go: Go) -> None:
    one, _ = go("one")
    two, heard = go("two")
    assert heard.phases == []
    assert all("is taken from" in heard.notes[stage] and "one/stages" in heard.notes[stage] for stage in ("first", "second"))
    assert two.metrics == one.metrics
    assert rows(two) == rows(one)
    for stage in ("first", "second"):
        assert all(torch.equal(a, b) for a, b in zip(weights(one, stage).values(), weights(two, stage).values(), strict=True))
    assert one.path is not None
    assert two.path is not None
    for name in json.loads((one.path / "stages/first/stage.json").read_text())["sums"]:
        assert (two.path / "stages/first" / name).read_bytes() == (one.path / "stages/first" / name).read_bytes()


def test_without_being_asked_every_stage_runs(go: Go, tmp_path: Path) -> None:
    go("one")
    heard = Heard()
    gw.Pipeline.from_dict(DOCUMENT).run(tmp_path / "two", device="cpu", observer=heard)
    assert ("first", "train") in heard.phases


def test_what_changed_runs_with_all_that_takes_from_it_and_says_why(go: Go) -> None:
    go("one")
    _, heard = go("two", "stages.first.train.epochs=4")
    assert heard.notes == {"first": "runs: train.epochs was 3 and is 4", "second": 'runs: stage "first" is another'}
    _, heard = go("three", "stages.second.model.width=5")
    assert "is taken from" in heard.notes["first"]
    assert "model.width was 4 and is 5" in heard.notes["second"]


def test_what_only_measures_is_no_reason_to_train_again(go: Go) -> None:
    one, _ = go("one")
    document = copy.deepcopy(DOCUMENT)
    document["stages"]["first"]["evaluate"].append({"use": "hits", "split": "val", "as": "held"})
    two, heard = go("two", document=document)
    assert heard.phases == [("first", "held")]
    assert "runs what is new; model, train, notes come from" in heard.notes["first"]
    assert {**one.metrics, "first/held/hits": two.metrics["first/held/hits"]} == two.metrics
    fresh = gw.Pipeline.from_dict(document).run(device="cpu")
    assert two.metrics == fresh.metrics


def test_an_evaluator_that_was_dropped_leaves_nothing_behind(go: Go) -> None:
    go("one")
    two, heard = go("two", "stages.first.evaluate=[]")
    assert heard.phases == []
    assert two.path is not None
    assert not (two.path / "stages/first/notes").exists()
    assert not any(name.startswith("first/") for name in two.metrics)


@pytest.mark.parametrize(("override", "why"), [("seed=1", "seed was 0 and is 1"), ("stages.first.seed=2", "seed was 0 and is 2")])
def test_another_seed_is_another_stage(go: Go, override: str, why: str) -> None:
    go("one")
    _, heard = go("two", override)
    assert heard.notes["first"] == f"runs: {why}"


def test_another_version_of_its_distribution_runs_a_stage_again(go: Go, toy: Path) -> None:
    go("one")
    (toy / "graftwork_toy-1.0.dist-info").rename(toy / "graftwork_toy-1.1.dist-info")
    metadata = toy / "graftwork_toy-1.1.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    gw.reuse._version.cache_clear()
    gw.reuse._with_requirements.cache_clear()
    _, heard = go("two")
    assert heard.notes["first"] == "runs: distribution graftwork-toy was 1.0 and is 1.1"


def test_other_code_of_a_distribution_that_is_installed_in_place_runs_a_stage_again(go: Go, toy: Path) -> None:
    (toy / "graftwork_toy-1.0.dist-info/direct_url.json").write_text('{"dir_info": {"editable": true}, "url": "file:///x"}')
    (toy / "toy_parts").mkdir()
    (toy / "toy_parts.py").rename(toy / "toy_parts/__init__.py")
    gw.reuse._version.cache_clear()
    gw.reuse._with_requirements.cache_clear()
    go("one")
    code = toy / "toy_parts/__init__.py"
    code.write_text(code.read_text() + "\n# another line\n")
    gw.reuse._version.cache_clear()
    gw.reuse._with_requirements.cache_clear()
    _, heard = go("two")
    assert "distribution graftwork-toy was 1.0, code " in heard.notes["first"]


def test_a_stage_whose_files_were_changed_is_not_taken(go: Go) -> None:
    one, _ = go("one")
    assert one.path is not None
    file = one.path / "stages/first/model/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    _, heard = go("two")
    assert ("first", "train") in heard.phases


def test_a_run_that_is_gone_is_no_loss(go: Go, tmp_path: Path) -> None:
    go("one")
    (tmp_path / "one").rename(tmp_path / "moved")
    _, heard = go("two")
    assert ("first", "train") in heard.phases


def test_other_content_of_an_artifact_that_is_loaded_is_a_change(go: Go, tmp_path: Path) -> None:
    folder = tmp_path / "note"
    evaluate = f"stages.second.evaluate=[{{use: notes, inner: hits, note: {{load: {folder}}}}}]"
    gw.Artifact("note", {"number": torch.tensor(3)}).save(folder)
    one, _ = go("one", evaluate)
    gw.Artifact("note", {"number": torch.tensor(10)}).save(folder)
    two, heard = go("two", evaluate)
    assert heard.phases == [("second", "notes")]
    assert (one.metrics["second/noted"], two.metrics["second/noted"]) == (3, 10)


def test_an_index_that_cannot_be_written_is_told_of_and_changes_nothing(go: Go, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    one, heard = go("one")
    assert "is not remembered for other runs" in heard.notes["first"]
    assert one.metrics


def test_changes_are_told_in_words() -> None:
    former = {"train.steps": 1, "gone": 2, "file a.csv": "x", "stage base": "k", "training": "k"}
    now = {"train.steps": 2, "new": [3], "file a.csv": "y", "stage base": "l", "training": "l"}
    expected = ["train.steps was 1 and is 2", "new is [3]", "a.csv has other content", 'stage "base" is another', "the training is another"]
    assert changes(former, now) == [*expected, "gone was 2"]
