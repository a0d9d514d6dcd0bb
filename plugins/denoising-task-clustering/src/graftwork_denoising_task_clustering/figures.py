"""Pictures: intervals on the noise schedule, task affinity, gaps of negative transfer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from graftwork_denoising_task_clustering.affinity import affinity_gaps
from graftwork_denoising_task_clustering.intervals import Intervals

__all__ = ["draw_affinity", "draw_gaps", "draw_intervals"]

INK, GREY, NEGATIVE, POSITIVE = "#33363b", "#d5d7db", "#c8553d", "#2a6f97"


def draw_intervals(intervals: Intervals, log_snr: Tensor) -> Figure:
    """Log SNR over the timesteps, with a band for each interval that says where it begins and how long it is.

    Args:
        intervals: over T timesteps.
        log_snr: (T,).
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["viridis"]
    for number, (start, end) in enumerate(intervals.bounds):
        shade = colours(number / max(1, len(intervals.starts) - 1))
        axes.axvspan(start, end, color=shade, alpha=0.28, linewidth=0)
        axes.text(
            (start + end) / 2, 1.02, f"{start}\n({end - start})", transform=axes.get_xaxis_transform(), ha="center", fontsize=8, color=INK
        )
    axes.plot(log_snr, color=INK, linewidth=1.8)
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    axes.set_xlim(0, intervals.count)
    axes.set_xlabel("timestep (first of each interval, and its length, above)", color=INK)
    axes.set_ylabel("log SNR", color=INK)
    _plain(axes)
    return figure


def draw_affinity(affinity: Tensor, timesteps: Tensor, log_snr: Tensor) -> Figure:
    """The matrix, and affinity against the distance of two noise levels: in timesteps and in log SNR, with running means.

    Args:
        affinity: (n, n).
        timesteps: (n,).
        log_snr: (n,) at those.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    matrix, *scatters = figure.subplots(1, 3)
    extent = (float(timesteps[0]), float(timesteps[-1])) * 2
    shown = matrix.imshow(affinity, vmin=min(0.0, float(affinity.min())), vmax=1, cmap="viridis", origin="lower", extent=extent)
    figure.colorbar(shown, ax=matrix, label="cosine of gradients")
    matrix.set(xlabel="timestep", ylabel="timestep")
    for axes, positions, name in zip(scatters, (timesteps, log_snr), ("timesteps", "log SNR"), strict=True):
        gaps, values = affinity_gaps(affinity, positions)
        axes.scatter(gaps, values, s=8, color=POSITIVE, alpha=0.35, linewidths=0, rasterized=True)
        order = gaps.argsort()
        parts = min(12, len(gaps))
        means = [(float(gaps[part].mean()), float(values[part].mean())) for part in order.tensor_split(parts)]
        axes.plot(*zip(*means, strict=True), color=NEGATIVE, linewidth=1.8)
        axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
        axes.set_xlabel(f"distance in {name}", color=INK)
        axes.set_ylabel("cosine of gradients", color=INK)
        _plain(axes)
    return figure


def draw_gaps(gaps: Mapping[str, float], samples: Mapping[str, Tensor]) -> Figure:
    """A bar for each interval, and a row of pictures for each way of sampling.

    Args:
        gaps: interval -> gap.
        samples: name -> (n, C, H, W) in [0, 1]; each has the same captions and noise.
    """
    figure = Figure(figsize=(8, 1.1 * len(samples) + (2.6 if gaps else 0.4)), layout="constrained")
    below: Any = figure
    if gaps:
        halves: Any = figure.subfigures(2, 1, height_ratios=[2.2, 1.1 * len(samples)])
        axes, below = halves[0].subplots(), halves[1]
        axes.bar(list(gaps), list(gaps.values()), color=[NEGATIVE if gap < 0 else POSITIVE for gap in gaps.values()], width=0.6)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_ylabel("FID gap\n(below 0: negative transfer)", color=INK, fontsize=9)
        axes.set_xlabel("timesteps of the interval", color=INK)
        _plain(axes)
    rows = below.subplots(len(samples), 1, squeeze=False)[:, 0]
    for row, (name, images) in zip(rows, samples.items(), strict=True):
        strip = torch.cat(list(images.movedim(1, -1)), dim=1)  # (H, n W, C)
        row.imshow(strip if strip.shape[-1] == 3 else strip[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        row.set_title(name, loc="left", fontsize=9, color=INK, pad=2)
        row.set(xticks=[], yticks=[])
        row.spines[:].set_visible(False)
    return figure


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
