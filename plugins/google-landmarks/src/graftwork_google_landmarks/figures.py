"""Pictures of what was retrieved, recognised and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["draw_gap", "draw_retrieved", "draw_sizes"]

RIGHT, WRONG, NEUTRAL = "#2a9d4a", "#c8402f", "#555555"


def _show(axes: Any, image: Tensor, colour: str, title: str = "") -> None:
    axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=7)
    for side in axes.spines.values():
        side.set(color=colour, linewidth=2.5)


def draw_retrieved(queries: Sequence[Tensor], found: Sequence[Sequence[tuple[Tensor, bool, str]]], titles: Sequence[str]) -> Figure:
    """A row a query: the query, then what was found for it, best first, framed green where it is right and red where it is wrong.

    Args:
        queries: images (3, H, W) in [0, 1].
        found: for each query (image, right, title).
        titles: of the queries.
    """
    columns = 1 + max((len(row) for row in found), default=0)
    rows = max(1, len(queries))
    figure = Figure(figsize=(1.25 * columns, 1.4 * rows))
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.15 / rows, wspace=0.08, hspace=0.2)  # at once, where a layout engine takes a second
    for row, (query, answers, title) in enumerate(zip(queries, found, titles, strict=True)):
        _show(figure.add_subplot(rows, columns, row * columns + 1), query, NEUTRAL, title)
        for column, (image, right, caption) in enumerate(answers, start=2):
            _show(figure.add_subplot(rows, columns, row * columns + column), image, RIGHT if right else WRONG, caption)
    return figure


def draw_gap(
    precision: NDArray[np.float64], correct: NDArray[np.bool_], positives: int, scores: NDArray[np.float64], shows: NDArray[np.bool_]
) -> Figure:
    """Left: precision against recall as the threshold falls, whose area is GAP. Right: scores of queries with and without a landmark.

    Args:
        precision: (P,) after each prediction, surest first.
        correct: (P,) of each.
        positives: queries that show a landmark.
        scores: (P,) in any order.
        shows: (P,) whether the query of each score shows a landmark.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    recall = np.cumsum(correct) / positives
    left.step(np.concatenate([[0], recall]), np.concatenate([precision[:1], precision]), where="post", color=RIGHT)
    left.fill_between(np.concatenate([[0], recall]), np.concatenate([precision[:1], precision]), step="post", alpha=0.15, color=RIGHT)
    left.set(xlabel="share of landmark queries answered right", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    left.set_title(f"GAP {precision[correct].sum() / positives:.3f}")
    edges = np.histogram_bin_edges(scores, bins=40)
    for what, colour, name in ((shows, RIGHT, "landmark"), (~shows, NEUTRAL, "no landmark")):
        if what.any():
            right.hist(scores[what], bins=edges, density=True, alpha=0.55, color=colour, label=f"{name} ({int(what.sum())})")
    right.set(xlabel="score", ylabel="density")
    right.margins(y=0.35)  # room for the legend
    right.legend(frameon=False)
    return figure


def draw_sizes(sizes: dict[str, NDArray[np.int64]]) -> Figure:
    """Images of each landmark, largest first, on logarithmic axes: the long tail; a line a split.

    Args:
        sizes: split -> (L,) images of each landmark.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="landmark, by size", ylabel="images", xscale="log", yscale="log")
    for name, counts in sizes.items():
        ordered = np.sort(counts)[::-1]
        axes.plot(
            np.arange(1, len(ordered) + 1),
            ordered,
            drawstyle="steps-mid",
            label=f"{name}: {int(ordered.sum())} images, {len(ordered)} landmarks",
        )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "25" else ""))
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    return figure
