"""Small models and data that several tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import graftwork as gw

CLASSES, WIDTH = 3, 6


class Net(nn.Module):
    """A Backbone on six numbers, with batch norm and dropout where they are asked for."""

    inputs = ("features",)

    def __init__(self, norm: bool = False, dropout: float = 0.0):
        super().__init__()
        self.num_features, self.num_classes = 8, CLASSES
        self.body = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.Tanh(), nn.Dropout(dropout))
        self.head = nn.Linear(8, CLASSES)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@pytest.fixture
def net() -> Callable[..., Net]:
    def make(norm: bool = False, dropout: float = 0.0, seed: int = 0) -> Net:
        torch.manual_seed(seed)
        return Net(norm, dropout)

    return make


@pytest.fixture
def data() -> gw.Dataset:
    """Three blobs, 64 samples a split."""
    splits = {}
    for number, split in enumerate(("train", "val", "test")):
        label = torch.arange(64) % CLASSES
        features = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(number))
        splits[split] = gw.TensorSamples(features=features + 2 * nn.functional.one_hot(label, WIDTH), label=label)
    return gw.Dataset(splits, gw.DatasetInfo(classes=("a", "b", "c"), features=WIDTH))


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {"features": torch.randn(12, WIDTH, generator=generator), "label": torch.arange(12) % CLASSES}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
