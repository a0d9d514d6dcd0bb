"""Two-dimensional features as points, a panel a split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure

from graftwork import Dataset
from graftwork_testbed.sheets.choice import held, is_number, spread, values_of
from graftwork_testbed.sheets.paper import DPI, colour

__all__ = ["draw_points"]

MOST = 5000
"""Points of a split at most."""


def draw_points(dataset: Dataset, splits: Sequence[str], title: str) -> Figure:
    """`features` (2,) of each split's samples, coloured by label where they have one."""
    columns = min(len(splits), 3)
    lines = -(-len(splits) // columns)
    drawn = {split: values_of(dataset, split, "features")[1] for split in splits}
    across, up = torch.cat(list(drawn.values())).aminmax(dim=0)[1] - torch.cat(list(drawn.values())).aminmax(dim=0)[0]
    tall = 2.7 * float((up / across.clamp(min=1e-12)).clamp(0.4, 1.5))
    figure = Figure(figsize=(3.1 * columns + 0.9, (tall + 0.45) * lines + 0.3), facecolor="white", layout="constrained", dpi=DPI)
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axes in panels[len(splits) :]:
        axes.set_axis_off()
    labelled = is_number(dataset[splits[0]][0].get("label"))
    named = {}
    for axes, (split, features) in zip(panels, drawn.items(), strict=False):
        labels = values_of(dataset, split, "label")[1].long() if labelled else torch.zeros(len(features), dtype=torch.long)
        kept = spread(torch.arange(len(features)), MOST)
        for number in labels[kept].unique().tolist():
            x, y = features[kept][labels[kept] == number].T.numpy()
            name = dataset.info.classes[number] if 0 <= number < len(dataset.info.classes) else str(number)
            named[name] = axes.scatter(x, y, s=9, color=colour(number), alpha=0.75, linewidths=0)
        axes.set_title(split if len(splits) > 1 else held(dataset, split, "sample"), fontsize=9)
        axes.set_aspect("equal")
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    if labelled:
        figure.legend(named.values(), named, fontsize=8, frameon=False, loc="outside right center")
    figure.suptitle(title, fontsize=10, weight="bold", x=0.01, ha="left")
    return figure
