"""A picture of two domains: their features in a plane, and where a classifier of points in the plane decides.

After figures 2 and 5 of "Domain-Adversarial Training of Neural Networks" (Ganin et al., 2016), https://arxiv.org/abs/1505.07818.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from graftwork import INPUTS, Backbone, DataError, Dataset, Evaluator, Figure, Report, Split
from graftwork.interfaces import classify, device_of, embed, input_keys, inputs
from graftwork.kinds.evaluator import evaluating, split_batches

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["DomainScatter", "principal_plane"]

COLOURS = ("#1f77b4", "#d95f02", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#c49c00")


def principal_plane(features: Tensor) -> Tensor:
    """Features (N, D) on their first two principal components: (N, 2). One component is followed by zeros."""
    centred = features.double() - features.double().mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    plane = centred @ directions[:2].T
    return torch.nn.functional.pad(plane, (0, 2 - plane.shape[1]))


class DomainScatter(Evaluator):
    """Both domains' pooled features on their first two principal components; for inputs of two numbers, the decision too.

    Colours are the labels of the source and the predictions on the target: no target label is read.

    Args:
        source: a labelled split of the source domain.
        target: a split of the target domain.
        limit: draw the first so many samples of each split only.

    Raises:
        DataError: in evaluate, if a split is empty.
    """

    keys = (INPUTS,)
    needs = Backbone

    def __init__(self, source: Split, target: Split, limit: Annotated[int, Field(ge=2)] | None = 400):
        if limit is not None and limit < 2:
            raise ValueError(f"limit is at least 2; found {limit}")
        self.source, self.target, self.limit = source, target, limit

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Draw; metric centroid-distance: between the domains' mean features, in root mean squared distances from these."""
        with evaluating(model):
            source, target = (self._read(model, data, split) for split in (self.source, self.target))
            features = torch.cat([source["features"], target["features"]])
            colours = torch.cat([source["label"], target["guess"]])
            figures = {"features": Figure(_features_figure(principal_plane(features), colours, len(source["features"])), self._caption)}
            if len(input_keys(model)) == 1 and source["input"].shape[1:] == (2,):
                figures["decision"] = Figure(
                    _decision_figure(model, source, target), "Where the model decides; source labels, target points dark."
                )
        means = [one["features"].mean(dim=0) for one in (source, target)]
        spread = torch.cat([(one["features"] - mean).square().sum(dim=1) for one, mean in zip((source, target), means, strict=True)])
        distance = (means[0] - means[1]).norm() / spread.mean().sqrt().clamp(min=1e-12)
        return Report({"centroid-distance": distance.item()}, figures=figures)

    @property
    def _caption(self) -> str:
        return f"Features of {self.source} (circles, by label) and {self.target} (crosses, by prediction) on two principal components."

    def _read(self, model: Any, data: Dataset, split: str) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {"features": [], "guess": [], "input": [], "label": []}
        for batch in split_batches(data, split, model, limit=self.limit):
            found["features"].append(embed(model, batch).float().cpu())
            found["guess"].append(classify(model, batch).argmax(dim=1).cpu())
            found["input"].append(torch.as_tensor(inputs(model, batch)[0]).cpu())
            if split == self.source:
                found["label"].append(batch["label"].cpu() if "label" in batch else found["guess"][-1])
        if not found["features"]:
            raise DataError(f'split "{split}" is empty')
        return {key: torch.cat(values) for key, values in found.items() if values}


def _features_figure(plane: Tensor, colours: Tensor, count: int) -> Any:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(5.4, 4.6), layout="constrained")
    axes = canvas.add_subplot()
    for name, marker, rows, shown in (("source", "o", slice(None, count), 14), ("target", "x", slice(count, None), 18)):
        x, y = plane[rows].T.tolist()
        axes.scatter(x, y, c=_colour(colours[rows]), marker=marker, s=shown, linewidths=0.9 if marker == "x" else 0, alpha=0.65)
        axes.scatter([], [], color="0.35", marker=marker, s=28, label=name)
    axes.set(xticks=[], yticks=[], xlabel="first principal component", ylabel="second")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return canvas


def _decision_figure(model: Any, source: dict[str, Tensor], target: dict[str, Tensor]) -> Any:
    """Regions of the plane by class, with the source's points in their colours and the target's dark."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure as Canvas

    both = torch.cat([source["input"], target["input"]])
    low, high = both.amin(dim=0) - 0.4, both.amax(dim=0) + 0.4
    across, up = torch.linspace(low[0], high[0], 240), torch.linspace(low[1], high[1], 240)
    grid = torch.cartesian_prod(up, across).flip(1)  # rows from bottom to top
    key = input_keys(model)[0]
    classes = classify(model, {key: grid.to(device_of(model))}).argmax(dim=1).cpu().view(240, 240)
    shown = ListedColormap(list(COLOURS))
    canvas = Canvas(figsize=(5.2, 4.6), layout="constrained")
    axes = canvas.add_subplot()
    regions = (classes % len(COLOURS)).numpy()
    axes.pcolormesh(across.numpy(), up.numpy(), regions, cmap=shown, vmin=-0.5, vmax=len(COLOURS) - 0.5, alpha=0.22, rasterized=True)
    axes.scatter(*target["input"].T.tolist(), color="0.15", s=12, linewidths=0, label="target")
    axes.scatter(*source["input"].T.tolist(), c=_colour(source["label"]), s=14, linewidths=0, label="source")
    axes.set_aspect("equal")
    axes.set(xticks=[], yticks=[])
    return canvas


def _colour(classes: Tensor) -> Sequence[str]:
    return [COLOURS[number % len(COLOURS)] for number in classes.tolist()]
