"""The k-means of an objective, with the centroids that it may start from again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from graftwork import DataError
from graftwork_meta_path_contrast.clustering import Clustering, cluster_all

__all__ = ["Clusterer"]


class Clusterer(nn.Module):
    """Spherical k-means of the same points for several numbers of clusters, step after step.

    Args:
        clusters: numbers of clusters, each at least 2, as one cluster tells nothing apart.
        iterations: of each start.
        restarts: starts at each step.
        warm_start: start once, from the last step's centroids, which are then part of the state.
        seed: of the starts, the same at each step.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(self, clusters: Sequence[int], iterations: int = 20, restarts: int = 5, warm_start: bool = False, seed: int = 0):
        super().__init__()
        if not clusters or min(clusters) < 2:
            raise ValueError(f"clusters names numbers of clusters, each at least 2 (one tells nothing apart); found {list(clusters)}")
        for name, number in (("kmeans_iterations", iterations), ("kmeans_restarts", restarts)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1; found {number}")
        self.clusters, self.iterations, self.restarts = tuple(clusters), iterations, restarts
        self.warm_start, self.seed, self.started = warm_start, seed, False

    def setup(self, width: int) -> None:
        """Make room for the centroids of points (N, width)."""
        for number, count in enumerate(self.clusters if self.warm_start else ()):
            self.register_buffer(f"centroids_{number}", torch.zeros(count, width))

    def check(self, points: int) -> None:
        """Raise DataError if there are more clusters than points."""
        if max(self.clusters) > points:
            raise DataError(f"{max(self.clusters)} clusters of {points} points were asked for: ask for fewer clusters")

    def forward(self, points: Tensor) -> list[Clustering]:
        """A clustering of points (N, D) for each number of clusters, without gradient."""
        held = [self.get_buffer(f"centroids_{number}") for number in range(len(self.clusters))] if self.warm_start else []
        starts = held if self.started else None
        found = cluster_all(points.detach(), self.clusters, self.iterations, self.restarts, self.seed, starts)
        if self.warm_start and self.training:
            for kept, one in zip(held, found, strict=True):
                kept.copy_(one.centroids)
            self.started = True
        return found

    def get_extra_state(self) -> Tensor:
        """Whether there are centroids to start from."""
        return torch.tensor(self.started)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self.started = bool(state)
