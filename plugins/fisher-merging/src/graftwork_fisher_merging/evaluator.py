"""Evaluators: a model's Fisher diagonal, and what a search for coefficients tried."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import nn

from graftwork import INPUTS, Artifact, Dataset, Evaluator, Figure, Report, Split, Table
from graftwork.kinds.evaluator import split_batches
from graftwork_fisher_merging.estimators import Estimator
from graftwork_fisher_merging.figures import draw_fisher, draw_search
from graftwork_fisher_merging.fisher import Predicts, diagonal_fisher
from graftwork_fisher_merging.search import MergeSearch
from graftwork_fisher_merging.squared_gradients import BUDGET

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["FisherDiagonal", "MergeSearchReport", "Searched"]


class FisherDiagonal(Evaluator):
    """The diagonal of a model's Fisher information over a split, as an artifact to merge by (Matena and Raffel, 2022, section 3).

    Labels are never read: the expectation is under the model's own predictions. The artifact "fisher" has a tensor for each
    parameter, 0 for those that require no gradient, and works with this very model alone.

    Args:
        split: whose inputs to average over; training data.
        n_examples: read the first so many.
        estimator: "exact" over classes, one backward pass a class; "sampled" draws labels, or token sequences; "empirical" takes
            the data's labels, which is another quantity; "regression" is exact for outputs with normal noise of variance 1.
        draws: labels or sequences a sample, where they are sampled.
        predicts: what the outputs are of: "class", "next-token", or "labelled-tokens" (`labels`, -100 where nothing is predicted);
            by default next tokens for causal language models and a class for others.
        parameters: whose Fisher to compute, as a regular expression that is searched for in names; by default all.
        batch_size: examples loaded at once; what does not fit `budget` is gone through in parts.
        budget: numbers of activations, and of per-sample gradients, that are held at once.
        seed: of what is drawn.

    Raises:
        ValueError: if a parameter is out of range.
    """

    needs = nn.Module

    def __init__(
        self,
        split: Split = "train",
        n_examples: Annotated[int, Field(ge=1)] | None = 4096,
        estimator: Estimator = "exact",
        draws: Annotated[int, Field(ge=1)] = 1,
        predicts: Predicts | None = None,
        parameters: str | None = None,
        batch_size: Annotated[int, Field(ge=1)] = 128,
        budget: Annotated[int, Field(ge=1)] = BUDGET,
        seed: Annotated[int, Field(ge=0)] = 0,
    ):
        for name, value in (("n_examples", n_examples), ("draws", draws), ("batch_size", batch_size), ("budget", budget)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is at least 1; found {value}")
        self.split, self.n_examples, self.estimator, self.draws = split, n_examples, estimator, draws
        self.predicts, self.parameters, self.batch_size, self.budget, self.seed = predicts, parameters, batch_size, budget, seed
        labels = ("labels",) if predicts == "labelled-tokens" else ("label",) if estimator == "empirical" and predicts == "class" else ()
        self.keys = (INPUTS, *labels)

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics fisher-trace, fisher-norm (L2 over all entries) and n-examples; the artifact "fisher".

        Raises:
            DataError: if the split is empty, or the outputs do not fit the estimator.
        """
        batches = split_batches(data, self.split, model, limit=self.n_examples, batch_size=self.batch_size)
        fisher = diagonal_fisher(
            model,
            batches,
            self.estimator,
            draws=self.draws,
            predicts=self.predicts,
            parameters=self.parameters,
            seed=self.seed,
            budget=self.budget,
        )
        traces = {name: float(tensor.double().sum()) for name, tensor in fisher.tensors.items()}
        squares = sum(float(tensor.double().square().sum()) for tensor in fisher.tensors.values())
        metrics = {"fisher-trace": sum(traces.values()), "fisher-norm": math.sqrt(squares), "n-examples": float(fisher.n_examples)}
        ways = Counter(fisher.ways.values())
        rows = [
            [name, tensor.numel(), traces[name], traces[name] / tensor.numel(), fisher.ways.get(name, "frozen")]
            for name, tensor in fisher.tensors.items()
        ]
        said = f"{fisher.estimator} over {fisher.n_examples} examples of {self.split}"
        tables = {
            "parameters": Table(["parameter", "entries", "trace", "mean", "computed"], rows, f"The Fisher of each parameter, {said}."),
            "ways": Table(
                ["computed", "parameters"], [[way, count] for way, count in ways.items()], "How per-sample gradients came about."
            ),
        }
        figure = Figure(draw_fisher(fisher.tensors), f"Entries of each parameter's Fisher ({said}): median, middle half, and 5 to 95 %.")
        return Report(metrics, tables, {"fisher": figure}, {"fisher": fisher.artifact(model, data.fingerprint())})


@runtime_checkable
class Searched(Protocol):
    """A merged model that knows what was tried, as `fisher-merge-search` gives it."""

    merge_search: MergeSearch


class MergeSearchReport(Evaluator):
    """What a search for merging coefficients tried: table and picture of the score against the coefficients.

    No data is read: the scores are those of the search, on its validation split.
    """

    needs = Searched

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics best-score and best-coefficient-0, -1, ...; the artifact "merge-coefficients"."""
        search: MergeSearch = model.merge_search
        winner, count = search.winner, len(search.winner.coefficients)
        columns = [*(f"lambda {index}" for index in range(count)), "score", *winner.metrics]
        rows = [[*trial.coefficients, trial.score, *trial.metrics.values()] for trial in search.trials]
        kind = "plain" if search.isotropic else "Fisher-weighted"
        caption = f"Mean of {', '.join(search.metrics)} of {len(rows)} {kind} merges; the ring marks the best."
        metrics = {"best-score": winner.score} | {f"best-coefficient-{index}": value for index, value in enumerate(winner.coefficients)}
        artifact = Artifact(
            "merge-coefficients",
            {
                "coefficients": torch.tensor([trial.coefficients for trial in search.trials], dtype=torch.float64),
                "scores": torch.tensor([trial.score for trial in search.trials], dtype=torch.float64),
            },
            {"metrics": list(search.metrics), "direction": search.direction, "best": search.best, "isotropic": search.isotropic},
        )
        figures = {"search": Figure(draw_search(search), caption)}
        return Report(metrics, {"trials": Table(columns, rows, caption)}, figures, {"merge-coefficients": artifact})
