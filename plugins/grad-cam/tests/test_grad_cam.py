from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from graftwork.errors import DataError, InterfaceError
from graftwork_grad_cam.capture import capturing
from graftwork_grad_cam.evidence import observe
from graftwork_grad_cam.grad_cam import GradCAM, channel_weights, grad_cam, grad_cam_map
from graftwork_grad_cam.maps import join_layers, normalize_maps, principal_maps, resize_maps


def images(count: int = 4, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, height, width)


# -- the formula -------------------------------------------------------------------------------------------------------------------


def test_weights_are_the_spatial_mean_of_the_gradient():
    gradients = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(channel_weights(gradients), gradients.sum(dim=(-2, -1)) / 30)


def test_the_map_is_the_rectified_weighted_sum_of_channels():
    activations, gradients = torch.randn(2, 4, 3, 5), torch.randn(2, 3, 4, 3, 5)
    found = grad_cam_map(activations, gradients)
    for sample in range(2):
        for asked in range(3):
            by_hand = sum(gradients[sample, asked, k].mean() * activations[sample, k] for k in range(4)).clamp(min=0)
            torch.testing.assert_close(found[sample, asked], by_hand)


def test_activations_and_gradients_must_go_together():
    with pytest.raises(ValueError, match=r"activations \(2, 4, 3, 5\) and gradients \(2, 1, 4, 3, 6\) do not go together"):
        grad_cam_map(torch.zeros(2, 4, 3, 5), torch.zeros(2, 4, 3, 6))


def test_behind_a_linear_head_on_the_flattened_map_the_weights_are_the_means_of_the_heads_rows(flat):
    x = images(3, 4, 4)
    found = grad_cam(flat, x, [0, 1, 1], "conv")
    rows = flat.head.weight.view(2, 3, 4, 4)[[0, 1, 1]]
    expected = torch.einsum("bk,bkhw->bhw", rows.mean(dim=(2, 3)), flat.conv(x)).relu()
    torch.testing.assert_close(found.raw["conv"][:, 0], expected, rtol=0, atol=1e-6)
    assert expected.max() > 0


def test_scaling_the_score_scales_the_map(gap):
    x = images()
    once, thrice = grad_cam(gap, x, lambda out: out[:, 2]), grad_cam(gap, x, lambda out: 3 * out[:, 2])
    torch.testing.assert_close(thrice.maps, 3 * once.maps)


def test_a_constant_in_this_or_another_logit_changes_nothing(gap):
    x = images()
    before = grad_cam(gap, x, 1).maps
    with torch.no_grad():
        gap.head.bias[1] += 5
        assert torch.equal(grad_cam(gap, x, 1).maps, before)
        gap.head.bias[3] += 7  # would lower the probability of class 1, were there a softmax
        assert torch.equal(grad_cam(gap, x, 1).maps, before)
    assert before.max() > 0


def test_with_negative_weights_alone_the_map_is_zero_and_the_counterfactual_is_not(gap):
    with torch.no_grad():
        gap.head.weight[0] = -gap.head.weight[0].abs()
    x = images()
    plain, counterfactual = grad_cam(gap, x, 0), grad_cam(gap, x, 0, counterfactual=True)
    activations = gap.features(x)
    expected = -torch.einsum("k,bkhw->bhw", gap.head.weight[0] / 64, activations)
    assert not plain.maps.any()
    torch.testing.assert_close(counterfactual.raw["features"][:, 0], expected, rtol=0, atol=1e-6)
    assert expected.max() > 0


def test_the_counterfactual_is_not_the_map_turned_over(gap):
    x = images()
    plain, counterfactual = grad_cam(gap, x, 1).raw["features"], grad_cam(gap, x, 1, counterfactual=True).raw["features"]
    assert (plain >= 0).all()
    assert (counterfactual >= 0).all()
    assert not (plain * counterfactual).any()  # each place speaks for the class or against it


# -- batches -----------------------------------------------------------------------------------------------------------------------


def test_a_batch_with_a_target_each_equals_single_runs(gap):
    x, classes = images(), [3, 0, 4, 1]
    together = grad_cam(gap, x, classes).maps
    for index, wanted in enumerate(classes):
        torch.testing.assert_close(together[index], grad_cam(gap, x[index : index + 1], wanted).maps[0], rtol=1e-5, atol=1e-7)


def test_several_classes_of_an_image_share_one_forward_pass(gap):
    x, calls = images(), []
    gap.register_forward_hook(lambda *_: calls.append(1))
    together = grad_cam(gap, x, {"name": "class", "each": [0, 2, 4]}, "features")
    assert len(calls) == 1
    assert together.maps.shape == (4, 3, 16, 16)
    for index, wanted in enumerate([0, 2, 4]):
        torch.testing.assert_close(together.maps[:, index], grad_cam(gap, x, wanted, "features").maps[:, 0])


