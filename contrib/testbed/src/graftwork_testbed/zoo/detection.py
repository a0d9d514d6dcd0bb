"""Boxes and detections: how much boxes overlap, which detections are duplicates, where a heat map has its peaks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

__all__ = ["box_area", "generalized_iou", "heatmap_peaks", "iou", "non_maximum_suppression"]

SMALLEST = 1e-7
"""Least area in square pixels that anything is divided by."""


def box_area(boxes: Tensor) -> Tensor:
    """Areas (...) of boxes (..., 4) as x1, y1, x2, y2; 0 where a box ends before it begins."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes that correspond (Jaccard, 1912); for all pairs, let the two broadcast.

    Args:
        boxes: (..., 4) as x1, y1, x2, y2.
        others: (..., 4), of a shape that broadcasts with the boxes'.

    Returns:
        (...) in [0, 1]; 0 where neither box has an area.
    """
    intersection, union = _overlap(boxes, others)
    return intersection / union.clamp(min=SMALLEST)


def generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised intersection over union: IoU less the share of the hull that is in neither box (Rezatofighi et al., 2019, algorithm 1).

    The hull is the smallest box around both, so that boxes that lie apart still have a gradient.

    Args:
        boxes: (..., 4) as x1, y1, x2, y2.
        others: (..., 4), of a shape that broadcasts with the boxes'.

    Returns:
        (...) in [-1, 1].
    """
    intersection, union = _overlap(boxes, others)
    first, last = torch.minimum(boxes[..., :2], others[..., :2]), torch.maximum(boxes[..., 2:], others[..., 2:])
    hull = (last - first).clamp(min=0).prod(dim=-1)
    return intersection / union.clamp(min=SMALLEST) - (hull - union) / hull.clamp(min=SMALLEST)


def _overlap(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union, (...) each."""
    first, last = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    intersection = (last - first).clamp(min=0).prod(dim=-1)
    return intersection, box_area(boxes) + box_area(others) - intersection


def non_maximum_suppression(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float = 0.6) -> Tensor:
    """Which detections are no duplicates of a higher scored one of their class: greedy suppression, of many images at once.

    A detection is kept unless one that is kept, of its class and with a higher score, overlaps it by more than the threshold. With the
    detections of an image in order of score that is a fixed point of keep = not any(beats and keep), to which iteration from
    all-kept leads: after k rounds the first k are settled for good (Zheng et al., 2022, "Cluster-NMS",
    https://arxiv.org/abs/2005.03572), and a round that changes nothing is the last. Of equal scores, the one that stands first is the
    higher.

    Args:
        boxes: (B, K, 4) as x1, y1, x2, y2.
        scores: (B, K), in any order.
        labels: (B, K) long.
        iou_threshold: overlap in [0, 1] above which one suppresses another.

    Returns:
        (B, K) bool.

    Raises:
        ValueError: if the shapes do not fit or the threshold is out of range.
    """
    if boxes.shape != (*scores.shape, 4) or scores.dim() != 2 or labels.shape != scores.shape:
        found = ", ".join(str(tuple(each.shape)) for each in (boxes, scores, labels))
        raise ValueError(f"boxes are (B, K, 4), scores and labels (B, K); found {found}")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be in [0, 1]; found {iou_threshold}")
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranked, classes = boxes.gather(1, order[..., None].expand(-1, -1, 4)), labels.gather(1, order)
    beats = iou(ranked[:, :, None], ranked[:, None]) > iou_threshold  # (B, K, K): whether the first, if kept, suppresses the second
    beats &= (classes[:, :, None] == classes[:, None]) & beats.new_ones(beats.shape[1:]).triu(1)
    kept = torch.ones_like(classes, dtype=torch.bool)
    for _ in range(scores.shape[1]):
        before, kept = kept, ~(beats & kept[:, :, None]).any(dim=1)
        if kept.equal(before):
            break
    return torch.zeros_like(kept).scatter(1, order, kept)


def heatmap_peaks(probabilities: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cells that none of their eight neighbours exceeds, a class at a time (Zhou et al., 2019, section 4).

    Args:
        probabilities: (B, C, h, w) in [0, 1].
        threshold: at least 0; peaks have to be above it.
        most: the highest peaks of an image that are taken.

    Returns:
        Scores (B, K), from high to low and 0 where an image has fewer than K peaks; labels (B, K) long; cells (B, K) long, row by row.
        K is the most peaks that an image has, `most` at most.
    """
    peaks = (probabilities == max_pool2d(probabilities, 3, 1, 1)) & (probabilities > threshold)
    scores = (probabilities * peaks).flatten(1)
    cells = probabilities.shape[2] * probabilities.shape[3]
    highest, places = scores.topk(min(most, max(peaks.flatten(1).sum(dim=1).tolist(), default=0)))
    return highest, places // cells, places % cells
