"""The pictures: embeddings by class, and weights of false and true negatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["draw_embeddings", "draw_weights"]

FALSE, TRUE, INK = "#c8553d", "#2a6f97", "#33363b"
BINS = 30


def draw_embeddings(embeddings: Tensor, labels: Tensor, classes: Sequence[str]) -> Figure:
    """The two directions of most variance, a dot a node.

    Args:
        embeddings: (N, D), on the CPU.
        labels: (N,) long.
        classes: their names.
    """
    centred = embeddings.float() - embeddings.float().mean(dim=0)
    _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
    plane = centred @ directions[:2].T
    share = lengths.square() / lengths.square().sum().clamp(min=1e-12)
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.add_subplot()
    palette = colormaps["tab10" if len(classes) <= 10 else "turbo"]
    for number in torch.unique(labels).tolist():
        rows = labels == number
        color = palette(number) if len(classes) <= 10 else palette(number / len(classes))
        axes.scatter(
            plane[rows, 0].numpy(),
            plane[rows, -1].numpy(),
            s=11,
            color=color,
            alpha=0.7,
            linewidths=0,
            label=classes[number],
            rasterized=True,
        )
    for place, name in enumerate(("x", "y")[: plane.shape[1]]):
        getattr(axes, f"set_{name}label")(f"direction {place + 1}, {100 * share[place]:.0f} % of the variance", color=INK)
    axes.set_aspect("equal", adjustable="datalim")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9, markerscale=2)
    _plain(axes)
    return figure


def draw_weights(false: Tensor, true: Tensor) -> Figure:
    """Histograms of the weights of pairs of one class and of two, each in shares of its own pairs.

    Args:
        false: (n,) weights of pairs of one class, on the CPU.
        true: (m,) weights of pairs of two classes.
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="weight of the pair as a negative", ylabel="share of the pairs")
    both = torch.cat([false, true])
    values = torch.unique(both)
    if len(values) <= 12:  # counts of clusterings: a bar a value
        gap = float(values.diff().min()) if len(values) > 1 else 1.0
        for shift, color, name, weights in (
            (-0.2, FALSE, "one class (false negatives)", false),
            (0.2, TRUE, "two classes (true negatives)", true),
        ):
            shares = [(weights == value).float().mean().item() for value in values]
            axes.bar((values + shift * gap).numpy(), shares, width=0.38 * gap, color=color, label=name)
        axes.set_xticks(values.tolist())
    else:
        edges = torch.linspace(float(both.min()), float(both.max()), BINS + 1)
        for color, name, weights in ((FALSE, "one class (false negatives)", false), (TRUE, "two classes (true negatives)", true)):
            counts = torch.histogram(weights, edges)[0]
            axes.stairs((counts / max(1, len(weights))).numpy(), edges.numpy(), color=color, fill=True, alpha=0.45, label=name)
    for color, weights in ((FALSE, false), (TRUE, true)):
        axes.axvline(float(weights.mean()), color=color, linestyle="--", linewidth=1.2)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside upper left",
        ncols=2,
        frameon=False,
        fontsize=9,
        title="dashed: means",
        title_fontsize=8,
    )
    _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
