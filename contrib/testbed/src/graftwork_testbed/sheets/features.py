"""Tabular features: a line a sample over parallel axes, or a heat map where there are many features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from graftwork import Dataset
from graftwork_testbed.sheets.choice import held, is_number, spread, values_of
from graftwork_testbed.sheets.paper import COLOURS, DPI, colour

__all__ = ["draw_features"]

MOST = 400
"""Samples of a split at most."""

PARALLEL = 24
"""Features that have an axis of their own at most."""


def draw_features(dataset: Dataset, splits: Sequence[str], title: str) -> Figure:
    """`features` (D,) of each split's samples, ordered and coloured by `target`, else by `label`, where they have one."""
    width = len(dataset[splits[0]][0]["features"])
    figure = Figure(figsize=(8.0, 2.9 * len(splits) + 0.4), facecolor="white", layout="constrained", dpi=DPI)
    panels = figure.subplots(len(splits), 1, squeeze=False)[:, 0]
    ruled = {split: _ruled(dataset, split) for split in splits}
    scale = _scale([values for _, values in ruled.values()])
    for axes, (split, (features, values)) in zip(panels, ruled.items(), strict=True):
        shades = _shades(values, scale)
        if width == 1:
            _histogram(axes, features[:, 0], shades)
        elif width <= PARALLEL:
            _lines(axes, features, shades)
        else:
            _heat_map(axes, features, shades)
        count = held(dataset, split, "sample")
        axes.set_title(f"{split}, {count}" if len(splits) > 1 else count, fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
    _explain(figure, panels, dataset, ruled, scale)
    figure.suptitle(title, fontsize=10, weight="bold", x=0.01, ha="left")
    return figure


def _ruled(dataset: Dataset, split: str) -> tuple[Tensor, Tensor | None]:
    """Features (n, D), and the target or label (n,) that orders them; None where they have neither."""
    first = dataset[split][0]
    _, features = values_of(dataset, split, "features")
    kept = spread(torch.arange(len(features)), MOST)
    for key in ("target", "label"):
        if is_number(first.get(key)):
            values = values_of(dataset, split, key)[1].view(-1)[kept]
            order = values.argsort(stable=True)
            return features[kept][order].float(), values[order]
    return features[kept].float(), None


def _scale(values: Sequence[Tensor | None]) -> Normalize | None:
    """Common to all splits; None where values are labels, or there are none."""
    known = [value for value in values if value is not None and value.is_floating_point()]
    return Normalize(float(torch.cat(known).min()), float(torch.cat(known).max())) if known else None


def _shades(values: Tensor | None, scale: Normalize | None) -> list[object]:
    if values is None:
        return [COLOURS[0]]
    if scale is None:
        return [colour(number) for number in values.tolist()]
    return list(colormaps["viridis"](scale(values.numpy())))


def _lines(axes: Axes, features: Tensor, shades: Sequence[object]) -> None:
    """Parallel coordinates; the order of drawing is mixed, so that no end of the scale covers the other."""
    count, width = features.shape
    order = np.random.default_rng(0).permutation(count)
    segments = np.stack([np.broadcast_to(np.arange(width), (count, width)), features.numpy()], axis=2)[order]
    shuffled = [shades[number % len(shades)] for number in order]
    axes.add_collection(LineCollection(segments, colors=shuffled, linewidths=0.7, alpha=max(0.15, min(0.9, 60 / count))))
    low, high = (float(limit) for limit in features[features.isfinite()].aminmax()) if features.isfinite().any() else (0.0, 1.0)
    axes.vlines(np.arange(width), low, high, color="0.6", linewidth=0.6, zorder=3)
    axes.set_xticks(np.arange(width), [str(number) for number in range(width)])
    axes.set(xlim=(-0.3, width - 0.7), ylim=(low, high) if low < high else (low - 1, high + 1))
    axes.set_xlabel("feature", fontsize=7)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _histogram(axes: Axes, values: Tensor, shades: Sequence[object]) -> None:
    """One feature: how often each value is, and below it a tick a sample in its colour."""
    axes.hist(values.numpy(), bins=min(40, max(5, len(values) // 8)), color="0.85")
    axes.scatter(values.numpy(), np.full(len(values), -0.5), marker="|", s=40, c=shades if len(shades) > 1 else COLOURS[0])
    axes.set_xlabel("feature", fontsize=7)
    axes.set_ylabel("samples", fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _heat_map(axes: Axes, features: Tensor, shades: Sequence[object]) -> None:
    """A row a sample, a column a feature; each feature in deviations from its mean, cut at 3. At the left each row's colour."""
    count, width = features.shape
    deviations = (features - features.mean(0)) / features.std(0, correction=0).clamp(min=1e-12)
    axes.imshow(deviations.clamp(-3, 3).numpy(), aspect="auto", cmap="RdBu_r", vmin=-3, vmax=3, interpolation="nearest")
    if len(shades) > 1:
        strip = (-0.5 - 0.02 * width, -0.5 - 0.005 * width, count - 0.5, -0.5)
        axes.imshow(to_rgba_array(shades)[:, None], aspect="auto", extent=strip, interpolation="nearest")
        axes.set_xlim(strip[0], width - 0.5)
    axes.set_xlabel("feature (red above its mean, blue below)", fontsize=7)
    axes.set_ylabel("sample", fontsize=7)


def _explain(
    figure: Figure, panels: np.ndarray, dataset: Dataset, ruled: dict[str, tuple[Tensor, Tensor | None]], scale: Normalize | None
) -> None:
    """A bar for a target, a legend for labels."""
    labels = [values for _, values in ruled.values() if values is not None]
    if scale is not None:
        bar = figure.colorbar(ScalarMappable(scale, ListedColormap(colormaps["viridis"].colors)), ax=list(panels), pad=0.01, aspect=40)
        bar.ax.tick_params(labelsize=7)
        bar.set_label("target", fontsize=8)
    elif labels:
        present = torch.cat(labels).unique().tolist()[:20]
        classes = dataset.info.classes
        names = [classes[number] if 0 <= number < len(classes) else str(number) for number in present]
        swatches = [Patch(color=colour(number)) for number in present]
        figure.legend(swatches, names, fontsize=8, frameon=False, loc="outside right center")
