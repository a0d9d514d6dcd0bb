"""Which samples of a split are shown: some of each class, or some spread over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graftwork import Dataset

__all__ = ["Row", "held", "is_number", "labels_of", "rows", "spread", "values_of"]

LOOKED_AT = 1000
"""Samples whose labels are read at most, where reading one means making it."""

MOST_CLASSES = 20
"""Classes that have a row of their own at most."""


@dataclass(frozen=True)
class Row:
    """Samples that stand side by side.

    Args:
        name: at the left of the row; may be empty.
        split: that they are of.
        positions: (n,) long, in the split.
    """

    name: str
    split: str
    positions: Tensor


def spread(positions: Tensor, count: int) -> Tensor:
    """At most `count` of the positions, evenly spaced over them."""
    if len(positions) <= count:
        return positions
    return positions[torch.linspace(0, len(positions) - 1, count).round().long()]


def held(dataset: Dataset, split: str, noun: str) -> str:
    """How many a split holds, in words."""
    count = len(dataset[split])
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def is_number(value: Any) -> bool:
    """Whether this is one number, in a tensor or not."""
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def values_of(dataset: Dataset, split: str, key: str) -> tuple[Tensor, Tensor]:
    """Positions (n,) in a split and one key of the samples there, (n, ...): all in memory, else at most `LOOKED_AT`."""
    samples: Any = dataset[split]
    columns: Mapping[str, Any] = getattr(samples, "columns", {})
    if isinstance(columns.get(key), Tensor):
        return torch.arange(len(samples)), columns[key]
    positions = spread(torch.arange(len(samples)), LOOKED_AT)
    return positions, torch.stack([torch.as_tensor(samples[index][key]) for index in positions.tolist()])


def labels_of(dataset: Dataset, split: str) -> tuple[Tensor, Tensor] | None:
    """Positions and labels, both (n,) long; None where the samples have no single label, or the classes have no names."""
    if not dataset.info.classes or not is_number(dataset[split][0].get("label")):
        return None
    positions, labels = values_of(dataset, split, "label")
    return positions, labels.long()


def rows(dataset: Dataset, splits: Sequence[str], columns: int, depth: int, by_class: bool = True) -> list[Row]:
    """Rows of at most `columns` samples.

    Several splits have a row each, with the same positions, so that paired domains show the same objects. One split has a row for
    each class that it holds, at most `MOST_CLASSES` of them, evenly spaced; or, without classes, at most `depth` rows of whatever
    it holds.
    """
    if len(splits) > 1:
        return [Row(split, split, spread(torch.arange(len(dataset[split])), columns)) for split in splits]
    split = splits[0]
    found = labels_of(dataset, split) if by_class else None
    if found is None:
        block = spread(torch.arange(len(dataset[split])), depth * columns)
        return [Row("", split, block[start : start + columns]) for start in range(0, len(block), columns)]
    positions, labels = found
    known = labels[(labels >= 0) & (labels < len(dataset.info.classes))].unique()
    return [
        Row(dataset.info.classes[number], split, spread(positions[labels == number], columns))
        for number in spread(known, MOST_CLASSES).tolist()
    ]
