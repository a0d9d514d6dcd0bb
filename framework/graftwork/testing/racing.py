"""Races for benchmarks: two ways to do the same, timed in turns in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Race", "median_seconds", "race"]


@dataclass(frozen=True)
class Race:
    """What a race came to.

    Args:
        ours: median seconds of the first.
        theirs: median seconds of the second.
    """

    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        """The first's time as a share of the second's: under 1, the first is faster."""
        return self.ours / self.theirs

    def __str__(self) -> str:
        return f"{1e3 * self.ours:.3g} ms against {1e3 * self.theirs:.3g} ms, ratio {self.ratio:.3g}"


def race(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int = 5, *, processor: bool = False) -> Race:
    """Time two functions, in turns; as `median_seconds`.

    Args:
        ours: the first.
        theirs: what it is held against.
        rounds: measured calls of each.
        processor: count the processor's time instead of the clock's.
    """
    return Race(*median_seconds([ours, theirs], rounds, processor=processor))


def median_seconds(functions: Sequence[Callable[[], Any]], rounds: int = 5, *, processor: bool = False) -> list[float]:
    """Time functions in turns, so that what else the machine does falls on all of them.

    Args:
        functions: what is timed.
        rounds: measured calls of each, after one that is not measured.
        processor: count the processor's time instead of the clock's, for a machine that is busy. With a GPU it is the clock's all
            the same.

    Returns:
        The median seconds of each.

    Raises:
        ValueError: if there is no round.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1; found {rounds}")
    clock = time.process_time if processor and not torch.cuda.is_available() else time.perf_counter
    seconds: list[list[float]] = [[] for _ in functions]
    for number in range(rounds + 1):
        for function, taken in zip(functions, seconds, strict=True):
            _wait()
            start = clock()
            function()
            _wait()
            if number:
                taken.append(clock() - start)
    return [statistics.median(taken) for taken in seconds]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
