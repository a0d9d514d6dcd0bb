"""One inner step on the model, then any saliency: by hand, to second order, and without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import graftwork as gw
from graftwork.errors import ConfigError, InterfaceError
from graftwork_grad_cam.evidence import prepared
from graftwork_grad_cam.grad_cam import GradCAM
from graftwork_grad_cam.guided_backprop import GuidedBackprop
from graftwork_grad_cam.guided_grad_cam import GuidedGradCAM
from graftwork_grad_cam.targets import ClassTarget
from graftwork_normgrad import (
    CELLS,
    Cell,
    ExtractAggregate,
    MetaSaliency,
    NormGrad,
    PointingTarget,
    aggregate,
    class_loss,
    extract,
    gradient_step,
    inner_gradients,
    meta_saliency,
    normgrad,
    observe_second_order,
    per_sample_gradients,
    substituted,
)


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32)


class Linear(nn.Module):
    """Softmax regression on the mean colour, through a layer that has positions."""

    def __init__(self):
        super().__init__()
        self.keep, self.head = nn.Identity(), nn.Linear(3, 4)

    def forward(self, x):
        return self.head(self.keep(x).mean(dim=(2, 3)))


# -- the step ----------------------------------------------------------------------------------------------------------------------


def test_a_rate_of_zero_gives_exactly_the_plain_map(resnet):
    x = images(1)
    for saliency in (NormGrad(), GradCAM(), GuidedBackprop()):
        assert torch.equal(meta_saliency(resnet, x, saliency, [2], lr=0.0).maps, saliency.explain(resnet, x, [2]).maps)
    x = images()
    together = meta_saliency(resnet, x, NormGrad(), [2, 1, 0], lr=0.0)
    torch.testing.assert_close(together.maps, normgrad(resnet, x, [2, 1, 0]).maps, rtol=1e-4, atol=1e-6)


def test_the_step_of_softmax_regression_is_the_one_by_hand():
    model, x, lr = Linear(), images(1), 0.7
    mean, wanted = x.mean(dim=(2, 3)), torch.tensor([3])
    error = model(x).softmax(dim=1) - torch.eye(4)[wanted]  # d cross-entropy / d logits
    weight = model.head.weight - lr * error.T @ mean
    stepped = gradient_step(model, inner_gradients(model, {"image": x}, ClassTarget(3), class_loss(wanted)), lr)
    torch.testing.assert_close(stepped["head.weight"], weight)
    torch.testing.assert_close(stepped["head.bias"], model.head.bias - lr * error[0])
    found = meta_saliency(model, x, NormGrad(layer="keep"), [3], lr=lr).raw["keep"]
    torch.testing.assert_close(found, x.norm(dim=1, keepdim=True) * weight[3].norm() / 32**2)  # g = w_c / positions


def test_the_other_direction_is_another_map_and_each_sign_moves_the_loss_its_way(resnet):
    x, wanted = images(1), torch.tensor([1])
    gradients = inner_gradients(resnet, {"image": x}, ClassTarget(1), class_loss(wanted))
    losses = []
    for negate in (False, True):
        with substituted(resnet, gradient_step(resnet, gradients, 0.01, negate)), torch.no_grad():
            losses.append(cross_entropy(resnet(x), wanted))
    assert losses[0] < cross_entropy(resnet(x), wanted) < losses[1]
    down, up = (meta_saliency(resnet, x, NormGrad(), [1], lr=0.01, negate_loss=each).maps for each in (False, True))
    assert not torch.allclose(down, up, rtol=1e-3)


def test_each_sample_has_its_own_step_unless_a_common_one_is_asked_for(resnet):
    x, classes = images(), [0, 3, 1]
    saliency = NormGrad(layer="layer3")
    own = meta_saliency(resnet, x, saliency, classes, lr=0.1)
    alone = [meta_saliency(resnet, x[i : i + 1], saliency, classes[i : i + 1], lr=0.1) for i in range(3)]
    torch.testing.assert_close(own.maps, torch.cat([each.maps for each in alone]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(own.scores, torch.cat([each.scores for each in alone]), rtol=1e-4, atol=1e-5)
    common = meta_saliency(resnet, x, saliency, classes, lr=0.1, per_sample=False)
    assert not torch.allclose(common.maps, own.maps, rtol=1e-2)
    optimizer = torch.optim.SGD(resnet.parameters(), lr=0.1)  # as the authors' code steps
    cross_entropy(resnet(x), torch.tensor(classes)).backward()
    optimizer.step()
    torch.testing.assert_close(common.maps, saliency.explain(resnet, x, classes).maps, rtol=1e-4, atol=1e-6)


def test_several_classes_have_a_step_each(resnet):
    x = images(2)
    together = meta_saliency(resnet, x, NormGrad(), torch.tensor([[0, 1], [2, 3]]), lr=0.1)
    for column, classes in enumerate([[0, 2], [1, 3]]):
        apart = meta_saliency(resnet, x, NormGrad(), classes, lr=0.1)
        torch.testing.assert_close(together.maps[:, column : column + 1], apart.maps, rtol=1e-4, atol=1e-6)
    assert together.maps.shape == (2, 2, 32, 32)
    assert together.batch["chosen target"].tolist() == [[0, 1], [2, 3]]


def test_gradients_mapped_over_samples_are_those_of_one_after_the_other(resnet):
    x, classes = images(5), torch.tensor([0, 1, 2, 3, 0])
    batch = {"image": x, "label": classes, "boxes": [torch.rand(2, 4)] * 5}
    alone, together = (list(per_sample_gradients(resnet, batch, ClassTarget("label"), class_loss, classes, chunk)) for chunk in (1, 2))
    assert len(alone) == len(together) == 5
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


class Branching(Linear):
    """Looks at its values, which vmap cannot."""

    def forward(self, x):
        return super().forward(x if bool((x > -99).all()) else -x)


def test_a_model_that_cannot_be_mapped_over_is_taken_one_sample_at_a_time():
    model, x, classes = Branching(), images(3), torch.tensor([0, 1, 2])
    found = list(per_sample_gradients(model, {"image": x}, ClassTarget(0), class_loss, classes, 3))
    expected = list(per_sample_gradients(model, {"image": x}, ClassTarget(0), class_loss, classes, 1))
    torch.testing.assert_close(found, expected)


def test_every_position_of_a_map_of_logits_is_a_row_of_the_loss(dense):
    x = images(2)
    logits = dense(x)
    expected = cross_entropy(logits, torch.tensor([1, 3])[:, None, None].expand(2, *logits.shape[2:]))
    torch.testing.assert_close(class_loss(torch.tensor([1, 3]))(logits, {}), expected)
    found = meta_saliency(dense, x, NormGrad(target="predicted"), PointingTarget([1, 3]), lr=0.1)
    assert found.maps.shape == (2, 1, 32, 32)


# -- any saliency, and no trace ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("saliency", [NormGrad(), GradCAM(), GuidedBackprop(), GuidedGradCAM(), lambda m, b, t: GradCAM().explain(m, b, t)])
@pytest.mark.parametrize("per_sample", [True, False])
def test_any_saliency_sees_the_stepped_model_and_the_model_is_restored_bit_for_bit(resnet, saliency, per_sample):
    x, classes = images(2), [1, 2]
    model = resnet.train()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    model(x).sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    before = [(each, each.data_ptr(), each.detach().clone(), each.grad, each.requires_grad) for each in model.parameters()]
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    modes = [module.training for module in model.modules()]
    plain = saliency(model, x, classes) if callable(saliency) else saliency.explain(model, x, classes)
    found = meta_saliency(model, x, saliency, classes, lr=0.1, per_sample=per_sample)
    assert found.maps.shape == plain.maps.shape
    assert not torch.allclose(found.maps, plain.maps, rtol=1e-3)
    for (each, pointer, value, grad, requires), now in zip(before, model.parameters(), strict=True):
        assert each is now
        assert (each.data_ptr(), each.requires_grad) == (pointer, requires)
        assert each.grad is grad
        assert torch.equal(each, value)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(each[0]) for each in before]
    assert all(torch.equal(each, buffers[name]) for name, each in model.named_buffers())
    assert modes == [module.training for module in model.modules()]


def test_it_works_where_gradients_are_off(resnet):
    x = images(2)
    expected = meta_saliency(resnet, x, NormGrad(), [1, 2], lr=0.1).maps
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            torch.testing.assert_close(meta_saliency(resnet, x.clone(), NormGrad(), [1, 2], lr=0.1).maps, expected)


def test_an_error_in_the_saliency_leaves_the_weights_as_they_were(resnet):
    before = {name: each.clone() for name, each in resnet.state_dict().items()}

    def fails(model, batch, target):
        assert not torch.equal(model.fc.weight, before["fc.weight"])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        meta_saliency(resnet, images(1), fails, [0], lr=0.1)
    assert all(torch.equal(each, before[name]) for name, each in resnet.state_dict().items())


def test_tied_and_frozen_parameters_take_part_in_the_step():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[1].weight = model[0].weight
    model.requires_grad_(False)
    x = images(1)
    stepped = gradient_step(model, inner_gradients(model, {"image": x}, ClassTarget(0), class_loss(torch.tensor([0]))), 0.1)
    assert "1.weight" not in stepped
    model.requires_grad_(True)
    (expected,) = torch.autograd.grad(cross_entropy(model(x), torch.tensor([0])), model[0].weight)
    torch.testing.assert_close(stepped["0.weight"], model[0].weight - 0.1 * expected)


# -- second order ------------------------------------------------------------------------------------------------------------------


class Virtual(nn.Module):
    """A network with a real identity layer in it, smooth, so that it can be differentiated twice."""

    def __init__(self, kind: str):
        super().__init__()
        self.before, self.after, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, stride=2), nn.Linear(5, 3)
        self.kind, self.here = kind, nn.Identity()
        if kind == "conv1x1":
            self.weight = nn.Parameter(torch.eye(4)[:, :, None, None])
        elif kind == "scaling":
            self.weight = nn.Parameter(torch.ones(4))
        elif kind == "bias":
            self.weight = nn.Parameter(torch.zeros(4))
        else:
            self.weight = nn.Parameter(nn.init.dirac_(torch.empty(4, 4, 3, 3)))

    def forward(self, x):
        y = self.here(self.before(x).tanh())
        weight = self.weight
        if self.kind in ("conv1x1", "conv3x3"):
            y = nn.functional.conv2d(y, weight, padding=weight.shape[-1] // 2)
        else:
            y = y * weight[:, None, None] if self.kind == "scaling" else y + weight[:, None, None]
        return self.head(self.after(y).tanh().mean(dim=(2, 3)))


@pytest.mark.parametrize("negate", [False, True])
@pytest.mark.parametrize("kind", ["bias", "scaling", "conv1x1", "conv3x3"])
def test_second_order_contributions_add_up_to_the_gradient_of_the_meta_objective(kind, negate):
    model, x, lr, wanted = Virtual(kind).double().eval(), torch.randn(1, 3, 7, 7, dtype=torch.double), 0.5, torch.tensor([2])
    point = {name: each.detach().requires_grad_() for name, each in model.named_parameters()}
    real = [name for name in point if name != "weight"]  # the virtual layer takes no step itself
    loss = cross_entropy(functional_call(model, point, (x,)), wanted)
    slopes = torch.autograd.grad(loss, [point[name] for name in real], create_graph=True)
    sign = 1 if negate else -1
    moved = {**point, **{name: point[name] + sign * lr * slope for name, slope in zip(real, slopes, strict=True)}}
    (expected,) = torch.autograd.grad(functional_call(model, moved, (x,))[0, 1], point["weight"])

    class Plain(nn.Module):  # the same network without the layer
        def __init__(self):
            super().__init__()
            self.before, self.after, self.head, self.here = model.before, model.after, model.head, nn.Identity()

        def forward(self, x):
            return self.head(self.after(self.here(self.before(x).tanh())).tanh().mean(dim=(2, 3)))

    plain = Plain().eval()
    ready, asked = prepared(plain, x, [1])
    observed = observe_second_order(plain, ready, asked, ["here"], class_loss(wanted), lr, negate_loss=negate)
    contributions = observed.layers["here"]
    formed = Cell(kind, "none").map(contributions)[0, 0].sum(dim=(1, 2))
    if kind.startswith("conv"):
        formed = formed.view(-1, 4).T
    torch.testing.assert_close(formed.reshape(expected.shape), expected, rtol=0, atol=1e-10)
    first_order = extract(contributions.terms[0].activations, contributions.terms[0].gradients[:, 0], kind).sum(dim=(0, 2, 3))
    first_order = first_order.view(-1, 4).T.reshape(-1) if kind.startswith("conv") else first_order
    assert not torch.allclose(first_order, expected.flatten(), rtol=1e-2)
    torch.testing.assert_close(Cell(kind).map(contributions), aggregate(Cell(kind, "none").map(contributions)[:, 0], "norm"))


def test_the_second_order_map_starts_from_the_first_order_one_and_leaves_no_trace(resnet):
    x = images(2)
    before = {name: each.clone() for name, each in resnet.state_dict().items()}
    saliency = NormGrad(layer=["layer2", "layer4"])
    plain = normgrad(resnet, x, [1, 2], ["layer2", "layer4"])
    still = meta_saliency(resnet, x, saliency, [1, 2], lr=0.0, second_order=True)
    torch.testing.assert_close(still.maps, plain.maps, rtol=1e-4, atol=1e-6)
    first, second = (meta_saliency(resnet, x, saliency, [1, 2], lr=0.5, second_order=each) for each in (False, True))
    assert not torch.allclose(first.maps, second.maps, rtol=1e-2)
    torch.testing.assert_close(first.scores, second.scores, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(each, before[name]) for name, each in resnet.state_dict().items())
    assert not resnet.layer2._forward_hooks
    for name, cell in CELLS.items():
        if name != "own-convolution":
            made = ExtractAggregate(phase1=cell.phase1, phase2=cell.phase2, spatial_average=cell.spatial_average, layer="layer3")
            assert meta_saliency(resnet, x, made, [1, 2], lr=0.5, second_order=True).maps.isfinite().all()


# -- what is refused ---------------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused(resnet):
    x = images(1)
    with pytest.raises(ValueError, match=r"lr must not be negative; found -0\.1"):
        meta_saliency(resnet, x, NormGrad(), [0], lr=-0.1)
    with pytest.raises(ConfigError, match="greater than or equal to 0"):
        gw.evaluator("meta-saliency", lr=-0.1)
    with pytest.raises(InterfaceError, match='the target "function" chooses none: give a loss'):
        meta_saliency(resnet, x, NormGrad(), lambda output: output[:, 0])
    with pytest.raises(InterfaceError, match='not with "grad-cam"'):
        MetaSaliency(saliency=GradCAM(), second_order=True)
    with pytest.raises(InterfaceError, match='not with "grad-cam"'):
        meta_saliency(resnet, x, GradCAM(), [0], second_order=True)
    with pytest.raises(InterfaceError, match='not with "normgrad" of a convolution'):
        MetaSaliency(saliency=NormGrad(layer="conv1", virtual_identity=False), second_order=True)


def test_a_target_without_classes_can_bring_its_own_loss(resnet):
    x = images(2)
    found = meta_saliency(resnet, x, NormGrad(), lambda output: output[:, 0], lr=0.1, loss=lambda output, batch: -output[:, 0].sum())
    gradients = inner_gradients(resnet, {"image": x[1:]}, ClassTarget(0), lambda output, batch: -output[:, 0].sum())
    with substituted(resnet, gradient_step(resnet, gradients, 0.1)):
        torch.testing.assert_close(found.maps[1:], normgrad(resnet, x[1:], 0).maps, rtol=1e-4, atol=1e-6)


def test_the_component_shows_the_wrapped_saliencys_pictures(resnet, scenes):
    report = gw.evaluator("meta-saliency", saliency={"use": "guided-backprop", "target": "predicted"}, limit=2).evaluate(resnet, scenes)
    assert set(report.metrics) == {"meta-saliency-empty-maps", "meta-saliency-area"}
    assert "maps" in report.figures
