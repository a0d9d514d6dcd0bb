"""The pictures: the loss over radii, and where predictions and features moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

if TYPE_CHECKING:
    from graftwork_tram.sharpness import Rises

__all__ = ["draw_drift", "draw_rises"]

CLIMB, CHANCE, INK = "#c8553d", "#2a6f97", "#33363b"
ARROWS = 150
"""Samples whose features are drawn: more hide one another."""


def draw_rises(rises: Rises, adaptive: bool) -> Figure:
    """The rise of the loss against the radius: up the gradient, and along random directions with their spread.

    Args:
        rises: what was measured.
        adaptive: whether radii are relative to the weights, for the axis.
    """
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color="#d5d7db", linewidth=0.8, zorder=0)
    axes.plot(rises.radii, rises.ascent, "o-", color=CLIMB, markersize=4, linewidth=1.6, label="up the gradient")
    if rises.random.numel():
        axes.fill_between(rises.radii, rises.random.amin(dim=1), rises.random.amax(dim=1), color=CHANCE, alpha=0.18, linewidth=0)
        axes.plot(rises.radii, rises.random.mean(dim=1), "o-", color=CHANCE, markersize=4, linewidth=1.6, label="random: mean, and range")
    axes.set_xlabel("radius, relative to the weights" if adaptive else "radius", color=INK)
    axes.set_ylabel("rise of the loss", color=INK)
    axes.set_title(f"loss {rises.loss:.3g} at the weights", loc="left", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=9)
    _plain(axes)
    return figure


def draw_drift(divergences: Mapping[str, Tensor], features: tuple[Tensor, Tensor] | None, labels: Tensor | None, origin: str) -> Figure:
    """Left, how the samples' divergences are spread; right, the features in two principal axes, an arrow from where each was.

    Args:
        divergences: what was compared with -> (N,).
        features: (N, D) where they were and where they are; None leaves the right side out.
        labels: (N,) classes, for colours; None: one colour.
        origin: what the arrows start from, for the title.
    """
    figure = Figure(figsize=(9.4 if features is not None else 4.8, 4.0), layout="constrained")
    axes = figure.subplots(1, 2 if features is not None else 1, squeeze=False)[0]
    floor = 1e-9
    everything = torch.cat(list(divergences.values())).clamp(min=floor).log10()
    edges = 10 ** torch.linspace(float(everything.min()) - 0.05, float(everything.max()) + 0.05, 31)
    for (name, values), color in zip(divergences.items(), (CLIMB, CHANCE), strict=False):
        label = f"{name}: mean {values.mean():.3g}"
        axes[0].hist(values.clamp(min=floor).numpy(), bins=edges.tolist(), color=color, alpha=0.6, label=label)
    axes[0].set_xscale("log")
    axes[0].set_xlabel("KL of a sample's predictions", color=INK)
    axes[0].set_ylabel("samples", color=INK)
    axes[0].legend(frameon=False, fontsize=9)
    _plain(axes[0])
    if features is not None:
        _arrows(axes[1], features, labels, origin)
    return figure


def _arrows(axes: Axes, features: tuple[Tensor, Tensor], labels: Tensor | None, origin: str) -> None:
    chosen = torch.linspace(0, len(features[0]) - 1, min(len(features[0]), ARROWS)).long()  # spread over the split
    before, after = (one[chosen].double() for one in features)
    centre = before.mean(dim=0)
    axis = torch.linalg.svd(before - centre, full_matrices=False)[2][:2].T
    if axis.shape[1] < 2:  # a single feature: its value against nothing
        axis = torch.cat([axis, torch.zeros_like(axis)], dim=1)
    start, end = ((one - centre) @ axis for one in (before, after))
    colours = ["#33363b"] * len(start) if labels is None else [f"C{int(label) % 10}" for label in labels[chosen]]
    x, y = start.T.numpy()
    across, up = (end - start).T.numpy()
    axes.quiver(x, y, across, up, color=colours, angles="xy", scale_units="xy", scale=1, width=0.003, alpha=0.55)
    axes.scatter(x + across, y + up, c=colours, s=14, linewidths=0, zorder=3)
    axes.set_xlabel("first principal axis", color=INK)
    axes.set_ylabel("second", color=INK)
    axes.set_title(f"features: arrows from {origin} to now", loc="left", fontsize=10, color=INK)
    axes.margins(0.08)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
