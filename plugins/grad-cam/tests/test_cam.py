from __future__ import annotations

import pytest
import torch
from torch import nn

from graftwork.errors import InterfaceError
from graftwork_grad_cam.cam import cam, cam_map
from graftwork_grad_cam.evidence import observe
from graftwork_grad_cam.grad_cam import channel_weights, grad_cam


def test_grad_cam_times_the_number_of_positions_is_the_rectified_cam_for_every_class(gap):
    x = torch.rand(4, 3, 16, 24)
    found = grad_cam(gap, x, {"name": "class", "each": [0, 1, 2, 3, 4]}, "features").raw["features"] * (8 * 12)
    reference = cam(gap, x, {"name": "class", "each": [0, 1, 2, 3, 4]}).raw["features"]
    torch.testing.assert_close(found, reference.relu(), rtol=1e-5, atol=1e-6)
    assert (reference < 0).any()
    assert (reference > 0).any()


def test_grad_cams_weights_are_the_heads_over_the_number_of_positions(gap):
    evidence = observe(gap, torch.rand(4, 3, 16, 16), {"name": "class", "each": [0, 1, 2, 3, 4]}, "features").layers["features"][0]
    torch.testing.assert_close(channel_weights(evidence.gradients), (gap.head.weight.detach() / 64).expand(4, -1, -1), rtol=1e-5, atol=1e-8)


def test_the_mean_of_a_cam_is_the_logit_without_its_bias(gap):
    x = torch.rand(4, 3, 16, 16)
    raw = cam(gap, x, 2).raw["features"]
    torch.testing.assert_close(raw.mean(dim=(1, 2, 3)), (gap(x)[:, 2] - gap.head.bias[2]).detach())


def test_the_map_is_a_weighted_sum():
    activations, weights = torch.randn(2, 3, 4, 5), torch.randn(2, 2, 3)
    by_hand = (weights[:, :, :, None, None] * activations[:, None]).sum(dim=2)
    torch.testing.assert_close(cam_map(activations, weights), by_hand)


def test_where_pooling_follows_the_last_relu_cam_takes_what_is_averaged():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    x = torch.rand(2, 3, 16, 16)
    assert list(cam(model, x, 0).raw) == ["2"]
    assert list(grad_cam(model, x, 0).raw) == ["1"]
    assert cam(model, x, 0, "2", "5").raw["2"].shape == (2, 1, 8, 8)


def test_other_networks_are_refused(flat, gap):
    with pytest.raises(InterfaceError, match=r'those of Flat are not that of layer "conv": use grad-cam'):
        cam(flat, torch.rand(2, 3, 4, 4), 0)
    with pytest.raises(InterfaceError, match=r'those of Gap are not that of layer "features.1"'):
        cam(gap, torch.rand(2, 3, 16, 16), 0, "features.1")
    with pytest.raises(InterfaceError, match=r'the head "features.0" is a Conv2d, not a linear layer'):
        cam(gap, torch.rand(2, 3, 16, 16), 0, head="features.0")
    with pytest.raises(InterfaceError, match="class 7 is asked for, but the model has 5 classes"):
        cam(gap, torch.rand(2, 3, 16, 16), 7)
    with pytest.raises(InterfaceError, match='CAM explains classes; the target "function" chooses none'):
        cam(gap, torch.rand(2, 3, 16, 16), lambda out: out[:, 0])
    headless = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InterfaceError, match="CAM needs a linear layer with 2 outputs, one a class; the Sequential has none"):
        cam(headless, torch.rand(2, 3, 16, 16), 0)


def test_the_model_is_left_as_it_was(gap):
    gap.train()
    cam(gap, torch.rand(2, 3, 16, 16), 0)
    assert gap.training
    assert all(p.requires_grad for p in gap.parameters())
    assert not any(m._forward_hooks for m in gap.modules())
