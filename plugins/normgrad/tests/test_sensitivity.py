"""Class sensitivity, correlation of saliencies, randomisation: with saliencies whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork.errors import DataError, InterfaceError
from graftwork_grad_cam.forward import as_batch, call_model
from graftwork_grad_cam.grad_cam import GradCAM
from graftwork_grad_cam.maps import SaliencyMaps
from graftwork_grad_cam.saliency import SaliencyMethod
from graftwork_grad_cam.targets import ClassTarget
from graftwork_normgrad import (
    ClassSensitivity,
    MetaSaliency,
    ModelRandomization,
    NormGrad,
    SaliencyCorrelation,
    class_correlation,
    map_correlation,
    pairwise_correlations,
    randomized_parameters,
    randomly_initialised,
    weighted_modules,
)


class Known(SaliencyMethod):
    """Maps that a function of (image, class) gives."""

    name = "known"

    def __init__(self, function, target="predicted"):
        super().__init__(target=target)
        self.function = function

    def explain(self, model, batch, target=None):
        ready = as_batch(batch)
        asked = target if isinstance(target, ClassTarget) else self.target
        ready = asked.prepare(model, ready)
        output = call_model(model, ready)
        classes = asked.choice(output, ready)
        maps = torch.stack(
            [torch.stack([self.function(i, c) for c in row.tolist()]) for i, row in zip(ready["image"], classes, strict=True)]
        )
        return SaliencyMaps(maps, {"image": maps}, asked.score(output, ready), output, asked.pin(output, ready), asked)


def edges(image, _=None):
    """Where neighbours differ: nothing of the network."""
    grey = image.mean(dim=0)
    return nn.functional.pad((grey[1:] - grey[:-1]).abs(), (0, 0, 0, 1))


# -- the measure -------------------------------------------------------------------------------------------------------------------


def test_the_correlation_is_spearmans_of_each_pair_of_maps():
    stats = pytest.importorskip("scipy.stats")
    first, second = torch.randn(3, 2, 6, 7), torch.randn(3, 2, 6, 7).round(decimals=1)  # with ties
    found = map_correlation(first, second)
    magnitudes = map_correlation(first, second, absolute=True)
    for index in np.ndindex(3, 2):
        a, b = (each[index].flatten() for each in (first, second))
        assert found[index].item() == pytest.approx(stats.spearmanr(a + 1e-6, b + 1e-6).statistic, abs=1e-12)
        assert magnitudes[index].item() == pytest.approx(stats.spearmanr(a.abs() + 1e-6, b.abs() + 1e-6).statistic, abs=1e-12)
    assert math.isnan(map_correlation(torch.ones(4, 4), first[0, 0, :4, :4]).item())


def test_differences_far_below_epsilon_are_ties():
    noise = 1e-15 * torch.rand(8, 8)
    assert math.isnan(map_correlation(noise, torch.rand(8, 8)).item())
    assert not math.isnan(map_correlation(noise, torch.rand(8, 8), epsilon=0.0).item())
    with pytest.raises(ValueError, match="differ in shape"):
        map_correlation(noise, torch.rand(8, 7))


# -- class sensitivity -------------------------------------------------------------------------------------------------------------


def test_a_saliency_that_ignores_the_class_scores_exactly_one(colours, scenes):
    metrics = ClassSensitivity(saliency=Known(edges), columns=1).evaluate(colours, scenes).metrics
    assert metrics == {"class-sensitivity": 1.0, "class-sensitivity-std": 0.0, "class-sensitivity-dropped": 0.0}


def test_a_map_negated_between_the_two_classes_scores_minus_one(scenes):
    ramp = torch.arange(32.0 * 32).view(32, 32)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    saliency = Known(lambda image, c: ramp if c == 0 else -ramp)
    metrics = ClassSensitivity(saliency=saliency, columns=1).evaluate(model, scenes).metrics
    assert metrics["class-sensitivity"] == -1.0


def test_the_maps_are_those_of_the_likeliest_and_the_least_likely_class(resnet):
    x = torch.randn(5, 3, 32, 32)
    found = class_correlation(resnet, x, GradCAM())
    order = resnet(x).softmax(dim=1).argsort(dim=1)
    assert torch.equal(found.classes, order[:, [-1, 0]])
    torch.testing.assert_close(found.maps[:, 1:], GradCAM().explain(resnet, x, order[:, 0]).maps, rtol=1e-4, atol=1e-6)
    with torch.inference_mode():
        again = class_correlation(resnet, x.clone(), GradCAM())
    torch.testing.assert_close(again.correlation, found.correlation, equal_nan=True)


def test_batches_change_nothing_and_constant_maps_are_counted_and_left_out(resnet, scenes):
    whole, parts = (ClassSensitivity(batch_size=size, columns=1).evaluate(resnet, scenes).metrics for size in (5, 2))
    assert whole["class-sensitivity"] == pytest.approx(parts["class-sensitivity"], abs=1e-6)
    dark = Known(lambda image, c: edges(image) if image[1].max() > 0.5 else torch.zeros(32, 32))  # nothing without green
    report = ClassSensitivity(saliency=dark, columns=1).evaluate(resnet, scenes)
    expected = sum(bool(sample["image"][1].max() <= 0.5) for sample in scenes["test"])
    assert 0 < expected < 5
    assert report.metrics["class-sensitivity-dropped"] == expected
    assert report.metrics["class-sensitivity"] == 1.0
    assert len(report.tables["images"].rows) == 5
    report.figures["classes"].figure.savefig("/dev/null", format="png", dpi=40)
    with pytest.raises(DataError, match='"known" gives constant maps'):
        ClassSensitivity(saliency=Known(lambda image, c: torch.zeros(32, 32))).evaluate(resnet, scenes)
    with pytest.raises(DataError, match='split "none" is empty'):
        ClassSensitivity("none").evaluate(resnet, scenes)


def test_it_measures_any_saliency_after_a_step_and_maps_of_logits_too(resnet, dense):
    x = torch.randn(2, 3, 32, 32)
    plain, meta = (class_correlation(resnet, x, each).correlation for each in (NormGrad(), MetaSaliency(lr=0.5)))
    assert meta.isfinite().all()
    assert not torch.allclose(plain, meta, atol=1e-3)
    assert class_correlation(dense, x, NormGrad()).maps.shape == (2, 2, 32, 32)


# -- correlation of saliencies -----------------------------------------------------------------------------------------------------


def test_every_pair_is_compared_on_what_the_model_itself_chose(resnet, scenes):
    x = torch.stack([sample["image"] for sample in scenes["test"]])
    saliencies = {"virtual": NormGrad(layer="layer2.0.conv1"), "real": NormGrad(layer="layer2.0.conv1", virtual_identity=False)}
    pairs, maps = pairwise_correlations(resnet, x, saliencies | {"up": MetaSaliency(negate_loss=True)}, "predicted")
    assert list(pairs) == [("virtual", "real"), ("virtual", "up"), ("real", "up")]
    predicted = resnet(x).argmax(dim=1)
    for name, saliency in saliencies.items():
        torch.testing.assert_close(maps[name], saliency.explain(resnet, x, predicted).maps)
    torch.testing.assert_close(pairs["virtual", "real"], map_correlation(maps["virtual"], maps["real"]))


def test_the_component_reports_means_and_a_matrix(resnet, scenes):
    evaluator = gw.evaluator(
        "saliency-correlation",
        saliencies={"plain": "normgrad", "meta": {"use": "meta-saliency", "lr": 0.0}, "selective": {"use": "normgrad", "selective": True}},
        columns=1,
    )
    report = evaluator.evaluate(resnet, scenes)
    assert report.metrics["correlation-plain-meta"] == pytest.approx(1.0, abs=1e-4)  # one image at a time rounds otherwise
    assert report.metrics["correlation-plain-selective"] < 1.0
    assert report.metrics["correlation-dropped"] == 0
    assert len(report.tables["correlation"].rows) == 3
    assert evaluator.keys == ("inputs",)
    for figure in report.figures.values():
        figure.figure.savefig("/dev/null", format="png", dpi=40)
    with pytest.raises(ValueError, match="of two saliencies at least; found plain"):
        SaliencyCorrelation(saliencies={"plain": NormGrad()})
    with pytest.raises(DataError, match="maps of flat or plain are constant on every image"):
        SaliencyCorrelation(saliencies={"flat": Known(lambda i, c: torch.ones(32, 32)), "plain": NormGrad()}).evaluate(resnet, scenes)


# -- randomisation -----------------------------------------------------------------------------------------------------------------


def test_modules_come_from_the_output_backwards_and_a_cascade_grows(resnet):
    names = weighted_modules(resnet)
    assert names[0] == "fc"
    assert names[-1] == "conv1"
    twin = randomly_initialised(resnet, 1)
    assert set(randomized_parameters(resnet, twin, "fc")) == {"fc.weight", "fc.bias"}
    last = randomized_parameters(resnet, twin, "layer4")
    assert set(last) == {name for name, _ in resnet.named_parameters() if name.startswith(("layer4.", "fc."))}
    assert set(randomized_parameters(resnet, twin, "conv1")) == {name for name, _ in resnet.named_parameters()}
    alone = randomized_parameters(resnet, twin, "layer4", "independent")
    assert set(alone) == {name for name, _ in resnet.named_parameters() if name.startswith("layer4.")}
    with pytest.raises(InterfaceError, match=r'no module "layer5" with parameters; there are fc'):
        randomized_parameters(resnet, twin, "layer5")
    with pytest.raises(ValueError, match='cascade or independent; found "both"'):
        randomized_parameters(resnet, twin, "fc", "both")
    with pytest.raises(InterfaceError, match="the twin, a Linear, has other parameters"):
        randomized_parameters(resnet, nn.Linear(2, 2), "fc")


def test_the_twin_starts_anew_by_its_seed_without_touching_the_random_state(resnet):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    twins = [randomly_initialised(resnet, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected)
    weights = [each.layer1[0].conv1.weight for each in twins]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], resnet.layer1[0].conv1.weight)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(3 + 2 * torch.randn(4000))

    token = randomly_initialised(own := Own()).token
    assert not torch.equal(token, own.token)
    assert (token.mean().item(), token.std().item()) == (pytest.approx(3, abs=0.2), pytest.approx(2, abs=0.2))


def test_an_edge_detector_scores_one_at_every_depth_and_normgrads_correlation_falls(colours, scenes):
    before = {name: each.clone() for name, each in colours.state_dict().items()}
    blind = ModelRandomization(saliency=Known(edges), columns=1).evaluate(colours, scenes)
    assert [row[0] for row in blind.tables["modules"].rows] == ["head", "conv"]
    assert all(row[1] == row[3] == 1.0 for row in blind.tables["modules"].rows)
    seeing = ModelRandomization(saliency=NormGrad(layer="act"), seed=2, columns=1).evaluate(colours, scenes)
    assert seeing.metrics["randomized-correlation"] < 0.95
    assert all(torch.equal(each, before[name]) for name, each in colours.state_dict().items())
    for figure in seeing.figures.values():
        figure.figure.savefig("/dev/null", format="png", dpi=40)


def test_randomising_one_module_alone_leaves_the_others_and_a_given_twin_is_used(resnet, scenes):
    twin = randomly_initialised(resnet, 3)
    with torch.no_grad():
        twin.fc.weight.copy_(resnet.fc.weight)
        twin.fc.bias.copy_(resnet.fc.bias)
    kept = ModelRandomization(kind="independent", modules=["fc", "layer1"], twin=twin, limit=4, columns=1).evaluate(resnet, scenes)
    (fc, first) = kept.tables["modules"].rows
    assert fc[1] == pytest.approx(1.0)
    assert first[1] < 0.999
    assert ModelRandomization(modules=["fc"], retarget=True, limit=2).evaluate(resnet, scenes).metrics
    with pytest.raises(DataError, match='split "none" is empty'):
        ModelRandomization("none").evaluate(resnet, scenes)


def test_labels_are_asked_for_only_where_the_saliency_explains_them():
    assert ModelRandomization(saliency=NormGrad(target="label")).keys == ("inputs", "label")
    assert ModelRandomization(saliency=NormGrad(target="predicted")).keys == ("inputs",)
    assert ClassSensitivity(saliency=NormGrad(target="label")).keys == ("inputs",)
