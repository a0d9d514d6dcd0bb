"""The two ways of drawing a graph on a pair of axes: nodes joined by lines, and its adjacency matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from torch import Tensor

from graftwork_testbed.sheets.paper import text_width

__all__ = ["Look", "draw_links", "draw_matrix"]

LARGEST_MATRIX = 400
"""Cells along a side of a drawn matrix; larger ones are averaged down to it."""

LEAST_SHADE = 0.25
"""How dark an edge is at least in a matrix that has room for every one."""

EDGE = "#9a9a9a"
"""Of edges that join two classes, or nodes without."""


@dataclass(frozen=True)
class Look:
    """How each node looks.

    Args:
        colours: N colours.
        strong: (N,) bool, nodes that are drawn in full; the others are pale.
        neutral: (N,) bool, nodes that lend no colour to their lines; a line between two colours is grey.
        markers: N markers of matplotlib; discs by default.
        names: node -> what is written beside it, where there is room.
        lettering: of the names, in points.
    """

    colours: Sequence[str]
    strong: Tensor
    neutral: Tensor | None = None
    markers: Sequence[str] | None = None
    names: Mapping[int, str] | None = None
    lettering: float = 5.0


def draw_links(axes: Axes, positions: NDArray[np.float64], pairs: Tensor, look: Look, weights: Tensor | None = None) -> None:
    """Nodes joined by lines; a node's area grows with its degree, a line's width with its weight.

    Args:
        axes: to draw on.
        positions: (N, 2) in [-1, 1].
        pairs: (2, E) edges, both directions.
        look: of the nodes.
        weights: (E,) positive; all the same by default.
    """
    scale = min(axes.get_window_extent().width, axes.get_window_extent().height) / axes.figure.dpi / 4
    once = pairs[0] < pairs[1]
    ends = pairs[:, once].numpy()
    if ends.shape[1]:
        thickness = np.ones(ends.shape[1]) if weights is None else np.log1p(weights[once].numpy())
        faint = float(np.clip(1.75 * len(positions) / ends.shape[1], 0.12, 0.55))
        widths = 0.7 * scale * thickness / thickness.mean()
        axes.add_collection(LineCollection(list(positions[ends.T]), colors=_tints(ends, look), linewidths=widths, alpha=faint, zorder=1))
    degree = np.bincount(pairs[0].numpy(), minlength=len(positions))
    area = 2600 / max(len(positions), 20) * (0.35 + degree / max(degree.mean(), 1e-9)) / 1.35
    area = scale**2 * np.minimum(area, 420)
    _scatter(axes, positions, area, look, scale)
    axes.set(xlim=(-1.08, 1.08), ylim=(-1.08, 1.08), aspect="equal")
    axes.set_axis_off()
    _letter(axes, positions, area, look)


def _tints(ends: NDArray[np.int64], look: Look) -> list[str]:
    """The colour of each line: of its two nodes if they agree, or of the one that has one to lend."""
    lent = [None if look.neutral is not None and look.neutral[node] else shade for node, shade in enumerate(look.colours)]
    found = [{lent[source], lent[target]} - {None} for source, target in ends.T.tolist()]
    return [one.pop() if len(one) == 1 else EDGE for one in found]


def _scatter(axes: Axes, positions: NDArray[np.float64], area: NDArray[np.float64], look: Look, scale: float) -> None:
    markers = np.array(look.markers or ["o"] * len(positions))
    strong = look.strong.numpy()
    for marker in dict.fromkeys(markers.tolist()):
        for full in (False, True):
            chosen = ((markers == marker) & (strong == full)).nonzero()[0]
            if not len(chosen):
                continue
            shades = [look.colours[node] for node in chosen]
            edge = {"edgecolors": "white", "linewidths": 0.6 * scale} if full else {"edgecolors": shades, "linewidths": 0.8 * scale}
            faces = shades if full else [_pale(shade) for shade in shades]
            axes.scatter(*positions[chosen].T, s=area[chosen], c=faces, marker=marker, zorder=3 if full else 2, **edge)


def _letter(axes: Axes, positions: NDArray[np.float64], area: NDArray[np.float64], look: Look) -> None:
    """Write names beside their nodes, the largest nodes first; one that would cover another, or a larger node, is left out."""
    names = look.names or {}
    inches = axes.get_window_extent().width / axes.figure.dpi / 2.16  # to a unit of the axes
    radius = np.sqrt(area / np.pi) / 72 / inches
    boxes = [(x - r, y - r, x + r, y + r) for (x, y), r in zip(positions, radius, strict=True)]
    tall = look.lettering * 0.8 / 72 / inches
    written: list[tuple[float, float, float, float]] = []
    for node in sorted(names, key=lambda node: -area[node]):
        wide = text_width(names[node], look.lettering) / inches
        x, y = positions[node]
        gap = radius[node] + 0.012
        places = ((x - wide / 2, y + gap), (x - wide / 2, y - gap - tall), (x + gap, y - tall / 2), (x - gap - wide, y - tall / 2))
        for left, low in places:
            box = (left, low, left + wide, low + tall)
            larger = [other for place, other in enumerate(boxes) if place != node and area[place] >= area[node]]
            if not any(_overlap(box, other) for other in (*written, *larger)):
                axes.text(left, low, names[node], fontsize=look.lettering, va="baseline", zorder=4, parse_math=False)
                written.append(box)
                break


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _pale(shade: str) -> tuple[float, ...]:
    return tuple(0.25 * part + 0.75 for part in to_rgb(shade))


def draw_matrix(axes: Axes, pairs: Tensor, order: Tensor, colours: Sequence[str], counts: Tensor | None = None) -> None:
    """An adjacency matrix: a dot an edge, in the colour of its two nodes if they share one; darker where counts are larger.

    Args:
        axes: to draw on.
        pairs: (2, E) edges, both directions.
        order: (N,) nodes in the order of rows and columns.
        colours: N colours, of the nodes.
        counts: (E,) positive; ones by default.
    """
    nodes = len(order)
    place = torch.empty(nodes, dtype=torch.long)
    place[order] = torch.arange(nodes)
    cells = min(nodes, LARGEST_MATRIX)
    rows, columns = (place[pairs] * cells // nodes).numpy()
    weights = np.ones(len(rows)) if counts is None else np.log1p(counts.double().numpy())
    dark = np.zeros((cells, cells))
    np.add.at(dark, (rows, columns), weights)
    size = np.bincount(np.arange(nodes) * cells // nodes)
    dark /= size[:, None] * size  # cells are of unequal sizes where they do not divide the nodes
    top = np.quantile(dark[dark > 0], 0.95) if (dark > 0).any() else 1.0
    least = LEAST_SHADE if cells == nodes else 0.0
    dark = np.where(dark > 0, np.clip(dark / top, least, 1), 0)[..., None]
    of_cell = [colours[int(order[cell * nodes // cells])] for cell in range(cells)]
    shades, codes = np.array([to_rgb(shade) for shade in of_cell]), np.unique(of_cell, return_inverse=True)[1]
    same = (codes[:, None] == codes)[..., None]
    ink = np.where(same, shades[:, None], np.array(to_rgb("#6f6f6f")))
    axes.imshow(1 - dark * (1 - ink), interpolation="antialiased", extent=(0, nodes, nodes, 0))
    axes.set(xticks=[], yticks=[], xlim=(0, nodes), ylim=(nodes, 0))
    axes.spines[:].set(linewidth=0.5, color="#bbbbbb")
