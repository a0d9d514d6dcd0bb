"""Pictures: how alike the two predictions are, what a policy does, and what each way to guide makes of the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["draw_alignment", "draw_policy", "draw_samples"]

INK, FAINT, BLUE, RED = "#33363b", "#d5d7db", "#2a6f97", "#c8553d"


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def draw_alignment(
    similarities: Tensor, thresholds: Sequence[float], saved: Sequence[float], chosen: float | None, estimates: Mapping[int, float]
) -> Figure:
    """gamma of every sample by step; what each threshold saves; how much of u the estimates of LinearAG explain.

    Args:
        similarities: gamma, (T, N), on the CPU.
        thresholds: grid.
        saved: share of the evaluations that each saves.
        chosen: threshold that was chosen, or None.
        estimates: evaluation -> R^2 of LinearAG there; may be empty.
    """
    figure = Figure(figsize=(12.5 if estimates else 9.0, 3.6), layout="constrained")
    left, middle, *right = figure.subplots(1, 3 if estimates else 2, width_ratios=(1.5, 1.2, 0.9) if estimates else (1.5, 1.2))
    steps = range(len(similarities))
    left.plot(steps, similarities.numpy(), color=BLUE, linewidth=0.7, alpha=0.35)
    left.plot(steps, similarities.mean(1).numpy(), color=INK, linewidth=2, label="mean of the samples")
    if chosen is not None:
        left.axhline(chosen, color=RED, linewidth=1.2, label=f"chosen threshold {chosen:.4g}")
        middle.axvline(chosen, color=RED, linewidth=1.2)
    left.set_xlabel("step")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.set_ylabel(r"cosine $\gamma_t$")
    left.legend(fontsize=8, frameon=False)
    middle.plot(thresholds, [100 * one for one in saved], color=BLUE, marker="o", markersize=3)
    middle.set_xlabel(r"threshold $\bar\gamma$")
    middle.set_ylabel("evaluations saved, %")
    for axes in right:
        axes.bar([str(one) for one in estimates], list(estimates.values()), color=BLUE, width=0.6)
        axes.set_xlabel("estimated evaluation")
        axes.set_ylabel(r"$R^2$ of the estimate")
        axes.set_ylim(min(0.0, *estimates.values()), 1.02)
    for axes in (left, middle, *right):
        _plain(axes)
    return figure


def draw_samples(images: Mapping[str, Tensor], prompts: Sequence[str], captions: Mapping[str, str]) -> Figure:
    """The same noise under several ways to guide, a row each.

    Args:
        images: name -> (n, 3, H, W) in [0, 1], on the CPU.
        prompts: n, above the columns.
        captions: name -> what stands beside its row.
    """
    columns = len(prompts)
    figure = Figure(figsize=(1.9 + 1.05 * columns, 1.12 * len(images) + 0.3), layout="constrained")
    grid = figure.subplots(len(images), columns, squeeze=False)
    for axes, prompt in zip(grid[0], prompts, strict=True):
        axes.set_title(prompt, fontsize=7)
    for row, (name, pictures) in zip(grid, images.items(), strict=True):
        for axes, picture in zip(row, pictures, strict=True):
            axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(captions[name], fontsize=7.5, rotation=0, ha="right", va="center")
    return figure


def draw_policy(choices: Sequence[str]) -> Figure:
    """A policy, step by step.

    Args:
        choices: what each step does, as a policy's entries are written.
    """
    names = sorted(set(choices), key=lambda name: (not name.startswith("uncond"), not name.startswith("cond"), len(name), name))
    figure = Figure(figsize=(1.6 + 0.32 * len(choices), 0.7 + 0.34 * len(names)), layout="constrained")
    axes = figure.subplots()
    colours = {"uncond": FAINT, "cond": BLUE}
    places = [names.index(choice) for choice in choices]
    axes.scatter(range(len(choices)), places, s=90, marker="s", color=[colours.get(choice, RED) for choice in choices])
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("step")
    _plain(axes)
    return figure
