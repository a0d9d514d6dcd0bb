"""Couplings against scipy's assignment, POT's own numbers, and closed forms."""

from __future__ import annotations

import math
import sys

import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment

import graftwork as gw
from graftwork_osborn import Transport, exact_coupling, frobenius_coupling, sinkhorn, squared_distances
from graftwork_osborn.transport import round_to_marginals

SIZES = [(12, 12), (9, 17), (30, 8)]


def costs(m: int, n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(count, 5, generator=generator, dtype=torch.float64) for count in (m, n))
    return squared_distances(x, 1.5 * y + 1)


def carried(coupling: torch.Tensor, cost: torch.Tensor) -> float:
    return float((coupling * cost).sum())


def test_distances_are_squared_and_keep_their_digits_far_from_the_origin() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(count, 4, generator=generator) for count in (5, 7))
    expected = (x[:, None].double() - y.double()).square().sum(dim=2)
    torch.testing.assert_close(squared_distances(x, y), expected)
    torch.testing.assert_close(squared_distances(x.double() + 1e6, y.double() + 1e6), expected, rtol=1e-7, atol=1e-7)
    assert squared_distances(x, x).diagonal().max() < 1e-12
    with pytest.raises(ValueError, match=r"source is \(m, d\) and target \(n, d\); found \(5, 4\), \(7, 3\)|found \(5, 4\) and \(7, 3\)"):
        squared_distances(x, y[:, :3])


def test_a_sample_moved_by_c_costs_the_square_of_c() -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.tensor([1.0, -2.0, 0.5])
    cost = squared_distances(x, x + shift)
    assert carried(exact_coupling(cost), cost) == pytest.approx(float(shift.square().sum()), abs=1e-10)


def test_equally_many_samples_are_coupled_as_by_the_best_assignment() -> None:
    cost = costs(25, 25)
    rows, columns = linear_sum_assignment(cost.numpy())
    assert carried(exact_coupling(cost), cost) == pytest.approx(cost[rows, columns].sum().item() / 25, abs=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_the_exact_cost_is_that_of_pot(size) -> None:
    cost = costs(*size)
    assert carried(exact_coupling(cost), cost) == pytest.approx(float(ot.emd2(ot.unif(size[0]), ot.unif(size[1]), cost.numpy())), abs=1e-10)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("solve", [exact_coupling, sinkhorn, frobenius_coupling])
def test_marginals_are_uniform_and_nothing_is_negative(solve, size) -> None:
    coupling = solve(costs(*size))
    assert coupling.min() >= 0
    assert (coupling.sum(dim=1) - 1 / size[0]).abs().max() < 1e-6
    assert (coupling.sum(dim=0) - 1 / size[1]).abs().max() < 1e-6


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.filterwarnings("ignore:sinkhorn")
def test_sinkhorn_is_never_below_the_exact_cost_and_near_it_at_little_regularisation(size) -> None:
    cost = costs(*size)
    exact = carried(exact_coupling(cost), cost)
    loose, tight = (carried(sinkhorn(cost, epsilon=epsilon), cost) for epsilon in (0.1, 1e-3))
    assert exact - 1e-12 <= tight <= 1.01 * exact
    assert tight < loose


def test_sinkhorn_gives_the_plan_of_pot_at_the_same_regularisation() -> None:
    cost = costs(20, 14)
    theirs = ot.bregman.sinkhorn_log(ot.unif(20), ot.unif(14), cost.numpy(), 0.05 * float(cost.mean()), 5000, 1e-12)
    ours = sinkhorn(cost, epsilon=0.05, tolerance=1e-12, max_iterations=5000)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-10)


def test_problems_are_solved_at_once_as_they_are_one_by_one() -> None:
    batch = torch.stack([costs(10, 8, seed) * (seed + 1) for seed in range(3)])
    together, apart = sinkhorn(batch, epsilon=0.1), torch.stack([sinkhorn(one, epsilon=0.1) for one in batch])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)
    torch.testing.assert_close(sinkhorn(batch, epsilon=0.1, budget=80), apart, rtol=0, atol=0)
    uneven = [costs(*size) for size in SIZES]
    for padded, cost in zip(Transport("sinkhorn", epsilon=0.1).couplings(uneven), uneven, strict=True):
        torch.testing.assert_close(padded, sinkhorn(cost, epsilon=0.1), rtol=0, atol=1e-6)


def test_sinkhorn_survives_costs_that_single_exponentials_do_not() -> None:
    cost = torch.tensor([[0.0, 1e6], [1e6, 0.0], [3e5, 8e5], [1e3, 1e6]], dtype=torch.float32)
    coupling = sinkhorn(cost, epsilon=1e-3, max_iterations=200)
    assert coupling.isfinite().all()
    exact = exact_coupling(cost)
    assert carried(exact, cost) <= carried(coupling, cost) * (1 + 1e-5) <= 1.02 * carried(exact, cost) + 1


