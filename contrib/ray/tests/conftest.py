"""A distribution of small parts, one of which dies when it is told to, and a cluster of this machine's cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from graftwork import registry
from graftwork_ray.executor import RayTune

PARTS = '''
import os
import signal
from pathlib import Path

import torch
from torch import nn

from graftwork import INPUTS, Dataset, DatasetInfo, Evaluator, Loss, Objective, Report, TensorSamples
from graftwork.interfaces import classify
from graftwork.kinds.evaluator import evaluating, split_batches


def blobs():
    """Three Gaussian blobs in four dimensions."""
    generator = torch.Generator().manual_seed(0)
    splits = {}
    for split in ("train", "test"):
        label = torch.arange(96) % 3
        features = torch.randn(96, 4, generator=generator) + 2 * nn.functional.one_hot(label, 4)
        splits[split] = TensorSamples(features=features, label=label)
    return Dataset(splits, DatasetInfo(classes=("a", "b", "c"), features=4))


class Net(nn.Module):
    """A hidden layer, dropout and a head."""

    inputs = ("features",)

    def __init__(self):
        super().__init__()
        self.num_features = 8
        self.trunk, self.head, self.dropout = nn.Linear(4, 8), nn.Linear(8, 3), nn.Dropout(0.2)

    def forward_features(self, x):
        return self.dropout(self.trunk(x).relu())

    def forward_head(self, x, pre_logits=False):
        return x if pre_logits else self.head(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


class Frail(Objective):
    """Cross-entropy whose process is killed after some steps: once after each, or, where no marks are kept, every time."""

    keys = {"train": (INPUTS, "label")}

    def __init__(self, deaths: list[int] | None = None, marks: str | None = None, attempts: str | None = None, fails: bool = False):
        super().__init__()
        self.deaths, self.marks, self.attempts, self.fails, self.steps = deaths or [], marks, attempts, fails, 0

    def setup(self, model, data):
        if self.attempts:
            Path(self.attempts, str(os.getpid())).touch()

    def forward(self, model, batches, progress):
        if self.fails:
            raise RuntimeError("this setting is no good")
        return Loss(nn.functional.cross_entropy(classify(model, batches["train"]), batches["train"]["label"]))

    def after_step(self, model):
        self.steps += 1
        mark = Path(self.marks, f"died-{self.steps}") if self.marks else None
        if self.steps in self.deaths and (mark is None or not mark.exists()):
            if mark is not None:
                mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def get_extra_state(self):
        return {"steps": self.steps}

    def set_extra_state(self, state):
        self.steps = state["steps"]


class Hits(Evaluator):
    """Share of hits."""

    keys = (INPUTS, "label")

    def evaluate(self, model, data, run=None):
        with evaluating(model):
            hits = torch.cat([classify(model, b).argmax(1) == b["label"] for b in split_batches(data, "test", model)])
        return Report({"hits": hits.float().mean().item()})
'''

PLUGIN = """
from graftwork import Component, hookimpl


@hookimpl
def graftwork_datasets():
    yield Component("blobs", "raytoy_parts:blobs", "Three Gaussian blobs")


@hookimpl
def graftwork_models():
    yield Component("net", "raytoy_parts:Net", "A small net")


@hookimpl
def graftwork_objectives():
    yield Component("frail", "raytoy_parts:Frail", "Dies")


@hookimpl
def graftwork_evaluators():
    yield Component("hits", "raytoy_parts:Hits", "Share of hits")
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The distribution graftwork-raytoy, for this process and those that it starts; the folder that holds it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "raytoy_parts.py").write_text(PARTS)
    (folder / "raytoy_plugin.py").write_text(PLUGIN)
    info = folder / "graftwork_raytoy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: graftwork-raytoy\nVersion: 1.0\nRequires-Dist: graftwork>=0.1,<0.2\n")
    (info / "entry_points.txt").write_text("[graftwork.plugins]\nraytoy = raytoy_plugin\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("GRAFTWORK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("RAY_ADDRESS", raising=False)
        registry.installed.cache_clear()
        yield folder
    registry.installed.cache_clear()


@pytest.fixture(scope="module")
def cluster(parts: Path) -> Iterator[RayTune]:
    """An executor whose cluster runs: starting one takes longer than a trial."""
    with RayTune() as executor:
        yield executor
