"""How alike saliencies are on the same images, pair by pair: meta against plain, one step against the other way, virtual against real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork.errors import DataError
from graftwork.kinds.dataset import Batch, Dataset, Split
from graftwork.kinds.evaluator import Evaluator, Figure, Report, Table, evaluating, split_batches
from graftwork.kinds.objective import INPUTS
from graftwork_grad_cam.evidence import prepared
from graftwork_grad_cam.figures import Cell, as_picture, overlay, sheet
from graftwork_grad_cam.forward import image_key
from graftwork_grad_cam.saliency import Count, SaliencyMethod, Spec
from graftwork_grad_cam.targets import Target
from graftwork_normgrad.meta_saliency import MetaSaliency
from graftwork_normgrad.normgrad import NormGrad
from graftwork_normgrad.pointing_target import resolve_target, with_choice
from graftwork_normgrad.similarity import EPSILON, finite_summary, map_correlation

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["SaliencyCorrelation", "chosen_target", "pairwise_correlations"]


def chosen_target(model: nn.Module, batch: Tensor | Mapping[str, Any], target: Any) -> tuple[Batch, Target]:
    """A batch and a target that ask every saliency, and every changed model, for the same: the model's own choice is fixed."""
    ready, asked = prepared(model, batch, resolve_target(target))
    with torch.inference_mode(False), evaluating(model):
        output = asked.forward(model, ready)
        choice, ready = asked.choice(output, ready), asked.pin(output, ready)
    return ready, asked if choice is None else with_choice(asked, choice)


def pairwise_correlations(
    model: nn.Module,
    batch: Tensor | Mapping[str, Any],
    saliencies: Mapping[str, SaliencyMethod],
    target: Any = "predicted",
    *,
    absolute: bool = False,
    epsilon: float = EPSILON,
) -> tuple[dict[tuple[str, str], Tensor], dict[str, Tensor]]:
    """Rank correlations of every pair of saliencies, all of which explain the same.

    Args:
        model: left as it was.
        batch: images (B, C, H, W), or a batch.
        saliencies: name -> saliency, two at least.
        target: what is explained.
        absolute: of the maps' magnitudes.
        epsilon: added to the maps.

    Returns:
        pair of names -> (B, T) float64, nan where a map is constant; and name -> maps (B, T, H, W).
    """
    ready, asked = chosen_target(model, batch, target)
    maps = {name: each.explain(model, ready, asked).maps for name, each in saliencies.items()}
    pairs = {
        (first, second): map_correlation(maps[first], maps[second], absolute=absolute, epsilon=epsilon)
        for first, second in combinations(maps, 2)
    }
    return pairs, maps


class SaliencyCorrelation(Evaluator):
    """Rank correlation of saliencies' maps on the same images and classes, pair by pair.

    Args:
        split: where to measure.
        saliencies: name and saliency, two at least; by default `plain` NormGrad and `meta`, the same after one inner step.
        target: what all of them explain.
        absolute: compare the maps' magnitudes.
        epsilon: added to the maps before they are ranked.
        limit: the first so many samples only.
        batch_size: samples at a time.
        columns: samples in a row of the figure.

    Raises:
        ConfigError: if there is no such target.
        ValueError: if there are fewer than two saliencies.
    """

    needs = nn.Module

    def __init__(
        self,
        split: Split = "test",
        saliencies: dict[str, SaliencyMethod] | None = None,
        target: Spec = "predicted",
        absolute: bool = False,
        epsilon: Annotated[float, Field(ge=0)] = EPSILON,
        limit: Count | None = None,
        batch_size: Count = 32,
        columns: Count = 4,
    ):
        self.saliencies: dict[str, SaliencyMethod] = (
            {"plain": NormGrad(), "meta": MetaSaliency()} if saliencies is None else dict(saliencies)
        )
        if len(self.saliencies) < 2:
            raise ValueError(f"a correlation is of two saliencies at least; found {', '.join(self.saliencies) or 'none'}")
        self.split, self.absolute, self.epsilon, self.limit = split, absolute, epsilon, limit
        self.batch_size, self.columns = batch_size, columns
        self.target = resolve_target(target)
        self.keys = (INPUTS, *self.target.keys)

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics correlation-FIRST-SECOND, and its -std, for each pair; correlation-dropped counts maps that are constant.

        Raises:
            DataError: if the split is empty, or the maps of a pair are constant on every image.
        """
        found: dict[tuple[str, str], list[Tensor]] = {pair: [] for pair in combinations(self.saliencies, 2)}
        cells: list[Cell] = []
        for batch in split_batches(data, self.split, model, limit=self.limit, batch_size=self.batch_size):
            pairs, maps = pairwise_correlations(model, batch, self.saliencies, self.target, absolute=self.absolute, epsilon=self.epsilon)
            for pair, values in pairs.items():
                found[pair].append(values.flatten())
            images = batch[image_key(model, batch)]
            for index in range(min(len(images), 2 * self.columns - len(cells))):
                panels = [as_picture(images[index]), *(overlay(images[index], each[index, 0]) for each in maps.values())]
                cells.append(Cell(panels, "", None, ["", *maps]))
        if not cells:
            raise DataError(f'split "{self.split}" is empty')
        metrics: dict[str, float] = {}
        rows: list[list[Any]] = []
        dropped = 0
        for (first, second), parts in found.items():
            mean, spread, lost = finite_summary(torch.cat(parts))
            if mean != mean:
                raise DataError(f'on "{self.split}" the maps of {first} or {second} are constant on every image')
            metrics |= {f"correlation-{first}-{second}": mean, f"correlation-{first}-{second}-std": spread}
            rows.append([first, second, mean, spread, lost])
            dropped += lost
        metrics["correlation-dropped"] = float(dropped)
        table = Table(["first", "second", "correlation", "std", "constant"], rows, f"Rank correlation of maps on {self.split}.")
        figure, _ = sheet(cells, max(1, self.columns // 2), "Saliencies side by side", ("jet", "evidence"))
        matrix = _matrix(list(self.saliencies), {pair: row[2] for pair, row in zip(found, rows, strict=True)})
        return Report(
            metrics,
            {"correlation": table},
            {"maps": Figure(figure, f"Images of {self.split}."), "correlation": Figure(matrix, "Mean rank correlation of each pair.")},
        )


def _matrix(names: Sequence[str], means: Mapping[tuple[str, str], float]) -> Any:
    from matplotlib.figure import Figure as Canvas

    side = 1.8 + 0.7 * len(names)
    canvas = Canvas(figsize=(side + 0.8, side), layout="constrained")
    axes = canvas.add_subplot()
    values = [[1.0 if a == b else means.get((a, b), means.get((b, a), 0.0)) for b in names] for a in names]
    canvas.colorbar(axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1), shrink=0.8)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if abs(value) > 0.6 else "black", fontsize=9)
    return canvas
