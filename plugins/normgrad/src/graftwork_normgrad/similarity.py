"""How alike two maps are: Spearman's rank correlation over pixels, as the authors measure it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from graftwork_grad_cam.occlusion import spearman

__all__ = ["EPSILON", "finite_summary", "map_correlation"]

EPSILON = 1e-6
"""Added to both maps: differences far below it, which are rounding, become ties."""


def map_correlation(first: Tensor, second: Tensor, *, absolute: bool = False, epsilon: float = EPSILON) -> Tensor:
    """Spearman's rank correlation of maps over their pixels.

    Args:
        first: (..., H, W).
        second: (..., H, W).
        absolute: of the maps' magnitudes.
        epsilon: added to both.

    Returns:
        (...) float64 in [-1, 1]; nan where a map is constant.

    Raises:
        ValueError: if the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"maps {tuple(first.shape)} and {tuple(second.shape)} differ in shape")
    pair = [(each.abs() if absolute else each) + epsilon for each in (first, second)]
    return spearman(*(each.flatten(-2) for each in pair))


def finite_summary(values: Sequence[float] | Tensor) -> tuple[float, float, int]:
    """Mean and standard deviation (over all, as numpy's) of the values that are finite, and how many are not; nan where none is."""
    tensor = torch.as_tensor(values, dtype=torch.float64).flatten()
    finite = tensor[tensor.isfinite()]
    if not len(finite):
        return math.nan, math.nan, len(tensor)
    return finite.mean().item(), finite.std(correction=0).item(), len(tensor) - len(finite)
