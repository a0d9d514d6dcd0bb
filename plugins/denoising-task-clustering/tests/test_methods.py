"""PCGrad, Nash-MTL and uncertainty weighting by themselves: closed forms, LibMTL, torchjd, plain loops."""

from __future__ import annotations

import copy
import importlib.util
import random
import sys
import types
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from graftwork_denoising_task_clustering import (
    Backward,
    NashMTL,
    PCGrad,
    UncertaintyWeighting,
    gradient_matrix,
    gram_matrix,
    nash_weights,
    pcgrad,
    pcgrad_coefficients,
    projection_orders,
    solve_nash,
    task_gram,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loop(gradients: Tensor, orders: Tensor) -> Tensor:
    """Algorithm 1 of Yu et al. on the gradients themselves."""
    total = torch.zeros_like(gradients[0])
    for own, order in zip(gradients, orders.tolist(), strict=True):
        projected = own.clone()
        for other in order:
            product = projected @ gradients[other]
            if product < 0:
                projected -= product / (gradients[other] @ gradients[other]) * gradients[other]
        total += projected
    return total


class TwoHeads(nn.Module):
    """A shared layer, a head a task, and a layer that nothing uses, first."""

    def __init__(self, tasks: int = 3) -> None:
        super().__init__()
        self.unused = nn.Linear(2, 2)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.shared = nn.Linear(4, 6)
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(tasks))

    def losses(self, inputs: Tensor) -> Tensor:
        hidden = self.shared(self.frozen(inputs)).tanh()
        return torch.stack([(head(hidden) - index).square().mean() for index, head in enumerate(self.heads)])


@pytest.fixture
def network() -> TwoHeads:
    torch.manual_seed(0)
    return TwoHeads()


def gradients_of(module: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters() if p.requires_grad]


# -- PCGrad --------------------------------------------------------------------------------------------------------------------


def test_two_conflicting_gradients_lose_what_opposes_the_other() -> None:
    gradients, orders = torch.tensor([[2.0, 0.0], [-1.0, 1.0]]), torch.tensor([[0, 1], [0, 1]])
    coefficients = pcgrad_coefficients(gram_matrix(gradients), orders)
    assert (coefficients @ gradients).tolist() == [[1, 1], [0, 1]]
    assert pcgrad(gradients, orders).tolist() == [1, 2]


def test_without_conflict_the_update_is_the_plain_sum() -> None:
    gradients = drawn(4, 9).abs()
    torch.testing.assert_close(pcgrad(gradients), gradients.sum(0))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10**6))
