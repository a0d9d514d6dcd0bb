"""Digits that move: straight on, and back from the edges of the frame."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["draw_velocities", "trajectories"]

FASTEST = 0.06
"""Largest step of a digit between two frames, as a share of the scene's side."""


def draw_velocities(sizes: Tensor, generator: np.random.Generator) -> Tensor:
    """Steps between frames, (N, 4, 2) float, across and down; directions uniform, speeds from a fourth of the fastest up."""
    angle = torch.from_numpy(generator.uniform(0, 2 * np.pi, tuple(sizes.shape)))
    speed = torch.from_numpy(generator.uniform(FASTEST / 4, FASTEST, tuple(sizes.shape))) * (sizes > 0)
    return (speed.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], dim=-1)).float()


def trajectories(centres: Tensor, velocities: Tensor, sizes: Tensor, frames: int) -> Tensor:
    """Centres in each frame; a digit's square stays inside the scene and bounces off its edges.

    Args:
        centres: (N, 4, 2) at the first frame.
        velocities: (N, 4, 2) step a frame.
        sizes: (N, 4) side of each digit's square.
        frames: T.

    Returns:
        (N, T, 4, 2).
    """
    low = (sizes / 2)[:, None, :, None]
    room = (1 - 2 * low).clamp(min=1e-6)
    steps = torch.arange(frames).view(1, -1, 1, 1)
    gone = (centres[:, None] + steps * velocities[:, None] - low) / room  # a mirror at each whole number
    folded = 1 - (gone.remainder(2) - 1).abs()
    return torch.where(sizes[:, None, :, None] > 0, low + folded * room, 0.0)
