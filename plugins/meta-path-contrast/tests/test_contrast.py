"""Weighted InfoNCE and the prototype loss: closed forms, the paper's gradient, blocks, learned weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import graftwork as gw
from graftwork_meta_path_contrast import (
    Clustering,
    LearnedPairWeights,
    cluster_pair_weights,
    concentrations,
    prototype_loss,
    weighted_info_nce,
)
from graftwork_meta_path_contrast.prototypes import prototype_loss_of

N, TAU = 9, 0.4


def unit(rows: int, width: int = 6, seed: int = 0) -> Tensor:
    """Rows of unit length in float64."""
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1)


class Given:
    """Weights as they are given."""

    width = 1

    def __init__(self, weights: Tensor):
        self.weights = weights

    def log_weights(self, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        chosen = self.weights[rows]
        return (chosen if columns is None else chosen[:, columns]).log()

    def log_total(self, logs: Tensor, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        return logs.logsumexp(dim=1)


def clusterings() -> list[Tensor]:
    return [torch.arange(N) % 3, torch.arange(N) // 2]


@pytest.mark.parametrize("columns", [None, torch.tensor([0, 3, 3, 5])])
def test_the_sizes_of_clusters_tell_the_sum_of_a_row(columns: Tensor | None) -> None:
    weights, rows = cluster_pair_weights(clusterings()), torch.tensor([0, 4, 5])
    logs = weights.log_weights(rows, columns)
    torch.testing.assert_close(weights.log_total(logs, rows, columns), logs.logsumexp(dim=1))


def by_hand(anchors: Tensor, keys: Tensor, weights: Tensor, temperature: float = TAU) -> Tensor:
    e = (anchors @ keys.T / temperature).exp()
    return -(e.diagonal() / (weights * e).sum(dim=1)).log().mean()


def test_weights_of_one_everywhere_are_plain_info_nce() -> None:
    a, k = unit(N), unit(N, seed=1)
    expected = functional.cross_entropy(a @ k.T / TAU, torch.arange(N))
    torch.testing.assert_close(weighted_info_nce(a, k, None, TAU).loss, expected)
    torch.testing.assert_close(weighted_info_nce(a, k, Given(torch.ones(N, N)), TAU).loss, expected)


def test_the_positive_is_not_among_what_it_is_divided_by_and_the_loss_may_be_negative() -> None:
    a = unit(N)
    weights = cluster_pair_weights([torch.arange(N)])
    loss = weighted_info_nce(a, a, weights, 0.1).loss
    torch.testing.assert_close(loss, by_hand(a, a, 1 - torch.eye(N, dtype=a.dtype), 0.1))
    assert loss < 0


def test_cluster_weights_count_the_clusterings_that_tell_a_pair_apart() -> None:
    found = cluster_pair_weights(clusterings()).log_weights(torch.arange(N)).exp()
    expected = sum((c[:, None] != c).float() for c in clusterings())
    torch.testing.assert_close(found, expected)
    assert not found.diagonal().any()
    assert torch.equal(found[0] == 0, torch.arange(N) == 0)
    singletons = cluster_pair_weights([torch.arange(N)] * 3).log_weights(torch.arange(N)).exp()
    torch.testing.assert_close(singletons, 3 * (1 - torch.eye(N)))


def test_a_pair_that_is_always_together_is_no_negative() -> None:
    a, k = unit(N), unit(N, seed=1).requires_grad_()
    together = cluster_pair_weights([torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3])])
    (gradient,) = torch.autograd.grad(weighted_info_nce(a, k, together, TAU).loss, k)
    weights = together.log_weights(torch.arange(N)).exp().double()
    torch.testing.assert_close(gradient, expected_gradient(a, k.detach(), weights))


def expected_gradient(a: Tensor, k: Tensor, weights: Tensor) -> Tensor:
    """Of the keys: w_ij e_ij / (sum w e) a_i / tau for each i, less a_j / tau of the positive, over N."""
    share = weights * (a @ k.T / TAU).exp()
    share = share / share.sum(dim=1, keepdim=True)
    return (share.T @ a - a) / (TAU * len(a))


def test_the_gradient_of_a_negative_is_its_weights_share_of_the_push() -> None:
    a, k = unit(N), unit(N, seed=1).requires_grad_()
    weights = torch.rand(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad(weighted_info_nce(a, k, Given(weights), TAU).loss, k)
    torch.testing.assert_close(gradient, expected_gradient(a, k.detach(), weights))


@pytest.mark.parametrize("block_rows", [1, 4, 9, 100])
def test_blocks_change_neither_loss_nor_gradient(block_rows) -> None:
    network = pair_network()
    found = []
    for rows in (N, block_rows):
        a, k = unit(N).requires_grad_(), unit(N, seed=1).requires_grad_()
        result = weighted_info_nce(a, k, network.bind(a, k), TAU, block_rows=rows)
        found.append((result.loss, result.mean_weight, *torch.autograd.grad(result.loss, [a, k, *network.parameters()])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def pair_network() -> LearnedPairWeights:
    torch.manual_seed(0)
    return LearnedPairWeights(6, 5).double()


def test_learned_weights_equal_the_network_on_every_sum() -> None:
    network, a, k = pair_network(), unit(N), unit(N, seed=1)
    plain = nn.Sequential(network.first, nn.Tanh(), network.last, nn.Sigmoid())
    expected = plain((a[:, None] + k).reshape(N * N, -1)).reshape(N, N)
    torch.testing.assert_close(network(a, k), expected)
    assert ((network(a, k) > 0) & (network(a, k) < 1)).all()
    torch.testing.assert_close(weighted_info_nce(a, k, network.bind(a, k), TAU).loss, by_hand(a, k, expected))


def test_a_network_whose_last_layer_is_zero_shifts_info_nce_by_log_two() -> None:
    network, a, k = pair_network(), unit(N), unit(N, seed=1)
    nn.init.zeros_(network.last.weight)
    nn.init.zeros_(network.last.bias)
    found = weighted_info_nce(a, k, network.bind(a, k), TAU)
    torch.testing.assert_close(found.loss, weighted_info_nce(a, k, None, TAU).loss - math.log(2))
    assert found.mean_weight.item() == pytest.approx(0.5)


def test_shrinking_all_weights_lowers_the_loss_unless_rows_are_normalised() -> None:
    a, k, weights = unit(N), unit(N, seed=1), torch.rand(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss, small = (weighted_info_nce(a, k, Given(w), TAU).loss for w in (weights, weights / 100))
    torch.testing.assert_close(small, loss - math.log(100))
    normed, again = (weighted_info_nce(a, k, Given(w), TAU, row_mean=True).loss for w in (weights, weights / 100))
    torch.testing.assert_close(again, normed)
    torch.testing.assert_close(normed, by_hand(a, k, weights / weights.mean(dim=1, keepdim=True)))


def test_sampled_negatives_of_all_keys_are_all_and_of_some_are_scaled_up() -> None:
    a, k, weights = unit(N), unit(N, seed=1), cluster_pair_weights(clusterings())
    exact = weighted_info_nce(a, k, weights, TAU).loss
    torch.testing.assert_close(weighted_info_nce(a, k, weights, TAU, columns=torch.randperm(N)).loss, exact)
    columns, full = torch.tensor([1, 4, 7]), torch.zeros(N, N, dtype=a.dtype)
    full[:, columns] = N / 3 * weights.log_weights(torch.arange(N), columns).exp().double()
    torch.testing.assert_close(weighted_info_nce(a, k, weights, TAU, columns=columns).loss, by_hand(a, k, full))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_are_summed_in_single(dtype) -> None:
    a, k = unit(N).to(dtype), unit(N, seed=1).to(dtype)
    loss = weighted_info_nce(a, k, None, TAU).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, weighted_info_nce(a.float(), k.float(), None, TAU).loss)


def test_one_cluster_for_all_raises_instead_of_an_infinite_loss() -> None:
    with pytest.raises(gw.DataError, match=r"every weight of 9 of 9 anchors is 0, .* ask for more clusters"):
        weighted_info_nce(unit(N), unit(N), cluster_pair_weights([torch.zeros(N, dtype=torch.long)]), TAU)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive; found 0.0"),
        ({"keys": unit(4)}, r"anchors and keys are both \(N, D\); found \(9, 6\) and \(4, 6\)"),
        ({"block_rows": 0}, "block_rows must be at least 1; found 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        weighted_info_nce(**{"anchors": unit(N), "keys": unit(N), **arguments})


# -- prototypes ----------------------------------------------------------------------------------------------------------------


def test_singletons_at_one_temperature_are_info_nce_with_each_node_its_own_prototype() -> None:
    a, centroids = unit(N), unit(N, seed=1)
    found = prototype_loss_of(a, torch.arange(N), centroids, torch.full((N,), TAU))
    torch.testing.assert_close(found, functional.cross_entropy(a @ centroids.T / TAU, torch.arange(N)), rtol=1e-6, atol=1e-6)


def test_the_prototype_loss_is_its_formula_with_a_temperature_a_cluster() -> None:
    a, centroids, phi = unit(N), unit(3, seed=1), torch.tensor([0.2, 0.4, 0.9], dtype=torch.float64)
    own = torch.arange(N) % 3
    e = (a @ centroids.T / phi).exp()
    expected = -(e[torch.arange(N), own] / (N / 3 * e.sum(dim=1))).log().mean()
    torch.testing.assert_close(prototype_loss_of(a, own, centroids, phi), expected)


def clustering(assignments: list[int], affinity: list[float], clusters: int) -> Clustering:
    return Clustering(torch.tensor(assignments), torch.eye(clusters), torch.tensor(affinity))


@pytest.mark.parametrize("density", ["similarity", "distance"])
def test_concentrations_are_mean_roots_over_log_counts_clipped_and_scaled(density) -> None:
    import numpy as np

    affinity = [0.9, 0.7, 0.8, 0.4, 0.5, 0.6, 0.95]
    one = clustering([0, 0, 1, 1, 1, 1, 2], affinity, 3)
    d = np.array(affinity) if density == "similarity" else 2 - 2 * np.array(affinity)
    phi = np.array([np.sqrt(d[:2]).mean() / np.log(7), np.sqrt(d[2:6]).mean() / np.log(9), 0])
    phi[2] = phi.max()
    phi = phi.clip(np.percentile(phi, 10), np.percentile(phi, 90))
    expected = 0.4 * phi / phi.mean()
    np.testing.assert_allclose(concentrations(one, 0.4, density).numpy(), expected, rtol=1e-5)


def test_concentrations_have_the_temperature_as_their_mean_even_of_singletons() -> None:
    many = Clustering(torch.arange(40) % 7, torch.eye(7), torch.rand(40, generator=torch.Generator().manual_seed(0)))
    assert concentrations(many, 0.7).mean().item() == pytest.approx(0.7)
    assert torch.equal(concentrations(clustering([0, 1, 2], [1.0, 1.0, 1.0], 3), 0.7), torch.full((3,), 0.7))


def test_the_loss_of_several_clusterings_is_their_mean() -> None:
    a = unit(4, 3)
    both = [clustering([0, 0, 1, 2], [0.9, 0.8, 0.7, 0.6], 3), clustering([0, 1, 1, 1], [0.9, 0.8, 0.7, 0.6], 3)]
    one, other = (prototype_loss(a, [each], TAU) for each in both)
    torch.testing.assert_close(prototype_loss(a, both, TAU), (one + other) / 2)
    with pytest.raises(ValueError, match="at least one clustering"):
        prototype_loss(a, [], TAU)
    with pytest.raises(ValueError, match="temperature must be positive; found 0"):
        concentrations(both[0], 0)