def test_surgery_by_the_gram_matrix_is_surgery_on_the_gradients(tasks, seed) -> None:
    gradients = drawn(tasks, 5, seed=seed)
    orders = projection_orders(tasks, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(pcgrad(gradients, orders), by_loop(gradients, orders), rtol=1e-8, atol=1e-9)


def test_the_order_matters_and_comes_from_the_generator() -> None:
    gradients = drawn(5, 3, seed=4)
    results = {tuple(pcgrad(gradients, generator=torch.Generator().manual_seed(seed)).tolist()) for seed in range(6)}
    assert len(results) > 1
    again = [pcgrad(gradients, generator=torch.Generator().manual_seed(2)) for _ in range(2)]
    assert torch.equal(*again)
    assert {tuple(row) for row in projection_orders(4, torch.Generator().manual_seed(0)).sort(1).values.tolist()} == {(0, 1, 2, 3)}


def test_a_task_without_gradient_takes_no_part() -> None:
    gradients = torch.cat([drawn(3, 5, seed=1), torch.zeros(1, 5, dtype=torch.float64)])
    orders = torch.arange(4).expand(4, 4)
    torch.testing.assert_close(pcgrad(gradients, orders), by_loop(gradients[:3], torch.arange(3).expand(3, 3)))


def test_it_is_libmtls_pcgrad_for_a_fixed_order(network, monkeypatch) -> None:
    found = importlib.util.find_spec("LibMTL")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("needs LibMTL to compare with")
    for name, folder in (("LibMTL", ""), ("LibMTL.weighting", "weighting")):  # without the package's own imports, of torchvision and others
        bare = types.ModuleType(name)
        bare.__path__ = [str(Path(found.submodule_search_locations[0]) / folder)]
        monkeypatch.setitem(sys.modules, name, bare)
    weighting = importlib.import_module("LibMTL.weighting.PCGrad")
    inputs = drawn(16, 4).float()
    orders: list[list[int]] = []

    def shuffle(order: list[int]) -> None:
        order.sort(key=lambda task: (task * 7 + len(orders)) % 3)
        orders.append(list(order))

    monkeypatch.setattr(random, "shuffle", shuffle)
    peer = weighting.PCGrad.__new__(weighting.PCGrad)
    nn.Module.__init__(peer)
    peer.task_num, peer.device, peer.rep_grad = 3, torch.device("cpu"), False
    peer.get_share_params = network.shared.parameters
    peer.zero_grad_share_params = lambda: network.shared.zero_grad(set_to_none=False)
    for parameter in network.shared.parameters():
        parameter.grad = torch.zeros_like(parameter)
    peer.backward(network.losses(inputs))
    expected = torch.cat([parameter.grad.flatten() for parameter in network.shared.parameters()])
    found = pcgrad(gradient_matrix(network.losses(inputs), list(network.shared.parameters())), torch.tensor(orders))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chunks", [None, 1, 3])
def test_a_step_writes_the_sum_of_the_projections_of_gradients_over_k(network, chunks) -> None:
    inputs, balancer = drawn(16, 4).float(), PCGrad(seed=5, chunks=chunks)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    orders = projection_orders(3, torch.Generator().manual_seed(5))
    expected = by_loop(gradient_matrix(network.losses(inputs) / 3, parameters), orders)
    figures = balancer.backward(network.losses(inputs), network)
    found = torch.cat([gradient.flatten() for gradient in gradients_of(network)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not found[:6].any()  # the unused layer's zeros stand in their place
    assert 0 <= figures["conflicts"] <= 1


def test_micro_batches_are_averaged_before_they_are_projected(network) -> None:
    first, second = drawn(8, 4, seed=1).float(), drawn(8, 4, seed=2).float()
    whole = copy.deepcopy(network)
    PCGrad(seed=1).backward((whole.losses(first) + whole.losses(second)) / 2, whole)
    balancer = PCGrad(seed=1)
    balancer.descend(network.losses(first), Backward(network, micro_batches=2, complete=False))
    assert not any(gradient.any() for gradient in gradients_of(network))
    balancer.descend(network.losses(second), Backward(network, micro_batches=2))
    for found, expected in zip(gradients_of(network), gradients_of(whole), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "make", [lambda: PCGrad(seed=1), lambda: PCGrad(seed=1, chunks=2), lambda: NashMTL(3), lambda: UncertaintyWeighting(3)]
)
def test_under_a_gradient_scaler_the_step_is_the_same(network, make) -> None:
    inputs, plain = drawn(16, 4).float(), copy.deepcopy(network)
    make().backward(plain.losses(inputs), plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0)
    make().descend(network.losses(inputs), Backward(network, scaler=scaler))
    scaler.unscale_(optimizer)
    for found, expected in zip(gradients_of(network), gradients_of(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_orders_go_on_from_the_state(network) -> None:
    first = PCGrad(seed=3)
    projection_orders(5, first.generator)
    second = PCGrad(seed=0)
    second.load_state_dict(first.state_dict())
    third = copy.deepcopy(first)
    expected = projection_orders(5, first.generator)
    assert torch.equal(projection_orders(5, second.generator), expected)
    assert torch.equal(projection_orders(5, third.generator), expected)


# -- gradients -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [1, 2, 5, 50])
def test_a_gram_matrix_in_chunks_of_layers_is_the_whole_one(network, chunks) -> None:
    losses = network.losses(drawn(16, 4).float())
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    torch.testing.assert_close(task_gram(losses, parameters, chunks), gram_matrix(gradient_matrix(losses, parameters)))
    assert all(parameter.grad is None for parameter in parameters)


def test_half_precision_gradients_are_compared_in_float32() -> None:
    assert gram_matrix(torch.ones(2, 70_000, dtype=torch.bfloat16))[0, 1] == 70_000


# -- Nash-MTL ------------------------------------------------------------------------------------------------------------------


def test_nash_weights_of_a_small_gram_matrix() -> None:
    found = nash_weights(torch.tensor([[4.0, -1.0], [-1.0, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([0.5, 2.0], dtype=torch.float64).sqrt(), rtol=1e-10, atol=1e-10)


def test_orthogonal_tasks_are_weighed_by_the_inverse_of_their_norms() -> None:
    diagonal = torch.tensor([1e-8, 0.25, 4.0, 1e6], dtype=torch.float64)
    torch.testing.assert_close(nash_weights(torch.diag(diagonal)), diagonal.rsqrt(), rtol=1e-10, atol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10**6))
def test_the_bargain_is_solved_to_ten_digits_keeps_order_and_is_free_of_scale(tasks, seed) -> None:
    gradients = drawn(tasks, tasks + 4, seed=seed)
    gram = gradients @ gradients.T
    weights = nash_weights(gram)
    torch.testing.assert_close(weights * (gram @ weights), torch.ones_like(weights), rtol=1e-10, atol=1e-10)
    order = torch.randperm(tasks, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(nash_weights(gram[order][:, order]), weights[order], rtol=1e-9, atol=0)
    scale = torch.linspace(0.01, 100, tasks, dtype=torch.float64)
    scaled = nash_weights(scale[:, None] * gram * scale)
    torch.testing.assert_close(scaled * scale, weights, rtol=1e-9, atol=0)
    torch.testing.assert_close((scaled * scale) @ gradients, weights @ gradients, rtol=1e-8, atol=1e-8)


def test_a_pareto_stationary_point_gives_uniform_weights_and_says_so() -> None:
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    solution = solve_nash(gradients @ gradients.T)
    assert not solution.solved
    assert solution.weights.tolist() == [1, 1]
    assert nash_weights(gradients @ gradients.T).tolist() == [1, 1]


def test_bad_gram_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match="the gradient of loss 1 is zero"):
        nash_weights(torch.diag(torch.tensor([1.0, 0.0])))
    with pytest.raises(ValueError, match="at least 2 losses are needed, as a square Gram matrix"):
        nash_weights(torch.ones(1, 1))


def test_nash_weights_are_torchjds_where_cvxpy_is_to_be_had() -> None:
    pytest.importorskip("cvxpy", reason="needs cvxpy, on which torchjd's Nash-MTL stands")
    aggregation = pytest.importorskip("torchjd.aggregation", reason="needs torchjd to compare with")
    gradients = drawn(3, 8, seed=2).float()
    theirs = aggregation.NashMTL(n_tasks=3, max_norm=0.0, update_weights_every=1, optim_niter=100)(gradients)
    gram = gram_matrix(gradients)
    torch.testing.assert_close(theirs, nash_weights(gram).float() @ gradients, rtol=1e-3, atol=1e-3)


def test_weights_are_kept_between_refreshes(network) -> None:
    balancer, asked = NashMTL(3, every=3), []
    for step in range(7):
        asked.append(balancer.needs_gradients)
        balancer.backward(network.losses(drawn(16, 4, seed=step).float()), network)
    assert asked == [True, False, False, True, False, False, True]


def test_a_nash_step_is_the_mean_of_the_weighed_losses_and_has_the_norm_of_one_over_the_root_of_k(network) -> None:
    inputs = drawn(16, 4).float()
    gram = gram_matrix(gradient_matrix(network.losses(inputs), [p for p in network.parameters() if p.requires_grad]))
    weights = nash_weights(gram).float()
    expected = copy.deepcopy(network)
    (expected.losses(inputs) @ weights / 3).backward()
    NashMTL(3).backward(network.losses(inputs), network)
    for found, wanted in zip(gradients_of(network), gradients_of(expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert torch.cat([gradient.flatten() for gradient in gradients_of(network)]).norm().item() == pytest.approx(3**-0.5, rel=1e-4)


def test_weights_and_count_go_on_from_the_state(network) -> None:
    first, second = NashMTL(3, every=2), NashMTL(3, every=2)
    first.backward(network.losses(drawn(16, 4).float()), network)
    second.load_state_dict(first.state_dict())
    assert (second.steps, second.needs_gradients) == (1, False)
    assert torch.equal(second.weights, first.weights)
    assert not torch.equal(second.weights, torch.ones(3))


def test_micro_batches_share_the_weights_of_the_first(network) -> None:
    balancer = NashMTL(3, every=1)
    balancer.descend(network.losses(drawn(8, 4, seed=1).float()), Backward(network, micro_batches=2, complete=False))
    held = balancer.weights.clone()
    assert not balancer.needs_gradients
    balancer.descend(network.losses(drawn(8, 4, seed=2).float()), Backward(network, micro_batches=2))
    assert torch.equal(balancer.weights, held)
    assert (balancer.steps, balancer.needs_gradients) == (1, True)


def test_a_stationary_step_reports_its_fallback() -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    figures = NashMTL(2).backward([weight * 1.0, weight * -1.0], [weight])
    assert figures["nash_fallback"] == 1
    assert (figures["smallest_weight"], figures["largest_weight"]) == (1, 1)


# -- uncertainty weighting -----------------------------------------------------------------------------------------------------


def test_log_variances_settle_at_the_logarithms_of_the_losses() -> None:
    losses, weighting = torch.tensor([0.01, 0.5, 3.0, 40.0]), UncertaintyWeighting(4)
    weighting(losses).backward()
    torch.testing.assert_close(weighting.log_variances.grad, 0.5 * (1 - losses / 4))
    optimizer = torch.optim.Adam(weighting.param_groups())
    for _ in range(700):
        optimizer.zero_grad()
        weighting(losses).backward()
        optimizer.step()
    torch.testing.assert_close(weighting.log_variances.detach(), (losses / 4).log(), rtol=0, atol=1e-4)


def test_the_log_variances_have_a_group_of_their_own() -> None:
    weighting = UncertaintyWeighting(3)
    (group,) = weighting.param_groups()
    assert (group["lr"], group["weight_decay"]) == (0.025, 0)
    assert group["params"][0] is weighting.log_variances
    assert list(weighting.state_dict()) == ["log_variances"]


def test_a_step_weighs_each_gradient_by_half_the_inverse_variance_over_k(network) -> None:
    inputs, weighting = drawn(16, 4).float(), UncertaintyWeighting(3)
    with torch.no_grad():
        weighting.log_variances.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    expected = copy.deepcopy(network)
    (expected.losses(inputs) @ torch.tensor([1.0, 0.0, -2.0]).exp() * 0.5 / 3).backward()
    weighting.backward(network.losses(inputs), network)
    for found, wanted in zip(gradients_of(network), gradients_of(expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pcgrad(torch.ones(1, 4)), r"at least 2 losses are needed, as gradients \(k, P\); found shape \(1, 4\)"),
        (
            lambda: PCGrad().backward(torch.ones(1, requires_grad=True), []),
            r"at least 2 losses are needed, as one vector; found shape \(1,\)",
        ),
        (lambda: pcgrad_coefficients(torch.ones(3, 3), torch.zeros(2, 2)), "orders has a row and a column for each of 3 tasks"),
        (lambda: PCGrad(chunks=0), "chunks is at least 1, or none to hold all gradients; found 0"),
        (lambda: NashMTL(1), "at least 2 losses are needed, every and chunks of at least 1; found 1, 25, 1"),
        (lambda: NashMTL(3).backward(torch.ones(2), []), "Nash-MTL was made for 3 losses; found 2"),
        (lambda: UncertaintyWeighting(0), "tasks is at least 1; found 0"),
        (lambda: UncertaintyWeighting(3)(torch.ones(2)), r"uncertainty weighting was made for 3 losses; found shape \(2,\)"),
    ],
)
def test_bad_input_is_named(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("balancer", [PCGrad(), PCGrad(chunks=2), NashMTL(3)])
def test_losses_with_graphs_of_their_own_are_differentiated_through_these_alone(balancer):
    layer, passes = nn.Linear(4, 1), []
    losses = []
    for index in range(3):
        hidden = layer(torch.randn(5, 4, generator=torch.Generator().manual_seed(index)))
        hidden.register_hook(lambda gradient, index=index: passes.append(index))
        losses.append(hidden.square().mean())
    Backward(layer).gram(losses)
    assert passes == [0, 1, 2]
    passes.clear()
    balancer.backward(losses, layer)
    assert len(passes) <= 3 * (1 + balancer.chunks if balancer.chunks else 1)
