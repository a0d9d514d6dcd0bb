"""Images with what is known of them: boxes, masks, a second image, a caption. A sample becomes an exhibit of several panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from graftwork import Dataset
from graftwork_testbed.sheets import pixels
from graftwork_testbed.sheets.choice import Row, held, rows
from graftwork_testbed.sheets.paper import DPI, FONT, WIDEST, Paper, colour, legend_height, line_height, text_width, whole_pixels, wrap

__all__ = ["Panel", "draw_annotated", "is_annotated", "panels_of"]

SECOND_IMAGES = ("view", "target")
MAPS = ("mask", "instances", "distortion")
CAPTIONS = ("caption", "text", "prompt")

CAPTION_POINTS = 6.5

LARGEST = 384
"""Pixels of a panel's longer side at most."""

TALLEST = 9.0
"""Inches of exhibits that one split takes in height, at most, if one fits."""


@dataclass(frozen=True)
class Panel:
    """One picture of a sample.

    Args:
        name: of the key that it shows.
        image: (3, H, W) in [0, 1].
        boxes: (n, 4) xyxy in pixels of the image.
        labels: (n,) long, of the boxes; empty where they have none.
    """

    name: str
    image: Tensor
    boxes: Tensor = field(default_factory=lambda: torch.empty(0, 4))
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))


def is_annotated(sample: Mapping[str, Any]) -> bool:
    """Whether a sample with an `image` has anything beside it that a sheet can show."""
    return len(panels_of(sample)) > 1 or "boxes" in sample or bool(caption_of(sample))


def panels_of(sample: Mapping[str, Any]) -> list[Panel]:
    """The image with its boxes; then a second image, masks over the image, fields of numbers."""
    image = pixels.rgb(sample["image"])
    boxes = torch.as_tensor(sample.get("boxes", torch.empty(0, 4))).float().view(-1, 4)
    panels = [Panel("image", image, boxes, torch.as_tensor(sample.get("labels", torch.empty(0))).long().view(-1))]
    for key in SECOND_IMAGES:
        if pixels.is_image(sample.get(key)) and sample[key].shape[1:] == sample["image"].shape[1:]:
            panels.append(Panel(key, pixels.rgb(sample[key])))
    for key in MAPS:
        if not pixels.is_map(sample.get(key), sample["image"]):
            continue
        values = sample[key]
        if values.is_floating_point():
            panels.append(Panel(key, pixels.field(values)))
        else:
            panels.append(Panel(key, pixels.overlay(image, values, ignored=() if key == "instances" else pixels.IGNORED)))
    return panels


def caption_of(sample: Mapping[str, Any]) -> str:
    """What is said of a sample, in one line; the first of several sentences; nothing where nothing is."""
    for key in CAPTIONS:
        value = sample.get(key)
        if isinstance(value, (list, tuple)) and value:
            value = value[0]
        if isinstance(value, str) and value.strip():
            return " ".join(value.split())
    return ""


@dataclass(frozen=True)
class Layout:
    """Inches of an exhibit, which has its panels side by side, or below one another where they are wide.

    Args:
        height: of a panel.
        width: of a panel.
        panels: in an exhibit.
        stacked: whether they stand below one another.
        across: exhibits in a row.
        margin: at the left, for the rows' names.
    """

    height: float
    width: float
    panels: int
    stacked: bool
    across: int
    margin: float

    GAP = 0.06
    BETWEEN = 0.2

    @property
    def exhibit(self) -> tuple[float, float]:
        """(height, width) of an exhibit without its caption."""
        tall, wide = (self.panels, 1) if self.stacked else (1, self.panels)
        return tall * self.height + (tall - 1) * self.GAP, wide * self.width + (wide - 1) * self.GAP

    def place(self, panel: int) -> tuple[float, float]:
        """(down, right) of a panel from the exhibit's top left corner."""
        return (panel * (self.height + self.GAP), 0.0) if self.stacked else (0.0, panel * (self.width + self.GAP))


