"""Pictures: a pool's terms and who agrees with whom, what source classes say of the target's, and scores against accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from graftwork_osborn.eep import empirical_conditional
from graftwork_osborn.table import SetScore, TransferabilityTable

__all__ = ["draw_conditional", "draw_correlation", "draw_pool"]

INK, GREY, BLUE, RUST = "#33363b", "#9aa0a8", "#2a6f97", "#c8553d"
MOST = 60
"""Rows, or columns, of a heat map that are named."""


def draw_pool(table: TransferabilityTable, score: SetScore, chosen: Sequence[int]) -> Figure:
    """Left a bar a model, its cost as scored without pairs, the chosen in order; right the heat map of H(row | column).

    Args:
        table: what was measured.
        score: what was made of it.
        chosen: positions in the order of choice.
    """
    count = len(table.names)
    figure = Figure(figsize=(10.4, max(2.8, 0.3 * count + 1.6)), layout="constrained")
    bars, heat = figure.subplots(1, 2, width_ratios=(1, 1.25))
    costs = score.singles.tolist()
    bars.barh(range(count), costs, color=[RUST if index in chosen else GREY for index in range(count)], height=0.7)
    for step, index in enumerate(chosen):
        side, shift = ("left", 4) if costs[index] >= 0 else ("right", -4)
        bars.annotate(str(step + 1), (costs[index], index), (shift, 0), textcoords="offset points", va="center", ha=side)
    bars.axvline(0, color=INK, linewidth=0.8)
    bars.margins(x=0.12)
    bars.set_xlabel("cost of the model by itself (lower is better)", fontsize=9, color=INK)
    bars.set_yticks(range(count), table.names, fontsize=8, color=INK)
    bars.set_ylim(count - 0.5, -0.5)
    bars.spines[["top", "right", "left"]].set_visible(False)
    bars.tick_params(axis="y", length=0)
    _heat(figure, heat, table.cohesion, table.names, table.names, "H(row | column), nats")
    for line in chosen:
        heat.get_yticklabels()[line].set_color(RUST)
        heat.get_xticklabels()[line].set_color(RUST)
    return figure


def draw_conditional(joint: Tensor, names: Sequence[str]) -> Figure:
    """P(target class | source class), a row a target class.

    Args:
        joint: (C_target, C_source), non-negative.
        names: of the target classes.
    """
    shares = empirical_conditional(joint.detach().cpu())
    rows, columns = shares.shape
    figure = Figure(figsize=(min(12.0, 2.6 + 0.3 * columns), min(9.0, 1.6 + 0.28 * rows)), layout="constrained")
    axes = figure.add_subplot()
    _heat(figure, axes, shares, names, list(map(str, range(columns))), "P(target | source)")
    axes.set_xlabel("source class", fontsize=9, color=INK)
    axes.set_ylabel("target class", fontsize=9, color=INK)
    return figure


def draw_correlation(targets: Mapping[str, tuple[Tensor, Tensor, float]]) -> Figure:
    """A panel a target: a dot a subset, its score against its accuracy, the best-scored ringed.

    Args:
        targets: name -> scores (N,), higher is better; accuracies (N,); weighted tau.
    """
    figure = Figure(figsize=(max(4.4, 3.4 * len(targets)), 3.3), layout="constrained")
    panels = figure.subplots(1, len(targets), squeeze=False)[0]
    for axes, (name, (scores, accuracies, tau)) in zip(panels, targets.items(), strict=True):
        axes.scatter(scores, accuracies, s=14, color=BLUE, alpha=0.55, linewidths=0)
        best = int(scores.argmax())
        axes.scatter(scores[best], accuracies[best], s=90, facecolors="none", edgecolors=RUST, linewidths=1.6)
        axes.set_title(f"{name}: weighted tau {tau:.2f}", fontsize=9, color=INK)
        axes.set_xlabel("score, higher is better", fontsize=9, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors=INK)
    panels[0].set_ylabel("accuracy of the ensemble", fontsize=9, color=INK)
    return figure


def _heat(figure: Figure, axes: Any, values: Tensor, rows: Sequence[str], columns: Sequence[str], label: str) -> None:
    image = axes.imshow(values.numpy(), cmap="Blues", aspect="auto", vmin=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label(label, fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7)
    for names, place, turned in ((rows, axes.set_yticks, 0), (columns, axes.set_xticks, 90)):
        if len(names) <= MOST:
            place(range(len(names)), names, fontsize=7, rotation=turned, color=INK)
