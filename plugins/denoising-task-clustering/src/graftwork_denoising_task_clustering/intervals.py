"""Exact clustering of a sequence into contiguous intervals by dynamic programming (Go et al., 2023, section 4).

The cost of an interval is measured from its middle element, as the paper has it. Intervals are half-open and 0-based: [start, end),
with the middle c = (start + end) // 2.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = [
    "IntervalCost",
    "Intervals",
    "affinity_cost",
    "cluster_intervals",
    "equal_intervals",
    "timestep_cost",
    "value_cost",
]

IntervalCost: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`cost(starts, ends)`: costs of the intervals [start, end), by broadcasting; where start >= end the value is never used."""

BLOCK = 128
"""Right ends whose costs are held at once: memory is BLOCK * T numbers, whatever T, and little enough to stay in the cache."""


@dataclass(frozen=True)
class Intervals:
    """Contiguous intervals that cover 0 .. count - 1 without gap or overlap, none empty.

    Args:
        starts: first element of each, ascending from 0.
        count: how many elements there are.
        costs: of each interval; empty where no cost was minimised.

    Raises:
        ValueError: if the starts are not ascending from 0 and below the count.
    """

    starts: tuple[int, ...]
    count: int
    costs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        edges = (*self.starts, self.count)
        if not self.starts or self.starts[0] != 0 or any(left >= right for left, right in itertools.pairwise(edges)):
            raise ValueError(f"starts ascend from 0 and stay below {self.count}; found {list(self.starts)}")

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """(start, end) of each, half-open."""
        return list(zip(self.starts, (*self.starts[1:], self.count), strict=True))

    @property
    def sizes(self) -> list[int]:
        """Elements in each."""
        return [end - start for start, end in self.bounds]

    @property
    def total_cost(self) -> float:
        """Sum of the costs."""
        return sum(self.costs)

    def scaled(self, count: int) -> Intervals:
        """The same intervals on a grid that is finer by a whole number, as from 20 cells to 1000 timesteps.

        Raises:
            ValueError: if this grid does not divide that one.
        """
        if count % self.count:
            raise ValueError(f"intervals over {self.count} cells scale to a multiple of that; found {count}")
        return Intervals(tuple(start * (count // self.count) for start in self.starts), count, self.costs)

    def assignment(self) -> Tensor:
        """(count,) long: which interval each element is in."""
        return torch.repeat_interleave(torch.arange(len(self.starts)), torch.tensor(self.sizes))


def check_clusters(clusters: int, count: int) -> None:
    """Raise ValueError unless 1 <= clusters <= count."""
    if not 1 <= clusters <= count:
        raise ValueError(f"k is between 1 and the number of timesteps, {count}; found {clusters}")


def equal_intervals(count: int, clusters: int) -> Intervals:
    """Intervals whose sizes differ by at most one, the `uniform` grouping of the authors' training scripts.

    They attain the least timestep cost, since an interval of n timesteps costs floor(n^2 / 4), which is convex in n.

    Args:
        count: T.
        clusters: k.

    Raises:
        ValueError: if k is below 1 or above T.
    """
    check_clusters(clusters, count)
    starts = tuple(index * count // clusters for index in range(clusters))
    return Intervals(starts, count, tuple(float((e - s) ** 2 // 4) for s, e in zip(starts, (*starts[1:], count), strict=True)))


def value_cost(values: Tensor) -> IntervalCost:
    """sum_{t in I} |v(t) - v(c)| for monotone values, such as log SNR, from prefix sums in O(1) an interval.

    Args:
        values: (T,), monotone.

    Raises:
        ValueError: if the values are not a finite monotone sequence.
    """
    if values.ndim != 1 or not len(values) or not torch.isfinite(values).all():
        raise ValueError(f"values are a sequence of finite numbers; found shape {tuple(values.shape)}, finite: {_finite_share(values)}")
    rising = values.double()
    steps = rising.diff()
    if not ((steps >= 0).all() or (steps <= 0).all()):
        raise ValueError("values must be monotone: the cost of an interval is taken from prefix sums around its middle")
    if len(steps) and steps.sum() < 0:
        rising = -rising
    sums = torch.cat([rising.new_zeros(1), rising.cumsum(0)])
    # with c = (s + e) // 2 the cost is sums[s] + sums[e] - 2 sums[c] - ((s + e) % 2) v[c], of which the rest depends on s + e alone
    joint = torch.arange(2 * len(rising) + 1)
    middle = 2 * sums[joint // 2] + (joint % 2) * rising[(joint // 2).clamp(max=len(rising) - 1)]

    def cost(starts: Tensor, ends: Tensor) -> Tensor:
        found = sums[starts] + sums[ends] - middle[starts + ends]
        return found.clamp_(min=0).masked_fill_(ends - starts < 2, 0.0)  # rounding makes no cost of less than none

    return cost


def timestep_cost(count: int) -> IntervalCost:
    """sum_{t in I} |t - c|.

    Args:
        count: T.
    """
    return value_cost(torch.arange(count, dtype=torch.float64))


def affinity_cost(affinity: Tensor) -> IntervalCost:
    """-sum_{t in I} affinity(c, t), from prefix sums of rows; an interval of one costs -affinity(c, c).

    Args:
        affinity: (T, T) task affinity scores.

    Raises:
        ValueError: if the matrix is not square or has NaN.
    """
    if affinity.ndim != 2 or affinity.shape[0] != affinity.shape[1] or not affinity.numel():
        raise ValueError(f"task affinity is a square matrix; found shape {tuple(affinity.shape)}")
    if not torch.isfinite(affinity).all():
        raise ValueError(f"task affinity must be finite; {int((~torch.isfinite(affinity)).sum())} entries are NaN or infinite")
    sums = torch.nn.functional.pad(affinity.double().cumsum(1), (1, 0))
    last = len(affinity) - 1

    def cost(starts: Tensor, ends: Tensor) -> Tensor:
        middles = ((starts + ends) // 2).clamp(max=last)
        return sums[middles, starts] - sums[middles, ends]

    return cost


def cluster_intervals(cost: IntervalCost, count: int, clusters: int) -> Intervals:
    """The k intervals of least total cost: D[e, j] = min over l of D[l, j - 1] + cost(l, e), then the argmins traced back.

    Exact for any cost, O(k T^2) time, vectorised. Among equal totals the last boundary is the lowest, then the one before it.

    Args:
        cost: of an interval, such as `value_cost(log_snr)`; it works in float64 on the CPU.
        count: T.
        clusters: k.

    Raises:
        ValueError: if k is below 1 or above T.
    """
    check_clusters(clusters, count)
    best = torch.full((clusters, count + 1), torch.inf, dtype=torch.float64)  # best[j, e]: j + 1 intervals cover [0, e)
    previous = torch.zeros(clusters, count + 1, dtype=torch.long)
    for ends in torch.split(torch.arange(1, count + 1), BLOCK):
        starts = torch.arange(int(ends[-1]))
        costs = cost(starts[None, :], ends[:, None]).masked_fill_(starts[None, :] >= ends[:, None], torch.inf)  # (block, starts)
        best[0, ends] = costs[:, 0]
        for level in range(1, clusters):
            totals = costs + best[level - 1, : len(starts)]
            chosen = totals.argmin(dim=1)  # the first of equals
            previous[level, ends] = chosen
            best[level, ends] = totals.gather(1, chosen[:, None])[:, 0]
    edges = [count]
    for level in range(clusters - 1, 0, -1):
        edges.insert(0, int(previous[level, edges[0]]))
    found = (0, *edges[:-1])
    each = cost(torch.tensor(found), torch.tensor(edges)).tolist()
    return Intervals(found, count, tuple(each))


def _finite_share(values: Tensor) -> str:
    return f"{int(torch.isfinite(values).sum())} of {values.numel()}"
