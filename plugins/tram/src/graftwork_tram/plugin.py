"""What this distribution registers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork import Component, Paper, hookimpl

__all__ = ["graftwork_evaluators", "graftwork_objectives"]

HERE = "graftwork_tram"
TRAM = Paper("TRAM: Bridging Trust Regions and Sharpness Aware Minimization", arxiv="2310.03646", year=2024, venue="ICLR")
SAM = Paper("Sharpness-Aware Minimization for Efficiently Improving Generalization", arxiv="2010.01412", year=2021, venue="ICLR")
R3F = Paper("Better Fine-Tuning by Reducing Representational Collapse", arxiv="2008.03156", year=2021, venue="ICLR")
MODERN = Paper("A Modern Look at the Relationship between Sharpness and Generalization", arxiv="2302.07011", year=2023, venue="ICML")


@hookimpl
def graftwork_objectives() -> Iterator[Component]:
    """Flat minima and smooth predictions, around any objective."""
    yield Component("tram", f"{HERE}.objective:TRAM", "Climb as far as the predictions move, then descend from there", TRAM)
    yield Component("sharpness-aware", f"{HERE}.objective:SharpnessAware", "SAM, ASAM and Fisher-SAM with a fixed radius", SAM)
    yield Component(
        "trust-region-regulariser", f"{HERE}.regulariser:TrustRegionRegulariser", "Penalise predictions that move (R3F, MESA)", R3F
    )


@hookimpl
def graftwork_evaluators() -> Iterator[Component]:
    """How flat a minimum is, and how far predictions and features moved."""
    yield Component("sharpness", f"{HERE}.sharpness:Sharpness", "How the loss rises in a ball around the weights", MODERN)
    yield Component(
        "representation-drift",
        f"{HERE}.representation_drift:RepresentationDrift",
        "How far predictions and features moved from a model's, and under noise",
        TRAM,
    )
