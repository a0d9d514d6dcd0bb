"""The picture of the whole grid: a block a layer, a row an extract, a column an aggregate, as in the authors' figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from graftwork_grad_cam.figures import Picture, as_picture, overlay
from graftwork_grad_cam.maps import normalize_maps, resize_maps
from graftwork_normgrad.cells import Cell
from graftwork_normgrad.combination import varies
from graftwork_normgrad.extract_aggregate import SaliencyGrid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["grid_figure"]

ACROSS, GAP, IMAGE_WEIGHT = 3, 6, 0.4
"""Blocks in a row; pixels between pictures; share of the image in each."""

PIXELS = 96
"""Side to which each picture is thinned, so that a hundred of them make no large file."""


def grid_figure(image: Tensor, found: SaliencyGrid, colormap: str = "jet", row: int = 0) -> Figure:
    """The grid of one sample.

    Args:
        image: (C, H, W).
        found: cells at layers.
        colormap: of matplotlib.
        row: which sample.
    """
    from matplotlib.figure import Figure

    layers = list(next(iter(found.maps.values())))
    blocks: dict[str, Mapping[Cell, Tensor]] = {
        layer: {cell: resize_maps(maps[layer], found.observed.size) for cell, maps in found.maps.items()} for layer in layers
    }
    if len(layers) > 1:
        blocks["combined"] = found.combined
    phase1 = list(dict.fromkeys(cell.phase1 for cell in found.maps))
    phase2 = list(dict.fromkeys(cell.phase2 for cell in found.maps))
    columns = min(ACROSS, len(blocks))
    rows = -(-len(blocks) // columns)
    figure = Figure(figsize=(4.6 * columns, 5.4 * rows), dpi=130, facecolor="white", layout="constrained")
    for number, (layer, maps) in enumerate(blocks.items()):
        axis = figure.add_subplot(rows, columns, number + 1)
        _draw(axis, image, {(cell.phase1, cell.phase2): each[row, 0] for cell, each in maps.items()}, phase1, phase2, colormap)
        axis.set_title(layer if len(layer) <= 40 else f"…{layer[-39:]}", fontsize=11, weight="bold")
    return figure


def _draw(axis: Any, image: Tensor, maps: Mapping[tuple[str, str], Tensor], phase1: list[Any], phase2: list[Any], colormap: str) -> None:
    tiles = [[_tile(image, maps.get((first, second)), colormap) for second in phase2] for first in phase1]
    height, width = tiles[0][0].shape[:2]
    axis.imshow(np.concatenate([np.concatenate(line, axis=1) for line in tiles]), interpolation="nearest")
    axis.set_xticks([width * (index + 0.5) for index in range(len(phase2))], phase2, fontsize=8.5)
    axis.set_yticks(
        [height * (index + 0.5) for index in range(len(phase1))],
        [name.replace("-", "\n") for name in phase1],
        fontsize=8.5,
        rotation=90,
        va="center",
    )
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _tile(image: Tensor, saliency: Tensor | None, colormap: str) -> Picture:
    """A map over its image; the image alone where there is none, or a constant one, which shows no place."""
    if saliency is None or not bool(varies(saliency)):
        picture = as_picture(image)
    else:
        picture = overlay(image, normalize_maps(saliency[None, None], "minmax")[0, 0], IMAGE_WEIGHT, colormap)
    step = max(1, picture.shape[0] // PIXELS)
    return np.pad(picture[::step, ::step], ((GAP, 0), (GAP, 0), (0, 0)), constant_values=1.0)
