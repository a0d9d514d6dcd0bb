"""Train, val and test without an overlap, the same for every run with the same seed."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

__all__ = ["SPLITS", "Fraction", "Seed", "stratified_split"]

SPLITS = ("train", "val", "test")

Fraction: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
"""A share of the samples."""

Seed: TypeAlias = Annotated[int, Field(ge=0)]
"""Of everything that is drawn at random."""


def stratified_split(strata: Tensor, val_fraction: float, test_fraction: float, seed: int) -> dict[str, Tensor]:
    """Indices of each split, in ascending order; each stratum is shared out by the same fractions, to the nearest sample.

    Args:
        strata: (N,) long, such as the labels; all zeros for a split at random.
        val_fraction: share of each stratum that goes to "val", in (0, 1).
        test_fraction: share that goes to "test"; what is left goes to "train". 0 gives no "test".
        seed: non-negative.

    Returns:
        split name -> (n,) long.

    Raises:
        ValueError: if the fractions leave a split without a sample, or the seed is negative.
    """
    if not 0 < val_fraction < 1 or not 0 <= test_fraction < 1 or val_fraction + test_fraction >= 1:
        raise ValueError(f"val_fraction {val_fraction} and test_fraction {test_fraction} must be positive and leave a share to train")
    if seed < 0:
        raise ValueError(f"the seed must not be negative; found {seed}")
    labels = strata.numpy()
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by stratum, shuffled inside each
    counts = np.unique(labels, return_counts=True)[1]
    first = np.repeat(np.cumsum(counts) - counts, counts)
    quantile = (np.arange(len(order)) - first + 0.5) / np.repeat(counts, counts)
    parts = np.digitize(quantile, [test_fraction, test_fraction + val_fraction])  # 0 test, 1 val, 2 train
    names = SPLITS if test_fraction else SPLITS[:2]
    found = {name: torch.from_numpy(np.sort(order[parts == 2 - SPLITS.index(name)])) for name in names}
    empty = [name for name, indices in found.items() if not len(indices)]
    if empty:
        raise ValueError(
            f"{len(labels)} samples leave {', '.join(empty)} empty at val_fraction {val_fraction}, test_fraction {test_fraction}"
        )
    return found
