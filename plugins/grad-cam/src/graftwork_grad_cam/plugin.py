"""What this distribution registers. Light: the parts are imported when they are first used."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork import Component, Paper, hookimpl

__all__ = ["graftwork_evaluators"]

PAPER = Paper(
    "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", arxiv="1610.02391", year=2017, venue="ICCV"
)
CAM = Paper("Learning Deep Features for Discriminative Localization", arxiv="1512.04150", year=2016, venue="CVPR")
GUIDED = Paper("Striving for Simplicity: The All Convolutional Net", arxiv="1412.6806", year=2015, venue="ICLR workshop")
POINTING = Paper("Top-down Neural Attention by Excitation Backprop", arxiv="1608.00507", year=2016, venue="ECCV")
OCCLUSION = Paper("Visualizing and Understanding Convolutional Networks", arxiv="1311.2901", year=2014, venue="ECCV")
HERE = "graftwork_grad_cam"


@hookimpl
def graftwork_evaluators() -> Iterator[Component]:
    """Maps of where a network finds its evidence, and measures of how good such maps are."""
    yield Component("grad-cam", f"{HERE}.grad_cam:GradCAM", "Where in the image a network finds evidence for a class or any target", PAPER)
    yield Component(
        "guided-backprop", f"{HERE}.guided_backprop:GuidedBackprop", "Which pixels excite a target, by guided gradients", GUIDED
    )
    yield Component("guided-grad-cam", f"{HERE}.guided_grad_cam:GuidedGradCAM", "Guided backprop inside the Grad-CAM map", PAPER)
    yield Component("cam", f"{HERE}.cam:CAM", "Class activation maps of networks that end in average pooling and one layer", CAM)
    yield Component("neuron-importance", f"{HERE}.neuron_importance:NeuronImportance", "Which channels speak for a class, in words", PAPER)
    yield Component(
        "saliency-localization", f"{HERE}.saliency_localization:SaliencyLocalization", "Error of the boxes that maps give", PAPER
    )
    yield Component("pointing-game", f"{HERE}.pointing_game:PointingGame", "Does a map's maximum lie on the object?", POINTING)
    yield Component(
        "occlusion-faithfulness", f"{HERE}.occlusion:OcclusionFaithfulness", "Do maps rank regions as hiding them does?", OCCLUSION
    )
    yield Component("box-contrast", f"{HERE}.box_contrast:BoxContrast", "Mean of a map inside a box over its mean outside", PAPER)
