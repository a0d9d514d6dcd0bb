"""The step up the loss: closed forms, its direction and length, what moves and what does not, and that all of it is undone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork_tram import ascend, ascended, gradient_cosine, gradient_norm

CURVATURE = torch.tensor([1.0, 3.0], dtype=torch.float64)


def quadratic() -> tuple[nn.Parameter, Callable[[], Tensor]]:
    weights = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    return weights, lambda: (CURVATURE * weights.square()).sum() / 2


def with_gradients(make, batch, factor: float = 1.0) -> nn.Module:
    model = make().double()
    (factor * functional.cross_entropy(model(batch["features"].double()), batch["label"])).backward()
    return model


def steps_of(found) -> list[Tensor]:
    return [perturbed - parameter.detach() for perturbed, parameter in zip(found.perturbed, found.parameters, strict=True)]


@pytest.mark.parametrize(
    ("metric", "fisher", "step", "after"),
    [
        ("euclidean", None, (0.0164398987, -0.0986393924), (0.8983560, -1.3704082)),
        ("adaptive", None, (0.0083045, -0.1993091), (0.8991696, -1.3402072)),
        ("fisher", (0.5, 2.0), (0.0187317, -0.0561952), None),
    ],
)
def test_a_quadratic_has_the_published_step(metric, fisher, step, after) -> None:
    weights, loss = quadratic()
    loss().backward()
    information = None if fisher is None else [torch.tensor(fisher, dtype=torch.float64)]
    with ascended([weights], 0.1, metric, fisher=information) as found:
        torch.testing.assert_close(weights.detach() - torch.tensor([1.0, -2.0]), torch.tensor(step, dtype=torch.float64), rtol=0, atol=1e-7)
        loss().backward()
    torch.testing.assert_close(found.perturbation_norm, torch.tensor(step, dtype=torch.float64).norm(), rtol=0, atol=1e-7)
    if metric == "euclidean":
        torch.testing.assert_close(weights.grad, torch.tensor([1.0164399, -6.2959182], dtype=torch.float64), rtol=0, atol=1e-7)
    torch.optim.SGD([weights], lr=0.1).step()
    if after is not None:
        torch.testing.assert_close(weights.detach(), torch.tensor(after, dtype=torch.float64), rtol=0, atol=1e-7)


def test_fishers_step_has_the_length_of_the_radius_in_its_metric() -> None:
    weights, loss = quadratic()
    loss().backward()
    information = torch.tensor([0.5, 2.0], dtype=torch.float64)
    (step,) = steps_of(ascend([weights], 0.1, "fisher", fisher=[information]))
    assert (step * (1 + information) * step).sum().item() == pytest.approx(0.1**2, rel=1e-9)


def test_fisher_information_is_the_squared_gradient_unless_it_is_given() -> None:
    weights, loss = quadratic()
    loss().backward()
    given = ascend([weights], 0.1, "fisher", fisher=[weights.grad.square()], eta=0.7)
    torch.testing.assert_close(ascend([weights], 0.1, "fisher", eta=0.7).perturbed, given.perturbed)
    flat = ascend([weights], 0.1, "fisher", eta=0.0)
    torch.testing.assert_close(flat.perturbed, ascend([weights], 0.1).perturbed)


def test_the_step_goes_along_the_gradient_and_not_along_the_same_way_for_every_weight(net, batch) -> None:
    found = ascend(with_gradients(net, batch).parameters(), 0.3)
    assert gradient_cosine(steps_of(found), found.gradients).item() == pytest.approx(1.0, abs=1e-12)
    constant = [torch.ones_like(gradient) for gradient in found.gradients]
    assert abs(gradient_cosine(constant, found.gradients).item()) < 0.9


def test_its_length_is_the_radius(net, batch) -> None:
    for radius in (0.01, 0.3, 5.0):
        found = ascend(with_gradients(net, batch).parameters(), radius)
        assert gradient_norm(steps_of(found)).item() == pytest.approx(radius, rel=1e-9)
        assert found.perturbation_norm.item() == pytest.approx(radius, rel=1e-9)


@pytest.mark.parametrize("metric", ["euclidean", "adaptive"])
def test_doubling_the_loss_changes_nothing_and_doubling_the_radius_doubles_the_step(net, batch, metric) -> None:
    once, twice = (steps_of(ascend(with_gradients(net, batch, factor).parameters(), 0.1, metric)) for factor in (1.0, 2.0))
    torch.testing.assert_close(once, twice)
    further = steps_of(ascend(with_gradients(net, batch).parameters(), 0.2, metric))
    torch.testing.assert_close([2 * step for step in once], further)


@pytest.mark.parametrize("metric", ["euclidean", "adaptive", "fisher"])
def test_the_reported_length_is_that_of_the_step(net, batch, metric) -> None:
    found = ascend(with_gradients(net, batch).parameters(), 0.3, metric)
    torch.testing.assert_close(found.perturbation_norm, gradient_norm(steps_of(found)))


def test_the_adaptive_step_is_the_plain_one_where_all_weights_have_size_one(net, batch) -> None:
    model = net().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.where(parameter < 0, -1.0, 1.0))
    functional.cross_entropy(model(batch["features"].double()), batch["label"]).backward()
    torch.testing.assert_close(ascend(model.parameters(), 0.2, "adaptive").perturbed, ascend(model.parameters(), 0.2).perturbed)


def test_radius_zero_moves_nothing(net, batch) -> None:
    model = with_gradients(net, batch)
    assert all(torch.equal(a, b) for a, b in zip(ascend(model.parameters(), torch.zeros(())).perturbed, model.parameters(), strict=True))


def test_a_zero_gradient_moves_nothing() -> None:
    weights = nn.Parameter(torch.ones(3))
    weights.grad = torch.zeros(3)
    for metric in ("euclidean", "adaptive", "fisher"):
        found = ascend([weights], 0.1, metric)
        assert torch.equal(found.perturbed[0], weights)
        assert found.perturbation_norm == 0


def test_frozen_and_unused_weights_stay_and_do_not_count(net, batch) -> None:
    model = net().double()
    model.body[0].weight.requires_grad_(False)
    unused = nn.Parameter(torch.ones(4).double())
    functional.cross_entropy(model(batch["features"].double()), batch["label"]).backward()
    with ascended([*model.parameters(), unused], 0.1) as found:
        assert model.body[0].weight.data_ptr() not in [p.data_ptr() for p in found.parameters]
        assert torch.equal(unused, torch.ones(4).double())
        assert len(found.parameters) == 3
    assert gradient_norm(found.gradients) == found.gradient_norm


def test_tied_weights_move_once() -> None:
    tied = nn.Parameter(torch.tensor([1.0, 2.0]))
    other = nn.Parameter(torch.tensor([3.0]))
    (tied.sum() * other.sum() + tied.square().sum()).backward()
    with ascended([{"params": [tied, other]}, {"params": [tied]}], 0.5) as found:
        assert len(found.parameters) == 2
        assert gradient_norm([tied.detach() - torch.tensor([1.0, 2.0]), other.detach() - 3.0]).item() == pytest.approx(0.5)


def test_the_weights_come_back_to_the_bit_and_into_their_own_storage(net, batch) -> None:
    model = net()
    functional.cross_entropy(model(batch["features"]), batch["label"]).backward()
    before, places = copy.deepcopy(list(model.parameters())), [p.data_ptr() for p in model.parameters()]
    with ascended(model.parameters(), 0.37):
        assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
        functional.cross_entropy(model(batch["features"]), batch["label"]).backward()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert [p.data_ptr() for p in model.parameters()] == places


def test_they_come_back_when_the_second_pass_fails(net, batch) -> None:
    model = net()
    functional.cross_entropy(model(batch["features"]), batch["label"]).backward()
    before = copy.deepcopy(list(model.parameters()))

    def fail() -> None:
        with ascended(model.parameters(), 0.37):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_the_gradients_afterwards_are_those_found_there(net, batch) -> None:
    model = with_gradients(net, batch)
    other = net().double()
    found = ascend(model.parameters(), 0.2)
    with torch.no_grad():
        for parameter, value in zip(other.parameters(), found.perturbed, strict=True):
            parameter.copy_(value)
    functional.cross_entropy(other(batch["features"].double()), batch["label"]).backward()
    with ascended(model.parameters(), 0.2) as found:
        assert all(parameter.grad is None for parameter in model.parameters())
        functional.cross_entropy(model(batch["features"].double()), batch["label"]).backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in other.parameters()])
    flat = [torch.cat([g.flatten() for g in gradients]) for gradients in (found.gradients, [p.grad for p in other.parameters()])]
    torch.testing.assert_close(found.cosine(), functional.cosine_similarity(*flat, dim=0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_of_half_precision_gradients_are_taken_in_float32(dtype) -> None:
    weights = nn.Parameter(torch.ones(70_000, dtype=dtype))
    weights.grad = torch.ones_like(weights)
    found = ascend([weights], 8.0)
    assert found.gradient_norm.dtype == torch.float32
    assert found.gradient_norm.item() == pytest.approx(70_000**0.5, rel=1e-5)
    assert found.perturbed[0].dtype == dtype


def test_weights_of_several_dtypes_move_together() -> None:
    weights = [nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4, dtype=torch.bfloat16))]
    for parameter in weights:
        parameter.grad = torch.ones_like(parameter)
    found = ascend(weights, 2.0**0.5 * 2)
    assert found.gradient_norm.item() == pytest.approx(8**0.5)
    torch.testing.assert_close([p.float() for p in found.perturbed], [torch.full((4,), 2.0)] * 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: ascend([nn.Parameter(torch.ones(2))], 0.1), "no trainable parameter received a gradient"),
        (lambda w: gradient_norm([]), "no trainable parameter received a gradient"),
        (lambda w: ascend([w], 0.1, "manhattan"), 'metric is one of euclidean, adaptive, fisher; found "manhattan"'),
        (lambda w: ascend([w], 0.1, "fisher", eta=-1.0), "eta is at least 0; found -1.0"),
        (lambda w: ascend([w], 0.1, "fisher", fisher=[torch.ones(3)]), "fisher holds one tensor of the gradient's shape"),
    ],
)
def test_bad_input_is_named(call, message) -> None:
    weights, loss = quadratic()
    loss().backward()
    with pytest.raises(ValueError, match=message):
        call(weights)


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse gradient: build its embedding with sparse=False"):
        ascend(table.parameters(), 0.1)
