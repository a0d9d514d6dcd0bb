"""Boxes as (x1, y1, x2, y2), the second corner outside: a box of one pixel is (x, y, x + 1, y + 1)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["box_masks", "from_centres", "paired_iou"]


def from_centres(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height to corners."""
    centres, sizes = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1)


def paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of each box of one list with each of another.

    Args:
        first: (..., N, 4).
        second: (..., M, 4), with the same leading dimensions.

    Returns:
        (..., N, M); 0 where either box is empty.
    """
    corner = torch.maximum(first[..., :, None, :2], second[..., None, :, :2])
    opposite = torch.minimum(first[..., :, None, 2:], second[..., None, :, 2:])
    shared = (opposite - corner).clamp(min=0).prod(dim=-1)
    areas = [(each[..., 2:] - each[..., :2]).clamp(min=0).prod(dim=-1) for each in (first, second)]
    union = areas[0][..., :, None] + areas[1][..., None, :] - shared
    return torch.where(union > 0, shared / union.where(union > 0, 1), 0)


def box_masks(boxes: Tensor, height: int, width: int) -> Tensor:
    """The pixels whose centre lies in each box.

    Args:
        boxes: (..., 4).
        height: of the image.
        width: of the image.

    Returns:
        (..., height, width) bool.
    """
    x = torch.arange(width, device=boxes.device) + 0.5
    y = torch.arange(height, device=boxes.device) + 0.5
    x1, y1, x2, y2 = boxes.unsqueeze(-1).unbind(dim=-2)
    inside_x, inside_y = (x >= x1) & (x < x2), (y >= y1) & (y < y2)
    return inside_y[..., :, None] & inside_x[..., None, :]
