"""Several layers as one map: weights, accumulation, which layers, and weights that are measured."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork.errors import ArtifactError, ConfigError, DataError, InterfaceError
from graftwork_grad_cam.evidence import prepared
from graftwork_grad_cam.grad_cam import GradCAM, grad_cam
from graftwork_grad_cam.guided_backprop import GuidedBackprop
from graftwork_grad_cam.pointing_game import PointingGame
from graftwork_normgrad import (
    CombinedSaliency,
    LayerWeights,
    MetaSaliency,
    NormGrad,
    activation_spread,
    at_layers,
    combination_layers,
    combine_maps,
    combined_saliency,
    layer_activations,
    maps_at_layers,
    normalized_weights,
    normgrad,
    probe_accuracy,
    smooth_maps,
    strategy_weights,
)

LAYERS = ["layer1", "layer2", "layer3", "layer4"]


def minmax(maps):
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return (maps - low) / (high - low)


# -- the functions -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", ["sum", "product"])
def test_equal_maps_of_equal_weight_give_that_map(accumulation):
    one = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(combine_maps([one] * 4, (8, 8), [1.0] * 4, accumulation), minmax(one))


def test_weights_add_up_or_become_exponents():
    maps, shares = [torch.randn(2, 3, 8, 8) for _ in range(3)], [0.5, 0.3, 0.2]
    scaled = [minmax(each) for each in maps]
    torch.testing.assert_close(combine_maps(maps, (8, 8), [5, 3, 2], "sum"), sum(w * s for w, s in zip(shares, scaled, strict=True)))
    product = math.prod(s**w for w, s in zip(shares, scaled, strict=True))
    torch.testing.assert_close(combine_maps(maps, (8, 8), [5, 3, 2], "product"), product)
    torch.testing.assert_close(combine_maps(maps, (8, 8)), math.prod(scaled))


def test_maps_are_resized_before_they_are_scaled():
    small = torch.randn(1, 1, 4, 4)
    found = combine_maps([small, small], (16, 16), [1, 1], "sum")
    torch.testing.assert_close(found, minmax(nn.functional.interpolate(small, (16, 16), mode="bilinear")))


@pytest.mark.parametrize("accumulation", ["sum", "product"])
def test_a_constant_map_is_skipped_image_by_image(accumulation):
    varied, partly = torch.rand(2, 1, 6, 6), torch.rand(2, 1, 6, 6)
    partly[1] = 3.0 + 1e-7 * torch.rand(1, 6, 6)
    found = combine_maps([varied, partly], (6, 6), [1, 1], accumulation)
    torch.testing.assert_close(found[1], minmax(varied)[1])
    torch.testing.assert_close(found[:1], combine_maps([varied[:1], partly[:1]], (6, 6), [1, 1], accumulation))
    assert not combine_maps([torch.ones(1, 1, 4, 4)] * 2, (4, 4), None, accumulation).any()


def test_linear_weights_rise_evenly_from_the_first_layer_to_the_last():
    assert strategy_weights("linear", LAYERS) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert strategy_weights("uniform", LAYERS) == [0.25] * 4
    assert strategy_weights("accuracy", ["b", "a"], {"a": 3, "b": 1, "c": 9}) == [0.25, 0.75]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normalized_weights([0, 0.0]), "layer weights are all zero"),
        (lambda: normalized_weights([1, -1]), r"finite and not negative; found \[1, -1\]"),
        (lambda: normalized_weights([1, math.nan]), "finite and not negative"),
        (lambda: strategy_weights("accuracy", ["a"]), "are measured: give `table`"),
        (lambda: strategy_weights("accuracy", ["a", "b"], {"a": 1}), "the table of weights lacks layer b; it has a"),
        (lambda: strategy_weights("best", ["a"]), "one of uniform, linear, accuracy, pointing-accuracy, activation; found"),
        (lambda: combine_maps([torch.rand(1, 1, 2, 2)], (2, 2), [1, 1]), "2 weights are given for the maps of 1 layers"),
        (lambda: combine_maps([torch.rand(1, 1, 2, 2)], (2, 2), None, "mean"), 'sum or product; found "mean"'),
        (lambda: smooth_maps(torch.rand(1, 1, 2, 2), -1), "sigma must not be negative; found -1"),
    ],
)
def test_bad_weights_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_smoothing_is_a_gaussian_filter_with_the_border_repeated():
    ndimage = pytest.importorskip("scipy.ndimage")
    maps = torch.randn(2, 1, 20, 30, dtype=torch.double)
    expected = ndimage.gaussian_filter(maps.numpy(), 1.3, mode="nearest", axes=(2, 3), radius=6)
    torch.testing.assert_close(smooth_maps(maps, 1.3), torch.from_numpy(expected), rtol=0, atol=1e-10)
    assert smooth_maps(maps, 0) is maps


# -- which layers ------------------------------------------------------------------------------------------------------------------


def layers_of(model, x):
    return combination_layers(model, *prepared(model, x, "predicted"))


def test_the_last_layer_before_each_pooling_is_combined(vgg):
    assert layers_of(vgg, torch.rand(1, 3, 32, 32)) == ["features.1", "features.4", "features.7"]


def test_vgg16_gives_the_layers_of_the_authors_tables():
    widths, layers = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"], []
    channels = 3
    for width in widths:  # torchvision's order, narrow
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width // 32, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width // 32
    model = nn.Module()
    model.features, model.classifier = nn.Sequential(*layers), nn.Linear(channels, 5)
    model.forward = lambda x: model.classifier(model.features(x).mean(dim=(2, 3)))
    assert layers_of(model, torch.rand(1, 3, 64, 64)) == [f"features.{index}" for index in (3, 8, 15, 22, 29)]


def test_a_resnets_stages_are_combined_without_its_stem(resnet):
    assert layers_of(resnet, torch.rand(1, 3, 32, 32)) == LAYERS
    assert layers_of(nn.Sequential(resnet), torch.rand(1, 3, 32, 32)) == [f"0.{layer}" for layer in LAYERS]


# -- over a saliency ---------------------------------------------------------------------------------------------------------------


def test_the_combination_is_that_of_single_layers_for_any_saliency(resnet):
    x = torch.randn(2, 3, 32, 32)
    for saliency in (NormGrad(), GradCAM()):
        single = [at_layers(saliency, layer).explain(resnet, x, [1, 2]).maps for layer in LAYERS]
        found = combined_saliency(resnet, x, saliency, [1, 2], LAYERS, accumulation="product", weights="linear")
        torch.testing.assert_close(found.maps, combine_maps(single, (32, 32), [1, 2, 3, 4], "product"))
        assert list(found.raw) == LAYERS
    torch.testing.assert_close(single[0], grad_cam(resnet, x, [1, 2], "layer1").maps)
    assert saliency.layer == "auto"  # what was given is not changed


def test_normgrad_sees_all_layers_in_one_pass_also_behind_a_step(resnet):
    x, passes = torch.randn(1, 3, 32, 32), []
    resnet.layer4.register_forward_hook(lambda *_: passes.append(1))
    maps_at_layers(NormGrad(), resnet, x, [0], LAYERS)
    assert len(passes) == 1
    maps, _ = maps_at_layers(MetaSaliency(saliency=NormGrad()), resnet, x, [0], LAYERS)
    assert len(passes) == 1 + 3  # the choice, the step, the maps
    single = [at_layers(MetaSaliency(saliency=NormGrad()), layer).explain(resnet, x, [0]).maps for layer in LAYERS]
    for ours, theirs in zip(maps, single, strict=True):
        torch.testing.assert_close(nn.functional.interpolate(ours, (32, 32), mode="bilinear"), theirs)


def test_a_saliency_without_a_layer_is_refused():
    with pytest.raises(InterfaceError, match='"guided-backprop" has no layer to choose'):
        CombinedSaliency(saliency=GuidedBackprop())
    with pytest.raises(InterfaceError, match="no layer to choose"):
        at_layers(GuidedBackprop(), "layer1")


def test_the_component_combines_with_a_table_and_refuses_bad_ones(resnet, scenes):
    combined = gw.evaluator(
        "combined-saliency", layers=LAYERS, weights="accuracy", table={"layer1": 0, "layer2": 0, "layer3": 0, "layer4": 2}
    )
    x = torch.stack([sample["image"] for sample in scenes["test"]])
    torch.testing.assert_close(combined.explain(resnet, x, 1).maps, minmax(normgrad(resnet, x, 1, "layer4").maps))
    with pytest.raises(ConfigError, match="layer weights are all zero"):
        gw.evaluator("combined-saliency", table={"layer1": 0})
    with pytest.raises(ValueError, match=r"give `table` .* or take those of an earlier stage"):
        CombinedSaliency(weights="activation").explain(resnet, x, 1)


# -- measured weights --------------------------------------------------------------------------------------------------------------


def test_the_spread_is_the_deviation_over_images_and_positions_whatever_the_batches(resnet, scenes):
    x = torch.stack([sample["image"] for sample in scenes["train"]])
    activations = layer_activations(resnet, {"image": x}, ["layer1", "layer4"])
    found = activation_spread(resnet, scenes, "train", ["layer1", "layer4"], batch_size=5)
    for layer, value in activations.items():
        assert found[layer] == pytest.approx(value.transpose(0, 1).flatten(1).std(dim=1, correction=0).mean().item(), rel=1e-4)


def test_a_probe_reads_the_label_where_the_layer_has_it(colours, scenes):
    found = probe_accuracy(colours, scenes, "train", "train", ["act"], batch_size=7)
    assert found["act"] == 1.0  # the mean of each channel tells the brighter square's colour
    with pytest.raises(DataError, match="reads the key label"):
        probe_accuracy(colours, gw.Dataset({"train": [{"image": torch.rand(3, 8, 8)}]}), "train", "train", ["act"])
    with pytest.raises(DataError, match='split "none" is empty'):
        probe_accuracy(colours, scenes, "none", "test", ["act"])


def test_weights_are_measured_kept_and_taken_up(resnet, scenes, tmp_path):
    strategies = ["accuracy", "pointing-accuracy", "activation"]
    layers = ["layer2", "layer4"]
    report = LayerWeights("test", "train", strategies, layers, GradCAM()).evaluate(resnet, scenes)
    artifact = report.artifacts["layer-weights"]
    artifact.save(tmp_path)
    loaded = type(artifact).load(tmp_path)
    for strategy in strategies:
        assert sum(loaded.data["weights"][strategy].values()) == pytest.approx(1)
        assert list(loaded.data["weights"][strategy]) == layers
    pointing = [
        PointingGame("test", GradCAM(layer=layer), 0, columns=1).evaluate(resnet, scenes).metrics["pointing-accuracy"] for layer in layers
    ]
    assert list(loaded.data["weights"]["pointing-accuracy"].values()) == pytest.approx(normalized_weights(pointing))
    combined = CombinedSaliency(limit=2, layers=layers, weights="activation", measured=loaded)
    assert combined.table == loaded.data["weights"]["activation"]
    assert combined.evaluate(resnet, scenes).metrics["combined-saliency-empty-maps"] == 0
    by_itself = CombinedSaliency(limit=2, weights="activation", measure_on="test", layers=layers).evaluate(resnet, scenes)
    assert by_itself.artifacts["layer-weights"].data["weights"]["activation"] == pytest.approx(combined.table)
    report.figures["layer-weights"].figure.savefig("/dev/null", format="png", dpi=40)


def test_measured_weights_of_another_network_or_kind_are_refused(resnet, scenes):
    artifact = LayerWeights("test", strategies=["activation"], layers=LAYERS).evaluate(resnet, scenes).artifacts["layer-weights"]
    with torch.no_grad():
        resnet.fc.bias += 1
    with pytest.raises(ArtifactError, match="was made from model"):
        CombinedSaliency(weights="activation", measured=artifact).evaluate(resnet, scenes)
    with pytest.raises(ArtifactError, match='type "layer-weights" is expected; this one is "other"'):
        CombinedSaliency(measured=type(artifact)("other"))
    with pytest.raises(ValueError, match="strategies are some of"):
        LayerWeights(strategies=[])
