"""Pictures of saliency: a heat map laid over its image, and sheets of such pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from graftwork_grad_cam.maps import normalize_maps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Cell", "as_picture", "overlay", "sheet", "signed_picture", "truncated"]

RIGHT, WRONG, PLAIN, FAINT = "#1b7837", "#b2182b", "#222222", "#8a8a8a"
"""Colours of words; right and wrong differ in words too, for those who see no difference between green and red."""

Picture = NDArray[np.float32]
SHARP = 192
"""Pixels to which the smaller side of a picture is enlarged."""

MARGIN, NARROW, WIDE, TITLE = 0.15, 0.05, 0.3, 0.24
"""Of a sheet, in inches: around it, between pictures of a sample, between samples, and the height of a sample's title."""


@dataclass
class Cell:
    """One sample of a sheet.

    Args:
        panels: pictures (H, W, 3) side by side: the image, and what was found in it.
        title: above them.
        right: whether the title tells of a success; None for neither.
        notes: one under each panel, or none.
    """

    panels: Sequence[Picture]
    title: str = ""
    right: bool | None = None
    notes: Sequence[str] = field(default_factory=tuple)


def as_picture(image: Tensor) -> Picture:
    """An image (C, H, W) as (H, W, 3) in [0, 1]: grey is repeated, further channels left out, other ranges stretched to fit."""
    image = image.detach().float().cpu()
    image = image[:1].expand(3, -1, -1) if image.shape[0] < 3 else image[:3]
    low, high = image.min(), image.max()
    if low < 0 or high > 1:
        image = (image - low) / (high - low).clamp(min=1e-12)
    return enlarged(image.permute(1, 2, 0).numpy())


def enlarged(picture: Picture) -> Picture:
    """A small picture with each pixel repeated, so that it stays crisp whatever draws it."""
    times = max(1, -(-SHARP // min(picture.shape[:2])))
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def overlay(image: Tensor, saliency: Tensor, image_weight: float = 0.5, colormap: str = "jet") -> Picture:
    """A map laid over its image, in colours from the map's 0 to its maximum.

    Args:
        image: (C, H, W).
        saliency: (h, w) of any size; negative values count as 0.
        image_weight: share of the image in the blend; the rest is the heat map.
        colormap: of matplotlib.

    Returns:
        (H', W', 3), the image's pixels enlarged, the map interpolated.
    """
    from matplotlib import colormaps

    picture = as_picture(image)
    heat = normalize_maps(saliency.detach().float().cpu().clamp(min=0)[None, None], "max")
    heat = interpolate(heat, size=picture.shape[:2], mode="bilinear", align_corners=False)[0, 0]
    return image_weight * picture + (1 - image_weight) * colormaps[colormap](heat.numpy())[..., :3].astype(np.float32)


def signed_picture(gradient: Tensor) -> Picture:
    """A signed map of the input (C, H, W) as a picture: grey is 0, and the colours spread over three standard deviations."""
    gradient = gradient.detach().float().cpu()
    spread = gradient.std()
    centred = gradient / (6 * spread) + 0.5 if spread > 0 else torch.full_like(gradient, 0.5)
    return as_picture(centred.clamp(0, 1))


def sheet(
    cells: Sequence[Cell], columns: int = 4, title: str = "", scale: tuple[str, str] | None = None
) -> tuple[Figure, list[list[Axes]]]:
    """A sheet of cells, each a row of pictures under a title.

    Args:
        cells: with equally many panels.
        columns: cells in a row.
        title: above the sheet.
        scale: colour map and meaning of a colour bar at the foot, from "least" to "most".

    Returns:
        The figure, and the axes of each cell's panels, to draw on.
    """
    from matplotlib.figure import Figure

    columns = max(1, min(columns, len(cells)))
    rows, panels = -(-len(cells) // columns), max(len(cell.panels) for cell in cells)
    tall = cells[0].panels[0].shape[0] / cells[0].panels[0].shape[1]
    side = 1.18 if panels * columns >= 6 else 1.7
    cell_width, note = panels * side + (panels - 1) * NARROW, 0.2 * any(cell.notes for cell in cells)
    between, head, foot = TITLE + note + 0.05, 0.36 * bool(title) + TITLE + 0.08, note + 0.5 * (scale is not None) + 0.1
    width = 2 * MARGIN + columns * cell_width + (columns - 1) * WIDE
    height = head + rows * side * tall + (rows - 1) * between + foot
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    edges = {"left": MARGIN / width, "right": 1 - MARGIN / width, "top": 1 - head / height, "bottom": foot / height}
    outer = figure.add_gridspec(rows, columns, **edges, wspace=WIDE / cell_width, hspace=between / (side * tall))
    axes = [_draw_cell(figure, outer[divmod(index, columns)], cell, panels, side) for index, cell in enumerate(cells)]
    if title:
        figure.text(MARGIN / width, 1 - 0.12 / height, title, ha="left", va="top", fontsize=12, weight="bold", color=PLAIN)
    if scale is not None:
        bar = figure.add_axes((MARGIN / width, 0.28 / height, min(2.4, cell_width) / width, 0.1 / height))
        _draw_scale(bar, scale)
    return figure, axes


def _draw_cell(figure: Any, place: Any, cell: Cell, panels: int, side: float) -> list[Axes]:
    inner = place.subgridspec(1, panels, wspace=NARROW / side)
    axes = [figure.add_subplot(inner[0, index]) for index in range(panels)]
    for axis, picture in zip(axes, cell.panels, strict=False):
        axis.imshow(picture, interpolation="nearest", vmin=0, vmax=1)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, note in zip(axes, cell.notes, strict=False):
        axis.set_xlabel(note, fontsize=7.5, color=FAINT, labelpad=2)
    colour = PLAIN if cell.right is None else RIGHT if cell.right else WRONG
    axes[0].set_title(cell.title, fontsize=8.5, loc="left", pad=3, color=colour, weight="bold" if cell.right is False else "normal")
    return axes


def _draw_scale(axis: Any, scale: tuple[str, str]) -> None:
    axis.imshow(np.linspace(0, 1, 256)[None], cmap=scale[0], aspect="auto")
    axis.set(xticks=[0, 255], yticks=[])
    axis.set_xticklabels(["none", "most"], fontsize=8, color=PLAIN)
    for label, side in zip(axis.get_xticklabels(), ("left", "right"), strict=True):
        label.set_ha(side)
    axis.tick_params(length=0, pad=2)
    axis.spines[:].set_visible(False)
    axis.text(1.04, 0.5, scale[1], transform=axis.transAxes, va="center", fontsize=8, color=PLAIN)


def truncated(text: str, length: int = 16) -> str:
    """A word or two that fit over a picture."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
