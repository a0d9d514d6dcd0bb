"""Drawn scenes as samples: columns of many scenes in, dicts of one shared vocabulary out."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graftwork import DataError

__all__ = ["RAGGED", "SceneSamples"]

RAGGED = ("labels", "colours", "sources", "boxes", "relation", "velocity", "clip_boxes")
"""Keys with one entry a digit (or a pair of digits): cut to a scene's own count."""

PICTURES = ("image", "clip")
MASKS = ("mask", "instances", "clip_mask", "clip_instances")


class SceneSamples:
    """Scenes held as columns; a scene's digits come out as many as it has.

    Args:
        columns: key -> (N, ...) on the CPU; pictures uint8 (they come out as float32 in [0, 1]) or as they are to come out, masks
            of integers, the keys of `RAGGED` padded (`clip_boxes` (N, T, 4, 4), the others (N, 4 or 6, ...)). Not to be changed
            once they are here: `replace` makes samples with others.
        counts: (N,) digits in each scene.
        captions: of each scene.
        constant: key -> tensor that every sample has, such as a panorama's `distortion`.

    Raises:
        DataError: if the columns, counts and captions differ in length.
    """

    def __init__(
        self, columns: Mapping[str, Tensor], counts: Tensor, captions: Sequence[str], constant: Mapping[str, Tensor] | None = None
    ):
        self.columns = dict(columns)
        self.captions = list(captions)
        self.constant = dict(constant or {})
        self.counts = counts
        lengths = {key: len(column) for key, column in self.columns.items()} | {"counts": len(counts), "captions": len(self.captions)}
        if len(set(lengths.values())) != 1:
            raise DataError(f"the columns of scenes differ in length: {lengths}")
        self._prepare()

    def _prepare(self) -> None:
        self._counts: list[int] = self.counts.tolist()
        rows = [(key, *_reader(key, column)) for key, column in self.columns.items()]
        self._rows = sorted(rows, key=lambda row: isinstance(row[1], Tensor))  # pictures last: they take the processor's cache

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in ("columns", "captions", "constant", "counts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def __len__(self) -> int:
        return len(self._counts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)
        count = self._counts[index]
        sample: dict[str, Any] = {key: read(rows, index, count) for key, rows, read in self._rows}
        sample["caption"] = self.captions[index]
        for key, value in self.constant.items():
            sample[key] = value.clone()
        return sample

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch of the scenes at `indices`, collated: ragged keys are lists where counts differ, stacked where they agree."""
        chosen = np.asarray(indices, dtype=np.int64)
        counts = [self._counts[index] for index in chosen.tolist()]
        positions = torch.from_numpy(np.where(chosen < 0, chosen + len(self), chosen))
        alike = len(set(counts)) == 1
        batch: dict[str, Any] = {}
        for key, column, read in self._rows:
            rows = column.index_select(0, positions) if isinstance(column, Tensor) else column[chosen]
            if key in RAGGED and not alike:
                batch[key] = [read(rows, row, count) for row, count in enumerate(counts)]
            else:
                batch[key] = read(rows, slice(None), counts[0] if alike else 0)
        batch["caption"] = [self.captions[index] for index in chosen.tolist()]
        batch.update({key: value.expand(len(counts), *value.shape) for key, value in self.constant.items()})
        return batch

    def select(self, indices: Tensor) -> SceneSamples:
        """The scenes at `indices` (long), as samples of their own."""
        columns = {key: column.index_select(0, indices) for key, column in self.columns.items()}
        return SceneSamples(columns, self.counts[indices], [self.captions[index] for index in indices.tolist()], self.constant)

    def replace(self, **columns: Tensor) -> SceneSamples:
        """The same scenes with other columns in place of, or beside, their own."""
        return SceneSamples({**self.columns, **columns}, self.counts, self.captions, self.constant)


def _reader(key: str, column: Tensor) -> tuple[Any, Callable[[Any, Any, int], Tensor]]:
    """A column as samples are read from it, and what reads: (column, index or slice, count) -> tensor.

    Numbers and ragged keys are copied to arrays, from which numpy takes a row in half of torch's time. Arrays over the columns' own
    memory would not do: torch moves it when tensors are handed to another process. What augmentation scales and shifts in place
    (boxes, velocities) comes out as a copy, as pictures and masks do.
    """
    if key in PICTURES and column.dtype == torch.uint8:
        return column, _picture
    if key in MASKS:
        return column, _mask
    if key not in RAGGED and column.ndim > 1:
        return column, _whole
    array = column.clone().numpy()
    if key == "clip_boxes":
        return array, _slots_of_frames
    if key == "relation":
        return array, _pairs
    if key in RAGGED:
        return array, _places if column.is_floating_point() else _slots
    return array, _number


def _picture(column: Tensor, index: Any, count: int) -> Tensor:
    return column[index].float().div_(255)


def _mask(column: Tensor, index: Any, count: int) -> Tensor:
    return column[index].long()


def _whole(column: Tensor, index: Any, count: int) -> Tensor:
    return column[index].clone()


def _slots_of_frames(column: Any, index: Any, count: int) -> Tensor:
    return torch.from_numpy(column[index, :, :count].copy())


def _pairs(column: Any, index: Any, count: int) -> Tensor:
    return torch.from_numpy(column[index, : count * (count - 1) // 2])


def _places(column: Any, index: Any, count: int) -> Tensor:
    return torch.from_numpy(column[index, :count].copy())


def _slots(column: Any, index: Any, count: int) -> Tensor:
    return torch.from_numpy(column[index, :count])


def _number(column: Any, index: Any, count: int) -> Tensor:
    return torch.from_numpy(column[index, ...])
