"""The map: its formula, batches, layers and smoothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from graftwork.errors import InterfaceError
from graftwork_grad_cam.evidence import observe
from graftwork_grad_cam.grad_cam import channel_weights, grad_cam, grad_cam_map
from graftwork_grad_cam.maps import join_layers, normalize_maps, principal_maps, resize_maps

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


def test_behind_a_linear_head_on_the_flattened_map_the_weights_are_the_means_of_the_heads_rows(flat, images):
    x = images(3, 4, 4)
    found = grad_cam(flat, x, [0, 1, 1], "conv")
    rows = flat.head.weight.view(2, 3, 4, 4)[[0, 1, 1]]
    expected = torch.einsum("bk,bkhw->bhw", rows.mean(dim=(2, 3)), flat.conv(x)).relu()
    torch.testing.assert_close(found.raw["conv"][:, 0], expected, rtol=0, atol=1e-6)
    assert expected.max() > 0


def test_scaling_the_score_scales_the_map(gap, images):
    x = images()
    once, thrice = grad_cam(gap, x, lambda out: out[:, 2]), grad_cam(gap, x, lambda out: 3 * out[:, 2])
    torch.testing.assert_close(thrice.maps, 3 * once.maps)


def test_a_constant_in_this_or_another_logit_changes_nothing(gap, images):
    x = images()
    before = grad_cam(gap, x, 1).maps
    with torch.no_grad():
        gap.head.bias[1] += 5
        assert torch.equal(grad_cam(gap, x, 1).maps, before)
        gap.head.bias[3] += 7  # would lower the probability of class 1, were there a softmax
        assert torch.equal(grad_cam(gap, x, 1).maps, before)
    assert before.max() > 0


def test_with_negative_weights_alone_the_map_is_zero_and_the_counterfactual_is_not(gap, images):
    with torch.no_grad():
        gap.head.weight[0] = -gap.head.weight[0].abs()
    x = images()
    plain, counterfactual = grad_cam(gap, x, 0), grad_cam(gap, x, 0, counterfactual=True)
    activations = gap.features(x)
    expected = -torch.einsum("k,bkhw->bhw", gap.head.weight[0] / 64, activations)
    assert not plain.maps.any()
    torch.testing.assert_close(counterfactual.raw["features"][:, 0], expected, rtol=0, atol=1e-6)
    assert expected.max() > 0


def test_the_counterfactual_is_not_the_map_turned_over(gap, images):
    x = images()
    plain, counterfactual = grad_cam(gap, x, 1).raw["features"], grad_cam(gap, x, 1, counterfactual=True).raw["features"]
    assert (plain >= 0).all()
    assert (counterfactual >= 0).all()
    assert not (plain * counterfactual).any()  # each place speaks for the class or against it


# -- batches -----------------------------------------------------------------------------------------------------------------------


def test_a_batch_with_a_target_each_equals_single_runs(gap, images):
    x, classes = images(), [3, 0, 4, 1]
    together = grad_cam(gap, x, classes).maps
    for index, wanted in enumerate(classes):
        torch.testing.assert_close(together[index], grad_cam(gap, x[index : index + 1], wanted).maps[0], rtol=1e-5, atol=1e-7)


def test_several_classes_of_an_image_share_one_forward_pass(gap, images):
    x, calls = images(), []
    gap.register_forward_hook(lambda *_: calls.append(1))
    together = grad_cam(gap, x, {"name": "class", "each": [0, 2, 4]}, "features")
    assert len(calls) == 1
    assert together.maps.shape == (4, 3, 16, 16)
    for index, wanted in enumerate([0, 2, 4]):
        torch.testing.assert_close(together.maps[:, index], grad_cam(gap, x, wanted, "features").maps[:, 0])


def test_the_raw_map_has_the_layers_size_and_the_map_the_images(gap, images):
    found = grad_cam(gap, images(2, 16, 24), 0)
    assert found.raw["features"].shape == (2, 1, 8, 12)
    assert found.maps.shape == (2, 1, 16, 24)
    torch.testing.assert_close(
        found.maps, nn.functional.interpolate(found.raw["features"], size=(16, 24), mode="bilinear", align_corners=False)
    )
    assert found.scores.shape == (2, 1)


def test_one_backward_pass_ends_at_the_layer(gap, images):
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


def test_layers_are_given_as_modules_names_or_numbers_from_the_end(gap, images):
    x = images()
    expected = grad_cam(gap, x, 0, gap.features[3]).maps
    for layer in ("features.3", "features.-1", "features"):
        assert torch.equal(grad_cam(gap, x, 0, layer).maps, expected)


def test_several_layers_are_each_scaled_to_one_and_averaged(gap, images):
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


def test_a_normalised_map_goes_up_to_one_and_its_raw_map_stays(gap, images):
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


def test_a_layer_that_runs_twice_raises_unless_told_what_to_do(images):
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


def test_an_in_place_operation_behind_the_layer_changes_neither_the_record_nor_the_gradient(images):
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


def test_a_layer_that_gives_a_tuple_or_a_mapping_is_read_and_its_other_parts_pass(images):
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


# -- smoothing ---------------------------------------------------------------------------------------------------------------------


def test_augmentation_averages_six_maps_and_turns_mirrored_ones_back(gap, images):
    x = images()
    found = grad_cam(gap, x, 1, "features", augment_smooth=True).maps
    by_hand = torch.zeros_like(found)
    for factor in (0.9, 1.0, 1.1):
        by_hand += normalize_maps(grad_cam(gap, x * factor, 1, "features").maps, "minmax") / 6
        by_hand += normalize_maps(grad_cam(gap, (x * factor).flip(-1), 1, "features").maps, "minmax").flip(-1) / 6
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-6)


def test_a_predicted_class_is_the_same_for_all_augmented_images(gap, images):
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


def test_eigen_smoothing_changes_the_map_and_stays_non_negative(gap, images):
    x = images()
    smooth = grad_cam(gap, x, 1, eigen_smooth=True)
    assert (smooth.maps >= 0).all()
    assert smooth.maps.max() > 0
    assert not torch.allclose(normalize_maps(smooth.maps), normalize_maps(grad_cam(gap, x, 1).maps), atol=1e-2)
