"""The losses with learned and counted weights, forward and backward, against the forms in which the authors' code computes them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.testing import median_seconds
from graftwork.usage import measured
from graftwork_meta_path_contrast import LearnedPairWeights, cluster_pair_weights, weighted_info_nce

NODES, WIDTH, TEMPERATURE, REPEATS = 2000, 64, 0.9, 3


def embeddings(nodes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(functional.normalize(torch.randn(nodes, WIDTH, generator=generator), dim=1).requires_grad_() for _ in range(2))  # type: ignore[return-value]


def network() -> LearnedPairWeights:
    torch.manual_seed(0)
    return LearnedPairWeights(WIDTH, 16)


def blocked(anchors: Tensor, keys: Tensor, pairs: LearnedPairWeights) -> Tensor:
    return weighted_info_nce(anchors, keys, pairs.bind(anchors, keys), TEMPERATURE).loss


def whole(anchors: Tensor, keys: Tensor, pairs: LearnedPairWeights) -> Tensor:
    """As AdaMEOW's code has it: every pair's sum of embeddings, (N^2, D), repeated row by row, and the network on each."""
    nodes = len(anchors)
    similarity = (anchors @ keys.T / TEMPERATURE).exp()
    repeated = torch.stack([row.unsqueeze(0).repeat(nodes, 1) for row in anchors]).reshape(nodes * nodes, -1)
    tiled = keys.unsqueeze(0).repeat(nodes, 1, 1).reshape(nodes * nodes, -1)
    weights = nn.Sequential(pairs.first, nn.Tanh(), pairs.last, nn.Sigmoid())(repeated + tiled).reshape(nodes, nodes)
    return -(similarity.diagonal() / (similarity * weights).sum(dim=1)).log().mean()


def counted(anchors: Tensor, keys: Tensor, assignments: list[Tensor]) -> Tensor:
    return weighted_info_nce(anchors, keys, cluster_pair_weights(assignments), TEMPERATURE).loss


def multiplied(anchors: Tensor, keys: Tensor, assignments: list[Tensor]) -> Tensor:
    """As MEOW's code has it: one-hot matrices of the clusters multiplied by their transposes, taken off a full matrix."""
    nodes = len(anchors)
    weights = torch.full((nodes, nodes), float(len(assignments)))
    for own in assignments:
        table = torch.sparse_coo_tensor(torch.stack([torch.arange(nodes), own]), torch.ones(nodes), (nodes, int(own.max()) + 1))
        weights = weights - torch.mm(table, table.to_dense().t())
    similarity = (anchors @ keys.T / TEMPERATURE).exp()
    return -(similarity.diagonal() / (similarity * weights).sum(dim=1)).log().mean()


def same_gradients(ours: Callable[[], Tensor], theirs: Callable[[], Tensor], leaves: list[Tensor]) -> None:
    found = [(loss := step(), *torch.autograd.grad(loss, leaves)) for step in (ours, theirs)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.bench
def test_learned_weights_in_blocks_race_every_pair_at_once(capsys) -> None:
    anchors, keys, pairs = *embeddings(NODES), network()
    steps = (lambda: blocked(anchors, keys, pairs), lambda: whole(anchors, keys, pairs))
    same_gradients(*steps, [anchors, keys, *pairs.parameters()])
    ours, theirs = median_seconds([lambda step=step: step().backward() for step in steps], REPEATS)
    with capsys.disabled():
        print(f"\nlearned weights, N={NODES}: {ours:.2f} s against {theirs:.2f} s, {theirs / ours:.1f} times")
    assert ours < theirs


@pytest.mark.bench
def test_counted_weights_race_products_of_one_hot_matrices(capsys) -> None:
    anchors, keys = embeddings(2 * NODES)
    generator = torch.Generator().manual_seed(0)
    assignments = [torch.randint(count, (2 * NODES,), generator=generator) for count in (100, 300)]
    steps = (lambda: counted(anchors, keys, assignments), lambda: multiplied(anchors, keys, assignments))
    same_gradients(*steps, [anchors, keys])
    ours, theirs = median_seconds([lambda step=step: step().backward() for step in steps], REPEATS)
    with capsys.disabled():
        print(f"\ncounted weights, N={2 * NODES}: {ours:.2f} s against {theirs:.2f} s, {theirs / ours:.1f} times")
    assert ours < theirs * 1.5


@pytest.mark.bench
def test_the_peak_of_learned_weights_in_blocks_is_below_a_tenth(capsys) -> None:
    peaks = [
        int(subprocess.run([sys.executable, __file__, form], check=True, capture_output=True, text=True).stdout)
        for form in ("ours", "theirs")
    ]
    ours, theirs = (peak / 2**20 for peak in peaks)
    with capsys.disabled():
        print(f"\npeak above the start, N={NODES}: {ours:.0f} MiB against {theirs:.0f} MiB")
    assert ours < theirs / 10


if __name__ == "__main__":
    first, second, scorer = *embeddings(NODES), network()
    cpu = torch.device("cpu")
    with measured(cpu) as before:
        pass
    with measured(cpu) as usage:
        (blocked if sys.argv[1] == "ours" else whole)(first, second, scorer).backward()
    print((usage.host_bytes or 0) - (before.host_bytes or 0))
