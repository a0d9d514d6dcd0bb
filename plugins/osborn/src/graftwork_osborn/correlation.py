"""How well a score orders the subsets of a pool by their accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from graftwork import Artifact, DataError, Dataset, Evaluator, Figure, Report, Table
from graftwork_osborn.figures import draw_correlation
from graftwork_osborn.pool import named

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["Correlation", "TransferabilityCorrelation", "transferability_correlation"]

METRICS = ("pearson", "kendall", "weighted-kendall", "selected-accuracy", "best-accuracy", "mean-accuracy", "share-of-best")
"""Of each target, and their means over targets."""
Artifacts = Annotated[list[Artifact], Field(min_length=1)]


@dataclass(frozen=True)
class Correlation:
    """Agreement of a score with accuracy over subsets.

    Args:
        pearson: linear correlation, in [-1, 1].
        kendall: Kendall's tau-b, in [-1, 1].
        weighted_kendall: weighted tau, hyperbolic and additive as scipy's default, in [-1, 1]: the top of either order counts most.
        selected_accuracy: of the subset with the best score.
        best_accuracy: of the best subset.
        mean_accuracy: of all, which is what a random choice has on average.
    """

    pearson: float
    kendall: float
    weighted_kendall: float
    selected_accuracy: float
    best_accuracy: float
    mean_accuracy: float


def transferability_correlation(
    scores: Tensor | Sequence[float], accuracies: Tensor | Sequence[float], higher_is_better: bool = True
) -> Correlation:
    """Pearson, Kendall and weighted Kendall correlation of scores with accuracies, by scipy.

    Args:
        scores: (N,).
        accuracies: (N,), of the same subsets in the same order.
        higher_is_better: false turns the scores' sign, as of OSBORN and OTCE.

    Raises:
        DataError: if they differ in length, are fewer than two, are not finite, or all scores or all accuracies are equal.
    """
    from scipy.stats import kendalltau, pearsonr, weightedtau

    ours, truth = (torch.as_tensor(one, dtype=torch.float64).detach().cpu() for one in (scores, accuracies))
    if ours.dim() != 1 or ours.shape != truth.shape or len(ours) < 2:
        raise DataError(f"scores and accuracies are two vectors of one length, at least 2; found {tuple(ours.shape)}, {tuple(truth.shape)}")
    for what, values in (("scores", ours), ("accuracies", truth)):
        if not values.isfinite().all():
            raise DataError(f"the {what} are not finite")
        if values.max() == values.min():
            raise DataError(f"all {len(values)} {what} are {float(values[0]):.6g}: there is no order to find")
    better = ours if higher_is_better else -ours
    x, y = better.numpy(), truth.numpy()
    return Correlation(
        float(pearsonr(x, y).statistic),
        float(kendalltau(x, y).statistic),
        float(weightedtau(x, y).statistic),
        float(truth[better.argmax()]),
        float(truth.max()),
        float(truth.mean()),
    )


class TransferabilityCorrelation(Evaluator):
    """Correlation of scores with accuracies over the subsets of a pool, of one target or the mean over several.

    Args:
        scores: artifacts "scores", one a target.
        accuracies: artifacts "accuracies" of ensemble-accuracy, of the same targets in the same order.
        targets: what the targets are called; by default their numbers.

    Attributes:
        higher_is_better: true.

    Raises:
        ValueError: if there are not as many of each.
    """

    higher_is_better: ClassVar[bool] = True

    def __init__(self, scores: Artifacts, accuracies: Artifacts, targets: list[str] | None = None):
        names = targets if targets is not None else [str(index + 1) for index in range(len(scores))]
        if not scores or len(scores) != len(accuracies) or len(names) != len(scores):
            found = f"{len(scores)}, {len(accuracies)} and {len(names)}"
            raise ValueError(f"scores, accuracies and targets are one a target; found {found}")
        self.scores, self.accuracies, self.targets = scores, accuracies, names

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics pearson, kendall, weighted-kendall, selected-, best- and mean-accuracy, and share-of-best, each the mean over targets.

        Raises:
            ArtifactError: if an artifact is of another type.
            DataError: if scores and accuracies are of other subsets or targets, or all are equal.
        """
        rows, drawn = [], {}
        for name, scores, accuracies in zip(self.targets, self.scores, self.accuracies, strict=True):
            score, accuracy = aligned(scores, accuracies, name)
            found = transferability_correlation(score, accuracy, scores.data["higher_is_better"])
            rows.append([name, *asdict(found).values(), found.selected_accuracy / found.best_accuracy])
            drawn[name] = (score if scores.data["higher_is_better"] else -score, accuracy, found.weighted_kendall)
        means = [sum(row[place] for row in rows) / len(rows) for place in range(1, len(METRICS) + 1)]
        metrics = dict(zip(METRICS, means, strict=True))
        table = Table(["target", *METRICS], rows, "Order of all subsets by score against their order by accuracy.")
        caption = "Every subset's score, turned so that higher is better, against the accuracy of its averaged prediction."
        return Report(metrics, {"targets": table}, {"correlation": Figure(draw_correlation(drawn), caption)})


def aligned(scores: Artifact, accuracies: Artifact, target: str) -> tuple[Tensor, Tensor]:
    """Scores and accuracies of the same subsets in one order, each (N,) float64.

    Raises:
        ArtifactError: if one is of another type.
        DataError: if they are of other models, subsets or data.
    """
    ours, theirs = scores.check("subset-scores"), accuracies.check("subset-accuracies")
    if ours.dataset and theirs.dataset and ours.dataset != theirs.dataset:
        raise DataError(f'target "{target}": scores are of data {ours.dataset[:12]}, accuracies of {theirs.dataset[:12]}')
    names, known = list(ours.data["names"]), {name: index for index, name in enumerate(theirs.data["names"])}
    if sorted(names) != sorted(known):
        raise DataError(f'target "{target}": scores are of {", ".join(names)}; accuracies of {", ".join(known)}')
    moved = torch.tensor([known[name] for name in names])[ours.tensors["subsets"]].sort(dim=1).values
    subsets = theirs.tensors["subsets"].sort(dim=1).values
    if moved.shape != subsets.shape:
        raise DataError(f'target "{target}": scores are of subsets {tuple(moved.shape)}, accuracies of {tuple(subsets.shape)}')
    first, second = (_sorted_rows(one) for one in (moved, subsets))
    if not torch.equal(moved[first], subsets[second]):
        row = int((moved[first] != subsets[second]).any(dim=1).nonzero()[0, 0])
        raise DataError(f'target "{target}": the subset {named(list(known), moved[first][row].tolist())} has no accuracy')
    return ours.tensors["values"][first], theirs.tensors["values"][second]


def _sorted_rows(subsets: Tensor) -> Tensor:
    """The order that sorts rows lexicographically."""
    order = torch.arange(len(subsets))
    for column in reversed(range(subsets.shape[1])):
        order = order[subsets[order, column].sort(stable=True).indices]
    return order
