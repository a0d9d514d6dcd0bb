"""The mean of several models' predicted probabilities: the baseline that merging is to come near at a fraction of its cost."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from graftwork import DataError, Dataset, Evaluator, Report, Split, Table
from graftwork.builtin.evaluators import classification_report
from graftwork.interfaces import classify
from graftwork.kinds.evaluator import evaluating, split_batches
from graftwork.toolkit.ensembles import ensemble_log_probabilities

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["PredictionEnsemble"]


class PredictionEnsemble(Evaluator):
    """Accuracy of the mean of M models' output probabilities, M forward passes a sample (Matena and Raffel, 2022, section 4.1).

    Args:
        models: all M of the ensemble; the stage's own model is not added.
        split: where to measure.
        limit: read the first so many samples only.

    Raises:
        DataError: in evaluate, if the split is empty or the models' classes differ.
    """

    keys = ("label",)

    def __init__(
        self,
        models: Annotated[list[nn.Module], Field(min_length=1)],
        split: Split = "test",
        limit: Annotated[int, Field(ge=1)] | None = None,
    ):
        if not models:
            raise ValueError("models names at least one model")
        self.models, self.split, self.limit = models, split, limit

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics of the ensemble (accuracy, macro-accuracy, negative-log-likelihood, forward-passes) and mean-accuracy of its members."""
        found, labels = [], []
        members: list[Tensor] = []
        with ExitStack() as modes:
            for one in self.models:
                modes.enter_context(evaluating(one))
            for batch in split_batches(data, self.split, self.models[0], limit=self.limit):
                logits = [classify(one, batch) for one in self.models]
                found.append(ensemble_log_probabilities(logits))
                members.append(torch.stack([one.argmax(dim=1) == batch["label"] for one in logits]))
                labels.append(batch["label"])
        if not found:
            raise DataError(f'split "{self.split}" is empty')
        scores, truth = torch.cat(found), torch.cat(labels)
        report = classification_report(scores, truth, data.info.classes, self.split)
        single = torch.cat(members, dim=1).float().mean(dim=1).tolist()
        metrics = {
            **report.metrics,
            "negative-log-likelihood": functional.nll_loss(scores, truth).item(),
            "mean-accuracy": sum(single) / len(single),
            "forward-passes": float(len(self.models)),
        }
        rows = [[str(index), accuracy] for index, accuracy in enumerate(single)] + [["ensemble", report.metrics["accuracy"]]]
        table = Table(["model", "accuracy"], rows, f"Each member and their ensemble on {self.split}.")
        return Report(metrics, {**report.tables, "members": table}, report.figures)
