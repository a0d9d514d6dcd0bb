"""Learning-rate schedules as functions of progress: share of training done in [0, 1] -> factor on the base rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field

__all__ = ["SCHEDULES", "constant", "cosine", "inverse_decay", "linear", "one_cycle", "step"]


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def linear(progress: float, final: Annotated[float, Field(ge=0)] = 0.0) -> float:
    """From 1 straight down to `final`."""
    return 1.0 + (final - 1.0) * progress


def cosine(progress: float, final: Annotated[float, Field(ge=0)] = 0.0) -> float:
    """From 1 to `final` along half a cosine (Loshchilov & Hutter, 2017, eq. 5, without restarts)."""
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def step(
    progress: float, at: Sequence[Annotated[float, Field(gt=0, lt=1)]] = (0.5, 0.75), factor: Annotated[float, Field(gt=0)] = 0.1
) -> float:
    """Times `factor` at each share of training in `at`."""
    passed: int = sum(progress >= milestone for milestone in at)
    return float(factor**passed)


def inverse_decay(progress: float, alpha: Annotated[float, Field(ge=0)] = 10.0, beta: Annotated[float, Field(ge=0)] = 0.75) -> float:
    """(1 + alpha p)^-beta (Ganin et al., 2016, section 5.2.2)."""
    return float((1.0 + alpha * min(progress, 1.0)) ** -beta)


def one_cycle(progress: float, peak: Annotated[float, Field(gt=0, lt=1)] = 0.3, start: Annotated[float, Field(ge=0)] = 0.04) -> float:
    """Up from `start` to 1 at `peak`, then down to 0, each along half a cosine (Smith & Topin, 2018)."""
    if progress < peak:
        return start + (1.0 - start) * 0.5 * (1.0 - math.cos(math.pi * progress / peak))
    return 0.5 * (1.0 + math.cos(math.pi * (progress - peak) / (1.0 - peak)))


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "step": step,
    "inverse-decay": inverse_decay,
    "one-cycle": one_cycle,
}
"""Name, as `train.schedule` writes it -> function."""
