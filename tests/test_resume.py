"""Runs that are killed: whenever it happens, going on ends as if nothing had."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

PARTS = '''
from contextlib import contextmanager

import torch

from graftwork import Dataset
from graftwork.kinds.guidance import Guidance, Samples
from toy_parts import Fit, Net, blobs


class Noisy(Fit):
    """Cross-entropy on inputs with noise, which remembers a moving average."""

    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(()))
        self.calls = 0

    def forward(self, model, batches, progress):
        batch = dict(batches["train"])
        batch["features"] = batch["features"] + 0.1 * torch.randn_like(batch["features"])
        loss = super().forward(model, {"train": batch}, progress)
        self.average.lerp_(loss.total.detach(), 0.1)
        return loss

    def after_step(self, model):
        self.calls += 1

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


class Draws(Guidance):
    """Draws pictures."""

    needs = object

    @contextmanager
    def attach(self, pipeline):
        yield

    def sample(self, pipeline, inputs):
        return Samples(images=torch.rand(2, 3, 4, 4), prompts=["a", "b"], metrics={"drawn": torch.rand(()).item()})


class Shrinking(Dataset):
    """Blobs whose training split is drawn anew after each epoch."""

    def __init__(self):
        super().__init__(blobs())
        self.epoch = 0

    def refresh(self, model):
        self.epoch += 1
        self._splits["train"].columns["features"] = blobs(seed=self.epoch)["train"].columns["features"]

    def state_dict(self):
        return {"epoch": self.epoch}

    def load_state_dict(self, state):
        self.epoch = state["epoch"] - 1
        self.refresh(None)
'''

PLUGIN = """
from graftwork import Component, hookimpl


@hookimpl
def graftwork_objectives():
    yield Component("noisy", "breaking_parts:Noisy", "With noise")


@hookimpl
def graftwork_guidance():
    yield Component("draws", "breaking_parts:Draws", "Draws pictures")


@hookimpl
def graftwork_datasets():
    yield Component("shrinking", "breaking_parts:Shrinking", "Drawn anew")
"""

TRAIN = {
    "epochs": 6,
    "batch_size": {"train": 16},
    "optimizer": {"use": "adamw", "lr": 0.03},
    "schedule": "cosine",
    "log_every": 4,
    "checkpoint": 5,
    "validate": {"evaluate": {"use": "hits", "split": "val"}, "patience": 5},
}
DOCUMENT = {
    "name": "broken",
    "seed": 3,
    "stages": {
        "first": {
            "dataset": "shrinking",
            "model": {"use": "net", "dropout": 0.2},
            "objective": "noisy",
            "train": TRAIN,
            "sample": {"guidance": "draws"},
            "evaluate": ["hits", {"use": "notes", "inner": {"use": "hits", "split": "val"}}],
        },
        "second": {
            "dataset": "blobs",
            "model": {"from": "first"},
            "objective": {"use": "follow", "teacher": {"from": "first"}},
            "train": {**TRAIN, "accumulate": 2, "validate": None},
            "evaluate": [{"use": "notes", "inner": "hits", "note": {"from": "first/note"}}],
        },
    },
}

CHILD = """
import os, signal, sys
from pathlib import Path

sys.path[:0] = {paths!r}
os.environ.update(OMP_NUM_THREADS="1")
import torch
torch.set_num_threads(1)
import graftwork as gw
from graftwork import checkpoint, execution
from graftwork.engine import Engine

out, kill, journal = {out!r}, {kill!r}, []

def event(what):
    journal.append(what)
    if len(journal) == kill:
        os.kill(os.getpid(), signal.SIGKILL)

def heard(name, arguments):
    if name in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and str(arguments[0]).startswith(out):
        if name != "open" or arguments[1] not in (None, "r", "rb"):
            event(name + " " + str(arguments[0])[len(out):])

sys.addaudithook(heard)
step, write = Engine.step, checkpoint.save_file

