"""Uncertainty weighting: a learned log-variance for each task (Kendall et al., 2018), https://arxiv.org/abs/1705.07115."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graftwork_denoising_task_clustering.balancer import Balancer
from graftwork_denoising_task_clustering.gradients import Backward, Losses, as_vector

__all__ = ["UncertaintyWeighting"]

RATE = 0.025
"""Learning rate of the log-variances in the authors' code."""


class UncertaintyWeighting(Balancer):
    """sum_j (exp(-s_j) l_j / k + s_j) / 2, whose s_j start at 0 and are learned.

    At rest s_j = log(l_j / k): a task's weight is half the inverse of its share. The log-variances want an optimiser group of their
    own, which `param_groups()` gives: `AdamW([{"params": model.parameters()}, *weighting.param_groups()])`.

    Args:
        tasks: k.

    Raises:
        ValueError: if tasks is below 1.
    """

    def __init__(self, tasks: int):
        super().__init__()
        if tasks < 1:
            raise ValueError(f"tasks is at least 1; found {tasks}")
        self.log_variances = nn.Parameter(torch.zeros(tasks))

    def forward(self, losses: Tensor) -> Tensor:
        """The total, 0-d float32.

        Args:
            losses: (k,).

        Raises:
            ValueError: if the number of losses is another.
        """
        if losses.shape != self.log_variances.shape:
            raise ValueError(f"uncertainty weighting was made for {len(self.log_variances)} losses; found shape {tuple(losses.shape)}")
        scaled = losses.float() / len(losses)
        return 0.5 * (torch.exp(-self.log_variances) * scaled + self.log_variances).sum()

    def descend(self, losses: Losses, backward: Backward) -> dict[str, Tensor]:
        """See `Balancer.descend`: one backward pass, which reaches the log-variances too. Figures: smallest and largest weight."""
        backward.add(self(as_vector(losses)))
        low, high = self.log_variances.detach().neg().exp().mul(0.5).aminmax()
        return {"smallest_weight": low, "largest_weight": high}

    def param_groups(self, lr: float | None = RATE) -> list[dict[str, Any]]:
        """One group for an optimiser, with a rate of its own and no weight decay.

        Args:
            lr: of the log-variances; None is 0.025.
        """
        return [{"params": [self.log_variances], "lr": RATE if lr is None else lr, "weight_decay": 0.0}]
