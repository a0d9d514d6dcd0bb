"""A small pool whose outputs are known, and tables of made-up terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graftwork as gw
from graftwork_osborn import TransferabilityTable


class Net(nn.Module):
    """A Backbone of numbers: features are a linear map of the input, logits one of the features."""

    inputs = ("features",)

    def __init__(self, classes: int = 3, width: int = 5, seed: int = 0):
        super().__init__()
        self.num_classes, self.num_features = classes, width
        generator = torch.Generator().manual_seed(seed)
        self.body, self.head = nn.Linear(4, width, bias=False), nn.Linear(width, classes, bias=False)
        with torch.no_grad():
            self.body.weight.copy_(torch.randn(width, 4, generator=generator))
            self.head.weight.copy_(torch.randn(classes, width, generator=generator))

    def forward_features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def samples(count: int, classes: int, seed: int, shift: float = 0.0) -> gw.TensorSamples:
    """Points around a mean of each class; every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    means = torch.randn(classes, 4, generator=generator)
    return gw.TensorSamples(features=means[labels] + 0.5 * torch.randn(count, 4, generator=generator) + shift, label=labels)


@pytest.fixture
def net() -> Callable[..., Net]:
    return Net


@pytest.fixture
def data() -> gw.Dataset:
    """A target of three classes, and three source sets of other sizes and numbers of classes."""
    names = gw.DatasetInfo(classes=("a", "b", "c"))
    sources = {f"source-{index}": samples(30 + 6 * index, 2 + index, 10 + index, index) for index in range(3)}
    return gw.Dataset({"train": samples(24, 3, 0), "test": samples(60, 3, 0, 0.1), **sources}, names)


@pytest.fixture
def pool() -> dict[str, Net]:
    """Three models of other widths and label spaces, as those of their source sets."""
    return {f"model-{index}": Net(2 + index, 4 + index, index) for index in range(3)}


@pytest.fixture
def sources(pool: dict[str, Net]) -> dict[str, str]:
    return {name: f"source-{index}" for index, name in enumerate(pool)}


def made_up(count: int = 6, seed: int = 0, **replaced: Tensor) -> TransferabilityTable:
    """Random terms: non-negative, with a cohesion that is not symmetric."""
    generator = torch.Generator().manual_seed(seed)
    terms: dict[str, Any] = {
        name: torch.rand(shape, generator=generator, dtype=torch.float64)
        for name, shape in (("domain", (count,)), ("task", (count,)), ("cohesion", (count, count)), ("likelihoods", (count, 40)))
    }
    terms["cohesion"].fill_diagonal_(0)
    return TransferabilityTable(tuple(f"m{index}" for index in range(count)), **{**terms, **replaced})


@pytest.fixture
def table() -> Callable[..., TransferabilityTable]:
    return made_up


class PixelNet(nn.Module):
    """A Segmenter whose logits are a 1x1 convolution of two maps at half the image's size."""

    def __init__(self, classes: int = 3, seed: int = 0):
        super().__init__()
        self.num_classes = classes
        self.body, self.classifier = nn.AvgPool2d(2), nn.Conv2d(3, classes, 1)
        with torch.no_grad():
            self.classifier.weight.copy_(torch.randn(classes, 3, 1, 1, generator=torch.Generator().manual_seed(seed)))
            self.classifier.bias.copy_(-self.classifier.weight.sum(dim=(1, 2, 3)) / 2)  # no class wins on a grey image

    def segment(self, image: Tensor) -> Tensor:
        return nn.functional.interpolate(self.classifier(self.body(image)), size=image.shape[2:], mode="bilinear", align_corners=False)


@pytest.fixture
def pixel_net() -> Callable[..., PixelNet]:
    return PixelNet


@pytest.fixture
def masks() -> gw.Dataset:
    """Images of 8x8 whose brightest channel is the class of the pixel, 5 % of which do not count."""
    splits = {}
    for split, seed in (("train", 0), ("source", 1)):
        generator = torch.Generator().manual_seed(seed)
        image = torch.rand(6, 3, 8, 8, generator=generator)
        mask = image.argmax(dim=1)
        mask[torch.rand(mask.shape, generator=generator) < 0.05] = 255
        splits[split] = gw.TensorSamples(image=image, mask=mask)
    return gw.Dataset(splits)
