"""`scene-pairs`: pictures in two views, pair by pair or as two piles, for translation from one to the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graftwork import Batch, DataError, Dataset, DatasetInfo, Samples
from graftwork.errors import nearest
from graftwork.kinds.dataset import fetch
from graftwork_testbed.scenes.styles import PALETTE, VIEWS, View, render_view
from graftwork_testbed.splits import Seed

__all__ = ["ScenePairs"]

AT_ONCE = 256
"""Samples that are read together."""

BESIDE = ("label", "caption")
"""Keys that are passed on where samples have them."""


class ScenePairs(Dataset):
    """A data set of pictures, each in two views: a source and the target to translate it to.

    Paired, the splits are those of the data, and a sample holds `image` (3, H, W) float32 in [0, 1], the source view; `target`
    (3, H, W) float32 in [0, 1], the target view of the same scene; `index`, its position in the split; and, where the data have
    them, `label`, `caption` and `mask` (H, W) long.

    Unpaired, the two views show different scenes: the splits are "source/train", "target/train", ..., from disjoint halves of each
    split, and a sample holds `image`, `domain` (0 source, 1 target), `index` (its position in the data's split) and, where the data
    have them, `label` and `caption`.

    A split is rendered when its first sample is asked for, and kept as bytes. Noise, grain and holes depend on the seed, the split
    and the view alone.

    Args:
        data: a data set with `image`, such as `digit-scenes`; of one channel, which is repeated, or three. Its `mask` is what
            "segments" shows, and where "sketch", "night" and "watercolour" find the digits: without one they treat the whole picture
            as background.
        source: the view to translate from. "photo" is the picture as the data have it; then there are the styles "sketch",
            "poster", "night", "watercolour", the degradations "blur", "noise", "low-resolution", "grey", "hole", and the maps
            "edges" and "segments".
        target: the view to translate to, any of these.
        paired: whether a sample holds both views of one scene.
        seed: of noise, grain and holes, and of the halves.

    Raises:
        ValueError: if source and target are the same, or the seed is negative.
        DataError: if there is no view of a name, or the data have no `image`, or no `mask` where "segments" needs it, or too few
            samples.
    """

    def __init__(self, data: Dataset, source: View = "grey", target: View = "photo", paired: bool = True, seed: Seed = 0):
        _check(data, source, target, paired, seed)
        self.data, self.paired = data, paired
        self.source, self.target = source, target
        splits = _paired(data, source, target, seed) if paired else _apart(data, source, target, seed)
        labelled = all("label" in samples[0] for samples in data.values())
        info = DatasetInfo(
            classes=data.info.classes if labelled else (),
            channels=3,
            size=data.info.size,
            domains=() if paired else ("source", "target"),
            description=f"{source} to {target}, {'paired' if paired else 'unpaired'}: {data.info.description}",
        )
        super().__init__(splits, info)

    def batch_sampler(self, split: str, batch_size: int, generator: torch.Generator) -> Iterable[list[int]] | None:
        """The inner data set's, where its samples are these."""
        return self.data.batch_sampler(split, batch_size, generator) if self.paired else None


class _Rendered:
    """Samples whose pictures are rendered when the first is asked for."""

    def __init__(
        self,
        samples: Samples,
        collate: Callable[[Any], Batch],
        split: str,
        views: Mapping[str, str],
        chosen: Any,
        seeds: Sequence[int],
        domain: int | None = None,
    ):
        self.samples, self.collate, self.split, self.views = samples, collate, split, dict(views)
        self.chosen, self.seeds, self.domain = chosen, seeds, domain

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: _value(key, column[index]) for key, column in self.columns.items()}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch of the samples at `indices`, collated."""
        wanted = torch.as_tensor(indices)
        return {
            key: _value(key, column.index_select(0, wanted)) if isinstance(column, Tensor) else [column[i] for i in wanted.tolist()]
            for key, column in self.columns.items()
        }

    @cached_property
    def columns(self) -> dict[str, Any]:
        """key -> (N, ...) tensor, pictures and masks uint8, or list of N."""
        batches = [self._read(part) for part in np.split(self.chosen, range(AT_ONCE, len(self.chosen), AT_ONCE))]
        read = {key: _joined([batch[key] for batch in batches]) for key in batches[0]}
        images, mask = read.pop("image"), read.get("mask")
        semantic = mask if mask is not None else torch.zeros(len(images), *images.shape[2:], dtype=torch.uint8)
        if "segments" in self.views.values() and semantic.max() >= len(PALETTE):
            raise DataError(f'the mask of split "{self.split}" has class {semantic.max()}; "segments" has colours up to {len(PALETTE) - 1}')
        found = {
            key: render_view(view, images, semantic, np.random.default_rng([*self.seeds, VIEWS.index(view)]))
            for key, view in self.views.items()
        }
        if self.domain is not None:
            read.pop("mask", None)
            found["domain"] = torch.full((len(self),), self.domain)
        return {**found, **read, "index": torch.from_numpy(self.chosen)}

    def _read(self, chosen: Any) -> dict[str, Any]:
        """The samples at `chosen`, collated, their pictures and masks as bytes."""
        batch = fetch(self.samples, chosen.tolist(), self.collate)
        images = batch["image"]
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3):
            shapes = sorted({tuple(image.shape) for image in images})
            raise DataError(f'the images of split "{self.split}" must be of one size, with 1 or 3 channels; found {shapes[:4]}')
        found = {"image": (images * 255).round().clamp(0, 255).byte().expand(-1, 3, -1, -1)}
        if "mask" in batch:
            found["mask"] = _bytes(batch["mask"], images, self.split)
        return {**found, **{key: batch[key] for key in BESIDE if key in batch}}


def _paired(data: Dataset, source: str, target: str, seed: int) -> dict[str, Samples]:
    views = {"image": source, "target": target}
    return {
        name: _Rendered(samples, data.collate, name, views, np.arange(len(samples)), (seed, number))
        for number, (name, samples) in enumerate(data.items())
    }


def _apart(data: Dataset, source: str, target: str, seed: int) -> dict[str, Samples]:
    """Both domains of each split, from disjoint halves."""
    found: dict[str, Samples] = {}
    for domain, (side, view) in enumerate((("source", source), ("target", target))):
        for number, (name, samples) in enumerate(data.items()):
            halves = np.array_split(np.random.default_rng([seed, number]).permutation(len(samples)), 2)
            chosen = np.sort(halves[domain])
            found[f"{side}/{name}"] = _Rendered(samples, data.collate, name, {"image": view}, chosen, (seed, number), domain)
    return found


def _bytes(mask: Any, images: Tensor, split: str) -> Tensor:
    fits = isinstance(mask, Tensor) and mask.shape == (len(images), *images.shape[2:]) and 0 <= mask.min() <= mask.max() <= 255
    if not fits:
        raise DataError(f'the masks of split "{split}" must be of the size of the images, with classes 0 to 255')
    return mask.byte()  # type: ignore[no-any-return]


def _joined(parts: Sequence[Any]) -> Any:
    return torch.cat(list(parts)) if isinstance(parts[0], Tensor) else [value for part in parts for value in part]


def _value(key: str, value: Any) -> Any:
    if key in ("image", "target"):
        return value.float().div_(255)
    return value.long() if key == "mask" else value


def _check(data: Dataset, source: str, target: str, paired: bool, seed: int) -> None:
    for view in (source, target):
        if view not in VIEWS:
            raise DataError(f'no view "{view}"{nearest(view, VIEWS)}; there are {", ".join(VIEWS)}')
    if source == target:
        raise ValueError(f'source and target are both "{source}": there is nothing to translate')
    if seed < 0:
        raise ValueError(f"the seed must not be negative; found {seed}")
    fewest = 1 if paired else 2
    for split, samples in data.items():
        if len(samples) < fewest:
            raise DataError(f'split "{split}" has {len(samples)} samples; {fewest} are needed')
        first = samples[0]
        for key in ("image", "mask") if "segments" in (source, target) else ("image",):
            if key not in first:
                why = f'which the view "segments" shows; they have {", ".join(first)}' if key == "mask" else f"but {', '.join(first)}"
                raise DataError(f'the samples of split "{split}" have no {key}, {why}')
