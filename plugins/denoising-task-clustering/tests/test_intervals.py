"""Intervals: the card's numbers, exhaustive search, ties, what is refused."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graftwork_denoising_task_clustering import (
    Intervals,
    affinity_cost,
    cluster_intervals,
    equal_intervals,
    log_snr,
    timestep_cost,
    value_cost,
)
from graftwork_denoising_task_clustering.intervals import BLOCK


def by_definition(values: Tensor, start: int, end: int) -> float:
    middle = (start + end) // 2
    return float((values[start:end] - values[middle]).abs().sum())


def by_affinity(affinity: Tensor, start: int, end: int) -> float:
    return -float(affinity[(start + end) // 2, start:end].sum())


def exhaustive(cost, count: int, clusters: int) -> float:
    best = float("inf")
    for inner in itertools.combinations(range(1, count), clusters - 1):
        edges = [0, *inner, count]
        best = min(best, sum(cost(left, right) for left, right in itertools.pairwise(edges)))
    return best


def values_of(numbers) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def betas(schedule: str) -> Tensor:
    if schedule == "linear":
        return torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()


@pytest.mark.parametrize(
    ("numbers", "starts", "cost"), [([0, 1, 2, 10, 11, 12, 50, 51, 80], (0, 6, 8), 31), (list(range(10)), (0, 3, 6), 8)]
)
def test_the_cards_sequences_fall_into_their_three_clusters(numbers, starts, cost) -> None:
    found = cluster_intervals(value_cost(values_of(numbers)), len(numbers), 3)
    assert (found.starts, found.total_cost) == (starts, cost)


def test_a_thousand_timesteps_in_five_cost_fifty_thousand_as_equal_intervals_do() -> None:
    assert cluster_intervals(timestep_cost(1000), 1000, 5).total_cost == 50000
    equal = equal_intervals(1000, 5)
    assert equal.starts == (0, 200, 400, 600, 800)
    assert equal.total_cost == 50000


@pytest.mark.parametrize(("count", "clusters"), [(10, 3), (17, 4), (100, 7), (101, 6)])
def test_equal_intervals_attain_the_least_timestep_cost_also_where_k_does_not_divide_t(count, clusters) -> None:
    equal = equal_intervals(count, clusters)
    assert max(equal.sizes) - min(equal.sizes) <= 1
    assert equal.total_cost == cluster_intervals(timestep_cost(count), count, clusters).total_cost


@pytest.mark.parametrize(
    ("schedule", "starts", "cost"),
    [
        ("linear", (0, 569), 1769.62757),
        ("linear", (0, 347, 708), 1246.62142),
        ("linear", (0, 153, 394, 624, 823), 781.74048),
        ("scaled-linear", (0, 149, 372, 605, 816), 482.77333),
    ],
)
def test_log_snr_intervals_of_the_usual_schedules(schedule, starts, cost) -> None:
    snr = log_snr((1 - betas(schedule)).cumprod(0))
    found = cluster_intervals(value_cost(snr), 1000, len(starts))
    assert found.starts == starts
    assert found.total_cost == pytest.approx(cost, abs=5e-6)
    assert found.total_cost == pytest.approx(sum(by_definition(snr, *bounds) for bounds in found.bounds), abs=1e-8)


def test_raw_snr_gives_the_useless_intervals_that_the_logarithm_avoids() -> None:
    kept = (1 - betas("linear")).cumprod(0)
    assert cluster_intervals(value_cost(kept / (1 - kept)), 1000, 5).starts == (0, 1, 2, 5, 18)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=11), st.integers(1, 4), st.booleans())
def test_no_partition_of_monotone_values_costs_less(numbers, clusters, falling) -> None:
    values = values_of(sorted(numbers, reverse=falling))
    clusters = min(clusters, len(numbers))
    found = cluster_intervals(value_cost(values), len(values), clusters)
    assert found.total_cost == exhaustive(lambda left, right: by_definition(values, left, right), len(values), clusters)
    assert sum(found.sizes) == len(values)
    assert min(found.sizes) >= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 11), st.integers(1, 4))
def test_no_partition_of_a_symmetric_affinity_costs_less(seed, count, clusters) -> None:
    raw = torch.rand(count, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    affinity = (raw + raw.T) / 2
    clusters = min(clusters, count)
    found = cluster_intervals(affinity_cost(affinity), count, clusters)
    expected = exhaustive(lambda left, right: by_affinity(affinity, left, right), count, clusters)
    assert found.total_cost == pytest.approx(expected, abs=1e-12)


def test_as_many_intervals_as_timesteps_cost_nothing_or_minus_one_each() -> None:
    assert cluster_intervals(value_cost(log_snr(torch.linspace(0.99, 0.01, 12))), 12, 12).costs == (0.0,) * 12
    affinity = torch.full((6, 6), 0.5).fill_diagonal_(1)
    assert cluster_intervals(affinity_cost(affinity), 6, 6).costs == (-1.0,) * 6


def test_one_interval_holds_everything_and_more_never_cost_more() -> None:
    values = values_of([0, 1, 4, 9, 16, 25, 36])
    totals = [cluster_intervals(value_cost(values), 7, k).total_cost for k in range(1, 8)]
    assert cluster_intervals(value_cost(values), 7, 1).bounds == [(0, 7)]
    assert totals == sorted(totals, reverse=True)


def test_blocks_of_right_ends_change_nothing() -> None:
    count = BLOCK + 300
    assert cluster_intervals(timestep_cost(count), count, 3).total_cost == equal_intervals(count, 3).total_cost


def test_intervals_of_cells_become_intervals_of_timesteps() -> None:
    found = Intervals((0, 3, 7), 10).scaled(1000)
    assert found.bounds == [(0, 300), (300, 700), (700, 1000)]
    assert torch.bincount(found.assignment()).tolist() == [300, 400, 300]
    with pytest.raises(ValueError, match="intervals over 10 cells scale to a multiple of that; found 1005"):
        Intervals((0, 3, 7), 10).scaled(1005)


@pytest.mark.parametrize("clusters", [0, 11])
def test_k_outside_one_to_t_is_refused(clusters) -> None:
    for function in (lambda: cluster_intervals(timestep_cost(10), 10, clusters), lambda: equal_intervals(10, clusters)):
        with pytest.raises(ValueError, match=f"k is between 1 and the number of timesteps, 10; found {clusters}"):
            function()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: affinity_cost(torch.ones(3, 4)), r"task affinity is a square matrix; found shape \(3, 4\)"),
        (lambda: affinity_cost(torch.full((2, 2), torch.nan)), "task affinity must be finite; 4 entries are NaN or infinite"),
        (lambda: value_cost(torch.tensor([0.0, 2.0, 1.0])), "values must be monotone"),
        (lambda: value_cost(torch.tensor([0.0, torch.inf])), r"sequence of finite numbers; found shape \(2,\), finite: 1 of 2"),
        (lambda: Intervals((0, 5, 5), 10), r"starts ascend from 0 and stay below 10; found \[0, 5, 5\]"),
        (lambda: Intervals((1, 5), 10), r"starts ascend from 0 and stay below 10; found \[1, 5\]"),
    ],
)
def test_bad_input_is_named(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_thousand_timesteps_are_clustered_in_a_moment() -> None:
    snr = log_snr((1 - betas("linear")).cumprod(0))
    seconds = []
    for _ in range(5):
        start = time.process_time()
        cluster_intervals(value_cost(snr), 1000, 5)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.2  # measured apart at 50 ms at most; the loop over Python numbers takes minutes
