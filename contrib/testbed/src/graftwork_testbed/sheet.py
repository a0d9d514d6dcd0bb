"""Contact sheets: what a data set holds, at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from graftwork import DataError, Dataset

__all__ = ["contact_sheet", "mosaic"]

GAP = 0.08
"""Space between the tiles of a sheet, as a share of a tile's side."""

TILE = 0.62
"""Side of a tile on paper, in inches."""

COLOURS = ("#3b6fb6", "#d1495b", "#2e933c", "#edae49", "#6b4e9b", "#00798c", "#a44a3f", "#7a7a7a", "#c277b0", "#444444")


def mosaic(images: Tensor) -> Tensor:
    """Tiles side by side on white.

    Args:
        images: (R, K, C, H, W) float in [0, 1], C 1 or 3; NaN where there is no tile.

    Returns:
        (height, width, 3) float in [0, 1].
    """
    rows, columns, _, height, width = images.shape
    gap = max(1, round(GAP * width))
    paper = torch.ones(rows, columns, 3, height + gap, width + gap)
    paper[..., :height, :width] = images.nan_to_num(1.0).expand(-1, -1, 3, -1, -1)
    joined = paper.permute(0, 3, 1, 4, 2).reshape(rows * (height + gap), columns * (width + gap), 3)
    return joined[:-gap, :-gap]


def contact_sheet(dataset: Dataset, split: str | Sequence[str], columns: int = 12, title: str = "") -> Figure:
    """Draw samples of one split, or of several below one another.

    Images come in rows: of one split, a row a class (one plain block where there are no classes); of several, a row a split with
    the same positions of each, so that paired domains show the same objects. Two-dimensional `features` are drawn as points, a
    panel a split, coloured by label.

    Args:
        dataset: its samples hold `image` (C, H, W), with C 1 or 3, or `features` (2,).
        split: name of a split, or several names.
        columns: images in a row.
        title: above the sheet; by default the name of the split, or of several the data set's description.

    Returns:
        A matplotlib figure that pyplot does not know, to save with `savefig`.

    Raises:
        ValueError: if `columns` is not positive, or no split is named.
        DataError: if there is no such split, it is empty, or its samples can be drawn in neither way.
    """
    names = [split] if isinstance(split, str) else list(split)
    if columns < 1 or not names:
        raise ValueError(f"a sheet wants at least one column and one split; found {columns} and {names}")
    empty = [name for name in names if not len(dataset[name])]
    if empty:
        raise DataError(f"nothing to draw: {', '.join(empty)} is empty")
    first = dataset[names[0]][0]
    if "image" in first and first["image"].ndim == 3 and first["image"].shape[0] in (1, 3):
        return _images(dataset, names, columns, title or (names[0] if len(names) == 1 else dataset.info.description))
    if "features" in first and first["features"].shape == (2,):
        return _points(dataset, names, title)
    shapes = {key: tuple(value.shape) for key, value in first.items() if isinstance(value, Tensor)}
    raise DataError(f"a sheet draws `image` of 1 or 3 channels or `features` of width 2; {names[0]} has {shapes}")


def _images(dataset: Dataset, names: Sequence[str], columns: int, heading: str) -> Figure:
    classes = dataset.info.classes
    if len(names) > 1:
        rows = {name: _spread(torch.arange(len(dataset[name])), columns) for name in names}
        tiles = [_row(dataset, name, chosen, columns) for name, chosen in rows.items()]
        labels = list(rows)
    else:
        tiles, labels = _by_class(dataset, names[0], columns, classes)
    sheet = mosaic(torch.stack(tiles))
    tall, wide = len(tiles) * TILE, columns * TILE
    margin = max((0.085 * len(label) for label in labels), default=0.0) + 0.15
    figure = Figure(figsize=(wide + margin + 0.15, tall + 0.5), facecolor="white")
    axes = figure.add_axes(
        (margin / figure.get_figwidth(), 0.1 / figure.get_figheight(), wide / figure.get_figwidth(), tall / figure.get_figheight())
    )
    axes.imshow(sheet.numpy(), interpolation="nearest", aspect="auto")
    axes.set_title(heading, fontsize=10, loc="left")
    axes.set_xticks([])
    step = sheet.shape[0] / len(tiles)
    axes.set_yticks([(row + 0.45) * step for row in range(len(labels))], labels, fontsize=9)
    _unframe(axes)
    return figure


def _by_class(dataset: Dataset, name: str, columns: int, classes: Sequence[str]) -> tuple[list[Tensor], list[str]]:
    """A row for each class that the split holds; without labels, up to ten rows of whatever it holds."""
    samples = dataset[name]
    if not classes or "label" not in samples[0]:
        block = _spread(torch.arange(len(samples)), 10 * columns)
        return [_row(dataset, name, block[start : start + columns], columns) for start in range(0, len(block), columns)], []
    found = _column(dataset, name, "label")
    present = [number for number in range(len(classes)) if (found == number).any()]
    tiles = [_row(dataset, name, _spread((found == number).nonzero().squeeze(1), columns), columns) for number in present]
    return tiles, [classes[number] for number in present]


def _row(dataset: Dataset, name: str, chosen: Tensor, columns: int) -> Tensor:
    """Images at the positions chosen, filled up with NaN to (columns, C, H, W)."""
    images = torch.stack([dataset[name][index]["image"] for index in chosen.tolist()]).float()
    return torch.cat([images, torch.full((columns - len(images), *images.shape[1:]), torch.nan)])


def _column(dataset: Dataset, name: str, key: str) -> Tensor:
    """One key of every sample, (N, ...)."""
    samples: Any = dataset[name]
    columns: Mapping[str, Any] = getattr(samples, "columns", {})
    return columns[key] if isinstance(columns.get(key), Tensor) else torch.stack([torch.as_tensor(sample[key]) for sample in samples])


def _spread(positions: Tensor, count: int) -> Tensor:
    """At most `count` of the positions, evenly spaced over them."""
    if len(positions) <= count:
        return positions
    return positions[torch.linspace(0, len(positions) - 1, count).round().long()]


def _points(dataset: Dataset, names: Sequence[str], heading: str) -> Figure:
    figure = Figure(figsize=(3.1 * len(names) + 0.9, 3.0), facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False, sharex=True, sharey=True)[0]
    for axes, name in zip(panels, names, strict=True):
        features = _column(dataset, name, "features")
        labels = _column(dataset, name, "label") if "label" in dataset[name][0] else torch.zeros(len(features), dtype=torch.long)
        for number in sorted(set(labels.tolist())):
            x, y = features[labels == number].T.numpy()
            known = dataset.info.classes[number] if number < len(dataset.info.classes) else str(number)
            axes.scatter(x, y, s=9, color=COLOURS[number % len(COLOURS)], alpha=0.75, linewidths=0, label=known)
        axes.set_title(name, fontsize=10)
        axes.set_aspect("equal")
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right upper")
    if heading:
        figure.suptitle(heading, fontsize=11)
    return figure


def _unframe(axes: Axes) -> None:
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
