"""Grad-CAM of a batch against pytorch-grad-cam and captum, in one process, on one ResNet-50 and the same images; maps are equal first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from graftwork.testing import race
from graftwork_grad_cam.grad_cam import grad_cam
from graftwork_grad_cam.maps import normalize_maps

BATCH, SIDE, REPEATS = 16, 224, 3


class Logits(nn.Module):
    """A transformers classifier that gives its logits alone, as the peers want it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


def resnet50() -> tuple[nn.Module, nn.Module]:
    """A ResNet-50 with random weights from whichever library is there, and its last stage."""
    torch.manual_seed(0)
    try:
        import torchvision

        model = torchvision.models.resnet50(weights=None).eval()
        return model, model.layer4
    except (ImportError, RuntimeError):
        transformers = pytest.importorskip("transformers")
        wrapped = Logits(transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))).eval()
        return wrapped, wrapped.model.resnet.encoder.stages[-1]


@pytest.mark.bench
def test_it_is_faster_than_pytorch_grad_cam() -> None:
    peer = pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam (pytorch-grad-cam) to race against", exc_type=ImportError)
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets", exc_type=ImportError)
    model, layer = resnet50()
    images, classes = torch.rand(BATCH, 3, SIDE, SIDE), torch.arange(BATCH) * 50
    asked = [targets.ClassifierOutputTarget(index) for index in classes.tolist()]
    with peer.GradCAM(model=model, target_layers=[layer]) as cam:
        mine = normalize_maps(grad_cam(model, images, classes, layer).maps, "minmax")[:, 0].numpy()
        difference = float(np.abs(mine - cam(input_tensor=images, targets=asked)).max())
        found = race(
            lambda: grad_cam(model, images, classes, layer), lambda: cam(input_tensor=images, targets=asked), REPEATS, processor=True
        )
    print(f"\npytorch-grad-cam: {found}, largest difference {difference:.1e}")
    assert difference < 1e-4
    assert found.ratio <= 1


@pytest.mark.bench
def test_it_is_no_slower_than_captum() -> None:
    captum = pytest.importorskip("captum.attr", reason="needs captum to race against", exc_type=ImportError)
    model, layer = resnet50()
    images, classes = torch.rand(BATCH, 3, SIDE, SIDE), torch.arange(BATCH) * 50
    theirs = captum.LayerGradCam(model, layer)
    (mine,) = grad_cam(model, images, classes, layer).raw.values()
    torch.testing.assert_close(mine, theirs.attribute(images, classes, relu_attributions=True).detach(), rtol=1e-4, atol=1e-6)
    found = race(
        lambda: grad_cam(model, images, classes, layer),
        lambda: theirs.attribute(images, classes, relu_attributions=True),
        REPEATS,
        processor=True,
    )
    print(f"\ncaptum: {found}")
    assert found.ratio <= 1


def kept_for_backward(run: Callable[[], Any]) -> int:
    """Bytes that autograd keeps from the forward for the backward pass, each storage once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(kept.values())


@pytest.mark.bench
def test_it_keeps_a_tenth_of_captums_memory_at_most() -> None:
    captum = pytest.importorskip("captum.attr", reason="needs captum to race against", exc_type=ImportError)
    model, layer = resnet50()
    images, classes = torch.rand(2, 3, SIDE, SIDE), torch.arange(2) * 50
    ours = kept_for_backward(lambda: grad_cam(model, images, classes, layer))
    theirs = kept_for_backward(lambda: captum.LayerGradCam(model, layer).attribute(images, classes, relu_attributions=True))
    print(f"\nkept for the backward pass: ours {ours / 2**20:.1f} MiB, captum {theirs / 2**20:.1f} MiB")
    assert ours < theirs / 10


@pytest.mark.bench
def test_ten_classes_share_one_forward_pass() -> None:
    model, layer = resnet50()
    images, asked = torch.rand(2, 3, SIDE, SIDE), {"name": "class", "each": list(range(10))}
    together = grad_cam(model, images, asked, layer).maps
    apart = torch.cat([grad_cam(model, images, index, layer).maps for index in range(10)], dim=1)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-7)
    found = race(
        lambda: grad_cam(model, images, asked, layer),
        lambda: [grad_cam(model, images, index, layer) for index in range(10)],
        REPEATS,
        processor=True,
    )
    print(f"\nten classes at once against one after the other: {found}")
    assert found.ratio <= 1 / 3
