"""Gradient reversal: identity forwards, minus a coefficient backwards, and the coefficient's schedule.

From "Domain-Adversarial Training of Neural Networks" (Ganin et al., 2016), https://arxiv.org/abs/1505.07818.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GradientReversal", "gradient_reversal", "reversal_coefficient"]


def reversal_coefficient(progress: float, gamma: float = 10.0, low: float = 0.0, high: float = 1.0) -> float:
    """low + (high - low) (2 / (1 + exp(-gamma p)) - 1), the paper's lambda (Ganin et al., 2016, section 5.2.2).

    Args:
        progress: p, share of training done; above 1 it counts as 1, as in the authors' Caffe layer.
        gamma: steepness.
        low: value at p = 0.
        high: limit for large gamma p.
    """
    return low + (high - low) * (2.0 / (1.0 + math.exp(-gamma * min(progress, 1.0))) - 1.0)


class _Reverse(torch.autograd.Function):
    """Made of differentiable steps only, so that it can be differentiated twice."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, coefficient: float | Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.coefficient = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.coefficient * gradient, None


def gradient_reversal(x: Tensor, coefficient: float | Tensor) -> Tensor:
    """x, whose gradient comes back times -coefficient (Ganin et al., 2016, eqs. 13 and 14).

    Nothing is copied: the result shares x's storage. It may be differentiated twice.

    Args:
        x: any shape, floating point.
        coefficient: the paper's lambda; it gets no gradient. A number, or a 0-d tensor on x's device, of which finiteness is not
            checked, since that would wait for the device.

    Returns:
        A view of x.

    Raises:
        ValueError: if x is not floating point, or the coefficient not finite.
    """
    if not x.is_floating_point():
        raise ValueError(f"gradients are reversed in floating point; found a tensor of {x.dtype}")
    if not isinstance(coefficient, Tensor) and not -math.inf < coefficient < math.inf:  # torch.compile cannot trace isfinite
        raise ValueError(f"the coefficient of a gradient reversal is finite; found {coefficient}")
    return _Reverse.apply(x, coefficient)  # type: ignore[no-any-return, no-untyped-call]


class GradientReversal(nn.Module):
    """`gradient_reversal` with a coefficient that follows the progress of training, which its state holds.

    Args:
        schedule: progress in [0, 1] -> coefficient; or a constant one. The paper's by default.

    Attributes:
        progress: share of training done; set it at each step. A host number, saved with the state.

    Raises:
        ValueError: if a constant coefficient is not finite.
    """

    def __init__(self, schedule: Callable[[float], float] | float = reversal_coefficient):
        super().__init__()
        if not callable(schedule) and not math.isfinite(schedule):
            raise ValueError(f"the coefficient of a gradient reversal is finite; found {schedule}")
        self.schedule = schedule
        self.progress = 0.0

    @property
    def coefficient(self) -> float:
        """The coefficient at the present progress."""
        return self.schedule(self.progress) if callable(self.schedule) else float(self.schedule)

    def forward(self, x: Tensor) -> Tensor:
        """x, of any shape, whose gradient comes back times minus the present coefficient."""
        return gradient_reversal(x, self.coefficient)

    def get_extra_state(self) -> Tensor:
        """The progress, as a tensor so that safetensors can hold it."""
        return torch.tensor(self.progress, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take up the progress of a saved state."""
        self.progress = float(state)
