from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from graftwork_grad_cam.grad_cam import grad_cam
from graftwork_grad_cam.guided_backprop import GuidedBackprop, guided_backprop, rectifier_rule
from graftwork_grad_cam.guided_grad_cam import guided_grad_cam


def images(count: int = 4, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size)


class TwoLayers(nn.Module):
    """y = w2 . relu(w1 * relu(x)) on single values, with signs that are known."""

    def __init__(self, first: list[float], second: list[float]):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.tensor(first)), nn.Parameter(torch.tensor(second))

    def forward(self, x):
        return (self.second * functional.relu(self.first * functional.relu(x.flatten(1)))).sum(dim=1, keepdim=True)


def test_on_two_layers_with_known_signs_each_rule_gives_what_a_hand_would():
    x = torch.tensor([1.0, 1.0, 1.0, -1.0, 1.0, -1.0]).view(1, 1, 2, 3)
    first, second = [2.0, 2.0, -2.0, 2.0, -2.0, -2.0], [3.0, -3.0, 3.0, 3.0, -3.0, -3.0]
    model = TwoLayers(first, second)
    # index: 0 all positive; 1 negative gradient; 2 second ReLU closed; 3 input negative; 4 closed, negative; 5 all negative
    assert guided_backprop(model, x, 0, "plain").flatten().tolist() == [6, -6, 0, 0, 0, 0]
    assert guided_backprop(model, x, 0, "guided").flatten().tolist() == [6, 0, 0, 0, 0, 0]
    # deconv: g+ at the outer ReLU whatever its input, times w1, then the positive part again
    assert guided_backprop(model, x, 0, "deconv").flatten().tolist() == [6, 0, 0, 6, 0, 0]


def test_every_value_that_is_left_came_by_positive_gradients(gap):
    """With weights of one sign the guided map keeps that sign's paths alone."""
    with torch.no_grad():
        gap.head.weight[0] = -gap.head.weight[0].abs()  # each gradient into the last ReLU is negative
    assert not guided_backprop(gap, images(), 0).any()
    assert guided_backprop(gap, images(), 0, "plain").any()


def test_the_plain_rule_is_autograd(gap):
    x = images().requires_grad_()
    (expected,) = torch.autograd.grad(gap(x)[:, 2].sum(), x)
    assert torch.equal(guided_backprop(gap, x.detach(), 2, "plain"), expected)


def by_gate(x: torch.Tensor, g: torch.Tensor, activation) -> torch.Tensor:
    x = x.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(activation(x).sum(), x)
    return g * derivative * ((x > 0) & (g > 0))


