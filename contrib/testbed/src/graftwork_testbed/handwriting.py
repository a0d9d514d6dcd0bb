"""Handwritten digits: the 1,797 that scikit-learn ships, written by 13 people of the 43 behind the UCI optical recognition set.

They are 8x8 counts of 0 to 16, enlarged by bicubic interpolation: https://archive.ics.uci.edu/dataset/80.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate, pad

from graftwork import Dataset, DatasetInfo, TensorSamples
from graftwork_testbed.splits import Fraction, Seed, stratified_split

__all__ = ["Digit", "ImageSize", "digits", "load_digit_images"]

CLASSES = tuple(str(digit) for digit in range(10))

Digit: TypeAlias = Annotated[int, Field(ge=0, le=9)]
"""A class of digit."""

ImageSize: TypeAlias = Annotated[int, Field(ge=8, le=128)]
"""Height and width of a digit's image in pixels."""


def load_digit_images(size: int = 32) -> tuple[Tensor, Tensor]:
    """Every digit, white on black, with a margin of a tenth of the image around it, in scikit-learn's order.

    Args:
        size: height and width in pixels, 8 to 128. At 8 there is no margin, and the images are the original ones.

    Returns:
        (1797, size, size) uint8 images and (1797,) long labels.

    Raises:
        ValueError: if the size is out of range.
    """
    if not 8 <= size <= 128:
        raise ValueError(f"size must be 8 to 128 pixels; found {size}")
    from sklearn.datasets import load_digits  # seconds to import, which scenes read from the cache need not spend

    table, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(table).float().view(-1, 1, 8, 8) * (255 / 16)
    if size > 8:
        small = pad(small, (1, 1, 1, 1))  # strokes touch the frame; without a margin they would end as if cut with scissors
    large = interpolate(small, size=(size, size), mode="bicubic", align_corners=False)
    return large.squeeze(1).round().clamp(0, 255).byte(), torch.from_numpy(labels).long()


def digits(
    size: ImageSize = 32,
    channels: Literal[1, 3] = 3,
    classes: list[Digit] | None = None,
    held_out_classes: list[Digit] | None = None,
    val_fraction: Fraction = 0.1,
    test_fraction: Fraction = 0.25,
    seed: Seed = 0,
) -> Dataset:
    """Handwritten digits, split by class and seed into train, val and test.

    Samples: `image` (channels, size, size) float32 in [0, 1], `label`, and `index`, the digit's row in scikit-learn's table.

    With `held_out_classes` the splits are disjoint by class, as metric learning and category discovery want them: train and val
    hold the other classes, test holds every image of those held out. Labels stay distinct: the held-out ones come last.

    Args:
        size: height and width in pixels.
        channels: 3 repeats the grey image, so that one network takes this and the coloured data sets alike; 1 leaves it grey.
        classes: digits to keep, in the order of their labels; all ten by default.
        held_out_classes: those of `classes` that only the test split holds.
        val_fraction: share of each class that goes to val.
        test_fraction: share of each class that goes to test; with `held_out_classes` nothing of the other classes does.
        seed: of the split.

    Raises:
        ValueError: if a parameter is out of range, a class is named twice, or a held-out class is not among those kept.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3; found {channels}")
    held_out = _distinct("held_out_classes", held_out_classes or [])
    kept = _distinct("classes", list(range(10)) if classes is None else classes)
    seen = [digit for digit in kept if digit not in held_out]
    if strangers := [digit for digit in held_out if digit not in kept]:
        raise ValueError(f"held_out_classes {strangers} are not among the classes {kept}")
    if not seen:
        raise ValueError(f"no class is left to train on: classes {kept}, held_out_classes {held_out}")
    images, written = load_digit_images(size)
    ordered = [*seen, *held_out] if held_out else kept
    labels = _positions(written, ordered)
    rows = (labels >= 0).nonzero().squeeze(1)
    if held_out:
        known, unknown = rows[labels[rows] < len(seen)], rows[labels[rows] >= len(seen)]
        parts = {**_split(known, labels, val_fraction, 0.0, seed), "test": unknown}
    else:
        parts = _split(rows, labels, val_fraction, test_fraction, seed)
    images = images.unsqueeze(1).repeat(1, channels, 1, 1)
    splits = {name: TensorSamples(image=images[part], label=labels[part], index=part) for name, part in parts.items()}
    info = DatasetInfo(
        classes=tuple(CLASSES[digit] for digit in ordered), channels=channels, size=(size, size), description="Handwritten digits"
    )
    return Dataset(splits, info)


def _split(rows: Tensor, labels: Tensor, val_fraction: float, test_fraction: float, seed: int) -> dict[str, Tensor]:
    return {name: rows[part] for name, part in stratified_split(labels[rows], val_fraction, test_fraction, seed).items()}


def _distinct(name: str, chosen: Sequence[int]) -> list[int]:
    outside = [digit for digit in chosen if digit not in range(10)]
    if outside:
        raise ValueError(f"{name} are digits from 0 to 9; found {outside}")
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"{name} names a digit twice: {list(chosen)}")
    return list(chosen)


def _positions(written: Tensor, ordered: Sequence[int]) -> Tensor:
    """The position of each written digit among the ordered classes; -1 for those that are not among them."""
    table = torch.full((10,), -1, dtype=torch.long)
    table[torch.tensor(ordered)] = torch.arange(len(ordered))
    return table[written]
