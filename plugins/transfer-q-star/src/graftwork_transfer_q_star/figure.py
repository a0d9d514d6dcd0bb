"""Pictures: what decoders gain and what they cost, and how far they stay behind the best."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from graftwork_transfer_q_star.gap import Gap

__all__ = ["COLOURS", "draw_decoders", "draw_gaps"]

INK, FAINT = "#33363b", "#d5d7db"
COLOURS = ("#2a6f97", "#c8553d", "#588157", "#8e6c8a", "#b08900", "#457b7b", "#7a5c3e", "#5b5f97")
"""Of methods, in order."""
GOLDEN = 0.6180339887
"""Multiples of it, less their whole part, fill the unit interval evenly."""


def draw_decoders(rewards: Mapping[str, Tensor], metrics: Mapping[str, Mapping[str, float]]) -> Figure:
    """The rewards of each decoder's responses; their mean against the divergence from the reference.

    Decoders whose names have the same part before an "@", such as `transfer@4` and `transfer@1`, share a colour and are joined by a
    line that tells what comes after the "@": the alignment curve of a method over its strengths.

    Args:
        rewards: decoder -> (N,), on the CPU.
        metrics: decoder -> its metrics, with `reward`, `divergence` and `tokens-per-second`.
    """
    names = list(rewards)
    curves = {family: [name for name in names if _family(name) == family] for family in dict.fromkeys(map(_family, names))}
    colour_of = dict(zip(curves, _colours(len(curves)), strict=True))
    figure = Figure(figsize=(12.0, 0.4 * max(len(names), 5) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.2, 1))
    _draw_responses(left, rewards, [colour_of[_family(name)] for name in names])
    for family, members in curves.items():
        points = sorted((metrics[name]["divergence"], metrics[name]["reward"], name.partition("@")[2]) for name in members)
        across, means, _ = zip(*points, strict=True)
        speed = statistics.fmean(metrics[name]["tokens-per-second"] for name in members)
        label, dots = f"{family}, {speed:.0f} tokens/s", {"marker": "o", "markersize": 8, "markeredgecolor": "white"}
        right.plot(across, means, "-" if len(members) > 1 else "", color=colour_of[family], label=label, **dots)
        for x, y, strength in points:
            right.annotate(strength, (x, y), (6, -9), textcoords="offset points", fontsize=8, color=colour_of[family])
    right.set_xlabel("KL to the reference, nats per token", color=INK)
    right.set_ylabel("mean reward", color=INK)
    right.margins(0.18)
    right.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return _cleared(figure)


def _family(name: str) -> str:
    return name.split("@")[0]


def _draw_responses(axes: Axes, rewards: Mapping[str, Tensor], colours: Sequence[str]) -> None:
    """A dot for each response, spread within its row: rewards that gather at two ends show as two clouds, as a box would not."""
    for row, (found, colour) in enumerate(zip(rewards.values(), colours, strict=True)):
        heights = [row + 0.5 * (index * GOLDEN % 1 - 0.5) for index in range(len(found))]
        axes.scatter(found.numpy(), heights, s=14, color=colour, alpha=0.35, linewidths=0)
        error = found.std().item() / len(found) ** 0.5 if len(found) > 1 else 0.0
        mean = found.mean().item()
        axes.plot([mean - error, mean + error], [row, row], color=INK, zorder=3)
        axes.plot(mean, row, marker="D", color=colour, markeredgecolor="white", markersize=8, zorder=4)
    axes.set_yticks(range(len(rewards)), list(rewards))
    axes.invert_yaxis()
    axes.set_xlabel("reward (dots: responses, diamond: mean ± standard error)", color=INK)


def _cleared(figure: Figure) -> Figure:
    """Grids behind, no frame."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def draw_gaps(found: Sequence[Gap]) -> Figure:
    """The mean of V* - V^alg by alpha, a line for each method; and each problem's gap of the values of Q* against the bound.

    Args:
        found: of one or more problems, all methods and alphas.
    """
    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    methods, alphas = list(dict.fromkeys(one.method for one in found)), sorted({one.alpha for one in found})
    for method, colour in zip(methods, _colours(len(methods)), strict=True):
        means = [statistics.fmean(one.gap for one in found if one.method == method and one.alpha == alpha) for alpha in alphas]
        style = "--" if method == "indirect" else "-"  # it lies on the line of transfer
        left.plot(alphas, means, style, marker="o", color=colour, label=method, zorder=3 if method == "indirect" else 2)
    left.axhline(0, color=INK, linewidth=0.8)
    left.set_xscale("log")
    left.set_xlabel("alpha: pull to the reference", color=INK)
    left.set_ylabel("V* - V$^{alg}$", color=INK)
    left.legend(fontsize=8, frameon=False)
    exact = [one for one in found if one.method == methods[0]]
    for alpha, colour in zip(alphas, _colours(len(alphas)), strict=True):
        some = [one for one in exact if one.alpha == alpha]
        right.scatter([one.recalled for one in some], [one.gap for one in some], s=16, color=colour, label=f"alpha {alpha:g}", linewidths=0)
    ends = [value for one in exact for value in (one.recalled, one.gap)]
    right.axline((min(ends), min(ends)), slope=1, color=INK, linewidth=0.8)
    right.set_xlabel("bound: beta KL(rho* || rho_sft) - alpha h", color=INK)
    right.set_ylabel("V* - V$^{alg}$", color=INK)
    right.legend(fontsize=8, frameon=False)
    return _cleared(figure)
