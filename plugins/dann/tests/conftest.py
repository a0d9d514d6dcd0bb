"""Small models and batches that several tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from graftwork import Dataset, DatasetInfo, TensorSamples
from graftwork_dann import DomainAdversarial, DomainHead


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


def build_objective(model: nn.Module, **parameters: Any) -> DomainAdversarial:
    """An objective with heads for the model's bottleneck, without dropout."""
    torch.manual_seed(3)
    objective = DomainAdversarial(hidden=[5], dropout=0.0, **parameters)
    objective.build_heads(dict.fromkeys(objective.points, model.num_features), model)
    return objective.to(next(model.parameters()))


def gradients_of(loss: torch.Tensor, module: nn.Module) -> list[torch.Tensor]:
    found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(module.parameters(), found, strict=True)]


def all_close(first: list[torch.Tensor], second: list[torch.Tensor], **how: float) -> bool:
    return all(torch.allclose(a, b, **how) for a, b in zip(first, second, strict=True))


def by_definition(model: nn.Module, head: DomainHead, batches: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """L_y and L_d by their definitions, without a reversal."""
    source, target = (model.forward_features(batches[feed]["features"]) for feed in ("source", "target"))
    label = functional.cross_entropy(model.head(source), batches["source"]["label"])
    return label, -functional.logsigmoid(-head(source)).mean() - functional.logsigmoid(head(target)).mean()


@pytest.fixture
def built() -> Callable:
    return build_objective


@pytest.fixture
def gradients() -> Callable:
    return gradients_of


@pytest.fixture
def same() -> Callable:
    return all_close


@pytest.fixture
def written_out() -> Callable:
    return by_definition
