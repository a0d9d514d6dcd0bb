"""What is refused, and with which words; and captures by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graftwork.errors import DataError, InterfaceError
from graftwork_grad_cam.capture import capturing
from graftwork_grad_cam.grad_cam import GradCAM, grad_cam


def test_a_class_out_of_range_is_told_the_number_of_classes(gap, images):
    with pytest.raises(InterfaceError, match="class 5 is asked for, but the model has 5 classes, 0 to 4"):
        grad_cam(gap, images(), 5)
    with pytest.raises(InterfaceError, match="class -1 is asked for"):
        grad_cam(gap, images(), -1)


def test_a_layer_that_did_not_run_is_named(gap, images):
    gap.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(InterfaceError, match=r"did not run in the forward pass.*: layer spare"):
        grad_cam(gap, images(), 0, "spare")


def test_a_layer_that_is_not_there_is_told_the_nearest(gap, images):
    with pytest.raises(
        InterfaceError, match=r'there is no layer "feature.3" \(did you mean "features.3"\?\): the Gap has features, pool, head'
    ):
        grad_cam(gap, images(), 0, "feature.3")
    with pytest.raises(InterfaceError, match='"features" has 0, 1, 2, 3'):
        grad_cam(gap, images(), 0, "features.-5")
    with pytest.raises(InterfaceError, match="the Conv2d given as a layer is no part of the Gap"):
        grad_cam(gap, images(), 0, nn.Conv2d(3, 3, 1))


@pytest.mark.parametrize("target", [lambda out: out.argmax(dim=1), lambda out: out.detach()[:, 0], lambda out: out[:, 0].round().long()])
def test_a_target_without_a_gradient_is_refused(gap, target, images):
    with pytest.raises(InterfaceError, match="the target is not differentiable"):
        grad_cam(gap, images(), target, "features")


def test_a_target_that_does_not_depend_on_the_layer_is_refused(images):
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.aside = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3)

        def forward(self, x):
            self.aside(x)
            return self.main(x).mean(dim=(2, 3))

    with pytest.raises(InterfaceError, match=r'the target does not depend on layer "aside"'):
        grad_cam(Aside(), images(), 0, ["aside", "main"])


def test_a_layer_without_positions_is_refused(gap, images):
    with pytest.raises(InterfaceError, match=r'layer "head" has no spatial positions: it gives \(4, 5\)'):
        grad_cam(gap, images(), 0, "head")
    with pytest.raises(InterfaceError, match=r'layer "pool" gives \(4, 6, 1, 1\): a single position'):
        grad_cam(gap, images(), 0, "pool")


def test_a_network_without_maps_is_told_its_layers(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 7), nn.ReLU(), nn.Linear(7, 2))
    with pytest.raises(InterfaceError, match=r"no layer of the Sequential gives a map or tokens.*1 \(1, 7\); 2 \(1, 7\); 3 \(1, 2\)"):
        grad_cam(model, images(), 0)


def test_a_batch_without_images_is_refused(gap):
    with pytest.raises(DataError, match=r"a saliency map needs images \(B, C, H, W\) of floats; the batch has features, label"):
        grad_cam(gap, {"features": torch.rand(2, 3), "label": torch.zeros(2)}, 0)


def test_no_layer_is_refused(gap, images):
    with pytest.raises(ValueError, match='no layer is given: name one, or "auto"'):
        grad_cam(gap, images(), 0, [])


def test_an_unknown_colour_map_is_refused_when_it_is_built():
    with pytest.raises(ValueError, match='matplotlib has no colour map "rainbowish"'):
        GradCAM(colormap="rainbowish")


def test_captures_can_be_used_by_hand(gap, images):
    x = images()
    with capturing(gap, ["features.1"]) as seen:
        scores = gap(x)[:, :2]
        gradients = seen.gradients(scores)["features.1"][0]
    assert gradients.shape == (2, 4, 8, 16, 16)
    assert seen.activations["features.1"][0].shape == (4, 8, 16, 16)
