"""Contiguous labels for landmark ids, and the split of each class in training and validation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graftwork import DataError

__all__ = ["Relabeling", "relabel", "train_validation_split"]


class Relabeling(NamedTuple):
    """A bijection of landmark ids and labels.

    Args:
        landmarks: (C,) int64, ascending; its position is a landmark's label.
    """

    landmarks: NDArray[np.int64]

    def labels(self, landmarks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The label of each landmark id.

        Raises:
            DataError: if one has none.
        """
        found = self.find(landmarks)
        if (found < 0).any():
            raise DataError(f"landmark {landmarks[found < 0][0]} has no label; there are {len(self.landmarks)} landmarks")
        return found

    def find(self, landmarks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The label of each landmark id; -1 for one that has none."""
        if not len(self.landmarks):
            return np.full(len(landmarks), -1, np.int64)
        at = np.minimum(np.searchsorted(self.landmarks, landmarks), len(self.landmarks) - 1)
        return np.where(self.landmarks[at] == landmarks, at, -1)


def relabel(landmarks: NDArray[np.int64]) -> Relabeling:
    """Number the landmark ids that occur, ascending, from 0 (as DELF's build_image_dataset.py does).

    Args:
        landmarks: (N,), with repetitions.
    """
    return Relabeling(np.unique(landmarks))


def train_validation_split(landmarks: NDArray[np.int64], share: float = 0.2, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide each class: shuffled, its first max(1, int(share n)) images validate, the others train (DELF's build_image_dataset.py).

    A class with a single image is in the validation part only.

    Args:
        landmarks: (N,) any class ids.
        share: of a class, in (0, 1).
        seed: of the shuffles.

    Returns:
        Positions of the training and of the validation images, ascending.

    Raises:
        ValueError: if the share is out of range.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is above 0 and below 1; found {share}")
    drawn = np.random.default_rng(seed).permutation(len(landmarks))
    order = drawn[np.argsort(landmarks[drawn], kind="stable")]  # by class, shuffled inside each
    counts = np.unique(landmarks, return_counts=True)[1]
    within = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    validates = within < np.repeat(np.maximum(1, (share * counts).astype(np.int64)), counts)
    return np.sort(order[~validates]), np.sort(order[validates])
