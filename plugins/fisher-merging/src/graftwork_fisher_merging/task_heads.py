"""A merged body under each task's own head: how one set of weights does on several tasks."""

from __future__ import annotations

import copy
import statistics
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import nn

from graftwork import Dataset, Evaluator, Report, Table
from graftwork.interfaces import device_of
from graftwork_fisher_merging.names import mergeable_names

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["TaskHeads", "lend_body"]


class TaskHeads(Evaluator):
    """Measure a model's shared body on several tasks, each with the head and buffers of the model that was trained for it.

    Args:
        models: one a task; each lends its head. Their bodies are not used.
        evaluators: one a task, in the same order.
        tasks: their names, for the metrics; by default "task-0" and so on.
        mergeable: which parameters are the shared body's, as a regular expression that is searched for in names; None takes all but
            the heads'.

    Raises:
        ValueError: if there are not as many evaluators, or names, as models.
    """

    def __init__(
        self,
        models: Annotated[list[nn.Module], Field(min_length=1)],
        evaluators: Annotated[list[Evaluator], Field(min_length=1)],
        tasks: list[str] | None = None,
        mergeable: str | None = None,
    ):
        names = tasks or [f"task-{index}" for index in range(len(models))]
        if not len(models) == len(evaluators) == len(names) or len(set(names)) < len(names):
            raise ValueError(f"one evaluator and one name a model: {len(models)} models, {len(evaluators)} evaluators, tasks {names}")
        self.models, self.evaluators, self.tasks, self.mergeable = models, evaluators, names, mergeable
        self._shells: list[nn.Module] = []

    @property
    def split(self) -> list[str]:
        """Splits that the evaluators read, as far as they say."""
        return [split for one in self.evaluators for split in _splits_of(one)]

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics "task/metric", and under "metric" the mean of those that every task has.

        Raises:
            DataError: if the model's body does not fit a task's.
        """
        self._shells = self._shells or [copy.deepcopy(one) for one in self.models]
        reports = {}
        for task, shell, evaluator in zip(self.tasks, self._shells, self.evaluators, strict=True):
            shell.to(device_of(model))
            lend_body(model, shell, self.mergeable)
            reports[task] = evaluator.evaluate(shell, data, run)
        metrics = {f"{task}/{name}": value for task, report in reports.items() for name, value in report.metrics.items()}
        common = [name for name in next(iter(reports.values())).metrics if all(name in report.metrics for report in reports.values())]
        means = {name: statistics.fmean(report.metrics[name] for report in reports.values()) for name in common}
        rows = [[task, *(report.metrics[name] for name in common)] for task, report in reports.items()]
        table = Table(["task", *common], [*rows, ["mean", *means.values()]], "The shared body with each task's own head.")
        figures = {f"{task}-{name}": figure for task, report in reports.items() for name, figure in report.figures.items()}
        return Report(means | metrics, {"tasks": table}, figures)


@torch.no_grad()
def lend_body(source: nn.Module, target: nn.Module, mergeable: str | None = None) -> None:
    """Copy the shared body of one model into another, whose head and buffers stay.

    Args:
        source: read only.
        target: written to in place.
        mergeable: which parameters are the body's; None takes all but both heads'.

    Raises:
        DataError: if the bodies differ.
    """
    given, places = dict(source.named_parameters()), dict(target.named_parameters())
    for name in mergeable_names([source, target], mergeable):
        places[name].copy_(given[name])


def _splits_of(evaluator: Evaluator) -> list[str]:
    split = getattr(evaluator, "split", None)
    return split if isinstance(split, list) else [split] if isinstance(split, str) else []
