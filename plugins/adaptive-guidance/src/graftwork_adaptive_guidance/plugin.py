"""What this distribution registers. Light: the parts are imported when they are first used."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork import Component, Paper, hookimpl

__all__ = ["graftwork_evaluators", "graftwork_guidance", "graftwork_models", "graftwork_objectives"]

HERE = "graftwork_adaptive_guidance"
PAPER = Paper("Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models", arxiv="2312.12487", year=2025, venue="AAAI")


@hookimpl
def graftwork_guidance() -> Iterator[Component]:
    """Classifier-free guidance that runs fewer rows."""
    yield Component("adaptive-guidance", f"{HERE}.guidance:AdaptiveGuidance", "Guide until both predictions point the same way", PAPER)
    yield Component(
        "linear-adaptive-guidance", f"{HERE}.guidance:LinearAdaptiveGuidance", "Estimate unconditional predictions from past ones", PAPER
    )
    yield Component(
        "guidance-policy",
        f"{HERE}.guidance:GuidancePolicy",
        "Run an explicit guidance policy, searched or by hand",
        PAPER,
        {"pattern": "first"},
    )


@hookimpl
def graftwork_objectives() -> Iterator[Component]:
    """The search for a policy."""
    yield Component(
        "guidance-policy-search", f"{HERE}.search:GuidancePolicySearch", "Search which steps need guidance, by differentiation", PAPER
    )


@hookimpl
def graftwork_models() -> Iterator[Component]:
    """A pipeline with its guidance."""
    yield Component(
        "guided-pipeline",
        f"{HERE}.guided_pipeline:GuidedPipeline",
        "A pipeline and a guidance as one pipeline",
        PAPER,
        {"pipeline": {"use": "zoo/scene-diffusion"}, "guidance": "adaptive-guidance"},
    )


@hookimpl
def graftwork_evaluators() -> Iterator[Component]:
    """What guidance could save, and what saving costs."""
    yield Component(
        "guidance-alignment",
        f"{HERE}.alignment:GuidanceAlignment",
        "How alike both predictions are, by step; fits LinearAG",
        PAPER,
    )
    yield Component(
        "guidance-fidelity",
        f"{HERE}.fidelity:GuidanceFidelity",
        "Pictures of cheaper guidance against plain guidance's, and their cost",
        PAPER,
        {"guidances": {"adaptive": {"use": "adaptive-guidance"}}},
    )
    yield Component(
        "guidance-policy-report", f"{HERE}.policy_report:GuidancePolicyReport", "Which steps of a carried policy are guided", PAPER
    )