def _layout(panels: Sequence[Panel], columns: int, margin: float) -> Layout:
    height, width = panels[0].image.shape[1:]
    stacked = width >= 1.5 * height
    tall = whole_pixels(height, min(max(1.0, 0.02 * height), 1.5))
    wide = tall * width / height
    if wide > WIDEST - margin - 0.3:  # a strip
        tall, wide = tall * (WIDEST - margin - 0.3) / wide, WIDEST - margin - 0.3
    single = Layout(tall, wide, len(panels), stacked, 1, margin)
    room = int((WIDEST - margin - 0.15 + Layout.BETWEEN) / (single.exhibit[1] + Layout.BETWEEN))
    across = max(1, min(room, columns if stacked else columns // len(panels)))
    return Layout(tall, wide, len(panels), stacked, across, margin)


def draw_annotated(dataset: Dataset, splits: Sequence[str], columns: int, title: str) -> Figure:
    """A row of exhibits for each class, where samples have one label and no boxes or captions; else some over the split."""
    first = dataset[splits[0]][0]
    by_class = "boxes" not in first and not caption_of(first)
    names = list(splits) if len(splits) > 1 else list(dataset.info.classes) if by_class else []
    margin = max((text_width(name) + 0.25 for name in names), default=0.0) + 0.15
    layout = _layout(panels_of(first), columns, margin)
    captioned = 4 * line_height(CAPTION_POINTS) if caption_of(first) else 0.0
    depth = max(1, min(4, int(TALLEST / (layout.exhibit[0] + captioned + 0.2))))
    chosen = rows(dataset, splits, layout.across, depth, by_class)
    shown = [[dataset[row.split][index] for index in row.positions.tolist()] for row in chosen]
    captions = [[wrap(caption_of(sample), layout.exhibit[1], CAPTION_POINTS) for sample in row] for row in shown]
    heights = [layout.exhibit[0] + max(map(len, lines)) * line_height(CAPTION_POINTS) + 0.18 for lines in captions]
    legend = _legend(shown, dataset.info.classes)
    across = max(map(len, shown))
    width = margin + across * (layout.exhibit[1] + Layout.BETWEEN) - Layout.BETWEEN + 0.15
    width = max(width, text_width(title, 10, "bold") + 0.15 + 0.3, 3.5)
    below = legend_height(tuple(legend), width - 0.15 - margin)
    paper = Paper(width, 0.6 + sum(heights) + below + 0.05)
    paper.heading(title, _note(dataset, splits, panels_of(first), layout.stacked))
    top = 0.6
    for row, samples, lines, height in zip(chosen, shown, captions, heights, strict=True):
        _draw_row(paper, layout, row, samples, lines, round(top * DPI) / DPI, dataset.info.classes)
        top += height
    paper.legend(legend, top + 0.02, margin)
    return paper.figure


def _draw_row(
    paper: Paper,
    layout: Layout,
    row: Row,
    samples: Sequence[Mapping[str, Any]],
    captions: Sequence[Sequence[str]],
    top: float,
    classes: Sequence[str],
) -> None:
    paper.write(row.name, layout.margin - 0.1, top + layout.exhibit[0] / 2, FONT, align="right", middle=True)
    for number, (sample, lines) in enumerate(zip(samples, captions, strict=True)):
        left = round((layout.margin + number * (layout.exhibit[1] + Layout.BETWEEN)) * DPI) / DPI
        for position, panel in enumerate(panels_of(sample)[: layout.panels]):
            down, right = layout.place(position)
            _draw_panel(paper, panel, left + right, top + down, layout.height, layout.width, classes)
        for line, text in enumerate(lines):
            paper.write(text, left, top + layout.exhibit[0] + 0.05 + line * line_height(CAPTION_POINTS), CAPTION_POINTS)


def _draw_panel(paper: Paper, panel: Panel, left: float, top: float, height: float, width: float, classes: Sequence[str]) -> None:
    """The image fitted into the room of a panel, and its boxes over it."""
    scale = min(height / panel.image.shape[1], width / panel.image.shape[2])
    tall, wide = panel.image.shape[1] * scale, panel.image.shape[2] * scale
    left, top = left + (width - wide) / 2, top + (height - tall) / 2
    smaller = min(1.0, LARGEST / max(panel.image.shape[1:]))
    image = pixels.fit(panel.image, *(max(1, round(side * smaller)) for side in panel.image.shape[1:]))
    paper.picture(image.permute(1, 2, 0).numpy(), left, top, wide, tall)
    for number, (x1, y1, x2, y2) in enumerate((panel.boxes * scale).tolist()):
        label = int(panel.labels[number]) if number < len(panel.labels) else -1
        name = classes[label] if 0 <= label < len(classes) else str(label) if label >= 0 else ""
        paper.box(left + x1, top + y1, x2 - x1, y2 - y1, name, colour(max(label, 0)), (left, left + wide, top))


def _legend(shown: Sequence[Sequence[Mapping[str, Any]]], classes: Sequence[str]) -> dict[str, str]:
    """Name -> colour of the classes that the masks mark; 0 is the background, k the class k - 1."""
    masks = [sample["mask"].flatten() for row in shown for sample in row if pixels.is_map(sample.get("mask"), sample["image"])]
    masks = [mask for mask in masks if not mask.is_floating_point()]
    if not masks or not classes:
        return {}
    named = classes[1:] if classes[0].lower() == "background" else classes
    return {named[number - 1]: colour(number - 1) for number in torch.cat(masks).unique().tolist() if 0 < number <= len(named)}


def _note(dataset: Dataset, splits: Sequence[str], panels: Sequence[Panel], stacked: bool) -> str:
    """How much there is, and which panel is which."""
    count = "a row a split, the same positions in each" if len(splits) > 1 else held(dataset, splits[0], "sample")
    names = ", ".join(panel.name for panel in panels)
    return f"{count}; from {'above' if stacked else 'the left'}: {names}" if len(panels) > 1 else count
