"""Small models and an independent Fisher that several tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Mapping[str, Any]], Tensor]


def plain_loop(model: nn.Module, forward: Forward, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The Fisher by its definition: sample by sample, class by class, each gradient of log p squared by itself."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    sums = [torch.zeros_like(one) for one in parameters]
    count = len(next(iter(batch.values())))
    for index in range(count):
        outputs = forward(model, {key: value[index : index + 1] for key, value in batch.items()})
        log_probabilities = outputs.log_softmax(dim=-1)[0]
        for log_probability in log_probabilities:
            found = torch.autograd.grad(log_probability, parameters, retain_graph=True, allow_unused=True)
            for total, gradient in zip(sums, found, strict=True):
                if gradient is not None:
                    total += log_probability.detach().exp() * gradient.square()
    return {name: total / count for name, total in zip(names, sums, strict=True)}


class Net(nn.Module):
    """A body and a head by graftwork's convention, of numbers."""

    inputs = ("features",)

    def __init__(self, classes: int = 3, width: int = 5, batch_norm: bool = False):
        super().__init__()
        self.num_classes, self.num_features = classes, width
        self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width) if batch_norm else nn.Tanh(), nn.Linear(width, width))
        self.head = nn.Linear(width, classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def make(seed: int, **settings: Any) -> Net:
    torch.manual_seed(seed)
    return Net(**settings)


def random_fisher(model: nn.Module, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(one.shape, generator=generator) for name, one in model.named_parameters()}


@pytest.fixture
def loop() -> Callable[..., dict[str, Tensor]]:
    return plain_loop


@pytest.fixture
def net() -> Callable[..., Net]:
    return make


@pytest.fixture
def fisher_of() -> Callable[..., dict[str, Tensor]]:
    return random_fisher


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)
