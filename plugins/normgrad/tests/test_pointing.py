"""Pointing: every cell at every layer from one pass, and the target of fully convolutional classifiers."""

from __future__ import annotations

import pytest
import torch

import graftwork as gw
from graftwork.errors import ConfigError, DataError, InterfaceError
from graftwork_grad_cam.grad_cam import GradCAM
from graftwork_grad_cam.pointing_game import PointingGame
from graftwork_grad_cam.targets import ClassTarget
from graftwork_normgrad import (
    CombinedSaliency,
    NormGrad,
    PointingGrid,
    PointingTarget,
    class_target,
    normgrad,
    resolve_target,
    with_choice,
)

LAYERS = ["layer1", "layer2", "layer3", "layer4"]


def test_the_grid_points_as_the_pointing_game_does_with_each_saliency(resnet, scenes):
    layers = ["layer2", "layer4"]
    report = PointingGrid(cells=["grad-cam", "normgrad"], layers=layers, tolerance=2).evaluate(resnet, scenes)
    for number, layer in enumerate(layers):
        for name, saliency in (("grad-cam", GradCAM(layer=layer)), ("normgrad", NormGrad(layer=layer))):
            game = PointingGame(saliency=saliency, tolerance=2, columns=1).evaluate(resnet, scenes).metrics
            assert report.metrics[f"pointing-{name}-{number + 1}"] == pytest.approx(game["pointing-accuracy"])
    assert report.metrics["pointing-centre"] == pytest.approx(game["centre-accuracy"])
    single = [report.metrics[f"pointing-normgrad-{number}"] for number in (1, 2)]
    assert report.metrics["pointing-normgrad-mean"] == pytest.approx(sum(single) / 2)
    assert report.metrics["pointing-normgrad-drop"] == pytest.approx(max(single) - min(single))
    product = NormGrad(layer=layers)
    game = PointingGame(saliency=product, tolerance=2, columns=1).evaluate(resnet, scenes).metrics
    assert report.metrics["pointing-normgrad-combined"] == pytest.approx(game["pointing-accuracy"])
    report.figures["pointing"].figure.savefig("/dev/null", format="png", dpi=40)


def test_a_network_whose_evidence_is_known_is_pointed_at(colours, scenes):
    report = PointingGrid(cells=["grad-cam", "selective-normgrad"], layers=["act"], tolerance=0).evaluate(colours, scenes)
    assert report.metrics["pointing-selective-normgrad-1"] == report.metrics["pointing-grad-cam-1"] == 1.0


def test_what_cannot_be_pointed_at_is_refused(colours, scenes):
    with pytest.raises(ConfigError, match='did you mean "grad-cam"'):
        gw.evaluator("pointing-grid", cells=["gradcam"])
    with pytest.raises(ValueError, match="tolerance must not be negative; found -1"):
        PointingGrid(tolerance=-1)
    with pytest.raises(DataError, match="from `mask` or `boxes`; the samples have image"):
        PointingGrid().evaluate(colours, gw.Dataset({"test": [{"image": torch.rand(3, 8, 8)}]}))
    with pytest.raises(DataError, match='split "none" shows no object'):
        PointingGrid("none").evaluate(colours, scenes)


def test_combined_maps_and_steps_play_the_pointing_game_by_reference(resnet, scenes):
    for saliency in (
        {"use": "combined-saliency", "layers": LAYERS, "saliency": {"use": "normgrad"}},
        {"use": "meta-saliency", "saliency": {"use": "grad-cam"}},
        {"use": "combined-saliency", "layers": LAYERS, "saliency": {"use": "meta-saliency", "saliency": "normgrad"}},
        {"use": "meta-saliency", "saliency": {"use": "combined-saliency", "layers": LAYERS}},
    ):
        metrics = gw.evaluator("pointing-game", saliency=saliency, limit=2).evaluate(resnet, scenes).metrics
        assert 0 <= metrics["pointing-accuracy"] <= 1
    assert isinstance(CombinedSaliency().saliency, NormGrad)


# -- the target --------------------------------------------------------------------------------------------------------------------


def test_what_goes_backward_is_the_exponential_of_the_logits_normalised_over_space(dense):
    x = torch.randn(2, 3, 32, 32)
    logits = dense(x)
    target = PointingTarget([1, 3])
    batch = target.prepare(dense, {"image": x})
    (found,) = torch.autograd.grad(target.score(logits, batch).sum(), logits)
    expected = torch.zeros_like(logits)
    for row, wanted in enumerate([1, 3]):
        expected[row, wanted] = logits[row, wanted].exp() / logits[row, wanted].exp().sum()
    torch.testing.assert_close(found, expected)
    assert normgrad(dense, x, target).maps.shape == (2, 1, 32, 32)


def test_on_class_logits_the_pointing_target_is_the_class(resnet, dense):
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(normgrad(resnet, x, PointingTarget(2)).maps, normgrad(resnet, x, 2).maps)
    predicted = dense(x).mean(dim=(2, 3)).argmax(dim=1)
    torch.testing.assert_close(normgrad(dense, x, PointingTarget()).scores, normgrad(dense, x, PointingTarget(predicted)).scores)
    assert isinstance(class_target(dense(x), predicted[:, None]), PointingTarget)
    assert isinstance(class_target(resnet(x), predicted[:, None]), ClassTarget)


def test_the_target_is_known_by_name_and_bad_ones_are_refused(dense, scenes):
    assert resolve_target("pointing") == PointingTarget()
    assert resolve_target({"name": "pointing", "classes": 2}) == PointingTarget(2)
    assert resolve_target("label").keys == PointingTarget("label").keys == ("label",)
    assert NormGrad(target={"name": "pointing", "classes": "label"}, limit=2).evaluate(dense, scenes).metrics["normgrad-area"] > 0
    with pytest.raises(ConfigError, match='target "pointing" cannot be made'):
        resolve_target({"name": "pointing", "classes": "best"})
    with pytest.raises(InterfaceError, match="class 7 is asked for, but the model has 4 classes"):
        normgrad(dense, torch.randn(1, 3, 32, 32), PointingTarget(7))
    with pytest.raises(InterfaceError, match="chooses no class"):
        with_choice(resolve_target(lambda output: output), torch.zeros(1, 1))
