"""Groups of timesteps as tasks: batches stratified over them, and a loss for each (Go et al., 2023, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from graftwork import DataError
from graftwork_denoising_task_clustering.intervals import (
    Intervals,
    affinity_cost,
    check_clusters,
    cluster_intervals,
    equal_intervals,
    timestep_cost,
    value_cost,
)
from graftwork_denoising_task_clustering.noise_levels import NoiseLevels

__all__ = ["Clustering", "Drawn", "TimestepClusters", "cluster_losses", "intervals_of", "random_groups"]

Clustering: TypeAlias = Literal["uniform", "timestep", "log-snr", "gradient"]
"""How timesteps become intervals: equal ones, or the exact optimum of one of the paper's three costs."""


def intervals_of(clustering: Clustering, clusters: int, levels: NoiseLevels, affinity: Tensor | None = None) -> Intervals:
    """Intervals over a scheduler's timesteps.

    Args:
        clustering: "uniform" (equal intervals, an optimum of the timestep cost too), "timestep", "log-snr" or "gradient".
        clusters: k.
        levels: the noise levels.
        affinity: (T', T') task affinity scores for "gradient"; T' divides T, and each of its rows stands for T / T' timesteps.

    Raises:
        ValueError: if k is out of range, an SNR is not positive, or "gradient" has no fitting affinity.
    """
    if clustering == "uniform":
        return equal_intervals(levels.count, clusters)
    if clustering == "timestep":
        return cluster_intervals(timestep_cost(levels.count), levels.count, clusters)
    if clustering == "log-snr":
        return cluster_intervals(value_cost(levels.log_snr), levels.count, clusters)
    if affinity is None:
        raise ValueError('clustering by "gradient" needs `affinity`, an artifact of denoising-task-affinity')
    return cluster_intervals(affinity_cost(affinity.cpu()), len(affinity), clusters).scaled(levels.count)


def random_groups(count: int, clusters: int, generator: torch.Generator) -> Tensor:
    """(T,) long: k groups of timesteps at random, of sizes that differ by at most one; the paper's control for contiguity.

    Args:
        count: T.
        clusters: k.
        generator: on the CPU.

    Raises:
        ValueError: if k is below 1 or above T.
    """
    return equal_intervals(count, clusters).assignment()[torch.randperm(count, generator=generator)]


@dataclass(frozen=True)
class Drawn:
    """A stratified batch of timesteps.

    Args:
        timesteps: (B,) long, in the order of the clusters.
        tasks: (B,) long: which cluster each row is of, as an index into the losses.
        counts: rows of each cluster; host numbers, so that batches are cut with no wait for the device.
    """

    timesteps: Tensor
    tasks: Tensor
    counts: tuple[int, ...]


class TimestepClusters(nn.Module):
    """k groups of T timesteps, contiguous or not, as buffers.

    Args:
        assignment: (T,) long, the group of each timestep, 0 .. k - 1; none may be empty.

    Raises:
        ValueError: if a group is empty or a number is out of range.
    """

    order: Tensor
    offsets: Tensor
    sizes: Tensor
    assignment: Tensor

    def __init__(self, assignment: Tensor):
        super().__init__()
        if assignment.ndim != 1 or not len(assignment) or int(assignment.min()) < 0:
            raise ValueError(f"assignment holds the group of each timestep, from 0; found shape {tuple(assignment.shape)}")
        sizes = torch.bincount(assignment)
        if not sizes.all():
            raise ValueError(f"group {int((sizes == 0).nonzero()[0])} has no timestep; all {len(sizes)} need one")
        self.k, self.count = len(sizes), len(assignment)
        self.register_buffer("assignment", assignment.clone())
        self.register_buffer("order", assignment.argsort(stable=True))
        self.register_buffer("offsets", sizes.cumsum(0) - sizes)
        self.register_buffer("sizes", sizes)

    def counts(self, batch_size: int, clusters: int | None = None) -> tuple[int, ...]:
        """Rows of each cluster: B / k, the remainder spread.

        Raises:
            DataError: if a cluster would get none.
        """
        k = self.k if clusters is None else clusters
        if batch_size < k:
            raise DataError(f"each of the k clusters needs at least one sample: batch {batch_size}, k {k}")
        return tuple((index + 1) * batch_size // k - index * batch_size // k for index in range(k))

    def draw(self, batch_size: int, generator: torch.Generator | None = None, only: int | None = None) -> Drawn:
        """Timesteps, uniform within each cluster, on the buffers' device.

        Args:
            batch_size: B, at least k.
            generator: on that device; None draws from torch's global one.
            only: draw from this cluster alone; the losses are then one.

        Raises:
            DataError: if the batch is smaller than k.
        """
        device = self.sizes.device
        counts = self.counts(batch_size, None if only is None else 1)
        repeats = torch.tensor(counts, device=device)
        tasks = torch.repeat_interleave(torch.arange(len(counts), device=device), repeats, output_size=batch_size)
        groups = tasks if only is None else torch.full_like(tasks, only)
        sizes = self.sizes[groups]
        uniform = torch.rand(batch_size, generator=generator, device=device, dtype=torch.float32)
        within = (uniform * sizes).long().minimum(sizes - 1)  # float32 can round up to the size
        return Drawn(self.order[self.offsets[groups] + within], tasks, counts)

    def density_weights(self) -> Tensor:
        """(k,) float32: k |I_j| / T, which undo the density 1 / (k |I_j|) that stratifying gives a timestep; their mean is 1."""
        return self.sizes.float() * (self.k / self.count)


def cluster_losses(errors: Tensor, tasks: Tensor, clusters: int) -> Tensor:
    """Mean error of each cluster's rows, (k,) float32.

    Args:
        errors: (B,) loss of each row.
        tasks: (B,) long, the cluster of each row.
        clusters: k.

    Raises:
        ValueError: if k is below 1 or the shapes differ.
    """
    check_clusters(clusters, max(1, len(errors)))
    if errors.shape != tasks.shape:
        raise ValueError(f"errors {tuple(errors.shape)} and tasks {tuple(tasks.shape)} differ in shape")
    sums = torch.zeros(clusters, device=errors.device).index_add(0, tasks, errors.float())
    return sums / torch.zeros_like(sums).index_add(0, tasks, torch.ones_like(errors, dtype=torch.float32)).clamp(min=1)
