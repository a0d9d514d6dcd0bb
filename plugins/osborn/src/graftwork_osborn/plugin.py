"""What this distribution registers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork import Component, Paper, hookimpl

__all__ = ["graftwork_evaluators", "graftwork_models"]

HERE = "graftwork_osborn"
PAPER = Paper(
    "Building a Winning Team: Selecting Source Model Ensembles using a Submodular Transferability Estimation Approach",
    arxiv="2309.02429",
    year=2023,
    venue="ICCV",
)
LEEP = Paper("LEEP: A New Measure to Evaluate Transferability of Learned Representations", arxiv="2002.12462", year=2020, venue="ICML")
ENSEMBLES = Paper("Transferability Metrics for Selecting Source Model Ensembles", arxiv="2111.13011", year=2022, venue="CVPR")
OTCE = Paper("OTCE: A Transferability Metric for Cross-Domain Cross-Task Representations", arxiv="2103.13843", year=2021, venue="CVPR")
POOL = {"pool": {"first": "small-cnn", "second": "small-cnn"}}
SOURCES = {**POOL, "sources": {"first": "val", "second": "test"}, "k": 1}
SCORES = {
    "scores": [{"from": "estimate/osborn/scores"}],
    "accuracies": [{"from": "truth/ensemble-accuracy/accuracies"}],
}


@hookimpl
def graftwork_models() -> Iterator[Component]:
    """The ensemble that is chosen."""
    yield Component(
        "averaged-ensemble",
        f"{HERE}.ensemble:AveragedEnsemble",
        "Several classifiers as one: the logarithm of their mean probabilities",
        PAPER,
        {"models": ["small-cnn", "small-cnn"]},
    )


@hookimpl
def graftwork_evaluators() -> Iterator[Component]:
    """Estimates of transferability, the truth that they estimate, and how well they do."""
    yield Component("leep", f"{HERE}.leep_evaluators:LEEP", "How well one classifier's classes tell the target's", LEEP)
    yield Component("ms-leep", f"{HERE}.leep_evaluators:MSLEEP", "Sum of the LEEPs of a set of classifiers", ENSEMBLES, POOL)
    yield Component("e-leep", f"{HERE}.leep_evaluators:ELEEP", "LEEP of the averaged prediction of a set", ENSEMBLES, POOL)
    yield Component(
        "iou-eep",
        f"{HERE}.segmentation:IoUEEP",
        "Mean IoU of a set of segmenters' averaged empirical prediction",
        ENSEMBLES,
        {"pool": {"first": {"use": "transformers-segmenter", "name": "nvidia/segformer-b0-finetuned-ade-512-512"}}},
    )
    yield Component("otce", f"{HERE}.otce:OTCE", "Transport distance plus conditional entropy of source models, summed", OTCE, SOURCES)
    yield Component("osborn", f"{HERE}.osborn:Osborn", "Score, rank and choose sets of source models, training none", PAPER, SOURCES)
    yield Component(
        "ensemble-accuracy", f"{HERE}.ensemble:EnsembleAccuracy", "Accuracy of every subset of fine-tuned models", PAPER, {**POOL, "k": 1}
    )
    yield Component(
        "transferability-correlation",
        f"{HERE}.correlation:TransferabilityCorrelation",
        "How well scores of subsets order their accuracies",
        PAPER,
        SCORES,
    )
