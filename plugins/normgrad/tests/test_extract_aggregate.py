"""Cells of the grid on networks: layers, layouts, targets, and that the network is left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from graftwork.errors import ConfigError, InterfaceError
from graftwork_grad_cam.grad_cam import grad_cam
from graftwork_grad_cam.guided_backprop import guided_backprop
from graftwork_grad_cam.maps import normalize_maps, resize_maps
from graftwork_normgrad import (
    CELLS,
    GRID,
    Cell,
    ExtractAggregate,
    NormGrad,
    as_cell,
    combine_maps,
    contribution_map,
    extract_aggregate,
    normgrad,
    saliency_grid,
    smooth_maps,
)

LAYERS = ["layer1", "layer2", "layer3", "layer4"]


def images(count: int = 2, side: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, side, side)


def state(model: nn.Module) -> list:
    """Everything that a saliency might leave behind."""
    parameters = [(each.data_ptr(), each.detach().clone(), each.requires_grad, each.grad) for each in model.parameters()]
    modules = [(m.training, getattr(m, "inplace", None), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    return [parameters, modules, {name: each.clone() for name, each in model.named_buffers()}]


def assert_unchanged(before: list, model: nn.Module) -> None:
    after = state(model)
    for (pointer, value, requires, grad), (pointer_, value_, requires_, grad_) in zip(before[0], after[0], strict=True):
        assert (pointer, requires) == (pointer_, requires_)
        assert grad is grad_
        assert torch.equal(value, value_)
    assert before[1] == after[1]
    assert all(torch.equal(before[2][name], after[2][name]) for name in before[2])


# -- cells -------------------------------------------------------------------------------------------------------------------------


def test_the_gradient_cell_at_the_input_is_the_plain_gradient_smoothed(resnet):
    x = images()
    found = extract_aggregate(resnet, x, 1, "", "bias", "abs-max")
    gradient = guided_backprop(resnet, x, 1, "plain").abs().amax(dim=1, keepdim=True)
    torch.testing.assert_close(found.raw["image"], gradient)
    torch.testing.assert_close(found.maps, smooth_maps(gradient, 0.02 * 32))
    assert torch.equal(extract_aggregate(resnet, x, 1, "image", "bias", "abs-max", smooth=0).maps, found.raw["image"])


def test_before_global_average_pooling_the_grad_cam_cell_is_grad_cam_and_averaging_changes_nothing(resnet):
    x = images()
    cell = extract_aggregate(resnet, x, 2, "layer4", "scaling", "sum", spatial_average=True, clamp=True)
    torch.testing.assert_close(cell.raw["layer4"], grad_cam(resnet, x, 2, "layer4").raw["layer4"])
    plain = extract_aggregate(resnet, x, 2, "layer4", "scaling", "sum", clamp=True)
    torch.testing.assert_close(plain.raw["layer4"], cell.raw["layer4"])


def test_at_an_earlier_layer_averaging_the_gradient_makes_another_map(resnet):
    x = images()
    averaged, exact = (
        extract_aggregate(resnet, x, 2, "layer2", "scaling", "sum", spatial_average=each, clamp=True).raw["layer2"]
        for each in (True, False)
    )
    scaled = [normalize_maps(each, "max") for each in (averaged, exact)]
    assert (scaled[0] - scaled[1]).abs().max() > 0.1


def test_the_bias_is_constant_over_space_before_global_average_pooling(resnet):
    found = extract_aggregate(resnet, images(), 0, "layer4", "bias", "norm").raw["layer4"]
    torch.testing.assert_close(found, found[..., :1, :1].expand_as(found))
    assert (found > 0).all()


def test_normgrad_and_its_selective_form_are_cells(vgg):
    x = images()
    found = normgrad(vgg, x, 1, "features.4")
    assert torch.equal(found.raw["features.4"], extract_aggregate(vgg, x, 1, "features.4", "conv1x1", "norm").raw["features.4"])
    selective = normgrad(vgg, x, 1, "features.4", selective=True)
    assert torch.equal(selective.maps, extract_aggregate(vgg, x, 1, "features.4", "scaling", "filter-norm").maps)


def test_without_aggregation_the_contributions_themselves_are_given(vgg):
    found = extract_aggregate(vgg, images(), 1, "features.7", "conv1x1", "none")
    assert found.raw["features.7"].shape == (2, 1, 100, 8, 8)
    torch.testing.assert_close(found.maps, resize_maps(found.raw["features.7"].abs().amax(dim=2), (32, 32)))


def test_cells_are_known_by_name_and_by_phases():
    assert as_cell("normgrad") == Cell("conv1x1", "norm") == as_cell("conv1x1+norm")
    assert [each.label for each in CELLS.values()] == list(CELLS)
    assert as_cell("conv3x3+max").label == "conv3x3+max"
    with pytest.raises(ConfigError, match='no cell "normgard" \\(did you mean "normgrad"\\?\\)'):
        as_cell("normgard")
    with pytest.raises(ConfigError, match="phase2 is one of"):
        as_cell("conv3x3+mean")


# -- layers ------------------------------------------------------------------------------------------------------------------------


def test_the_layer_found_by_itself_is_the_last_one_that_keeps_positions(vgg, resnet):
    assert list(normgrad(vgg, images()).raw) == ["features.7"]  # the ReLU before the last pooling
    assert list(normgrad(resnet, images()).raw) == ["layer4"]


def test_several_layers_are_resized_brought_to_one_scale_and_multiplied_from_one_pass(resnet):
    x, passes = images(), []
    handle = resnet.register_forward_hook(lambda *_: passes.append(1))
    found = extract_aggregate(resnet, x, 3, LAYERS)
    handle.remove()
    assert len(passes) == 1
    by_hand = torch.ones(2, 1, 32, 32)
    for layer in LAYERS:
        single = nn.functional.interpolate(normgrad(resnet, x, 3, layer).raw[layer], (32, 32), mode="bilinear")
        low, high = single.amin(dim=(2, 3), keepdim=True), single.amax(dim=(2, 3), keepdim=True)
        by_hand *= (single - low) / (high - low)
    torch.testing.assert_close(found.maps, by_hand)
    assert list(found.raw) == LAYERS


def test_the_constant_bias_of_the_last_layer_is_skipped_in_a_combination(resnet):
    x = images()
    together = extract_aggregate(resnet, x, 0, LAYERS, "bias", "norm").maps
    torch.testing.assert_close(together, extract_aggregate(resnet, x, 0, LAYERS[:3], "bias", "norm").maps)
    assert together.amax() > 0


def test_the_grid_comes_from_one_pass_and_agrees_with_its_cells(resnet):
    x, passes = images(), []
    handle = resnet.register_forward_hook(lambda *_: passes.append(1))
    grid = saliency_grid(resnet, x, 1, ["layer3", "layer4"])
    handle.remove()
    assert len(passes) == 1
    assert len(grid.maps) == len(GRID[0]) * len(GRID[1]) == 20
    for cell, maps in grid.maps.items():
        assert torch.equal(maps["layer3"], extract_aggregate(resnet, x, 1, "layer3", cell.phase1, cell.phase2).raw["layer3"])
        torch.testing.assert_close(grid.combined[cell], combine_maps(list(maps.values()), (32, 32)))
    with pytest.raises(ValueError, match="own convolution"):
        saliency_grid(resnet, x, 1, "layer4", [CELLS["own-convolution"]])


class Shared(nn.Module):
    """One convolution that runs twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.conv(self.conv(x).tanh()).tanh().mean(dim=(2, 3)))


