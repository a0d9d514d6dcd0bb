"""`--profile`: traces of a few steps, which change nothing of a run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork import profile
from graftwork.errors import GraftworkError
from graftwork.profile import ACTIVE, WAIT, WARMUP, profiled_calls, profiled_steps
from graftwork.run import Observer

CPU = torch.device("cpu")


def train(stem: Path, steps: int) -> profile.Window:
    layer = nn.Linear(3, 2)
    with profiled_steps(stem, CPU) as window:
        for _ in range(steps):
            layer(torch.ones(4, 3)).sum().backward()
            window.step()
    return window


def steps_in(trace: dict[str, Any]) -> int:
    return len({event["name"] for event in trace["traceEvents"] if event.get("name", "").startswith("ProfilerStep#")})


def calls_of(found: dict[str, Any], name: str) -> int:
    return sum(one["calls"] for one in found["operators"] if one["name"] == name)


def test_a_training_is_profiled_over_its_window_however_long_it_is(tmp_path: Path) -> None:
    train(tmp_path / "train", 100)
    found = json.loads((tmp_path / "train.json").read_text())
    assert (found["steps"], found["skipped"]) == (ACTIVE, WAIT + WARMUP)
    assert calls_of(found, "aten::addmm") == ACTIVE
    assert steps_in(json.loads((tmp_path / "train.trace.json").read_text())) == ACTIVE
    assert "aten::addmm" in (tmp_path / "train.txt").read_text()
    own = [one["host_self_us"] for one in found["operators"]]
    assert own == sorted(own, reverse=True)


def test_a_training_that_ends_inside_the_window_leaves_what_was_recorded_and_a_shorter_one_nothing(tmp_path: Path) -> None:
    assert train(tmp_path / "some", WAIT + WARMUP + 2).written
    assert json.loads((tmp_path / "some.json").read_text())["steps"] == 2
    assert not train(tmp_path / "none", WAIT + WARMUP).written
    assert not list(tmp_path.glob("none*"))


def test_calls_are_counted_at_the_outermost_module_and_end_the_recording(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    with profiled_calls(tmp_path / "calls", CPU):
        torch.ones(5).sin()  # before the first call: not recorded
        for _ in range(20):
            model(torch.ones(4, 3))
    found = json.loads((tmp_path / "calls.json").read_text())
    assert found["steps"] == ACTIVE
    assert calls_of(found, "aten::addmm") == 2 * ACTIVE
    assert calls_of(found, "aten::sin") == 0
    assert not model._forward_hooks


def test_a_failure_leaves_no_profile_no_hook_and_no_running_profiler(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    for around in (profiled_calls, profiled_steps):
        with pytest.raises(RuntimeError, match="shapes"), around(tmp_path / "failed", CPU):
            model(torch.ones(1, 7))
    assert not list(tmp_path.iterdir())
    with profiled_calls(tmp_path / "next", CPU) as window:
        model(torch.ones(1, 3))
    assert window.written


def test_a_large_trace_is_compressed_and_replaces_a_former_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "train", 10)
    monkeypatch.setattr(profile, "LARGE", 1000)
    train(tmp_path / "train", 10)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["train.json", "train.trace.json.gz", "train.txt"]
    assert steps_in(json.loads(gzip.decompress((tmp_path / "train.trace.json.gz").read_bytes()))) == ACTIVE


def document(steps: int) -> dict[str, Any]:
    stage = {"dataset": "blobs", "model": "net", "objective": "fit", "train": {"steps": steps, "batch_size": 8}, "evaluate": ["hits"]}
    return {"stages": {"s": stage}}


class Notes(Observer):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, stage: str, text: str) -> None:
        self.said.append(text)


@pytest.mark.usefixtures("toy")
def test_a_profiled_run_has_a_trace_a_phase_and_the_same_weights(tmp_path: Path) -> None:
    plain = gw.Pipeline.from_dict(document(12)).run(tmp_path / "plain", device="cpu")
    found = gw.Pipeline.from_dict(document(12)).run(tmp_path / "profiled", device="cpu", profile=True)
    places = {file.relative_to(tmp_path / "profiled/profile").as_posix() for file in (tmp_path / "profiled/profile").rglob("*.*")}
    assert places == {f"s/{phase}.{ending}" for phase in ("train", "hits") for ending in ("trace.json", "json", "txt")}
    operators = {one["name"] for one in json.loads((tmp_path / "profiled/profile/s/train.json").read_text())["operators"]}
    assert any(name.startswith("Optimizer.step") for name in operators)
    assert any("Backward" in name for name in operators)
    assert "profile/s/train.trace.json" in json.loads((tmp_path / "profiled/manifest.json").read_text())
    assert not (tmp_path / "plain/profile").exists()
    assert found.metrics == plain.metrics
    weights = plain.models["s"].state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in found.models["s"].state_dict().items())


@pytest.mark.usefixtures("toy")
def test_a_training_too_short_to_profile_says_so(tmp_path: Path) -> None:
    notes = Notes()
    gw.Pipeline.from_dict(document(2)).run(tmp_path / "run", device="cpu", profile=True, observer=notes)
    assert notes.said == ["train leaves no profile: it had fewer than 4 steps"]


@pytest.mark.usefixtures("toy")
def test_a_profile_without_a_directory_is_refused() -> None:
    with pytest.raises(GraftworkError, match="give `out`"):
        gw.Pipeline.from_dict(document(2)).run(device="cpu", profile=True)
