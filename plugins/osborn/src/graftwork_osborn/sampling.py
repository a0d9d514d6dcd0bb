"""Which samples, and which pixels, stand for a set: class-balanced draws of bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from graftwork import DataError

__all__ = ["Pixels", "Reading", "class_balanced_indices", "draw_pixels"]

Count = Annotated[int, Field(ge=1)]
MOST = 2**24
"""Weights that torch.multinomial takes."""


@dataclass(frozen=True)
class Reading:
    """How a set is read.

    Args:
        samples: the most samples, or pixels, of a set; none takes all.
        balanced: whether they are drawn with a probability inverse to their class's frequency.
        seed: of the draw; by default the run's.
        pixels: of a segmentation set, the most pixels of an image.
        images: of a segmentation set, the most images.
        ignore_index: label of pixels that do not count.
        layer: name of the submodule whose input the features are; by default the pooled features of a Backbone, and of a Segmenter
            what its last linear layer or convolution takes.
        batch_size: samples that a model sees at once.

    Raises:
        ValueError: if a number is below 1.
    """

    samples: Count | None = 5000
    balanced: bool = True
    seed: Annotated[int, Field(ge=0)] | None = None
    pixels: Count = 1000
    images: Count | None = 200
    ignore_index: int = 255
    layer: str | None = None
    batch_size: Count = 128

    def __post_init__(self) -> None:
        for name in ("samples", "pixels", "images", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is at least 1; found {value}")


@dataclass(frozen=True)
class Pixels:
    """Pixels drawn from masks.

    Args:
        images: positions of the images that have any, rising.
        positions: of each image in `images`, which of its pixels, row by row: (p,) long each.
        labels: of all pixels, image by image: (sum of p,) long.
    """

    images: Sequence[int]
    positions: Sequence[Tensor]
    labels: Tensor


def class_balanced_indices(labels: Tensor, count: int | None, generator: torch.Generator, balanced: bool = True) -> Tensor:
    """Positions of `count` samples drawn without replacement, rising; all of them where there are no more.

    Args:
        labels: (N,) long, from 0.
        count: how many; None takes all.
        generator: of the draw, on the CPU.
        balanced: draw with a probability inverse to the class's frequency, instead of evenly.

    Returns:
        (min(count, N),) long, on the CPU.

    Raises:
        ValueError: if there are more labels than can be weighed (2^24), or one is negative.
    """
    labels = labels.cpu()
    if count is None or count >= len(labels):
        return torch.arange(len(labels))
    if len(labels) > MOST:
        raise ValueError(f"at most {MOST} samples can be drawn from; found {len(labels)}")
    if not balanced:
        return torch.randperm(len(labels), generator=generator)[:count].sort().values
    weights = (1 / labels.bincount().double())[labels]
    return torch.multinomial(weights, count, generator=generator).sort().values


def draw_pixels(masks: Sequence[Tensor], reading: Reading, generator: torch.Generator) -> Pixels:
    """Up to `reading.pixels` pixels of each mask, drawn inversely to class frequency over all masks, and of those `reading.samples`.

    Args:
        masks: (H, W) long each, which may differ in size.
        reading: how many, and which label does not count.
        generator: of the draw, on the CPU.

    Raises:
        DataError: if no pixel counts.
    """
    counted = [(mask.flatten() != reading.ignore_index).nonzero()[:, 0] for mask in masks]
    flat = [mask.flatten()[kept].long() for mask, kept in zip(masks, counted, strict=True)]
    together = torch.cat(flat) if flat else torch.empty(0, dtype=torch.long)
    if not len(together):
        raise DataError("the masks have no pixel that counts")
    weights = 1 / together.bincount().double() if reading.balanced else torch.ones(int(together.max()) + 1, dtype=torch.float64)
    drawn = []
    for kept, labels in zip(counted, flat, strict=True):
        few = min(reading.pixels, len(labels))
        drawn.append(kept[torch.multinomial(weights[labels], few, generator=generator)] if few else kept)
    image = torch.repeat_interleave(torch.arange(len(masks)), torch.tensor([len(one) for one in drawn]))
    position = torch.cat(drawn)
    if reading.samples is not None and reading.samples < len(image):
        chosen = torch.randperm(len(image), generator=generator)[: reading.samples].sort().values
        image, position = image[chosen], position[chosen]
    images, counts = torch.unique_consecutive(image, return_counts=True)
    positions = torch.split(position, counts.tolist())
    labels = torch.cat([masks[index].flatten()[where] for index, where in zip(images.tolist(), positions, strict=True)])
    return Pixels(images.tolist(), positions, labels.long())
