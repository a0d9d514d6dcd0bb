"""What this distribution registers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork import Component, Paper, hookimpl

__all__ = ["graftwork_evaluators", "graftwork_objectives"]

HERE = "graftwork_denoising_task_clustering"
ANT = Paper("Addressing Negative Transfer in Diffusion Models", arxiv="2306.00354", year=2023, venue="NeurIPS")
SURGERY = Paper("Gradient Surgery for Multi-Task Learning", arxiv="2001.06782", year=2020, venue="NeurIPS")
NASH = Paper("Multi-Task Learning as a Bargaining Game", arxiv="2202.01017", year=2022, venue="ICML")
UNCERTAINTY = Paper(
    "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics", arxiv="1705.07115", year=2018, venue="CVPR"
)
LOSSES = {"base": {"use": "segmentation-cross-entropy", "dice": 1.0}, "losses": ["cross-entropy", "dice"]}


@hookimpl
def graftwork_objectives() -> Iterator[Component]:
    """Denoising with grouped noise levels, and three methods for several losses."""
    clustered = f"{HERE}.clustered_denoising:ClusteredDenoising"
    yield Component("clustered-denoising", clustered, "Train a denoiser on groups of noise levels as tasks", ANT)
    yield Component("pcgrad", f"{HERE}.balanced:PCGradObjective", "Project gradients of losses that conflict", SURGERY, LOSSES)
    yield Component("nash-mtl", f"{HERE}.balanced:NashMTLObjective", "Weigh losses so that all gain in equal proportion", NASH, LOSSES)
    learned = f"{HERE}.balanced:UncertaintyWeightingObjective"
    yield Component("uncertainty-weighting", learned, "Weigh losses by learned variances", UNCERTAINTY, LOSSES)


@hookimpl
def graftwork_evaluators() -> Iterator[Component]:
    """Which noise levels belong together, and whether training them jointly harms them."""
    yield Component("interval-clusters", f"{HERE}.interval_evaluator:IntervalClusters", "Group timesteps into intervals at least cost", ANT)
    yield Component(
        "denoising-task-affinity", f"{HERE}.affinity_evaluator:DenoisingTaskAffinity", "Cosines of the gradients of noise levels", ANT
    )
    features = {"features": {"use": "small-cnn"}}
    gap = f"{HERE}.negative_transfer:NegativeTransferGap"
    yield Component("negative-transfer-gap", gap, "What joint training costs each interval, by mixed sampling", ANT, features)