def stepped(self, *names):
    event("step")
    step(self, *names)

def written(tensors, path):
    event("tensors " + str(path)[len(out):])
    write(tensors, path)
    with open(path, "r+b") as stream:  # a kill in here leaves half a file
        whole = stream.read()
        stream.truncate(len(whole) // 2)
        event("half " + str(path)[len(out):])
        stream.seek(0)
        stream.write(whole)

Engine.step, checkpoint.save_file = stepped, written
gw.Pipeline.from_dict({document!r}).run(out, device="cpu", resume={resume!r})
Path(out + ".journal").write_text("\\n".join(journal))
"""

pytestmark = pytest.mark.usefixtures("breaking")
ANEW = multiprocessing.get_context("forkserver")


@pytest.fixture
def breaking(toy: Path, install: Callable[..., Path]) -> None:
    (install("graftwork-breaking", PLUGIN) / "breaking_parts.py").write_text(PARTS)


Launch = Callable[..., int]


@pytest.fixture
def launch(breaking: None, toy: Path) -> Launch:
    """launch(out, kill=N, resume=...): run the pipeline in a process that dies before its Nth event; give the exit code."""

    def call(out: Path, kill: int = 0, resume: bool = False, document: dict[str, Any] = DOCUMENT) -> int:
        code = CHILD.format(paths=[str(toy)], out=str(out), kill=kill, resume=resume, document=document)
        process = ANEW.Process(target=exec, args=(code, {}))
        process.start()
        process.join(120)
        return int(process.exitcode or 0)

    return call


def content(run: Path) -> dict[str, Any]:
    """All that a run is, but times and peaks."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        name = file.relative_to(run).as_posix()
        if name.endswith(".safetensors"):
            found[name] = {key: (str(value.dtype), value.tolist()) for key, value in load_file(file).items()}
        elif name == "metrics.jsonl":
            found[name] = [{k: v for k, v in json.loads(line).items() if k != "time"} for line in file.read_text().splitlines()]
        elif name.endswith("state.json"):
            found[name] = {key: value for key, value in json.loads(file.read_text()).items() if key != "mark"}
        elif name == "results.json":
            found[name] = {key: value for key, value in json.loads(file.read_text()).items() if key not in ("seconds", "phases")}
        elif name.endswith("stage.json"):
            record = json.loads(file.read_text())
            found[name] = (list(record["phases"]), record["results"], record["artifacts"], record["finished"], sorted(record["sums"]))
        elif not name.endswith(("manifest.json", "environment.json", ".html")):
            found[name] = file.read_bytes()
        else:
            found[name] = "there"
    return found


@pytest.mark.timeout(600)
def test_a_run_killed_at_any_of_twenty_instants_goes_on_to_the_same_weights_and_figures(launch: Launch, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert launch(whole) == 0
    journal = Path(f"{whole}.journal").read_text().splitlines()
    expected = content(whole)
    instants = [1 + index * (len(journal) - 1) // 19 for index in range(20)]
    for wanted in (
        "half /stages/first/checkpoints/step",
        "half /stages/first/checkpoints/best",
        "/stages/first/samples",
        "/stages/first/notes",
    ):
        if not any(wanted in journal[instant - 1] for instant in instants):
            near = next(index for index, what in enumerate(journal) if wanted in what)
            instants[min(range(20), key=lambda index: abs(instants[index] - near))] = near + 1
    hit = [journal[instant - 1] for instant in instants]
    for part in ("step", "checkpoints", "half", "samples", "notes", "/stages/second"):
        assert any(part in what for what in hit), part
    for instant in instants:
        out = tmp_path / f"killed-{instant}"
        assert launch(out, kill=instant) == -signal.SIGKILL
        assert launch(out, resume=True) == 0
        assert not list(out.rglob("*.part"))
        assert content(out) == expected, journal[instant - 1]
        shutil.rmtree(out)
