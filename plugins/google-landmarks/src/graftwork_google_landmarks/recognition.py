"""One landmark and a score for an image, from its nearest neighbours in train."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Recognition", "ban_distractors", "recognise"]


class Recognition(NamedTuple):
    """What is predicted for each query.

    Args:
        landmarks: (Q,) landmark ids.
        scores: (Q,) float64.
    """

    landmarks: NDArray[np.int64]
    scores: NDArray[np.float64]


def recognise(
    similarities: NDArray[np.floating], landmarks: NDArray[np.int64], inliers: NDArray[np.int64] | None = None, inlier_cap: int = 70
) -> Recognition:
    """The landmark with the highest sum over the neighbours that stand under it, of 1 - L2^2 + min(cap, inliers) / cap.

    For descriptors of unit length 1 - L2^2 is 2 cos - 1. That is how the first and third of the 2019 challenge predicted
    (lyakaap/Landmark2019-1st-and-3rd-Place-Solution, exp/submit_recognition.py). Of equal sums the nearest neighbour's wins.

    Args:
        similarities: (Q, k) cosines, nearest first.
        landmarks: (Q, k) of the neighbours.
        inliers: (Q, k) of the geometric verification of query and neighbour; None leaves it out.
        inlier_cap: inliers beyond which more make no difference.

    Raises:
        ValueError: if the shapes differ, or the cap is not positive.
    """
    if similarities.shape != landmarks.shape or (inliers is not None and inliers.shape != landmarks.shape):
        raise ValueError(f"similarities {similarities.shape} and landmarks {landmarks.shape} (and inliers) differ in shape")
    if inlier_cap < 1:
        raise ValueError(f"inlier_cap is at least 1; found {inlier_cap}")
    votes = 2 * similarities.astype(np.float64) - 1
    if inliers is not None:
        votes = votes + np.minimum(inliers, inlier_cap) / inlier_cap
    totals = np.einsum("qij,qj->qi", landmarks[:, :, None] == landmarks[:, None, :], votes)
    best = totals.argmax(axis=1)
    rows = np.arange(len(best))
    return Recognition(landmarks[rows, best], totals[rows, best])


def ban_distractors(found: Recognition, more_than: int = 30) -> Recognition:
    """Give the score -n to predictions of a landmark that is predicted for n > more_than queries: it is likely what no-landmarks look like.

    The public code finds these rows by a text search, which also hits landmarks whose id ends in the same digits; here ids are compared.

    Raises:
        ValueError: if more_than is negative.
    """
    if more_than < 0:
        raise ValueError(f"more_than is at least 0; found {more_than}")
    _, inverse, counts = np.unique(found.landmarks, return_inverse=True, return_counts=True)
    times = counts[inverse]
    return Recognition(found.landmarks, np.where(times > more_than, -times.astype(np.float64), found.scores))
