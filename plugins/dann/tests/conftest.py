"""Small models and batches that several tests share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graftwork import Dataset, DatasetInfo, TensorSamples


class Tower(nn.Module):
    """Two linear layers with the Backbone surface; the first sees `features`."""

    inputs = ("features",)

    def __init__(self, width: int = 6, classes: int = 3):
        super().__init__()
        self.num_features, self.num_classes = width, classes
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, width))
        self.head = nn.Linear(width, classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.trunk(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


@pytest.fixture
def tower() -> Tower:
    torch.manual_seed(0)
    return Tower().double()


@pytest.fixture
def towers() -> type[Tower]:
    return Tower


@pytest.fixture
def batches() -> dict[str, dict[str, torch.Tensor]]:
    """Five labelled source rows and three target rows."""
    generator = torch.Generator().manual_seed(1)

    def rows(count: int) -> torch.Tensor:
        return torch.randn(count, 4, generator=generator, dtype=torch.float64)

    return {"source": {"features": rows(5), "label": torch.tensor([0, 1, 2, 0, 1])}, "target": {"features": rows(3)}}


@pytest.fixture
def data() -> Dataset:
    """Two shifted domains of three classes, four numbers a sample."""
    generator = torch.Generator().manual_seed(2)
    splits = {}
    for number, domain in enumerate(("source", "target")):
        for split in ("train", "val", "test"):
            label = torch.arange(48) % 3
            features = torch.randn(48, 4, generator=generator) + 3 * nn.functional.one_hot(label, 4) + number
            splits[f"{domain}/{split}"] = TensorSamples(features=features, label=label, domain=torch.full((48,), number))
    return Dataset(splits, DatasetInfo(classes=("a", "b", "c"), domains=("source", "target"), features=4))