def test_the_raw_map_has_the_layers_size_and_the_map_the_images(gap):
    found = grad_cam(gap, images(2, 16, 24), 0)
    assert found.raw["features"].shape == (2, 1, 8, 12)
    assert found.maps.shape == (2, 1, 16, 24)
    torch.testing.assert_close(
        found.maps, nn.functional.interpolate(found.raw["features"], size=(16, 24), mode="bilinear", align_corners=False)
    )
    assert found.scores.shape == (2, 1)


def test_one_backward_pass_ends_at_the_layer(gap):
    """What autograd saves for the backward pass is the head's alone: nothing before the layer has a graph."""

    def saved(run) -> int:
        total = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: total.append(t.numel()) or t, lambda t: t):
            run()
        return sum(total)

    x = images(4, 64, 64)
    ours, usual = saved(lambda: grad_cam(gap, x, 0, "features")), saved(lambda: gap(x)[:, 0].sum().backward())
    assert ours < usual / 20


# -- layers ------------------------------------------------------------------------------------------------------------------------


def test_layers_are_given_as_modules_names_or_numbers_from_the_end(gap):
    x = images()
    expected = grad_cam(gap, x, 0, gap.features[3]).maps
    for layer in ("features.3", "features.-1", "features"):
        assert torch.equal(grad_cam(gap, x, 0, layer).maps, expected)


def test_several_layers_are_each_scaled_to_one_and_averaged(gap):
    x = images()
    found = grad_cam(gap, x, 0, ["features.1", "features.3"])
    by_hand = sum(resize_maps(normalize_maps(grad_cam(gap, x, 0, name).raw[name], "minmax"), (16, 16)) for name in found.raw) / 2
    torch.testing.assert_close(found.maps, by_hand)
    highest = grad_cam(gap, x, 0, ["features.1", "features.3"], layer_reduce="max").maps
    assert (highest >= found.maps - 1e-6).all()
    assert not torch.allclose(highest, found.maps)


def test_normalising_keeps_the_raw_map():
    maps = torch.tensor([[[[2.0, 4.0]], [[0.0, 0.0]]]])
    assert normalize_maps(maps, "none") is maps
    assert normalize_maps(maps, "max").tolist() == [[[[0.5, 1.0]], [[0.0, 0.0]]]]
    assert normalize_maps(maps, "minmax").tolist() == [[[[0.0, 1.0]], [[0.0, 0.0]]]]


def test_a_normalised_map_goes_up_to_one_and_its_raw_map_stays(gap):
    x = images()
    plain, scaled = grad_cam(gap, x, 1), grad_cam(gap, x, 1, normalize="max")
    torch.testing.assert_close(scaled.maps.amax(dim=(1, 2, 3)), torch.ones(4))
    assert torch.equal(scaled.raw["features"], plain.raw["features"])


def test_one_layers_map_is_only_resized_when_joined():
    raw = torch.rand(2, 1, 4, 4)
    assert torch.equal(join_layers([raw], (4, 4)), raw)


