"""Drawn scenes as samples: columns of many scenes in, dicts of one shared vocabulary out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["RAGGED", "SceneSamples"]

RAGGED = ("labels", "colours", "sources", "boxes", "relation", "velocity", "clip_boxes")
"""Keys with one entry a digit (or a pair of digits): cut to a scene's own count."""

PICTURES = ("image", "clip")
MASKS = ("mask", "instances", "clip_mask", "clip_instances")


class SceneSamples:
    """Scenes held as columns; a scene's digits come out as many as it has.

    Args:
        columns: key -> (N, ...); pictures uint8, masks uint8, the keys of `RAGGED` padded (`clip_boxes` (N, T, 4, 4), the others
            (N, 4 or 6, ...)).
        counts: (N,) digits in each scene.
        captions: of each scene.
        constant: key -> tensor that every sample has, such as a panorama's `distortion`.
    """

    def __init__(
        self, columns: Mapping[str, Tensor], counts: Tensor, captions: Sequence[str], constant: Mapping[str, Tensor] | None = None
    ):
        self.columns = dict(columns)
        self.captions = list(captions)
        self.constant = dict(constant or {})
        self.counts = counts
        self._counts: list[int] = counts.tolist()

    def __len__(self) -> int:
        return len(self._counts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        count = self._counts[index]
        sample: dict[str, Any] = {key: _value(key, column[index], count) for key, column in self.columns.items()}
        sample["caption"] = self.captions[index]
        sample.update(self.constant)
        return sample

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch of the scenes at `indices`, collated: ragged keys are lists where counts differ, stacked where they agree."""
        chosen = torch.as_tensor(indices)
        counts = [self._counts[index] for index in chosen.tolist()]
        batch: dict[str, Any] = {}
        for key, column in self.columns.items():
            rows = column[chosen]
            if key not in RAGGED:
                batch[key] = _value(key, rows, 0)
            elif len(set(counts)) == 1:
                batch[key] = rows[:, :, : counts[0]] if key == "clip_boxes" else rows[:, : _entries(key, counts[0])]
            else:
                batch[key] = [_value(key, row, count) for row, count in zip(rows, counts, strict=True)]
        batch["caption"] = [self.captions[index] for index in chosen.tolist()]
        batch.update({key: value.expand(len(counts), *value.shape) for key, value in self.constant.items()})
        return batch

    def select(self, indices: Tensor) -> SceneSamples:
        """The scenes at `indices` (long), as samples of their own."""
        columns = {key: column[indices] for key, column in self.columns.items()}
        return SceneSamples(columns, self.counts[indices], [self.captions[index] for index in indices.tolist()], self.constant)

    def replace(self, **columns: Tensor) -> SceneSamples:
        """The same scenes with other columns in place of, or beside, their own."""
        return SceneSamples({**self.columns, **columns}, self.counts, self.captions, self.constant)


def _entries(key: str, count: int) -> int:
    return count * (count - 1) // 2 if key == "relation" else count


def _value(key: str, value: Tensor, count: int) -> Any:
    if key in PICTURES:
        return value.float().div_(255)
    if key in MASKS:
        return value.long()
    if key == "clip_boxes":
        return value[:, :count]
    return value[: _entries(key, count)] if key in RAGGED else value
