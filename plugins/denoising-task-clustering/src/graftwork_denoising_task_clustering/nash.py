"""Nash-MTL: weights at which every task gains in equal proportion (Navon et al., 2022), https://arxiv.org/abs/2202.01017."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from graftwork_denoising_task_clustering.balancer import Balancer
from graftwork_denoising_task_clustering.gradients import Backward, Losses, as_vector, check_losses

__all__ = ["NashMTL", "NashSolution", "nash_weights", "solve_nash"]

ITERATIONS = 64
"""Of Newton's method. It converges in 5 to 15 unless the tasks all but oppose each other."""

TOLERANCE = 1e-6
"""Largest |alpha_i (M alpha)_i - 1| of a solution: Newton's method ends at 1e-12, or nowhere near."""


class NashSolution(NamedTuple):
    """Weights that solve M alpha = 1 / alpha.

    Args:
        weights: (k,); ones where there is no solution.
        residual: 0-d, the largest |alpha_i (M alpha)_i - 1| that was reached.
        solved: 0-d bool.
    """

    weights: Tensor
    residual: Tensor
    solved: Tensor


def solve_nash(gram: Tensor) -> NashSolution:
    """alpha > 0 with M alpha = 1 / alpha, on the Gram matrix's device and without waiting for it.

    It is the only minimum of f(alpha) = alpha^T M alpha / 2 - sum log alpha, which is self-concordant: Newton's steps damped by
    1 / (1 + decrement) need no line search. Scaling a task by c divides its weight by c, so the problem is solved for unit diagonals.
    A Gram matrix with a zero row, or of gradients that a positive combination cancels (a Pareto-stationary point), has no solution.

    Args:
        gram: (k, k) inner products of the gradients.
    """
    matrix = gram.double() if gram.device.type != "mps" else gram.float()  # Apple's devices have no float64
    scale = matrix.diagonal().clamp(min=torch.finfo(matrix.dtype).tiny).rsqrt()
    unit = scale[:, None] * matrix * scale[None, :]
    weights = torch.ones_like(scale)
    for _ in range(ITERATIONS):
        gradient = unit @ weights - 1 / weights
        factor, _ = torch.linalg.cholesky_ex(unit + torch.diag(weights.pow(-2)))
        step = torch.cholesky_solve(gradient[:, None], factor)[:, 0]
        decrement = (gradient @ step).clamp(min=0).sqrt()
        weights = weights - step / (1 + decrement)
    residual = (weights * (unit @ weights) - 1).abs().amax()
    solved = (residual < TOLERANCE) & (weights > 0).all() & (matrix.diagonal() > 0).all()
    return NashSolution(torch.where(solved, weights * scale, torch.ones_like(weights)), residual, solved)


def nash_weights(gram: Tensor) -> Tensor:
    """alpha > 0 with M alpha = 1 / alpha, (k,) float64, to 1e-10; ones at a Pareto-stationary point, where there is none.

    Args:
        gram: (k, k) inner products of the gradients, at any scale: alpha grows as M shrinks.

    Raises:
        ValueError: if there are fewer than two tasks, or a gradient is zero.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or len(gram) < 2:
        raise ValueError(f"at least 2 losses are needed, as a square Gram matrix; found shape {tuple(gram.shape)}")
    zero = gram.diagonal() <= 0
    if zero.any():
        raise ValueError(f"the gradient of loss {int(zero.nonzero()[0])} is zero, so that no weight gains from it: leave that loss out")
    return solve_nash(gram).weights


class NashMTL(Balancer):
    """Nash-MTL as a step: (1 / k) sum_j alpha_j l_j is minimised, with alpha found anew every few steps.

    M is the Gram matrix of the gradients, so that where alpha is fresh the gradient's norm is 1 / sqrt(k). (The authors' code divides M
    by its Frobenius norm for its solver, and its constraint undoes that.) Only steps that find alpha differentiate the losses one by
    one; in between it is kept. Where there is no solution alpha is ones for that while, and `nash_fallback` is 1. Clip the
    gradient to a norm of 1 afterwards (`torch.nn.utils.clip_grad_norm_`). Weights and the count of steps are in the state.

    Args:
        tasks: k.
        every: optimiser steps between refreshes.
        chunks: of layers whose gradients are held at once.

    Raises:
        ValueError: if tasks is below 2, or another below 1.
    """

    weights: Tensor
    fallback: Tensor

    def __init__(self, tasks: int, every: int = 25, chunks: int = 1):
        super().__init__()
        if tasks < 2 or every < 1 or chunks < 1:
            raise ValueError(f"at least 2 losses are needed, every and chunks of at least 1; found {tasks}, {every}, {chunks}")
        self.every, self.chunks = every, chunks
        self.steps = 0
        self._fresh = True  # the first micro-batch of an optimiser step
        self.register_buffer("weights", torch.ones(tasks))
        self.register_buffer("fallback", torch.zeros(()))

    @property
    def needs_gradients(self) -> bool:
        """Whether alpha is found anew."""
        return self._fresh and self.steps % self.every == 0

    def descend(self, losses: Losses, backward: Backward) -> dict[str, Tensor]:
        """See `Balancer.descend`. Figures: `nash_fallback`, and the smallest and largest weight.

        Raises:
            ValueError: if the number of losses is another than it was made for.
        """
        check_losses(losses)
        if len(losses) != len(self.weights):
            raise ValueError(f"Nash-MTL was made for {len(self.weights)} losses; found {len(losses)}")
        if self.needs_gradients:
            gram = backward.gram(losses, self.chunks)
            solution = solve_nash(gram)
            self.weights.copy_(solution.weights)
            self.fallback.copy_(~solution.solved)
        backward.add((self.weights * as_vector(losses)).mean())
        self._fresh = backward.complete
        self.steps += backward.complete
        low, high = self.weights.aminmax()
        return {"nash_fallback": self.fallback.clone(), "smallest_weight": low, "largest_weight": high}

    def get_extra_state(self) -> Tensor:
        """The count of steps."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Take a count of steps."""
        self.steps = int(state)