def test_a_solver_that_is_not_done_is_told() -> None:
    with pytest.warns(UserWarning, match="marginals are off by .* after max_iterations = 1; they are rounded"):
        sinkhorn(costs(60, 60), max_iterations=1)
    with pytest.warns(UserWarning, match="frobenius: marginals are off by .* after max_iterations = 1; they are rounded"):
        frobenius_coupling(costs(60, 60), 1e-3, max_iterations=1)


def test_the_quadratic_coupling_goes_from_the_exact_one_to_the_outer_product() -> None:
    cost = costs(15, 12)
    exact, outer = exact_coupling(cost), torch.full_like(cost, 1 / 180)
    away = [float((frobenius_coupling(cost, gamma) - exact).abs().sum()) for gamma in (10, 0.1, 1e-3, 1e-5)]
    assert away == sorted(away, reverse=True)
    assert carried(frobenius_coupling(cost, 1e-5), cost) == pytest.approx(carried(exact, cost), rel=1e-4)
    torch.testing.assert_close(frobenius_coupling(cost, 1e6), outer, rtol=1e-4, atol=0)


def test_the_quadratic_coupling_is_the_least_of_its_objective() -> None:
    cost = costs(7, 6)
    strength = 0.1 * cost.mean() * 42
    found = frobenius_coupling(cost)
    least = carried(found, cost) + strength * found.square().sum()
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):  # moves along the couplings that stay non-negative
        other = exact_coupling(torch.rand(7, 6, generator=generator, dtype=torch.float64))
        mixed = 0.99 * found + 0.01 * other
        assert carried(mixed, cost) + strength * mixed.square().sum() >= least


def test_scale_and_size_of_the_problem_leave_the_meaning_of_the_regularisers() -> None:
    cost = costs(10, 10)
    twice = torch.cat([torch.cat([cost, cost], dim=1)] * 2)
    for solve in (lambda c: sinkhorn(c, epsilon=0.1), frobenius_coupling):
        torch.testing.assert_close(solve(1000 * cost), solve(cost), rtol=1e-4, atol=1e-7)
        folded = solve(twice).view(2, 10, 2, 10).sum(dim=(0, 2))
        torch.testing.assert_close(folded, solve(cost), rtol=1e-3, atol=1e-5)


def test_bad_parameters_and_costs_are_told() -> None:
    cost = costs(4, 4)
    for refused, message in (
        (lambda: sinkhorn(cost, epsilon=0), "epsilon is above 0; found 0"),
        (lambda: sinkhorn(cost[0]), r"cost is \(..., m, n\) with no empty side; found \(4,\)"),
        (lambda: sinkhorn(cost, cost[0, :3]), r"the weights of a cost \(4, 4\) are \(4,\); found \(3,\)"),
        (lambda: frobenius_coupling(cost, -1), "gamma is above 0; found -1"),
        (lambda: exact_coupling(cost * math.nan), r"cost is a finite matrix \(m, n\)"),
        (lambda: exact_coupling(costs(40, 40), max_iterations=1), "was not found in max_iterations = 1"),
        (lambda: Transport("simplex"), "solver is emd, sinkhorn or frobenius; found 'simplex'"),
        (lambda: Transport(epsilon=0), "epsilon is above 0; found 0"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


def test_a_missing_pot_is_named_with_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(gw.GraftworkError, match=r"ot cannot be imported .*: pip install POT"):
        exact_coupling(costs(3, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_couplings_of_half_precision_costs_are_at_least_float32(dtype) -> None:
    cost = costs(6, 5).to(dtype)
    assert sinkhorn(cost, epsilon=0.1).dtype is torch.float32
    assert exact_coupling(cost).dtype is torch.float64


def test_a_batch_of_one_and_unequal_weights_give_the_plan_of_pot() -> None:
    cost = costs(12, 9)
    a, b = (torch.arange(1.0, n + 1, dtype=torch.float64) / (n * (n + 1) / 2) for n in (12, 9))
    theirs = ot.bregman.sinkhorn_log(a.numpy(), b.numpy(), cost.numpy(), 0.1 * float(a @ cost @ b), 5000, 1e-12)
    ours = sinkhorn(cost, a, b, epsilon=0.1, tolerance=1e-12, max_iterations=5000)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-10)
    before = ours.clone()
    torch.testing.assert_close(round_to_marginals(ours, b.new_full((12,), 1 / 12), b).sum(dim=1), b.new_full((12,), 1 / 12))
    assert torch.equal(ours, before)  # its own copy is rounded
