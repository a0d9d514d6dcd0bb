"""The picture of pair weighting: what each loss makes of a pair's similarity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from graftwork_multi_similarity.analysis import Reaction, Weighting, weight_curve

__all__ = ["draw_weights"]

NEGATIVE, POSITIVE, INK = "#c8553d", "#2a6f97", "#33363b"
STYLES = {"easy": ":", "middling": "--", "hard": "-"}


def draw_weights(
    weightings: Mapping[str, Weighting],
    similarity: Tensor,
    masks: tuple[Tensor, Tensor],
    weights: Mapping[str, tuple[Tensor, Tensor]],
    reactions: Mapping[str, Sequence[Reaction]],
) -> Figure:
    """A column for each loss: above the weights of negative pairs against their similarity, below those of positive pairs.

    A dot is a pair of the batch; a line is one anchor's pair whose similarity is moved through [-1, 1] while its neighbours stay, for
    three anchors with easy, middling and hard neighbours. Where the weight follows from the pair's own similarity the lines are one;
    where neighbours matter they part.

    Args:
        weightings: name -> loss with its miner.
        similarity: (m, m), on the CPU, as all that follows.
        masks: (m, m) of positives and negatives.
        weights: name -> W+ and W-.
        reactions: name -> what the loss reacts to.
    """
    figure = Figure(figsize=(2.9 * len(weightings) + 0.6, 5.6), layout="constrained")
    axes = figure.subplots(2, len(weightings), sharex=True, squeeze=False)
    anchors = _anchors(similarity, *masks)
    for column, (name, weighting) in enumerate(weightings.items()):
        for row, side in ((0, "negative"), (1, "positive")):
            _panel(axes[row, column], weighting, similarity, masks, weights[name][side == "negative"], side, anchors)
            told = [one.probe for one in reactions[name] if one.side == side and one.reacts and one.probe != "own"]
            axes[row, column].set_title(f"reacts to {' · '.join(told)}" if told else "constant", fontsize=9, color=INK, loc="right")
        mined = "" if weighting.miner is None else " (mined)"
        axes[0, column].annotate(
            f"{name}{mined}", (0.5, 1.16), xycoords="axes fraction", ha="center", fontsize=12, fontweight="bold", color=INK
        )
        axes[1, column].set_xlabel("similarity of the pair", fontsize=10, color=INK)
    keys = [Line2D([], [], color=INK, linestyle=style, linewidth=1.4, label=label) for label, style in STYLES.items()]  # type: ignore[arg-type]
    axes[0, 0].legend(handles=keys, title="neighbours", loc="upper left", fontsize=8, title_fontsize=8, frameon=False)
    axes[0, 0].set_ylabel("weight of negative pairs\n(pushed apart)", fontsize=10, color=NEGATIVE)
    axes[1, 0].set_ylabel("weight of positive pairs\n(drawn together)", fontsize=10, color=POSITIVE)
    return figure


def _anchors(similarity: Tensor, positive: Tensor, negative: Tensor) -> list[int]:
    """Three anchors: with the easiest, the middling and the hardest neighbours."""
    gap = similarity.masked_fill(~negative, -2.0).amax(dim=1) - similarity.masked_fill(~positive, 2.0).amin(dim=1)
    order = gap.argsort()[(positive.any(dim=1) & negative.any(dim=1))[gap.argsort()]]
    return [int(order[0]), int(order[len(order) // 2]), int(order[-1])]


def _panel(
    axes: Axes,
    weighting: Weighting,
    similarity: Tensor,
    masks: tuple[Tensor, Tensor],
    weights: Tensor,
    side: str,
    anchors: Sequence[int],
) -> None:
    mask, color = masks[side == "negative"], POSITIVE if side == "positive" else NEGATIVE
    used = mask & (weights > 0)
    axes.axhline(0, color="#d5d7db", linewidth=0.8, zorder=0)
    axes.scatter(similarity[mask & ~used], weights[mask & ~used], s=5, color="#b9bdc4", linewidths=0, alpha=0.6, rasterized=True)
    axes.scatter(similarity[used], weights[used], s=9, color=color, linewidths=0, alpha=0.35, rasterized=True)
    grid = torch.linspace(-1, 1, 401, dtype=similarity.dtype)
    for anchor, style in zip(anchors, STYLES.values(), strict=True):
        column = int(mask[anchor].nonzero()[0])
        curve = weight_curve(weighting, similarity[anchor], masks[0][anchor], masks[1][anchor], column, grid)
        axes.plot(grid, curve, style, color=color, linewidth=1.6)
    axes.set_xlim(-1.03, 1.03)
    axes.set_ylim(bottom=-0.05 * max(float(weights.max()), 1e-12))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