def test_the_runs_of_a_shared_layer_add_up_to_the_gradient_of_its_weights():
    model, x = Shared(), images(1, 9)
    with pytest.raises(InterfaceError, match="ran 2 times"):
        normgrad(model, x, 0, "conv")
    formed = extract_aggregate(model, x, 0, "conv", "conv", "none", repeats="sum").raw["conv"][0, 0]
    (expected,) = torch.autograd.grad(model(x)[0, 0], model.conv.weight)
    torch.testing.assert_close(formed.sum(dim=(1, 2)).view(27, 3).T.reshape(expected.shape), expected)
    norms = extract_aggregate(model, x, 0, "conv", "conv", "norm", repeats="sum").raw["conv"][0, 0]
    torch.testing.assert_close(norms, formed.norm(dim=0))
    assert list(normgrad(model, x, 0, "conv", repeats="each").raw) == ["conv[0]", "conv[1]"]


@pytest.mark.parametrize("layer", ["layer2.0.conv1", "layer4.0.shortcut"])
def test_without_a_virtual_identity_a_convolutions_own_weights_are_meant(resnet, layer):
    x = images(1)
    formed = extract_aggregate(resnet, x, 1, layer, "conv", "none").raw[layer][0, 0]
    weight = resnet.get_submodule(layer).weight
    (expected,) = torch.autograd.grad(resnet(x)[0, 1], weight)
    torch.testing.assert_close(formed.sum(dim=(1, 2)).view(-1, len(weight)).T.reshape(expected.shape), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(normgrad(resnet, x, 1, layer, virtual_identity=False).raw[layer][0, 0], formed.norm(dim=0))


def test_in_place_operations_behind_a_layer_do_not_reach_its_record(block):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))
    apart = copy.deepcopy(model)
    apart[1].inplace = False
    x = images()
    for layer in ("0", "1"):
        torch.testing.assert_close(normgrad(model, x, 1, layer).raw, normgrad(apart, x, 1, layer).raw)
    x = images(1)
    wrapped = nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = extract_aggregate(wrapped, x, 1, "0.bn1").raw["0.bn1"]
    before = block.bn1(block.conv1(x)).requires_grad_()
    after = block.relu(block.conv2(before.relu()) + block.shortcut(x)).mean(dim=(2, 3))
    (gradient,) = torch.autograd.grad(after[0, 1], before)
    torch.testing.assert_close(found, contribution_map(before, gradient))


