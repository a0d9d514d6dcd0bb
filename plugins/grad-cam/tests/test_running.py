"""Where and how maps are computed: without gradients, in half precision, on a GPU, and with the model left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graftwork_grad_cam.grad_cam import grad_cam


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode])
def test_it_works_under_callers_without_gradients_and_with_frozen_parameters(gap, caller, images):
    x = images()
    expected = grad_cam(gap, x, 1).maps
    gap.requires_grad_(False)
    with caller():
        assert torch.equal(grad_cam(gap, x * 1, 1).maps, expected)
        assert torch.equal(grad_cam(gap, x * 1, 1, "features").maps, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_a_float32_map(gap, dtype, images):
    x = images()
    expected = grad_cam(gap, x, 1).maps
    found = grad_cam(gap.to(dtype), x.to(dtype), 1).maps
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * expected.max().item())


def test_autocast_gives_a_float32_map(gap, images):
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
def disturbed(images) -> nn.Module:
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
def test_the_model_is_left_as_it_was(disturbed, layer, images):
    before = state_of(disturbed)
    grad_cam(disturbed, images(), "top-2", layer, augment_smooth=True, eigen_smooth=True)
    assert_same(before, state_of(disturbed))


def test_the_model_is_left_as_it_was_when_the_target_raises(disturbed, images):
    before = state_of(disturbed)

    def broken(output):
        raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError, match="no such thing"):
        grad_cam(disturbed, images(), broken, "2")
    assert_same(before, state_of(disturbed))
    assert torch.is_grad_enabled()


def test_the_image_gets_no_gradient(gap, images):
    x = images().requires_grad_()
    grad_cam(gap, x, 0)
    assert x.grad is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_maps_and_keeps_them(gap, images):
    x = images()
    expected = grad_cam(gap, x, "top-3")
    found = grad_cam(gap.cuda(), x.cuda(), "top-3")
    assert found.maps.is_cuda
    assert found.raw["features"].is_cuda
    torch.testing.assert_close(found.maps.cpu(), expected.maps, rtol=1e-3, atol=1e-5)
