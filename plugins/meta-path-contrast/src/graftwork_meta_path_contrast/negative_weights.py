"""Do false negatives, pairs of one class that a contrast pushes apart, get smaller weights than true ones?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from graftwork import DataError, Dataset, Evaluator, Figure, Report, Table
from graftwork.kinds.dataset import Split
from graftwork.kinds.evaluator import evaluating, split_batches
from graftwork_meta_path_contrast.figures import draw_weights

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["COLLAPSED", "NegativeWeightAnalysis", "WeighsNegatives"]

COLLAPSED = 0.01
"""Mean weight below which learned weights have collapsed."""


@runtime_checkable
class WeighsNegatives(Protocol):
    """A model that gives the weights (n, n) of pairs of nodes; what "meow" and "adameow" hand on."""

    def negative_weights(self, views: Any, nodes: Tensor, /) -> Tensor:
        """(n, n) weights of pairs of `nodes` (n,), anchors in rows."""
        ...


class NegativeWeightAnalysis(Evaluator):
    """Weights of pairs of one class (false negatives) against pairs of two (true negatives), on labelled nodes.

    The AUC is how often a true negative weighs more than a false one, 0.5 being chance: of the weight as a detector of false negatives.

    Args:
        split: whose labelled nodes are paired.
        limit: take so many of them at most, drawn evenly, as there are as many pairs as their square.
        seed: of the draw.
    """

    keys = ("views", "nodes", "label")
    needs = WeighsNegatives

    def __init__(self, split: Split = "test", limit: Annotated[int, Field(ge=2)] = 2000, seed: Annotated[int, Field(ge=0)] = 0):
        if limit < 2:
            raise ValueError(f"limit must be at least 2; found {limit}")
        self.split, self.limit, self.seed = split, limit, seed

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics same-class-weight, different-class-weight, mean-weight, false-negative-auc, and collapsed (1 where the mean is < 0.01).

        Raises:
            DataError: if the nodes have no pair of one class, or none of two.
        """
        from torchmetrics.functional.classification import binary_auroc

        with evaluating(model):
            batch = next(iter(split_batches(data, self.split, model)))
            nodes, labels = batch["nodes"], batch["label"]
            order = torch.randperm(len(nodes), generator=torch.Generator().manual_seed(self.seed))[: self.limit].to(nodes.device)
            weights = model.negative_weights(batch["views"], nodes[order]).float()
        same = labels[order][:, None] == labels[order]
        pair = ~torch.eye(len(order), dtype=torch.bool, device=same.device)
        false, true = weights[same & pair], weights[~same]
        if not len(false) or not len(true):
            raise DataError(
                f'the {len(order)} nodes of split "{self.split}" have no pair of {"one class" if not len(false) else "two classes"}'
            )
        joined, is_false = torch.cat([false, true]), torch.cat([torch.ones_like(false), torch.zeros_like(true)]).long()
        detector = 1 - joined / joined.max().clamp(min=torch.finfo(joined.dtype).tiny)
        mean = float(joined.mean())
        metrics = {
            "same-class-weight": float(false.mean()),
            "different-class-weight": float(true.mean()),
            "mean-weight": mean,
            "false-negative-auc": float(binary_auroc(detector, is_false)),
            "collapsed": float(mean < COLLAPSED),
        }
        rows = [[name, len(w), *(round(float(v), 6) for v in (w.mean(), w.median(), w.min(), w.max()))] for name, w in _named(false, true)]
        table = Table(["pairs", "count", "mean", "median", "least", "most"], rows, "Weights of pairs as negatives.")
        caption = "How often pairs get which weight: of one class (false negatives, to be pushed apart less) and of two (true negatives)."
        return Report(metrics, {"weights": table}, {"weights": Figure(draw_weights(false.cpu(), true.cpu()), caption)})


def _named(false: Tensor, true: Tensor) -> list[tuple[str, Tensor]]:
    return [("one class", false), ("two classes", true)]
