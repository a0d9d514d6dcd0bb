"""What this distribution registers. Light: the parts are imported when they are first used."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork import Component, Paper, hookimpl

__all__ = ["graftwork_evaluators"]

PAPER = Paper("There and Back Again: Revisiting Backpropagation Saliency Methods", arxiv="2004.02866", year=2020, venue="CVPR")
SANITY = Paper("Sanity Checks for Saliency Maps", arxiv="1810.03292", year=2018, venue="NeurIPS")
HERE = "graftwork_normgrad"


@hookimpl
def graftwork_evaluators() -> Iterator[Component]:
    """Maps of what each place contributes to a layer's gradient, and measures of what maps are worth."""
    yield Component(
        "extract-aggregate", f"{HERE}.extract_aggregate:ExtractAggregate", "Any gradient saliency as an extract and an aggregate", PAPER
    )
    yield Component("normgrad", f"{HERE}.normgrad:NormGrad", "Norm of each place's contribution to a layer's weight gradient", PAPER)
    yield Component("combined-saliency", f"{HERE}.combined_saliency:CombinedSaliency", "Any saliency at several layers, as one map", PAPER)
    yield Component("meta-saliency", f"{HERE}.meta_saliency:MetaSaliency", "Any saliency after one step of learning the image", PAPER)
    yield Component("layer-weights", f"{HERE}.layer_weights:LayerWeights", "What each layer is worth, for combined-saliency", PAPER)
    yield Component("class-sensitivity", f"{HERE}.class_sensitivity:ClassSensitivity", "Does a saliency see which class is asked?", PAPER)
    yield Component(
        "saliency-correlation", f"{HERE}.saliency_correlation:SaliencyCorrelation", "How alike the maps of saliencies are, by pairs", PAPER
    )
    yield Component(
        "model-randomization",
        f"{HERE}.model_randomization:ModelRandomization",
        "Does a saliency change when the network forgets?",
        SANITY,
    )
    yield Component("pointing-grid", f"{HERE}.pointing_grid:PointingGrid", "Pointing accuracy of methods at layers, in one pass", PAPER)