class InPlaceUnused(nn.Module):
    """An in-place ReLU whose result is not taken: its input is what goes on."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = x * 1
        self.act(y)
        return y


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {
    "module": (nn.ReLU(), torch.relu),
    "in place": (nn.Sequential(nn.Identity(), nn.ReLU(inplace=True)), torch.relu),
    "in place, unused": (InPlaceUnused(), torch.relu),
    "F.relu": (functional.relu, torch.relu),
    "F.relu in place": (lambda x: functional.relu(x * 1, inplace=True), torch.relu),
    "torch.relu_": (lambda x: torch.relu_(x * 1), torch.relu),
    "x.relu": (lambda x: x.relu(), torch.relu),
    "x.relu_": (lambda x: (x * 1).relu_(), torch.relu),
    "ReLU6": (nn.ReLU6(), functional.relu6),
    "ReLU6 in place": (nn.Sequential(nn.Identity(), nn.ReLU6(inplace=True)), functional.relu6),
    "F.relu6": (functional.relu6, functional.relu6),
    "GELU": (nn.GELU(), functional.gelu),
    "GELU tanh": (nn.GELU("tanh"), lambda x: functional.gelu(x, approximate="tanh")),
    "SiLU": (nn.SiLU(), functional.silu),
    "SiLU in place": (nn.Sequential(nn.Identity(), nn.SiLU(inplace=True)), functional.silu),
    "Hardswish": (nn.Hardswish(), functional.hardswish),
    "Mish": (nn.Mish(), functional.mish),
    "QuickGELU": (QuickGELU(), QuickGELU()),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_rectifier_is_gated_however_it_is_called(name):
    activation, function = ACTIVATIONS[name]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = activation if isinstance(activation, nn.Module) else None
            self.weights = torch.randn(2, 3, 4, 4)

        def forward(self, x):
            x = 4 * x
            return ((self.act(x) if self.act is not None else activation(x)) * self.weights).sum(dim=(1, 2, 3))[:, None]

    model, x = Net(), torch.randn(2, 3, 4, 4) * 2
    torch.testing.assert_close(guided_backprop(model, x, 0), 4 * by_gate(4 * x, model.weights, function))
    torch.testing.assert_close(guided_backprop(model, x, 0, "deconv"), 4 * model.weights.clamp(min=0))
    with rectifier_rule(model):
        torch.testing.assert_close(model(x), (function(4 * x) * model.weights).sum(dim=(1, 2, 3))[:, None])


def test_hardtanh_is_no_rectifier():
    model, x = nn.Sequential(nn.Hardtanh(), nn.Flatten(), nn.Linear(12, 1)), torch.randn(2, 3, 2, 2)
    assert torch.equal(guided_backprop(model, x, 0), guided_backprop(model, x, 0, "plain"))


def test_the_model_and_torch_are_left_as_they_were(gap):
    gap.features[1].inplace = True
    gap.train()
    before = (functional.relu, torch.relu, [type(module) for module in gap.modules()], [len(m._forward_hooks) for m in gap.modules()])
    with pytest.raises(RuntimeError, match="stop"):
        guided_backprop(gap, images(), lambda out: (_ for _ in ()).throw(RuntimeError("stop")))
    guided_backprop(gap, images(), 1)
    assert before == (
        functional.relu,
        torch.relu,
        [type(module) for module in gap.modules()],
        [len(m._forward_hooks) for m in gap.modules()],
    )
    assert gap.features[1].inplace
    assert gap.training
    assert all(p.grad is None and p.requires_grad for p in gap.parameters())
    x = images().requires_grad_()
    (again,) = torch.autograd.grad(gap.eval()(x)[:, 0].sum(), x)
    assert torch.equal(again, guided_backprop(gap, x.detach(), 0, "plain"))


def test_a_batch_of_guided_maps_equals_single_ones(gap):
    x = images()
    together = guided_backprop(gap, x, [0, 1, 2, 3])
    for index in range(4):
        torch.testing.assert_close(together[index], guided_backprop(gap, x[index : index + 1], index)[0], rtol=1e-5, atol=1e-7)


def test_several_classes_have_a_map_each(gap):
    x = images()
    several = guided_backprop(gap, x, {"name": "class", "each": [0, 3]})
    assert several.shape == (4, 2, 3, 16, 16)
    torch.testing.assert_close(several[:, 1], guided_backprop(gap, x, 3))


@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "resnet"])
def test_gelu_networks_of_transformers_are_gated(loaded, name):
    model, x = loaded(name), torch.rand(2, 3, 64, 96)
    guided, plain = guided_backprop(model, x, 1), guided_backprop(model, x, 1, "plain")
    assert guided.shape == x.shape
    assert guided.isfinite().all()
    assert not torch.allclose(guided, plain)


def test_guided_grad_cam_is_the_product_of_the_two(gap):
    x = images()
    found = guided_grad_cam(gap, x, [0, 1, 2, 3])
    expected = guided_backprop(gap, x, [0, 1, 2, 3]) * grad_cam(gap, x, [0, 1, 2, 3]).maps
    assert torch.equal(found.raw["image"][:, 0], expected)
    assert torch.equal(found.maps[:, 0], expected.abs().amax(dim=1))
    assert list(found.raw) == ["features", "image"]


def test_a_predicted_class_is_the_same_in_both_factors(gap):
    x = images()
    predicted = gap(x).argmax(dim=1)
    assert torch.equal(guided_grad_cam(gap, x, "predicted").maps, guided_grad_cam(gap, x, predicted).maps)


def test_half_precision_gives_float32(gap):
    assert guided_backprop(gap.bfloat16(), images().bfloat16(), 1).dtype == torch.float32


def test_under_no_grad_and_inference_mode(gap):
    x = images()
    expected = guided_backprop(gap, x, 1)
    for caller in (torch.no_grad, torch.inference_mode):
        with caller():
            assert torch.equal(guided_backprop(gap, x * 1, 1), expected)


def test_an_unknown_rule_is_refused(gap):
    with pytest.raises(ValueError, match='a rule is "guided", "deconv" or "plain"; found "smooth"'):
        guided_backprop(gap, images(), 0, "smooth")
    with pytest.raises(ValueError, match="a rule is"):
        GuidedBackprop(rule="smooth")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_guided_maps(gap):
    x = images()
    expected = guided_backprop(gap, x, 1)
    torch.testing.assert_close(guided_backprop(gap.cuda(), x.cuda(), 1).cpu(), expected, rtol=1e-3, atol=1e-5)
