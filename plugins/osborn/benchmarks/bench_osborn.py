"""Sinkhorn against POT, pair entropies against a table a pair, and the ranking of all triples against a loop.

In one process on the same inputs; results are held equal before the race.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy
import ot
import pytest
import torch
from torch import Tensor

from graftwork.testing import race
from graftwork_osborn import TransferabilityTable, exact_coupling, pairwise_conditional_entropy, sinkhorn, squared_distances

EPSILON = 0.05
"""Share of the mean cost at which both converge within the iterations."""


def costs(count: int, seed: int, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(count, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    return squared_distances(x.to(device), y.to(device) + 0.5)


def told(capsys: Any, what: str, found: Any) -> None:
    with capsys.disabled():
        print(f"\n{what}: {found}")


@pytest.mark.bench
@pytest.mark.parametrize("peer", ["sinkhorn_log", "sinkhorn"])
def test_sinkhorn_at_a_thousand_points_is_not_slower_than_pot(peer, capsys) -> None:
    cost = costs(1000, 0)
    given, weights, strength = cost.numpy(), ot.unif(1000), EPSILON * float(cost.mean())
    solve = {"sinkhorn_log": ot.bregman.sinkhorn_log, "sinkhorn": ot.bregman.sinkhorn_knopp}[peer]

    def theirs() -> numpy.ndarray:
        return solve(weights, weights, given, strength, numItermax=1000, stopThr=1e-6, warn=False)

    def ours() -> Tensor:
        return sinkhorn(cost, epsilon=EPSILON)

    assert float((ours() * cost).sum()) == pytest.approx(float((theirs() * given).sum()), rel=1e-4)
    found = race(ours, theirs, 3, processor=True)
    told(capsys, f"sinkhorn, n = 1000, against ot.{peer}", found)
    if peer == "sinkhorn_log":
        assert found.ratio <= 1


@pytest.mark.bench
def test_a_pool_of_ten_is_coupled_at_once(capsys) -> None:
    pool = torch.stack([costs(300, seed) for seed in range(10)])
    weights = ot.unif(300)

    def theirs() -> list[numpy.ndarray]:
        return [
            ot.bregman.sinkhorn_log(weights, weights, one.numpy(), EPSILON * float(one.mean()), stopThr=1e-6, warn=False) for one in pool
        ]

    def ours() -> Tensor:
        return sinkhorn(pool, epsilon=EPSILON)

    torch.testing.assert_close(ours().sum(dim=0), torch.from_numpy(sum(theirs())), rtol=0, atol=1e-6)
    found = race(ours, theirs, 3, processor=True)
    told(capsys, "ten problems of n = 300 at once, against ot.sinkhorn_log one by one", found)
    assert found.ratio <= 1


@pytest.mark.bench
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sinkhorn_at_five_thousand_points_is_ten_times_faster_than_pot_on_a_gpu(capsys) -> None:
    cost = costs(5000, 0, "cuda")
    given, weights, strength = cost.cpu().numpy(), ot.unif(5000), EPSILON * float(cost.mean())
    found = race(
        lambda: sinkhorn(cost, epsilon=EPSILON),
        lambda: ot.bregman.sinkhorn_log(weights, weights, given, strength, numItermax=1000, stopThr=1e-6, warn=False),
        1,
    )
    told(capsys, "sinkhorn, n = 5000, on a GPU against ot.sinkhorn_log on the CPU", found)
    assert found.ratio <= 0.1


@pytest.mark.bench
def test_the_exact_coupling_costs_what_pots_own_does(capsys) -> None:
    cost = costs(500, 0)
    given, weights = cost.numpy(), ot.unif(500)
    assert numpy.abs(exact_coupling(cost).numpy() - ot.emd(weights, weights, given)).max() < 1e-12
    told(
        capsys,
        "exact, n = 500, against ot.emd",
        race(lambda: exact_coupling(cost), lambda: ot.emd(weights, weights, given), 3, processor=True),
    )


@pytest.mark.bench
def test_entropies_of_all_pairs_are_not_slower_than_a_table_a_pair(capsys) -> None:
    predictions = torch.randint(100, (20, 5000), generator=torch.Generator().manual_seed(0))

    def theirs() -> Tensor:
        found = torch.zeros(20, 20, dtype=torch.float64)
        for a, b in itertools.permutations(range(20), 2):
            joint = torch.bincount(predictions[a] * 100 + predictions[b], minlength=10_000).view(100, 100).double() / 5000
            found[a, b] = torch.special.entr(joint).sum() - torch.special.entr(joint.sum(dim=0)).sum()
        return found

    def ours() -> Tensor:
        return pairwise_conditional_entropy(predictions)

    torch.testing.assert_close(ours(), theirs())
    told(capsys, "entropies of 380 pairs, n = 5000, C = 100, against a table a pair", race(ours, theirs, 3, processor=True))


@pytest.mark.bench
def test_all_triples_of_twenty_models_are_ranked_in_milliseconds(capsys) -> None:
    generator = torch.Generator().manual_seed(0)
    single, pair = torch.rand(20, generator=generator, dtype=torch.float64), torch.rand(20, 20, generator=generator, dtype=torch.float64)
    score = TransferabilityTable(tuple(map(str, range(20))), single, single, pair, single[:, None]).set_score()

    def theirs() -> list[float]:
        return sorted(score.score(subset) for subset in itertools.combinations(range(20), 3))

    assert score.rank(3).scores.tolist() == pytest.approx(theirs())
    found = race(lambda: score.rank(3), theirs, 3, processor=True)
    told(capsys, "1140 triples at once, against one by one", found)
    assert found.ratio < 0.1
