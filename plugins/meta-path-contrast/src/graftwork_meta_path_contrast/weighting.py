"""How negatives are weighed: by how many clusterings tell a pair apart (MEOW), or by a network of the pair (AdaMEOW)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork_meta_path_contrast.clustering import cluster_all
from graftwork_meta_path_contrast.contrast import PairWeights

__all__ = ["ClusterPairWeights", "ClusterWeighting", "LearnedPairWeights", "cluster_pair_weights"]


@dataclass(frozen=True)
class ClusterPairWeights:
    """w_ij = in how many of k clusterings i and j are apart, 0..k (Yu et al., 2023); 0 for a node with itself.

    Args:
        assignments: (k, N) long.
        width: numbers that a pair takes to make.
    """

    assignments: Tensor
    width: int = 1

    def log_weights(self, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        """(b, S), -inf where a pair is always together."""
        narrow = self.assignments.int()
        own, other = narrow[:, rows], narrow if columns is None else narrow[:, columns]
        first, *others = (one[:, None] != all_of_it for one, all_of_it in zip(own, other, strict=True))
        apart = first.view(torch.uint8) if len(own) < 256 else first.int()  # a byte a pair while they are counted
        for one in others:
            apart += one
        logs: Tensor = apart.float().log_()
        return logs

    def log_total(self, logs: Tensor, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        """(b,) log of the sum of a row's weights: how many keys lie outside its clusters, which the sizes of clusters tell."""
        other = self.assignments if columns is None else self.assignments[:, columns]
        ones = torch.ones_like(other, dtype=torch.float32)
        sizes = torch.zeros_like(self.assignments, dtype=torch.float32).scatter_add_(1, other, ones)  # (k, N), no more clusters than nodes
        return (other.shape[1] - sizes.gather(1, self.assignments[:, rows])).sum(0).log()


def cluster_pair_weights(assignments: Sequence[Tensor]) -> ClusterPairWeights:
    """The weights that clusterings give.

    Args:
        assignments: (N,) long each.

    Raises:
        ValueError: if there is none.
    """
    if not len(assignments):
        raise ValueError("assignments holds at least one clustering")
    return ClusterPairWeights(torch.stack(list(assignments)))


class ClusterWeighting(nn.Module):
    """The weights of MEOW as a module without parameters: keys are clustered anew each time they are asked for.

    Args:
        clusters: numbers of clusters.
        iterations: of k-means.
        restarts: of k-means.
        seed: of k-means.
    """

    def __init__(self, clusters: Sequence[int], iterations: int = 20, restarts: int = 5, seed: int = 0):
        super().__init__()
        self.clusters, self.iterations, self.restarts, self.seed = tuple(clusters), iterations, restarts, seed

    def bind(self, anchors: Tensor, keys: Tensor) -> PairWeights:
        """The weights of pairs of these anchors and keys (N, D)."""
        found = cluster_all(keys, self.clusters, self.iterations, self.restarts, self.seed)
        return cluster_pair_weights([one.assignments for one in found])


class LearnedPairWeights(nn.Module):
    """w_ij = sigmoid(v . tanh(W (a_i + k_j) + b) + c): a small network of the sum of a pair (Yu et al., AdaMEOW, 2024).

    The first layer is linear in the sum, so W a_i and W k_j are each made once, and the network costs O(hidden) a pair, not O(D hidden).

    Args:
        in_features: D of anchors and keys.
        hidden: units.
    """

    def __init__(self, in_features: int, hidden: int = 16):
        super().__init__()
        self.first, self.last = nn.Linear(in_features, hidden), nn.Linear(hidden, 1)

    def forward(self, anchors: Tensor, keys: Tensor) -> Tensor:
        """Weights in (0, 1) of every pair: (N, D) and (M, D) to (N, M)."""
        return self.bind(anchors, keys).log_weights(torch.arange(len(anchors), device=anchors.device)).exp()

    def bind(self, anchors: Tensor, keys: Tensor) -> PairWeights:
        """The weights of pairs of these anchors and keys (N, D), to be made in blocks."""
        full = self.first.weight.dtype
        from_anchor, from_key = functional.linear(anchors.to(full), self.first.weight), self.first(keys.to(full))
        return _BoundPairWeights(from_anchor.to(full), from_key.to(full), self.last, self.first.out_features)


@dataclass(frozen=True)
class _BoundPairWeights:
    from_anchor: Tensor
    from_key: Tensor
    last: nn.Linear
    width: int

    def log_weights(self, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        key = self.from_key if columns is None else self.from_key[columns]
        hidden = (self.from_anchor[rows][:, None] + key).tanh_()  # (b, S, hidden)
        return functional.logsigmoid(self.last(hidden).squeeze(-1))

    def log_total(self, logs: Tensor, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        return logs.logsumexp(dim=1)
