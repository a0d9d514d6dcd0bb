"""k-means on any device, spherical or Euclidean, and the concentration of clusters (Li et al., PCL, arXiv:2005.04966)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Clustering", "Density", "Metric", "cluster_all", "concentrations", "k_means"]

Metric: TypeAlias = Literal["cosine", "euclidean"]
Density: TypeAlias = Literal["similarity", "distance"]

BLOCK = 2**24
"""Entries of points x centroids that are held at once."""


class Clustering(NamedTuple):
    """One clustering of N points.

    Args:
        assignments: (N,) long, each in 0..M-1.
        centroids: (M, D); of unit length for the cosine metric.
        affinity: (N,) similarity to the own centroid: the inner product for the cosine metric, else minus the squared distance.
    """

    assignments: Tensor
    centroids: Tensor
    affinity: Tensor


@torch.no_grad()
def k_means(
    points: Tensor,
    clusters: int,
    metric: Metric = "cosine",
    iterations: int = 20,
    restarts: int = 5,
    seed: int = 0,
    start: Tensor | None = None,
) -> Clustering:
    """Lloyd's algorithm, the best of several starts; nothing leaves the device and nothing waits for it.

    With the cosine metric, points are scaled to unit length, and so are centroids after each step: spherical k-means (Dhillon and Modha,
    Machine Learning 42, 2001), which starts from points drawn at random. With the Euclidean metric it starts by k-means++ (Arthur and
    Vassilvitskii, 2007). A cluster that loses its last point takes the point that is worst off.

    Args:
        points: (N, D).
        clusters: M, in 1..N.
        metric: "cosine" or "euclidean".
        iterations: of each start.
        restarts: starts, of which the one with the largest sum of affinities is kept.
        seed: of the starts.
        start: (M, D) centroids to start from instead, once.

    Raises:
        ValueError: if a number is out of range.
    """
    _check(points, clusters, iterations, restarts, start)
    x = points.detach().to(torch.promote_types(points.dtype, torch.float32))
    if metric == "cosine":
        x = functional.normalize(x, dim=1)
    generator = torch.Generator(x.device).manual_seed(seed)
    with torch.autocast(x.device.type, enabled=False):
        starts = [start.to(x)] if start is not None else [_start(x, clusters, metric, generator) for _ in range(restarts)]
        ended = [_lloyd(x, centroids, metric, iterations) for centroids in starts]
    if len(ended) == 1:
        return ended[0]
    best = torch.stack([one.affinity.sum() for one in ended]).argmax()
    return Clustering(*(torch.stack(parts).index_select(0, best[None])[0] for parts in zip(*ended, strict=True)))


def cluster_all(
    points: Tensor,
    clusters: Sequence[int],
    iterations: int = 20,
    restarts: int = 5,
    seed: int = 0,
    starts: Sequence[Tensor] | None = None,
) -> list[Clustering]:
    """A spherical clustering of the same points for each number of clusters; the i-th is seeded with `seed + i`.

    Args:
        points: (N, D).
        clusters: numbers of clusters.
        iterations: of each start.
        restarts: starts of each clustering.
        seed: of the first.
        starts: centroids to start from, one tensor a number of clusters.
    """
    found = starts if starts is not None else [None] * len(clusters)
    return [
        k_means(points, count, "cosine", iterations, restarts, seed + number, start)
        for number, (count, start) in enumerate(zip(clusters, found, strict=True))
    ]


@torch.no_grad()
def concentrations(clustering: Clustering, temperature: float, density: Density = "similarity") -> Tensor:
    """phi of each cluster: its own temperature, wide clusters having another than tight ones (PCL; the authors' `cluster.py`).

    phi = mean(sqrt(d)) / log(n + 5) over the n points of a cluster; clusters of fewer than two points take the largest phi; all are
    clipped to the 10th and 90th percentile and scaled to a mean of `temperature`.

    Args:
        clustering: spherical.
        temperature: tau > 0.
        density: what d is: the inner product with the centroid ("similarity", as the authors' code has it), or the squared distance to it
            ("distance", as PCL means it: phi is then large where a cluster is wide).

    Returns:
        (M,) with mean tau. Where no cluster has two points, all are tau.

    Raises:
        ValueError: if the temperature is not positive, or there is no such density.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; found {temperature}")
    if density not in ("similarity", "distance"):
        raise ValueError(f'density is "similarity" or "distance"; found "{density}"')
    measure = clustering.affinity if density == "similarity" else 2 - 2 * clustering.affinity
    count, total = measure.new_zeros(2, len(clustering.centroids)).unbind()
    count = count.index_add(0, clustering.assignments, torch.ones_like(measure))
    total = total.index_add(0, clustering.assignments, measure.clamp(min=0).sqrt())
    phi = torch.where(count > 1, total / count.clamp(min=1) / (count + 5).log(), 0.0)
    largest = phi.max()
    phi = torch.where(count > 1, phi, largest)
    low, high = torch.quantile(phi, phi.new_tensor([0.1, 0.9])).unbind()
    phi = phi.clamp(low, high)
    mean = phi.mean()
    tiny = torch.finfo(phi.dtype).tiny
    return torch.where(mean > tiny, temperature * phi / mean.clamp(min=tiny), temperature)


def _check(points: Tensor, clusters: int, iterations: int, restarts: int, start: Tensor | None) -> None:
    if points.ndim != 2:
        raise ValueError(f"points are (N, D); found {tuple(points.shape)}")
    if not 1 <= clusters <= len(points):
        raise ValueError(f"clusters must be 1 to {len(points)}, the number of points; found {clusters}")
    for name, number in (("iterations", iterations), ("restarts", restarts)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1; found {number}")
    if start is not None and tuple(start.shape) != (clusters, points.shape[1]):
        raise ValueError(f"start is ({clusters}, {points.shape[1]}); found {tuple(start.shape)}")


def _start(x: Tensor, clusters: int, metric: Metric, generator: torch.Generator) -> Tensor:
    if metric == "cosine":
        return x[torch.randperm(len(x), generator=generator, device=x.device)[:clusters]]
    first = torch.randint(len(x), (1,), generator=generator, device=x.device)
    chosen = [x[first]]
    nearest = (x - chosen[0]).square().sum(dim=1)
    for _ in range(clusters - 1):
        far = nearest + torch.finfo(x.dtype).tiny  # points that all coincide can still be drawn
        chosen.append(x[torch.multinomial(far, 1, generator=generator)])
        nearest = torch.minimum(nearest, (x - chosen[-1]).square().sum(dim=1))
    return torch.cat(chosen)


def _lloyd(x: Tensor, centroids: Tensor, metric: Metric, iterations: int) -> Clustering:
    for _ in range(iterations):
        assignments, affinity = _assigned(x, centroids, metric)
        count = x.new_zeros(len(centroids)).index_add_(0, assignments, torch.ones_like(affinity))
        means = torch.zeros_like(centroids).index_add_(0, assignments, x) / count.clamp(min=1)[:, None]
        empty = count == 0
        worst = affinity.argsort()[: len(centroids)]  # the i-th empty cluster takes the i-th worst point
        means = torch.where(empty[:, None], x[worst[(empty.cumsum(0) - 1).clamp(min=0)]], means)
        centroids = functional.normalize(means, dim=1) if metric == "cosine" else means
    assignments, affinity = _assigned(x, centroids, metric)
    return Clustering(assignments, centroids, affinity)


def _assigned(x: Tensor, centroids: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """(N,) nearest centroid and the affinity to it, in blocks of rows."""
    squares = centroids.square().sum(dim=1)
    found, affinities = [], []
    for rows in torch.split(x, max(1, BLOCK // len(centroids))):
        scores = rows @ centroids.T
        if metric == "euclidean":
            scores = 2 * scores - squares - rows.square().sum(dim=1, keepdim=True)
        affinity, nearest = scores.max(dim=1)
        found.append(nearest)
        affinities.append(affinity)
    return torch.cat(found), torch.cat(affinities)
