"""How well saliency maps localise: boxes from maps, the pointing game, contrast inside and outside a box, mass on a mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from graftwork_grad_cam.boxes import box_masks, paired_iou

__all__ = [
    "ClassCounts",
    "box_contrast",
    "correct_boxes",
    "largest_component_boxes",
    "localization_errors",
    "mass_inside",
    "peaks",
    "pointing_hits",
    "rejections",
]


def largest_component_boxes(maps: Tensor, threshold: float = 0.15) -> Tensor:
    """A tight box around the largest connected region above a share of each map's maximum (Selvaraju et al., 2017, section 4.1).

    Pixels are connected over edges and corners. All maps are labelled in one call, as slices that do not touch.

    Args:
        maps: (..., H, W).
        threshold: share of the maximum, in [0, 1).

    Returns:
        (..., 4) float boxes x1, y1, x2, y2 in pixels, the second corner outside; zeros for a map without a value above 0.

    Raises:
        ValueError: if the threshold is out of range.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"the threshold is a share of the maximum in [0, 1); found {threshold}")
    flat = maps.detach().float().reshape(-1, *maps.shape[-2:])
    highest = flat.amax(dim=(1, 2), keepdim=True)
    above = ((flat > threshold * highest) & (highest > 0)).cpu().numpy()
    touching = np.zeros((3, 3, 3), dtype=int)
    touching[1] = 1
    labels, count = ndimage.label(above, structure=touching)
    if not count:
        return maps.new_zeros(*maps.shape[:-2], 4, dtype=torch.float32)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    owner = np.zeros(count + 1, dtype=int)
    slices, _, _ = np.nonzero(labels)
    owner[labels[labels > 0]] = slices
    order = np.lexsort((np.arange(count + 1), -sizes))[:count]  # by size, then by label
    first = np.unique(owner[order], return_index=True)
    best = np.full(len(flat), -1)
    best[first[0]] = order[first[1]]
    kept = (labels == best[:, None, None]) & (labels > 0)
    boxes = np.concatenate([_extent(kept.any(axis=1)), _extent(kept.any(axis=2))], axis=1)[:, [0, 2, 1, 3]]
    return torch.from_numpy(boxes).float().to(maps.device).reshape(*maps.shape[:-2], 4)


def _extent(line: np.ndarray) -> np.ndarray:
    """First true and one behind the last true of each row: (N, L) to (N, 2); zeros where there is none."""
    last = line.shape[1] - line[:, ::-1].argmax(axis=1)
    return np.stack([line.argmax(axis=1), last], axis=1) * line.any(axis=1, keepdims=True)


def correct_boxes(boxes: Tensor, classes: Tensor, truth: Tensor, truth_classes: Tensor, min_iou: float = 0.5) -> Tensor:
    """Which predicted boxes overlap a true box of their class.

    Args:
        boxes: (B, T, 4), one for each class that is tried.
        classes: (B, T).
        truth: (B, N, 4), padded.
        truth_classes: (B, N), -1 where padded.
        min_iou: overlap that counts, at least.

    Returns:
        (B, T) bool.
    """
    same = classes[:, :, None] == truth_classes[:, None, :]
    return ((paired_iou(boxes, truth.float()) >= min_iou) & same).any(dim=2)


def localization_errors(correct: Tensor) -> tuple[float, float]:
    """Top-1 error and top-T error: the share of images for which the first, or none of the T, is correct. (B, T) bool."""
    return 1 - correct[:, 0].float().mean().item(), 1 - correct.any(dim=1).float().mean().item()


def peaks(maps: Tensor) -> Tensor:
    """Row and column of each map's maximum, the first of several: (..., H, W) to (..., 2) long."""
    flat = maps.flatten(-2).argmax(dim=-1)
    return torch.stack([flat // maps.shape[-1], flat % maps.shape[-1]], dim=-1)


def pointing_hits(points: Tensor, masks: Tensor, tolerance: float = 15) -> Tensor:
    """Whether a mask has a pixel strictly nearer than `tolerance` to a point (squared distance below tolerance^2).

    Args:
        points: (..., 2) row and column.
        masks: (..., H, W) bool.
        tolerance: in pixels; 0 asks that the point itself lie on the mask.

    Returns:
        (...) bool.

    Raises:
        ValueError: if the tolerance is negative.
    """
    if tolerance < 0:
        raise ValueError(f"the tolerance must not be negative; found {tolerance}")
    rows = torch.arange(masks.shape[-2], device=masks.device)[:, None]
    columns = torch.arange(masks.shape[-1], device=masks.device)
    row, column = points[..., 0, None, None], points[..., 1, None, None]
    squared = (rows - row).square() + (columns - column).square()
    near = squared < tolerance**2 if tolerance > 0 else squared == 0
    return (near & masks).flatten(-2).any(dim=-1)


def rejections(maps: Tensor, reject_below: float) -> Tensor:
    """Whether a map says that its class is absent: its maximum is below a threshold. (..., H, W) to (...) bool."""
    return maps.flatten(-2).amax(dim=-1) < reject_below


@dataclass
class ClassCounts:
    """Hits and misses of each class; the accuracy is the mean of the classes' own.

    Args:
        hits: (C,) float.
        total: (C,) float.
    """

    hits: Tensor
    total: Tensor

    @classmethod
    def empty(cls, classes: int, device: torch.device | str = "cpu") -> ClassCounts:
        """Nothing counted."""
        return cls(torch.zeros(classes, device=device), torch.zeros(classes, device=device))

    def add(self, hit: Tensor, classes: Tensor, counted: Tensor) -> None:
        """Count pairs of an image and a class: which were hits, of which class, and which count at all; all of one shape."""
        where = classes.clamp(min=0).flatten()
        self.hits.index_add_(0, where, (hit & counted).flatten().to(self.hits))
        self.total.index_add_(0, where, counted.flatten().to(self.total))

    @property
    def accuracy(self) -> float:
        """Mean over the classes that were counted; nan when none was."""
        return (self.hits / self.total)[self.total > 0].mean().item()


def box_contrast(maps: Tensor, boxes: Tensor) -> Tensor:
    """Mean of a map inside a box over its mean outside; 1 for a uniform map (Selvaraju et al., 2017, section 7.1).

    Args:
        maps: (..., H, W), non-negative.
        boxes: (..., 4) in pixels.

    Returns:
        (...): inf where nothing lies outside, nan where the map is 0 everywhere or the box holds no or every pixel.
    """
    inside = box_masks(boxes, *maps.shape[-2:]).to(maps)
    outside = 1 - inside
    within = (maps * inside).sum(dim=(-2, -1)) / inside.sum(dim=(-2, -1))
    return within / ((maps * outside).sum(dim=(-2, -1)) / outside.sum(dim=(-2, -1)))


def mass_inside(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of a map's sum that lies on a mask.

    Args:
        maps: (..., H, W), non-negative.
        masks: (..., H, W) bool.

    Returns:
        (...) in [0, 1]; nan for a map of zeros.
    """
    return (maps * masks).sum(dim=(-2, -1)) / maps.sum(dim=(-2, -1))
