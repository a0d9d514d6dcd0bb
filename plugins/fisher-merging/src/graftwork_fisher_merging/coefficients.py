"""Sets of merging coefficients to try (Matena and Raffel, 2022, section 3.4; numbers by the authors' code)."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

__all__ = ["Mode", "coefficient_set", "grid_coefficients", "random_coefficients"]

Mode: TypeAlias = Literal["grid", "random"]
"""How coefficients are chosen: an even grid, for two models; or at random, for any number."""


def grid_coefficients(count: int = 51) -> list[tuple[float, float]]:
    """An even grid from (1, 0), the target alone, to (0, 1), both included.

    Args:
        count: at least 2.

    Raises:
        ValueError: if there are fewer than 2.
    """
    if count < 2:
        raise ValueError(f"a grid with both ends has at least 2 points; found n_coeffs {count}")
    return [((count - 1 - index) / (count - 1), index / (count - 1)) for index in range(count)]


def random_coefficients(models: int, count: int = 51, seed: int = 0) -> list[tuple[float, ...]]:
    """Draws from Dirichlet(1, ..., 1): evenly over the simplex.

    Args:
        models: M, coefficients in each draw; each sums to 1.
        count: draws.
        seed: of the draws.

    Raises:
        ValueError: if a number is below 1.
    """
    if models < 1 or count < 1:
        raise ValueError(f"models and n_coeffs are at least 1; found {models} and {count}")
    drawn = torch.empty(count, models, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(seed))
    return [tuple(row) for row in (drawn / drawn.sum(dim=1, keepdim=True)).tolist()]


def coefficient_set(mode: Mode, models: int, count: int = 51, seed: int = 0) -> list[tuple[float, ...]]:
    """The set of a mode.

    Args:
        mode: "grid" or "random".
        models: M.
        count: how many.
        seed: of random ones.

    Raises:
        ValueError: if a grid is asked for other than 2 models, or the mode is unknown.
    """
    if mode not in ("grid", "random"):
        raise ValueError(f'mode is "grid" or "random"; found "{mode}"')
    if mode == "random":
        return random_coefficients(models, count, seed)
    if models != 2:
        raise ValueError(f'mode "grid" takes 2 models; found {models}: use mode "random"')
    return list(grid_coefficients(count))
