"""Where the objects of a batch are: masks and boxes by class, out of the sample keys `mask`, `boxes`, `labels`, `label`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from graftwork.errors import DataError
from graftwork_grad_cam.boxes import box_masks

__all__ = ["class_masks", "masks_of", "padded_boxes", "present_classes"]


def padded_boxes(batch: Mapping[str, Any], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B, N, 4), classes (B, N), -1 where padded, and which are difficult (B, N).

    Classes are those of the key `labels`, else each sample's `label`.

    Raises:
        DataError: if the batch has no boxes, or neither labels nor label.
    """
    if "boxes" not in batch or not ({"labels", "label"} & set(batch)):
        raise DataError(f"boxes and the classes of what is in them (`labels`, or `label`) are read; the batch has {', '.join(batch)}")
    given = [torch.as_tensor(each).reshape(-1, 4) for each in batch["boxes"]]
    counts = torch.tensor([len(each) for each in given], device=given[0].device)
    boxes = pad_sequence(given, batch_first=True).float()
    there = torch.arange(boxes.shape[1], device=boxes.device) < counts[:, None]
    if "labels" in batch:
        classes = pad_sequence([torch.as_tensor(each) for each in batch["labels"]], batch_first=True)
    else:
        classes = batch["label"][:, None].expand(length, boxes.shape[1])
    difficult = torch.zeros_like(there)
    if "difficult" in batch:
        difficult = pad_sequence([torch.as_tensor(each).bool() for each in batch["difficult"]], batch_first=True)
    return boxes, classes.where(there, -1), difficult


def class_masks(batch: Mapping[str, Any], classes: Tensor, size: tuple[int, int], mask_offset: int = 1) -> Tensor:
    """The pixels of each class that is asked for, by the key `mask` where it is there, else by `boxes`.

    Args:
        batch: of samples.
        classes: (B, T).
        size: (H, W).
        mask_offset: value of class 0 in `mask`.

    Returns:
        (B, T, H, W) bool.

    Raises:
        DataError: if the batch has neither.
    """
    if "mask" in batch:
        return batch["mask"].unsqueeze(1) == (classes + mask_offset)[:, :, None, None]
    if "boxes" not in batch:
        raise DataError(f"where the objects are is read from `mask` or `boxes`; the batch has {', '.join(batch)}")
    boxes, owners, _ = padded_boxes(batch, len(classes))
    inside = box_masks(boxes, *size)  # (B, N, H, W)
    same = classes[:, :, None] == owners[:, None, :]
    return torch.einsum("btn,bnhw->bthw", same.to(torch.float32), inside.to(torch.float32)) > 0


def present_classes(batch: Mapping[str, Any], count: int, mask_offset: int = 1) -> Tensor:
    """Which of `count` classes each sample shows, by `mask` or `boxes`, as (B, count) bool; difficult boxes alone do not count."""
    if "mask" in batch:
        mask = batch["mask"].flatten(1) - mask_offset
        known = (mask >= 0) & (mask < count)
        found = torch.zeros(len(mask), count, device=mask.device)
        return found.scatter_add_(1, mask.clamp(0, count - 1), known.float()) > 0
    boxes, owners, difficult = padded_boxes(batch, len(batch["boxes"]))
    counted = (owners >= 0) & (owners < count) & ~difficult
    found = torch.zeros(len(boxes), count, device=boxes.device)
    return found.scatter_add_(1, owners.clamp(0, count - 1), counted.float()) > 0


def masks_of(batch: Mapping[str, Any], size: tuple[int, int]) -> Tensor | None:
    """(B, H, W) pixels of any object: `mask` above 0, else in a box; None where the batch has neither."""
    if "mask" in batch:
        return batch["mask"] > 0
    if "boxes" not in batch:
        return None
    boxes = pad_sequence([torch.as_tensor(each).reshape(-1, 4) for each in batch["boxes"]], batch_first=True)
    return box_masks(boxes.float(), *size).any(dim=1)
