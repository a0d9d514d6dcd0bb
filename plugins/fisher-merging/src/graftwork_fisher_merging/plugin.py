"""What this distribution registers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork import Component, Paper, hookimpl

__all__ = ["graftwork_evaluators", "graftwork_models"]

HERE = "graftwork_fisher_merging"
PAPER = Paper("Merging Models with Fisher-Weighted Averaging", arxiv="2111.09832", year=2022, venue="NeurIPS")
PAIR = ["small-cnn", "small-cnn"]


@hookimpl
def graftwork_models() -> Iterator[Component]:
    """Merges of models."""
    yield Component(
        "fisher-merge", f"{HERE}.components:fisher_merge", "Average models, weighted by Fisher information", PAPER, {"models": PAIR}
    )
    yield Component("isotropic-merge", f"{HERE}.components:isotropic_merge", "Average models plainly", PAPER, {"models": PAIR})
    yield Component(
        "fisher-merge-search",
        f"{HERE}.components:fisher_merge_search",
        "Merge with many coefficients and keep the best",
        PAPER,
        {"models": PAIR, "evaluator": {"use": "accuracy", "split": "val"}, "data": "digits", "metrics": ["accuracy"], "n_coeffs": 3},
        deferred=True,
    )


@hookimpl
def graftwork_evaluators() -> Iterator[Component]:
    """Fisher information, and what merging is held against."""
    yield Component("fisher-diagonal", f"{HERE}.evaluator:FisherDiagonal", "The diagonal of a model's Fisher information", PAPER)
    yield Component("merge-search", f"{HERE}.evaluator:MergeSearchReport", "What a search for merging coefficients tried", PAPER)
    yield Component(
        "prediction-ensemble",
        f"{HERE}.ensemble:PredictionEnsemble",
        "Accuracy of the mean of several models' probabilities",
        PAPER,
        {"models": PAIR},
    )
    yield Component(
        "task-heads",
        f"{HERE}.task_heads:TaskHeads",
        "One body measured on several tasks, each with its own head",
        PAPER,
        {"models": PAIR, "evaluators": ["accuracy", "accuracy"]},
    )
