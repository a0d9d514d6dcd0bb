"""Cleaning a noisy train set: an image stays if enough images of its landmark show the same place.

Yokoo, Ozaki, Simo-Serra and Iizuka, "Two-stage Discriminative Re-ranking for Large-scale Landmark Retrieval", 2020,
https://arxiv.org/abs/2003.11211, and the authors' code (lyakaap/Landmark2019-1st-and-3rd-Place-Solution, exp/delf), whose
result is `train_clean.csv` of Google Landmarks Dataset v2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from graftwork_google_landmarks.search import Precision, exact_topk

__all__ = ["CandidatePairs", "CleanSet", "same_landmark_neighbours", "select_clean"]


class CandidatePairs(NamedTuple):
    """Pairs of images that stand under one landmark and look alike.

    Args:
        query: (P,) long, ascending.
        neighbour: (P,) long, nearest first for each query.
    """

    query: Tensor
    neighbour: Tensor


class CleanSet(NamedTuple):
    """What is kept.

    Args:
        kept: (K,) long, positions of images, ascending.
        verified: (N,) long, verified neighbours of each image.
    """

    kept: Tensor
    verified: Tensor


def same_landmark_neighbours(
    descriptors: Tensor,
    landmarks: Tensor,
    k: int = 1000,
    same_label_cap: int = 100,
    precision: Precision = "float32",
    query_chunk: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> CandidatePairs:
    """For each image those of its k nearest, by L2 distance, that stand under the same landmark.

    The nearest `same_label_cap` of the same landmark count, the image itself among them, which is then dropped. Only pairs are kept
    from chunk to chunk, so that memory is O(query_chunk k + pairs).

    Args:
        descriptors: (N, D); of unit length, as the authors' are, for distances to be cosines.
        landmarks: (N,) long.
        k: nearest neighbours.
        same_label_cap: of the same landmark, nearest first.
        precision: of the search.
        query_chunk: images searched for at once.
        progress: called with (images done, images).

    Raises:
        ValueError: if k or the cap is not positive, or the lengths differ.
    """
    if same_label_cap < 1:
        raise ValueError(f"same_label_cap is at least 1; found {same_label_cap}")
    if len(descriptors) != len(landmarks):
        raise ValueError(f"{len(descriptors)} descriptors and {len(landmarks)} landmarks differ in number")
    landmarks = landmarks.to(descriptors.device)
    queries, neighbours = [], []
    for rows in torch.split(torch.arange(len(descriptors), device=descriptors.device), query_chunk):
        near = exact_topk(descriptors[rows], descriptors, k, "l2", precision).indices
        same = landmarks[near] == landmarks[rows, None]
        taken = same & (same.cumsum(dim=1) <= same_label_cap) & (near != rows[:, None])
        row, column = taken.nonzero(as_tuple=True)
        queries.append(rows[row].cpu())
        neighbours.append(near[row, column].cpu())
        if progress is not None:
            progress(int(rows[-1]) + 1, len(descriptors))
    return CandidatePairs(torch.cat(queries), torch.cat(neighbours))


def select_clean(
    landmarks: Tensor, pairs: CandidatePairs, inliers: Tensor, min_inliers: int = 30, frequency: int = 3, min_images: int = 2
) -> CleanSet:
    """Keep what is verified often enough; thresholds can be tried again and again on the same pairs.

    Args:
        landmarks: (N,) long.
        pairs: the pairs that were verified.
        inliers: (P,) long, of each pair.
        min_inliers: a pair is verified from so many on.
        frequency: an image is kept with so many verified neighbours or more.
        min_images: a landmark is kept with so many kept images or more.

    Raises:
        ValueError: if a threshold is negative or the lengths differ.
    """
    for name, value in (("min_inliers", min_inliers), ("frequency", frequency), ("min_images", min_images)):
        if value < 0:
            raise ValueError(f"{name} is at least 0; found {value}")
    if len(pairs.query) != len(inliers):
        raise ValueError(f"{len(pairs.query)} pairs and {len(inliers)} numbers of inliers differ in number")
    verified = torch.bincount(pairs.query[inliers >= min_inliers], minlength=len(landmarks))
    enough = verified >= frequency
    classes, label = torch.unique(landmarks, return_inverse=True)
    images = torch.bincount(label[enough], minlength=len(classes))
    return CleanSet((enough & (images[label] >= min_images)).nonzero()[:, 0], verified)
