"""Pictures: how a Fisher is spread over a model's parameters, and how merged models score against their coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from graftwork_fisher_merging.search import MergeSearch

__all__ = ["draw_fisher", "draw_search"]

INK, GREY, BLUE, RUST = "#33363b", "#9aa0a8", "#2a6f97", "#c8553d"
COLOURS = (BLUE, RUST, "#4c9f70", "#8e6bbf", "#d9a13b", "#5aa9c9", "#9c4f6b", "#7a7f45")
MOST = 2**20
"""Entries of a parameter from which quantiles are taken."""
NEGLIGIBLE = 1e-10
"""Share of the largest entry below which one is rounding, as of the key biases of attention, on which no output depends."""


def draw_fisher(tensors: Mapping[str, Tensor]) -> Figure:
    """A row for each parameter, in the model's order: quantiles of its entries on a logarithmic axis.

    Args:
        tensors: name of the parameter -> its Fisher.
    """
    shown = list(tensors.items())
    figure = Figure(figsize=(7.0, max(2.2, 0.17 * len(shown) + 0.9)), layout="constrained")
    axes = figure.add_subplot()
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    least = NEGLIGIBLE * max((float(tensor.max()) for _, tensor in shown if tensor.numel()), default=0.0)
    zero = []
    for row, (_, tensor) in enumerate(shown):
        entries = tensor.detach().flatten().float().cpu()
        entries = entries[:: max(1, len(entries) // MOST)][:MOST]
        entries = entries[entries > least]
        if not len(entries):
            zero.append(row)
            continue
        low, first, median, third, high = entries.quantile(levels).tolist()
        axes.plot([low, high], [row, row], color=GREY, linewidth=1)
        axes.plot([first, third], [row, row], color=BLUE, linewidth=4, solid_capstyle="butt")
        axes.plot([median], [row], "o", color="white", markersize=3.5, markeredgecolor=BLUE)
    axes.set_xscale("log")
    for row in zero:
        axes.annotate("about 0", (0.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=7, color=GREY)
    axes.set_yticks(range(len(shown)), [_short(name) for name, _ in shown], fontsize=7 if len(shown) <= 80 else 5, color=INK)
    axes.set_ylim(len(shown) - 0.3, -0.7)
    axes.set_xlabel("Fisher information of an entry", fontsize=9, color=INK)
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def draw_search(search: MergeSearch) -> Figure:
    """The score against the coefficients: a curve for two models, a panel for each of more.

    Args:
        search: what was tried.
    """
    count = len(search.winner.coefficients)
    figure = Figure(figsize=(5.6, 3.6) if count <= 2 else (min(12.0, 2.6 * count), 3.2), layout="constrained")
    panels = figure.subplots(1, 1 if count <= 2 else count, sharey=True, squeeze=False)[0]
    for index, axes in enumerate(panels):
        _score_panel(axes, search, min(index + 1, count - 1) if count <= 2 else index)
    panels[0].set_ylabel(f"mean of {', '.join(search.metrics)}" if len(search.metrics) > 1 else search.metrics[0], fontsize=9, color=INK)
    return figure


def _score_panel(axes: Any, search: MergeSearch, model: int) -> None:
    two = len(search.winner.coefficients) == 2
    across = [trial.coefficients[model] for trial in search.trials]
    if two:
        parts = [name for name in search.winner.metrics if name.endswith(tuple(f"/{metric}" for metric in search.metrics))]
        for colour, name in zip(COLOURS[1:], parts, strict=False):
            axes.plot(across, [trial.metrics[name] for trial in search.trials], color=colour, linewidth=1.1, alpha=0.8, label=name)
        axes.plot(across, [trial.score for trial in search.trials], color=BLUE, linewidth=2, label="mean" if parts else None)
        if parts:
            axes.legend(frameon=False, fontsize=8)
        axes.set_xlabel("weight of the second model (0: the target alone)", fontsize=9, color=INK)
    else:
        axes.scatter(across, [trial.score for trial in search.trials], s=12, color=BLUE, alpha=0.6, linewidths=0)
        axes.set_xlabel(f"weight of model {model}{' (target)' if model == 0 else ''}", fontsize=9, color=INK)
    winner = search.winner
    axes.scatter([winner.coefficients[model]], [winner.score], s=110, facecolors="none", edgecolors=RUST, linewidths=1.6, zorder=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)


def _short(name: str, most: int = 46) -> str:
    return name if len(name) <= most else f"...{name[-most + 3 :]}"
