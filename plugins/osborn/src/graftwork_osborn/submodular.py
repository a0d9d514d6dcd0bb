"""Greedy maximisation of a set function under a limit on how many are chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Selection", "greedy_maximise"]

T = TypeVar("T")


@dataclass(frozen=True)
class Selection(Generic[T]):
    """What greedy search chose.

    Args:
        chosen: in the order of choice.
        gains: what each added to the function when it was chosen.
        value: of the function on all that were chosen.
    """

    chosen: tuple[T, ...]
    gains: tuple[float, ...]
    value: float


def greedy_maximise(f: Callable[[tuple[T, ...]], float], ground_set: Sequence[T], k: int) -> Selection[T]:
    """Add, k times, the element with the largest gain f(X + v) - f(X); ties go to the earlier one (Nemhauser et al., 1978).

    For a non-negative monotone submodular f with f(()) = 0 the value is at least 1 - 1/e of the best. OSBORN's f is submodular but not
    monotone, since its raw terms only take away, so that bound does not follow for it.

    Args:
        f: of a tuple of elements; its order must not matter.
        ground_set: what to choose from.
        k: how many.

    Raises:
        ValueError: if k is below 1 or above the size of the ground set.
    """
    if not 1 <= k <= len(ground_set):
        raise ValueError(f"k is 1 to {len(ground_set)}, the number of candidates; found {k}")
    chosen: tuple[int, ...] = ()
    gains: list[float] = []
    value = f(())
    for _ in range(k):
        rest = [index for index in range(len(ground_set)) if index not in chosen]
        values = [f(tuple(ground_set[index] for index in (*chosen, new))) for new in rest]
        best = max(range(len(rest)), key=values.__getitem__)
        chosen, gain, value = (*chosen, rest[best]), values[best] - value, values[best]
        gains.append(gain)
    return Selection(tuple(ground_set[index] for index in chosen), tuple(gains), value)
