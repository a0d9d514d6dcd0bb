"""Agreement with independent implementations: pytorch-grad-cam and captum, each where it is installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from graftwork_grad_cam.grad_cam import grad_cam
from graftwork_grad_cam.guided_backprop import guided_backprop
from graftwork_grad_cam.guided_grad_cam import guided_grad_cam
from graftwork_grad_cam.maps import normalize_maps


def resnet() -> nn.Module:
    """A residual network from whichever library is there, with random weights."""
    try:
        import torchvision

        return torchvision.models.resnet18(weights=None, num_classes=10).eval()
    except (ImportError, RuntimeError):
        transformers = pytest.importorskip("transformers")
        settings = {"embedding_size": 8, "hidden_sizes": [8, 16, 32], "depths": [2, 2, 2], "layer_type": "basic", "num_labels": 10}
        return Logits(transformers.ResNetForImageClassification(transformers.ResNetConfig(**settings))).eval()


class Logits(nn.Module):
    """A transformers classifier that gives its logits alone, as other libraries' tools want it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).logits


def last_stage(model: nn.Module) -> nn.Module:
    return model.layer4 if hasattr(model, "layer4") else model.model.resnet.encoder.stages[-1]


# -- captum ------------------------------------------------------------------------------------------------------------------------


def test_maps_agree_with_captums_layer_grad_cam():
    captum = pytest.importorskip("captum.attr")
    model, x, classes = resnet(), torch.rand(4, 3, 64, 64), torch.tensor([3, 1, 7, 0])
    ours = grad_cam(model, x, classes, last_stage(model))
    theirs = captum.LayerGradCam(model, last_stage(model)).attribute(x, classes, relu_attributions=True)
    (raw,) = ours.raw.values()
    assert theirs.max() > 0
    assert (raw - theirs).abs().max() / theirs.max() < 1e-5


def test_guided_maps_agree_with_captum():
    captum = pytest.importorskip("captum.attr")
    model, x, classes = Modules().eval(), torch.rand(3, 3, 16, 16), torch.tensor([3, 1, 2])
    with pytest.warns(UserWarning, match="Setting backward hooks on ReLU activations"):
        theirs = captum.GuidedBackprop(model).attribute(x.requires_grad_(), classes)
    ours = guided_backprop(model, x.detach(), classes)
    assert theirs.abs().max() > 0
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-7)
    with pytest.warns(UserWarning, match="Setting"):
        deconv = captum.Deconvolution(model).attribute(x, classes)
    torch.testing.assert_close(guided_backprop(model, x.detach(), classes, "deconv"), deconv.detach(), rtol=1e-5, atol=1e-7)


def test_guided_grad_cam_agrees_with_captum():
    captum = pytest.importorskip("captum.attr")
    model, x, classes = Modules().eval(), torch.rand(3, 3, 16, 16), torch.tensor([3, 1, 2])
    with pytest.warns(UserWarning, match="Setting"):
        theirs = captum.GuidedGradCam(model, model.features).attribute(x.requires_grad_(), classes, interpolate_mode="bilinear")
    ours = guided_grad_cam(model, x.detach(), classes, "features").raw["image"][:, 0]
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-8)


class Modules(nn.Module):
    """A network whose every ReLU is a module of its own, as captum's hooks need it."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
        self.features, self.head = nn.Sequential(*layers), nn.Sequential(nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, x):
        return self.head(self.features(x))


# -- pytorch-grad-cam --------------------------------------------------------------------------------------------------------------


def peer(model: nn.Module, layers: list[nn.Module], x: torch.Tensor, classes: list[int], reshape=None, **settings) -> torch.Tensor:
    pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with pytorch_grad_cam.GradCAM(model=model, target_layers=layers, reshape_transform=reshape) as method:
        found = method(input_tensor=x, targets=[ClassifierOutputTarget(each) for each in classes], **settings)
    return torch.from_numpy(np.asarray(found))


def vit(depth: int = 3) -> tuple[nn.Module, nn.Module]:
    """A timm vision transformer with random weights, and the norm before its last attention."""
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=10, depth=depth).eval()
    return model, model.blocks[-1].norm1


@pytest.mark.parametrize("layers", [["layer4"], ["layer3", "layer4"]])
def test_maps_of_a_resnet_agree_with_pytorch_grad_cam(layers):
    pytest.importorskip("pytorch_grad_cam")
    torchvision = pytest.importorskip("torchvision")
    model, x, classes = torchvision.models.resnet18(weights=None, num_classes=10).eval(), torch.rand(4, 3, 96, 96), [3, 1, 7, 0]
    theirs = peer(model, [getattr(model, name) for name in layers], x, classes)
    ours = grad_cam(model, x, classes, layers, normalize="minmax").maps[:, 0]
    assert theirs.max() > 0.99
    assert (ours - theirs).abs().max() < 1e-4


def test_maps_of_a_vit_agree_with_pytorch_grad_cam():
    pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.reshape_transforms import vit_reshape_transform

    model, norm = vit()
    x, classes = torch.rand(4, 3, 224, 224), [3, 1, 7, 0]
    theirs = peer(model, [norm], x, classes, vit_reshape_transform)
    found = grad_cam(model, x, classes, normalize="minmax")
    assert list(found.raw) == ["blocks.2.norm1"]  # what the peer's guide says to choose by hand
    assert theirs.max() > 0.99
    assert (found.maps[:, 0] - theirs).abs().max() < 1e-4


def test_smoothed_maps_agree_with_pytorch_grad_cam():
    pytest.importorskip("pytorch_grad_cam")
    torchvision = pytest.importorskip("torchvision")
    model, x, classes = torchvision.models.resnet18(weights=None, num_classes=10).eval(), torch.rand(2, 3, 96, 96), [3, 1]
    theirs = peer(model, [model.layer4], x, classes, aug_smooth=True)
    assert (grad_cam(model, x, classes, "layer4", augment_smooth=True).maps[:, 0] - theirs).abs().max() < 1e-4
    theirs = peer(model, [model.layer4], x, classes, eigen_smooth=True)
    ours = [grad_cam(model, x, classes, "layer4", eigen_smooth=True, counterfactual=turned).maps[:, 0] for turned in (False, True)]
    for index in range(2):  # a principal direction has no sign of its own, and the peer leaves it to chance
        assert min((normalize_maps(each[index], "minmax") - theirs[index]).abs().max() for each in ours) < 1e-4


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "convnext_atto", "vgg11", "mobilenetv3_small_100"])
def test_timm_classifiers_run_and_their_layer_is_found(name):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, pretrained=False, num_classes=4).eval()
    found = grad_cam(model, torch.rand(2, 3, 224, 224), "top-2")
    (raw,) = found.raw.values()
    assert found.maps.shape == (2, 2, 224, 224)
    assert raw.shape[-1] in (7, 14)