class Twice(nn.Module):
    """One convolution that runs two times in a forward pass."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.conv(self.conv(x).relu()).relu().mean(dim=(2, 3)))


def test_a_layer_that_runs_twice_raises_unless_told_what_to_do():
    model, x = Twice().eval(), images()
    with pytest.raises(InterfaceError, match='layer "conv" ran 2 times in one forward pass: set repeats to sum, each, first or last'):
        grad_cam(model, x, 0, "conv")
    evidence = observe(model, x, 0, "conv", repeats="each").layers["conv"]
    first, second = (grad_cam_map(each.activations, each.gradients, rectify=False) for each in evidence)
    assert torch.equal(grad_cam(model, x, 0, "conv", repeats="first").raw["conv"], first.relu())
    assert torch.equal(grad_cam(model, x, 0, "conv", repeats="last").raw["conv"], second.relu())
    torch.testing.assert_close(grad_cam(model, x, 0, "conv", repeats="sum").raw["conv"], (first + second).relu())
    assert list(grad_cam(model, x, 0, "conv", repeats="each").raw) == ["conv[0]", "conv[1]"]
    hidden = model.conv(x).detach().requires_grad_()
    (by_hand,) = torch.autograd.grad(model.head(model.conv(hidden.relu()).relu().mean(dim=(2, 3)))[:, 0].sum(), hidden)
    torch.testing.assert_close(evidence[0].gradients[:, 0], by_hand)


def test_an_in_place_operation_behind_the_layer_changes_neither_the_record_nor_the_gradient():
    torch.manual_seed(3)
    safe = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    overwriting = copy.deepcopy(safe)
    overwriting[1].inplace = overwriting[3].inplace = True
    x = images()
    for layer in ("0", "2", "3"):
        for mode in (True, False):
            safe.train(mode), overwriting.train(mode)
            assert torch.equal(grad_cam(safe, x, 1, layer).maps, grad_cam(overwriting, x, 1, layer).maps)
    both = grad_cam(overwriting, x, 1, ["0", "2"]).raw
    assert torch.equal(both["2"], grad_cam(safe, x, 1, "2").raw["2"])
    assert torch.equal(both["0"], grad_cam(safe, x, 1, "0").raw["0"])


def test_a_layer_that_gives_a_tuple_or_a_mapping_is_read_and_its_other_parts_pass():
    class Pair(nn.Module):
        def forward(self, x):
            return {"map": x.relu(), "more": torch.ones(2)}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pair = nn.Conv2d(3, 4, 3), Pair()

        def forward(self, x):
            found = self.pair(self.conv(x))
            return found["map"].mean(dim=(2, 3)) * found["more"].sum()

    model, x = Net().eval(), images()
    assert torch.equal(grad_cam(model, x, 2, "pair").scores[:, 0], model(x)[:, 2])


# -- where and how it runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode])
def test_it_works_under_callers_without_gradients_and_with_frozen_parameters(gap, caller):
    x = images()
    expected = grad_cam(gap, x, 1).maps
    gap.requires_grad_(False)
    with caller():
        assert torch.equal(grad_cam(gap, x * 1, 1).maps, expected)
        assert torch.equal(grad_cam(gap, x * 1, 1, "features").maps, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_a_float32_map(gap, dtype):
    x = images()
    expected = grad_cam(gap, x, 1).maps
    found = grad_cam(gap.to(dtype), x.to(dtype), 1).maps
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * expected.max().item())


def test_autocast_gives_a_float32_map(gap):
    with torch.autocast("cpu", torch.bfloat16):
        found = grad_cam(gap, images(), 1)
    assert found.maps.dtype == torch.float32
    assert found.maps.max() > 0


def state_of(model: nn.Module) -> dict:
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "requires": {name: p.requires_grad for name, p in model.named_parameters()},
        "training": {name: m.training for name, m in model.named_modules()},
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for name, m in model.named_modules()},
        "classes": {name: type(m) for name, m in model.named_modules()},
        "inplace": {name: getattr(m, "inplace", None) for name, m in model.named_modules()},
    }


def assert_same(before: dict, after: dict) -> None:
    for part in ("weights", "gradients"):
        for name, tensor in before[part].items():
            assert (tensor is None) == (after[part][name] is None)
            assert tensor is None or torch.equal(tensor, after[part][name])
    for part in ("requires", "training", "hooks", "classes", "inplace"):
        assert before[part] == after[part]


@pytest.fixture
def disturbed() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    model.train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model(images()).sum().backward()
    model[0].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("layer", ["auto", "2", ["0", "2"]])
def test_the_model_is_left_as_it_was(disturbed, layer):
    before = state_of(disturbed)
    grad_cam(disturbed, images(), "top-2", layer, augment_smooth=True, eigen_smooth=True)
    assert_same(before, state_of(disturbed))


def test_the_model_is_left_as_it_was_when_the_target_raises(disturbed):
    before = state_of(disturbed)

    def broken(output):
        raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError, match="no such thing"):
        grad_cam(disturbed, images(), broken, "2")
    assert_same(before, state_of(disturbed))
    assert torch.is_grad_enabled()


def test_the_image_gets_no_gradient(gap):
    x = images().requires_grad_()
    grad_cam(gap, x, 0)
    assert x.grad is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_maps_and_keeps_them(gap):
    x = images()
    expected = grad_cam(gap, x, "top-3")
    found = grad_cam(gap.cuda(), x.cuda(), "top-3")
    assert found.maps.is_cuda
    assert found.raw["features"].is_cuda
    torch.testing.assert_close(found.maps.cpu(), expected.maps, rtol=1e-3, atol=1e-5)


# -- smoothing ---------------------------------------------------------------------------------------------------------------------


def test_augmentation_averages_six_maps_and_turns_mirrored_ones_back(gap):
    x = images()
    found = grad_cam(gap, x, 1, "features", augment_smooth=True).maps
    by_hand = torch.zeros_like(found)
    for factor in (0.9, 1.0, 1.1):
        by_hand += normalize_maps(grad_cam(gap, x * factor, 1, "features").maps, "minmax") / 6
        by_hand += normalize_maps(grad_cam(gap, (x * factor).flip(-1), 1, "features").maps, "minmax").flip(-1) / 6
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-6)


def test_a_predicted_class_is_the_same_for_all_augmented_images(gap):
    x = images()
    with torch.no_grad():
        gap.head.weight.mul_(1e-3)
        gap.head.bias.copy_(-gap(x).mean(dim=0) + gap.head.bias)  # a toss-up
    predicted = gap(x).argmax(dim=1)
    assert torch.equal(grad_cam(gap, x, "predicted", augment_smooth=True).maps, grad_cam(gap, x, predicted, augment_smooth=True).maps)


def test_contributions_along_one_direction_are_their_own_principal_map_less_its_mean():
    profile, place = torch.rand(5) + 0.1, torch.rand(4, 6)
    for sign in (1, -1):
        found = principal_maps((sign * profile[:, None, None] * place)[None, None])[0, 0]
        torch.testing.assert_close(found, sign * profile.norm() * (place - place.mean()), rtol=1e-4, atol=1e-5)


def test_eigen_smoothing_changes_the_map_and_stays_non_negative(gap):
    x = images()
    smooth = grad_cam(gap, x, 1, eigen_smooth=True)
    assert (smooth.maps >= 0).all()
    assert smooth.maps.max() > 0
    assert not torch.allclose(normalize_maps(smooth.maps), normalize_maps(grad_cam(gap, x, 1).maps), atol=1e-2)


# -- what is refused ---------------------------------------------------------------------------------------------------------------


def test_a_class_out_of_range_is_told_the_number_of_classes(gap):
    with pytest.raises(InterfaceError, match="class 5 is asked for, but the model has 5 classes, 0 to 4"):
        grad_cam(gap, images(), 5)
    with pytest.raises(InterfaceError, match="class -1 is asked for"):
        grad_cam(gap, images(), -1)


def test_a_layer_that_did_not_run_is_named(gap):
    gap.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(InterfaceError, match=r"did not run in the forward pass.*: layer spare"):
        grad_cam(gap, images(), 0, "spare")


def test_a_layer_that_is_not_there_is_told_the_nearest(gap):
    with pytest.raises(
        InterfaceError, match=r'there is no layer "feature.3" \(did you mean "features.3"\?\): the Gap has features, pool, head'
    ):
        grad_cam(gap, images(), 0, "feature.3")
    with pytest.raises(InterfaceError, match='"features" has 0, 1, 2, 3'):
        grad_cam(gap, images(), 0, "features.-5")
    with pytest.raises(InterfaceError, match="the Conv2d given as a layer is no part of the Gap"):
        grad_cam(gap, images(), 0, nn.Conv2d(3, 3, 1))


@pytest.mark.parametrize("target", [lambda out: out.argmax(dim=1), lambda out: out.detach()[:, 0], lambda out: out[:, 0].round().long()])
def test_a_target_without_a_gradient_is_refused(gap, target):
    with pytest.raises(InterfaceError, match="the target is not differentiable"):
        grad_cam(gap, images(), target, "features")


def test_a_target_that_does_not_depend_on_the_layer_is_refused():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.aside = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3)

        def forward(self, x):
            self.aside(x)
            return self.main(x).mean(dim=(2, 3))

    with pytest.raises(InterfaceError, match=r'the target does not depend on layer "aside"'):
        grad_cam(Aside(), images(), 0, ["aside", "main"])


def test_a_layer_without_positions_is_refused(gap):
    with pytest.raises(InterfaceError, match=r'layer "head" has no spatial positions: it gives \(4, 5\)'):
        grad_cam(gap, images(), 0, "head")
    with pytest.raises(InterfaceError, match=r'layer "pool" gives \(4, 6, 1, 1\): a single position'):
        grad_cam(gap, images(), 0, "pool")


def test_a_network_without_maps_is_told_its_layers():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 7), nn.ReLU(), nn.Linear(7, 2))
    with pytest.raises(InterfaceError, match=r"no layer of the Sequential gives a map or tokens.*1 \(1, 7\); 2 \(1, 7\); 3 \(1, 2\)"):
        grad_cam(model, images(), 0)


def test_a_batch_without_images_is_refused(gap):
    with pytest.raises(DataError, match=r"a saliency map needs images \(B, C, H, W\) of floats; the batch has features, label"):
        grad_cam(gap, {"features": torch.rand(2, 3), "label": torch.zeros(2)}, 0)


def test_no_layer_is_refused(gap):
    with pytest.raises(ValueError, match='no layer is given: name one, or "auto"'):
        grad_cam(gap, images(), 0, [])


def test_an_unknown_colour_map_is_refused_when_it_is_built():
    with pytest.raises(ValueError, match='matplotlib has no colour map "rainbowish"'):
        GradCAM(colormap="rainbowish")


def test_captures_can_be_used_by_hand(gap):
    x = images()
    with capturing(gap, ["features.1"]) as seen:
        scores = gap(x)[:, :2]
        gradients = seen.gradients(scores)["features.1"][0]
    assert gradients.shape == (2, 4, 8, 16, 16)
    assert seen.activations["features.1"][0].shape == (4, 8, 16, 16)