# -- targets, precision, traces ----------------------------------------------------------------------------------------------------


def test_several_classes_share_the_forward_pass_and_equal_single_runs(resnet):
    x = images()
    together = normgrad(resnet, x, {"name": "class", "each": [0, 2, 3]}, LAYERS)
    apart = [normgrad(resnet, x, index, LAYERS) for index in (0, 2, 3)]
    torch.testing.assert_close(together.maps, torch.cat([each.maps for each in apart], dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.scores, resnet(x)[:, [0, 2, 3]])


def test_a_score_times_s_makes_the_norm_times_the_magnitude_of_s(resnet):
    x = images()
    one, three = (normgrad(resnet, x, lambda output, s=s: s * output[:, 1], "layer3").maps for s in (1.0, -3.0))
    torch.testing.assert_close(three, 3 * one)


def test_a_batch_equals_single_images(resnet):
    x = images(3)
    together = normgrad(resnet, x, [0, 3, 1], "layer2").maps
    for index, wanted in enumerate([0, 3, 1]):
        torch.testing.assert_close(together[index], normgrad(resnet, x[index : index + 1], wanted, "layer2").maps[0], rtol=1e-4, atol=1e-7)


def test_bfloat16_networks_give_maps_in_float32(resnet):
    x = images()
    half = copy.deepcopy(resnet).bfloat16()
    found = normgrad(half, x.bfloat16(), 1, LAYERS)
    assert found.maps.dtype == torch.float32
    full = normgrad(resnet, x, 1, "layer4").raw["layer4"]
    assert (found.raw["layer4"] - full).norm() < 0.1 * full.norm()
    assert normgrad(resnet.double(), x.double(), 1, "layer4").maps.dtype == torch.float64


@pytest.mark.parametrize("failing", [False, True])
def test_the_model_is_left_as_it_was(resnet, failing):
    model = resnet.train()
    model.layer2.eval()
    model.layer1[0].conv1.weight.requires_grad_(False)
    model(images()).sum().backward()
    before = state(model)
    with torch.no_grad():
        if failing:
            with pytest.raises(ZeroDivisionError):
                extract_aggregate(model, images(), lambda _: 1 / 0, ["layer1", ""], "conv3x3")
            with pytest.raises(InterfaceError):
                normgrad(model, images(), 99, "layer2.0.conv1", virtual_identity=False)
        else:
            extract_aggregate(model, images(), "predicted", ["layer1", "layer4", ""], "conv3x3", "max")
            normgrad(model, images(), "predicted", "layer2.0.conv1", virtual_identity=False)
    assert_unchanged(before, model)


def test_the_naive_path_of_the_component_gives_the_same_maps(resnet):
    x = images()
    for phase1, phase2 in (("conv3x3", "max"), ("conv1x1", "filter-norm")):
        closed, naive = (
            ExtractAggregate(phase1=phase1, phase2=phase2, layer="layer3", naive=each).explain(resnet, x, 1) for each in (False, True)
        )
        torch.testing.assert_close(closed.maps, naive.maps, rtol=1e-4, atol=1e-7)


# -- layouts -----------------------------------------------------------------------------------------------------------------------


class ChannelsLast(nn.Module):
    """Two convolutions; what goes between them has channels last, or is a sequence of tokens behind a class token."""

    def __init__(self, tokens: bool):
        super().__init__()
        self.first, self.between, self.second, self.head = nn.Conv2d(3, 5, 4, 4), nn.Identity(), nn.Conv2d(5, 5, 3), nn.Linear(5, 2)
        self.tokens = tokens

    def forward(self, x):
        y = self.first(x).tanh()
        grid = y.shape[2:]
        y = y.permute(0, 2, 3, 1)
        if self.tokens:
            y = self.between(torch.cat([torch.zeros(len(x), 1, 5), y.flatten(1, 2)], dim=1))[:, 1:].unflatten(1, grid)
        else:
            y = self.between(y)
        return self.head(self.second(y.permute(0, 3, 1, 2)).tanh().mean(dim=(2, 3)))


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("phase1", ["conv1x1", "conv3x3", "conv3x3-depthwise"])
def test_channels_last_and_tokens_give_the_map_of_channels_first(tokens, phase1):
    model, x = ChannelsLast(tokens).eval(), torch.randn(2, 3, 24, 32)
    found = extract_aggregate(model, x, 1, "between", phase1, layout="tokens" if tokens else "nhwc")
    values = model.first(x).tanh().detach().requires_grad_()
    score = model.head(model.second(values).tanh().mean(dim=(2, 3)))[:, 1].sum()
    (gradient,) = torch.autograd.grad(score, values)
    torch.testing.assert_close(found.raw["between"], contribution_map(values.detach(), gradient, phase1))
    assert found.raw["between"].shape == (2, 1, 6, 8)


# -- what is refused ---------------------------------------------------------------------------------------------------------------


def test_a_layer_without_positions_is_refused(vgg):
    with pytest.raises(InterfaceError, match=r'layer "head" has no spatial positions: it gives \(2, 4\)'):
        normgrad(vgg, images(), 1, "head")


class Words(nn.Module):
    """Thirteen tokens of no grid."""

    def __init__(self):
        super().__init__()
        self.tokens, self.head = nn.Linear(3 * 32 * 32 // 13, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.tokens(x.flatten(1)[:, : 13 * (3 * 32 * 32 // 13)].unflatten(1, (13, -1))).tanh().mean(dim=1))


def test_a_window_over_tokens_without_a_grid_is_refused():
    with pytest.raises(InterfaceError, match=r"13 tokens, which do not match .* give `grid` and `prefix_tokens`"):
        extract_aggregate(Words(), images(), 1, "tokens", "conv3x3", grid=(3, 3), prefix_tokens=0)
    assert extract_aggregate(Words(), images(), 1, "tokens", "conv3x3", grid=(3, 4), prefix_tokens=1).raw["tokens"].shape == (2, 1, 3, 4)


@pytest.mark.parametrize("layer", ["features.1", "features", ""])
def test_a_layer_that_is_no_convolution_is_named_where_its_own_weights_are_asked_for(vgg, layer):
    kind = {"features.1": "a ReLU", "features": "a Sequential", "": "the input"}[layer]
    with pytest.raises(InterfaceError, match=f"must be a Conv2d; .*{kind}"):
        normgrad(vgg, images(), 1, layer, virtual_identity=False)


def test_bad_settings_are_refused_with_what_was_found(vgg):
    with pytest.raises(ValueError, match=r'phase1 is one of .*; found "convolution"'):
        extract_aggregate(vgg, images(), 1, phase1="convolution")
    with pytest.raises(ValueError, match="selective NormGrad scales channels"):
        NormGrad(virtual_identity=False, selective=True)
    with pytest.raises(ValueError, match=r"smooth must not be negative; found -0\.1"):
        NormGrad(smooth=-0.1)
    with pytest.raises(InterfaceError, match=r'there is no layer "featurs\.1"'):
        normgrad(vgg, images(), 1, "featurs.1")
    with pytest.raises(ValueError, match="no layer is given"):
        normgrad(vgg, images(), 1, [])
