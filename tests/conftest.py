"""Distributions made up on the spot: a folder on sys.path with a module and a dist-info, as pip would leave it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from graftwork import registry

TOY = '''
from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork import INPUTS, Artifact, Backbone, Dataset, DatasetInfo, Evaluator, Loss, Objective, Report, Split, TensorSamples
from graftwork.interfaces import classify
from graftwork.kinds.evaluator import evaluating, split_batches


def blobs(count: Annotated[int, Field(ge=4, description="samples a split")] = 96, seed: int = 0) -> Dataset:
    """Three Gaussian blobs in four dimensions."""
    generator = torch.Generator().manual_seed(seed)
    splits = {}
    for split in ("train", "val", "test"):
        label = torch.arange(count) % 3
        features = torch.randn(count, 4, generator=generator) + 2 * nn.functional.one_hot(label, 4)
        splits[split] = TensorSamples(features=features, label=label)
    return Dataset(splits, DatasetInfo(classes=("a", "b", "c"), features=4))


class Net(nn.Module):
    """A linear model with the Backbone surface."""

    inputs = ("features",)

    def __init__(self, width: Annotated[int, Field(ge=1, description="hidden units")] = 8, dropout: float = 0.0):
        super().__init__()
        self.num_features = width
        self.trunk, self.head, self.dropout = nn.Linear(4, width), nn.Linear(width, 3), nn.Dropout(dropout)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.dropout(self.trunk(x).relu())

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class Plain(nn.Module):
    """A model that offers nothing."""

    inputs = ("features",)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Fit(Objective):
    """Cross-entropy."""

    keys = {"train": (INPUTS, "label")}

    def __init__(self, weight: Annotated[float, Field(gt=0, description="of the loss")] = 1.0):
        super().__init__()
        self.weight = weight

    def forward(self, model, batches, progress):
        batch = batches["train"]
        loss = self.weight * nn.functional.cross_entropy(classify(model, batch), batch["label"])
        return Loss(loss, {"plain": loss / self.weight})


class Follow(Objective):
    """Match a teacher."""

    keys = {"train": (INPUTS,)}

    def __init__(self, teacher: Backbone):
        super().__init__()
        self.teacher = [teacher]

    def forward(self, model, batches, progress):
        batch = batches["train"]
        return Loss((classify(model, batch) - classify(self.teacher[0], batch).detach()).square().mean())


@dataclass(frozen=True)
class Pace:
    """How to go about it.

    Args:
        stride: samples that are passed over.
    """

    stride: Annotated[int, Field(ge=1)] = 1


class Hits(Evaluator):
    """Share of hits."""

    keys = (INPUTS, "label")

    def __init__(self, split: Split = "test", limit: Annotated[int | None, Field(ge=1)] = None):
        self.split, self.limit = split, limit

    def evaluate(self, model, data, run=None):
        with evaluating(model):
            hits = torch.cat([classify(model, b).argmax(1) == b["label"] for b in split_batches(data, self.split, model, limit=self.limit)])
        return Report({"hits": hits.float().mean().item()})


class Masks(Hits):
    """Reads a key that blobs lack."""

    keys = (INPUTS, "mask")


class Through(Objective):
    """Another objective, passed through; a wrapper."""

    def __init__(self, base: Objective, own_export: bool = False):
        super().__init__()
        self.base, self.own_export, self.keys = base, own_export, base.keys

    def forward(self, model, batches, progress):
        return self.base(model, batches, progress)

    def export(self, model):
        return self.base.export(model)

    @property
    def exports_model(self):
        return not self.own_export and self.base.exports_model


class Notes(Evaluator):
    """Another evaluator's figures, how many models it was given, and a note for later stages."""

    needs = Backbone

    def __init__(
        self, inner: Evaluator, models: list[Backbone] | None = None, note: Artifact | None = None, pace: Pace | None = None
    ):
        self.inner, self.models, self.note = inner, models or [], note

    def evaluate(self, model, data, run=None):
        metrics = dict(self.inner.evaluate(model, data, run).metrics)
        metrics |= {f"same-{index}": float(one is model) for index, one in enumerate(self.models)}
        metrics |= {} if self.note is None else {"noted": self.note.tensors["number"].item()}
        return Report(metrics, artifacts={"note": Artifact("note", {"number": torch.tensor(len(self.models))})})


class Dear(Net):
    """A net that takes long to make."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        Dear.made += 1
'''

PLUGIN = """
from graftwork import Component, hookimpl


@hookimpl
def graftwork_datasets():
    yield Component("blobs", "toy_parts:blobs", "Three Gaussian blobs")


@hookimpl
def graftwork_models():
    yield Component("net", "toy_parts:Net", "A small net")
    yield Component("plain", "toy_parts:Plain", "Offers nothing")
    yield Component("dear", "toy_parts:Dear", "Takes long to make", deferred=True)


@hookimpl
def graftwork_objectives():
    yield Component("fit", "toy_parts:Fit", "Cross-entropy")
    yield Component("follow", "toy_parts:Follow", "Match a teacher")
    yield Component("through", "toy_parts:Through", "Another objective, passed through")


@hookimpl
def graftwork_evaluators():
    yield Component("hits", "toy_parts:Hits", "Share of hits")
    yield Component("masks", "toy_parts:Masks", "Reads masks")
    yield Component("notes", "toy_parts:Notes", "Leaves a note")
"""

Install = Callable[..., Path]


def write_distribution(folder: Path, name: str, source: str, *, requires: str = "graftwork>=0.1,<0.2", version: str = "1.0") -> Path:
    """Put distribution `name` with plugin module `source` into a folder."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(textwrap.dedent(source))
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: {requires}\n\nText.\n")
    (info / "entry_points.txt").write_text(f"[graftwork.plugins]\n{name.removeprefix('graftwork-')} = {module}\n")
    return folder


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """install(name, source, requires=..., version=...): make a distribution that this process and its children see."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    before = set(sys.modules)

    def make(name: str, source: str, **settings: str) -> Path:
        write_distribution(folder, name, source, **settings)
        registry.installed.cache_clear()
        return folder

    yield make
    for module in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]
    registry.installed.cache_clear()


@pytest.fixture
def toy(install: Install) -> Path:
    """The distribution graftwork-toy: blobs, net, plain, fit, follow, hits, masks."""
    folder = install("graftwork-toy", PLUGIN)
    (folder / "toy_parts.py").write_text(TOY)
    return folder


@pytest.fixture
def graft(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """graft(*arguments): run the command line in a process of its own, in a folder of its own."""
    folder = tmp_path / "work"
    folder.mkdir()

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "COLUMNS": "300", "NO_COLOR": "1", "GRAFTWORK_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "graftwork", *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)

    return call
