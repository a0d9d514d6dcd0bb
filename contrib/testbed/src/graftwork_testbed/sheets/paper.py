"""A white sheet that is measured in inches, and what is put on it: pictures, text, boxes, a legend."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

__all__ = ["COLOURS", "DPI", "GREY", "WIDEST", "Paper", "colour", "line_height", "text_width", "whole_pixels", "wrap"]

COLOURS = ("#3b6fb6", "#d1495b", "#2e933c", "#edae49", "#6b4e9b", "#00a5b5", "#8f4a2b", "#9acd32", "#d678bd", "#f4731c")
"""Of classes, in turn; none is grey, since masks lie on grey images."""

GREY = "#666666"
"""Of what is said beside the data."""

DPI = 200
"""Pixels to the inch in which a sheet is saved unless `savefig` is told otherwise."""

WIDEST = 11.0
"""Inches that a sheet is wide at most, if its tiles allow."""

FONT = 9.0
"""Points of a row's name."""


def colour(number: int) -> str:
    """The colour of a class."""
    return COLOURS[number % len(COLOURS)]


@functools.cache
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, DPI)


@functools.lru_cache(maxsize=4096)
def text_width(text: str, points: float = FONT, weight: str = "normal") -> float:
    """Inches that a line of text takes, as it will be drawn."""
    font = FontProperties(size=points, weight=weight)
    return float(_renderer().get_text_width_height_descent(text, font, ismath=False)[0]) / DPI if text.strip() else 0.0


def line_height(points: float = FONT) -> float:
    """Inches from one line of text to the next."""
    return 1.25 * points / 72


def wrap(text: str, width: float, points: float = FONT, lines: int = 4) -> list[str]:
    """Lines of at most `width` inches; a word that is longer is cut, and so is what does not fit, with an ellipsis."""
    found: list[str] = []
    for word in (_cut(word, width, points) for word in text.split()):
        if found and text_width(f"{found[-1]} {word}", points) <= width:
            found[-1] += f" {word}"
        else:
            found.append(word)
    return found if len(found) <= lines else [*found[: lines - 1], _cut(found[lines - 1] + " …", width, points)]


def _cut(text: str, width: float, points: float) -> str:
    """The text, or as much of its beginning as fits with an ellipsis."""
    if text_width(text, points) <= width:
        return text
    kept = text.removesuffix(" …")
    while len(kept) > 1 and text_width(kept + "…", points) > width:
        kept = kept[:-1]
    return kept.rstrip() + "…"


def whole_pixels(pixels: int, inches: float, most: float = math.inf) -> float:
    """A length near `inches`, not above `most`, at which each of `pixels` takes a whole number of the sheet's, so that all are alike.

    Where there are too many for that, the lesser of the two lengths.
    """
    times = min(round(inches * DPI / pixels), math.floor(min(most, 1e3) * DPI / pixels))
    return times * pixels / DPI if times else min(inches, most)


class Paper:
    """A white sheet; lengths are inches from its top left corner.

    Args:
        width: of the sheet.
        height: of the sheet.

    Attributes:
        figure: a matplotlib figure that pyplot does not know.
    """

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), facecolor="white", dpi=DPI)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.set_autoscale_on(False)
        self.axes.set_axis_off()

    def picture(self, pixels: NDArray[np.float32], left: float, top: float, width: float, height: float) -> None:
        """Draw pixels (H, W, 3) in [0, 1], each a sharp square."""
        extent = (left, left + width, top + height, top)
        self.axes.imshow(pixels, extent=extent, interpolation="antialiased", aspect="auto", vmin=0, vmax=1)

    def write(
        self,
        text: str,
        left: float,
        top: float,
        points: float = FONT,
        *,
        align: str = "left",
        middle: bool = False,
        weight: str = "normal",
        shade: str = "black",
    ) -> None:
        """Write a line whose top, or middle, is at `top`; nothing in it is read as mathematics."""
        baseline = top + (0.36 if middle else 0.78) * points / 72  # not the ink's edge, which differs from word to word
        self.axes.text(left, baseline, text, fontsize=points, ha=align, va="baseline", color=shade, weight=weight, parse_math=False)

    def box(self, left: float, top: float, width: float, height: float, name: str, edge: str, within: tuple[float, float, float]) -> None:
        """Outline a box, and write its name on a tag above it; inside it, where there is no room above.

        Args:
            left: of the box.
            top: of the box.
            width: of the box.
            height: of the box.
            name: on the tag; no tag without one.
            edge: colour of the outline and the tag.
            within: left, right and top of the picture, which the tag does not leave.
        """
        points = 5.5
        self.axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=edge, linewidth=1.0))
        if not name:
            return
        tag = text_width(name, points) + 0.05
        start = max(within[0], min(left, within[1] - tag))
        tall = line_height(points)
        top = top - tall if top - tall >= within[2] else top
        self.axes.add_patch(Rectangle((start, top), tag, tall, facecolor=edge, edgecolor="none", alpha=0.85))
        luma = float(np.dot(to_rgb(edge), (0.299, 0.587, 0.114)))
        self.write(name, start + 0.025, top + tall / 2, points, middle=True, shade="black" if luma > 0.55 else "white")

    def heading(self, title: str, note: str = "") -> None:
        """Write a title at the top left, and a line of grey below it."""
        self.write(title, 0.15, 0.12, 10, weight="bold")
        self.write(note, 0.15, 0.33, 7, shade=GREY)

    def legend(self, names: Mapping[str, str], top: float, left: float = 0.15) -> None:
        """A swatch and a name for each class, in as many lines as they need.

        Args:
            names: name -> colour.
            top: of the first line.
            left: where lines begin.
        """
        for name, (x, line) in zip(names, legend_places(tuple(names), self.width - 0.15 - left), strict=True):
            y = top + line * LEGEND_LINE
            self.axes.add_patch(Rectangle((left + x, y), 0.12, 0.09, facecolor=names[name], edgecolor="none"))
            self.write(name, left + x + 0.17, y + 0.045, 7, middle=True)


LEGEND_LINE = 0.17
"""Inches from one line of a legend to the next."""


def legend_places(names: tuple[str, ...], width: float) -> list[tuple[float, int]]:
    """Where each entry of a legend begins, in inches, and on which line."""
    places, x, line = [], 0.0, 0
    for name in names:
        needed = 0.17 + text_width(name, 7) + 0.2
        if x and x + needed > width:
            x, line = 0.0, line + 1
        places.append((x, line))
        x += needed
    return places


def legend_height(names: tuple[str, ...], width: float) -> float:
    """Inches that a legend takes in height; 0 without names."""
    return (legend_places(names, width)[-1][1] + 1) * LEGEND_LINE if names else 0.0
