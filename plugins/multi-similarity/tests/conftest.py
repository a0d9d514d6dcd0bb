"""Embeddings in clusters, and a loss of them with its gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def draw_clusters(classes: int = 8, instances: int = 12, dim: int = 32, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(classes * instances, dim, generator=generator, dtype=torch.float64)
    labels = torch.arange(classes).repeat_interleave(instances)
    order = torch.randperm(len(labels), generator=generator)
    return (centres[labels] + spread * noise)[order], labels[order]


def evaluate(function, embeddings: Tensor, *arguments, **options) -> tuple[Tensor, Tensor]:
    leaf = embeddings.clone().requires_grad_()
    loss = function(leaf, *arguments, **options)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


@pytest.fixture
def clustered() -> Callable:
    return draw_clusters


@pytest.fixture
def value_and_gradient() -> Callable:
    return evaluate
