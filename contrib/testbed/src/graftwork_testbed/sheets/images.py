"""Images with nothing beside them: one mosaic, a row a class or a row a split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from graftwork import Dataset
from graftwork_testbed.sheets.choice import Row, held, labels_of, rows
from graftwork_testbed.sheets.paper import DPI, FONT, WIDEST, Paper, text_width, whole_pixels
from graftwork_testbed.sheets.pixels import fit, rgb

__all__ = ["draw_images", "mosaic"]

GAP = 0.08
"""Space between the tiles of a mosaic, as a share of a tile's shorter side."""

LARGEST = 192
"""Pixels of a tile's longer side at most."""


def mosaic(images: Tensor) -> Tensor:
    """Tiles side by side on white.

    Args:
        images: (R, K, C, H, W) float in [0, 1], C 1 or 3; NaN where there is no tile.

    Returns:
        (height, width, 3) float in [0, 1].
    """
    tall, wide, _, height, width = images.shape
    gap = max(1, round(GAP * min(height, width)))
    paper = torch.ones(tall, wide, 3, height + gap, width + gap)
    paper[..., :height, :width] = images.nan_to_num(1.0).expand(-1, -1, 3, -1, -1)
    joined = paper.permute(0, 3, 1, 4, 2).reshape(tall * (height + gap), wide * (width + gap), 3)
    return joined[:-gap, :-gap]


def draw_images(dataset: Dataset, splits: Sequence[str], columns: int, title: str) -> Figure:
    """A mosaic of `image`; images of different sizes are fitted to the largest."""
    aspect = dataset[splits[0]][0]["image"].shape[2] / dataset[splits[0]][0]["image"].shape[1]
    chosen = rows(dataset, splits, max(1, round(columns / max(1.0, aspect))), depth=8)
    images = [[rgb(dataset[row.split][index]["image"]) for index in row.positions.tolist()] for row in chosen]
    heights, widths = zip(*(image.shape[1:] for row in images for image in row), strict=True)
    scale = min(1.0, LARGEST / max(*heights, *widths))
    height, width = max(1, round(max(heights) * scale)), max(1, round(max(widths) * scale))
    columns = max(map(len, images))
    tiles = torch.full((len(images), columns, 3, height, width), torch.nan)
    for row, shown in enumerate(images):
        tiles[row, : len(shown)] = torch.stack([fit(image, height, width) for image in shown])
    sheet = mosaic(tiles)
    margin = max(text_width(row.name) for row in chosen) + 0.3
    room = (WIDEST - margin) * width / sheet.shape[1] * max(1.0, height / width)  # inches for a tile's longer side
    aim = min(max(0.62, 0.014 * max(height, width)) * max(1.0, width / height), room)
    scale = whole_pixels(max(height, width), aim, room) / max(height, width)  # inches a pixel
    tall, wide = sheet.shape[0] * scale, sheet.shape[1] * scale
    paper = Paper(max(margin + wide, text_width(title, 10, "bold") + 0.15, 2.5) + 0.15, tall + 0.75)
    paper.heading(title, _note(dataset, splits, chosen))
    paper.picture(sheet.numpy(), round(margin * DPI) / DPI, 0.6, wide, tall)
    step = (sheet.shape[0] + max(1, round(GAP * min(height, width)))) / len(chosen)
    for number, row in enumerate(chosen):
        paper.write(row.name, margin - 0.1, 0.6 + (number * step + height / 2) * scale, FONT, align="right", middle=True)
    return paper.figure


def _note(dataset: Dataset, splits: Sequence[str], chosen: Sequence[Row]) -> str:
    """How much there is, and how much of it is shown."""
    if len(splits) > 1:
        return "a row a split, the same positions in each"
    images = held(dataset, splits[0], "image")
    classes = len(dataset.info.classes)
    if labels_of(dataset, splits[0]) is None:
        return images
    return f"{images}, a row a class" + (f"; {len(chosen)} of {classes} classes" if len(chosen) < classes else "")
