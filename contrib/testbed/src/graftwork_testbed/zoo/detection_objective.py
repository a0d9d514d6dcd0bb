"""What trains an anchor-free detector: targets on the map, a loss of the heat map and a loss of the boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid, pad
from torch.nn.utils.rnn import pad_sequence

from graftwork import Batch, DataError, Dataset, Loss, Objective
from graftwork.errors import InterfaceError
from graftwork_testbed.zoo.detection import box_area, generalized_iou
from graftwork_testbed.zoo.detector import AnchorFreeDetector

__all__ = ["AnchorFreeDetection", "MapTargets", "Objects", "giou_loss", "heatmap_focal_loss", "map_targets", "pad_objects"]

Weight = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]

NARROWEST = 1 / 6
"""Least standard deviation of a Gaussian in cells: that of a radius of 0 in Law & Deng, 2018, of which only the centre's cell is left."""


class Objects(NamedTuple):
    """The objects of B images, padded to N.

    Args:
        boxes: (B, N, 4) float32 as x1, y1, x2, y2 in pixels.
        labels: (B, N) long, 0 where there is none.
        present: (B, N) bool.
    """

    boxes: Tensor
    labels: Tensor
    present: Tensor


class MapTargets(NamedTuple):
    """What a detector's maps are to be.

    Args:
        heatmap: (B, C, h, w) in [0, 1], 1 at the cells of objects' centres alone.
        boxes: (B, 4, h, w), the box of the object that a cell belongs to; of any other cell, the first object's.
        positive: (B, h, w) bool, whether a cell belongs to an object.
    """

    heatmap: Tensor
    boxes: Tensor
    positive: Tensor


def heatmap_focal_loss(logits: Tensor, heatmap: Tensor, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """Focal loss with less of a penalty near centres, divided by the number of centres (Zhou et al., 2019, eq. 1; Law & Deng, 2018, eq. 1).

    With p = sigmoid(logits), -(1 - p)^alpha log p where the heat map is 1, and -(1 - heatmap)^beta p^alpha log(1 - p) elsewhere. At
    least in float32.

    Args:
        logits: (B, C, h, w).
        heatmap: (B, C, h, w) in [0, 1].
        alpha: how far what is right already is left alone.
        beta: how far what is near a centre is left alone.

    Returns:
        0-d, the sum over cells and classes divided by the number of ones, or by 1 where there is none.

    Raises:
        ValueError: if the two shapes differ.
    """
    if logits.shape != heatmap.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and heatmap {tuple(heatmap.shape)} differ in shape")
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    probabilities, centres = precise.sigmoid(), heatmap == 1
    hits = (1 - probabilities).pow(alpha) * logsigmoid(precise)
    misses = (1 - heatmap).pow(beta) * probabilities.pow(alpha) * logsigmoid(-precise)
    return -hits.where(centres, misses).sum() / centres.sum().clamp(min=1)


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - generalised IoU of boxes that correspond (Rezatofighi et al., 2019, algorithm 2).

    Args:
        boxes: (..., 4) as x1, y1, x2, y2.
        targets: (..., 4).

    Returns:
        (...) in [0, 2].
    """
    return 1 - generalized_iou(boxes, targets)


def pad_objects(boxes: Tensor | Sequence[Tensor], labels: Tensor | Sequence[Tensor], num_classes: int) -> Objects:
    """Join a batch's boxes and labels, one entry an image, into padded tensors; boxes without an area are left out.

    Labels are held against the number of classes where they are on the CPU; elsewhere that would have to wait for the device.

    Args:
        boxes: (n, 4) of each image, or (B, n, 4) where all have as many.
        labels: (n,) long of each image, or (B, n).
        num_classes: C.

    Raises:
        DataError: if an image has not one label a box, boxes are not of four numbers, or a label is not in [0, C).
    """
    if len(boxes) != len(labels):
        raise DataError(f"boxes are of {len(boxes)} images, labels of {len(labels)}")
    for number, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        if box.dim() != 2 or box.shape[1] != 4 or label.shape != box.shape[:1]:
            raise DataError(
                f"image {number} of the batch has boxes {tuple(box.shape)} and labels {tuple(label.shape)}; they are (n, 4) and (n,)"
            )
    counts = torch.tensor([len(box) for box in boxes], device=boxes[0].device)
    joined, classes = (each if isinstance(each, Tensor) else pad_sequence(list(each), batch_first=True) for each in (boxes, labels))
    if joined.shape[1] == 0:  # one slot at least, so that there is something to take the least of
        joined, classes = pad(joined, (0, 0, 0, 1)), pad(classes, (0, 1))
    if classes.device.type == "cpu" and (outside := classes[(classes < 0) | (classes >= num_classes)]).numel():
        raise DataError(f"label {outside[0].item()} is none of the detector's {num_classes} classes, 0 to {num_classes - 1}")
    joined = joined.float()
    present = (torch.arange(joined.shape[1], device=joined.device) < counts[:, None]) & (box_area(joined) > 0)
    return Objects(joined, classes.long(), present)


def map_targets(
    objects: Objects, num_classes: int, size: tuple[int, int], stride: int, spread: float = 0.54, radius: float = 1.5
) -> MapTargets:
    """Where on a map the objects are, and which box each cell is to give.

    The heat map of a class is the greatest of its objects' Gaussians, each around the cell of a box's centre, where it is 1, with
    standard deviations of `spread` / 6 of the box's width and height (Liu et al., 2020, https://arxiv.org/abs/1909.00700). A cell
    belongs to an object if its centre is inside the box and within `radius` cells of the box's centre, across and down (Tian et al.,
    2022, https://arxiv.org/abs/2006.09214); the cell of a box's centre always does, however narrow the box. Of several objects a
    cell belongs to the smallest.

    Args:
        objects: of B images.
        num_classes: C.
        size: (h, w) of the map in cells.
        stride: pixels a cell.
        spread: six standard deviations as a share of the box.
        radius: in cells.
    """
    boxes, labels, present = objects
    middles = (boxes[..., :2] + boxes[..., 2:]) / 2
    cells = (middles / stride).floor()
    sigmas = (spread / 6 / stride * (boxes[..., 2:] - boxes[..., :2])).clamp(min=NARROWEST)
    bells, inside, central = [], [], []  # across, then down: (B, N, w) and (B, N, h)
    for axis, count in ((0, size[1]), (1, size[0])):
        steps = torch.arange(count, device=boxes.device, dtype=boxes.dtype)
        own, middle, sigma = cells[..., axis, None].clamp(0, count - 1), middles[..., axis, None], sigmas[..., axis, None]
        points = (steps + 0.5) * stride
        bells.append((-(steps - own).square() / (2 * sigma.square())).exp())
        near = (points - middle).abs() <= radius * stride
        inside.append(near & (points > boxes[..., axis, None]) & (points < boxes[..., axis + 2, None]))
        central.append(steps == own)
    bell = bells[1][..., :, None] * bells[0][..., None, :] * present[..., None, None]
    heatmap = bell.new_zeros(len(boxes), num_classes, *size).scatter_reduce(1, labels[..., None, None].expand_as(bell), bell, "amax")
    claimed = (inside[1][..., :, None] & inside[0][..., None, :]) | (central[1][..., :, None] & central[0][..., None, :])
    claimed &= present[..., None, None]
    owner = box_area(boxes)[..., None, None].expand_as(claimed).masked_fill(~claimed, torch.inf).argmin(dim=1)  # (B, h, w)
    owned = boxes.gather(1, owner.flatten(1)[..., None].expand(-1, -1, 4)).transpose(1, 2).unflatten(2, size)
    return MapTargets(heatmap, owned, claimed.any(dim=1))


class AnchorFreeDetection(Objective):
    """Focal loss of the heat map of centres, and generalised IoU of the boxes around them.

    Heat map and focal loss as in CenterNet (Zhou et al., 2019, https://arxiv.org/abs/1904.07850) and TTFNet (Liu et al., 2020,
    https://arxiv.org/abs/1909.00700), boxes as in FCOS (Tian et al., 2019, https://arxiv.org/abs/1904.01355) with the loss of
    Rezatofighi et al. (2019, https://arxiv.org/abs/1902.09630), averaged over the cells that belong to objects. Boxes without an
    area are left out. The model's configuration takes the names of its classes from the dataset.

    Args:
        box_weight: of the boxes' loss against the heat map's.
        spread: of an object's Gaussian: six standard deviations as a share of its box.
        radius: cells from a box's centre, across and down, that learn its box.
        alpha: of the focal loss; how far what is right already is left alone.
        beta: of the focal loss; how far what is near a centre is left alone.
    """

    keys = {"train": ("image", "boxes", "labels")}
    needs = AnchorFreeDetector

    def __init__(self, box_weight: Weight = 1.0, spread: Positive = 0.54, radius: Weight = 1.5, alpha: Weight = 2.0, beta: Weight = 4.0):
        super().__init__()
        for name, value in (("box_weight", box_weight), ("radius", radius), ("alpha", alpha), ("beta", beta)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0; found {value}")
        if spread <= 0:
            raise ValueError(f"spread must be above 0; found {spread}")
        self.box_weight, self.spread, self.radius, self.alpha, self.beta = box_weight, spread, radius, alpha, beta

    def setup(self, model: Any, data: Dataset) -> None:
        """Name the model's classes as the dataset does.

        Raises:
            InterfaceError: if the dataset is known to have more classes than the model.
        """
        names, outputs = data.info.classes, model.config.num_labels
        if len(names) > outputs:
            raise InterfaceError(
                f"the dataset has {len(names)} classes, {type(model).__name__} only {outputs}: build it with num_classes {len(names)}"
            )
        if len(names) == outputs:
            model.config.id2label = dict(enumerate(names))
            model.config.label2id = {name: number for number, name in enumerate(names)}

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The weighted sum, and its two terms."""
        batch, config = batches["train"], model.config
        maps = model(batch["image"])
        objects = pad_objects(batch["boxes"], batch["labels"], config.num_labels)
        size = (maps.heatmap.shape[2], maps.heatmap.shape[3])
        targets = map_targets(objects, config.num_labels, size, config.stride, self.spread, self.radius)
        of_class = heatmap_focal_loss(maps.heatmap, targets.heatmap, self.alpha, self.beta)
        errors = giou_loss(maps.boxes.movedim(1, -1), targets.boxes.movedim(1, -1))
        of_box = (errors * targets.positive).sum() / targets.positive.sum().clamp(min=1)
        return Loss(of_class + self.box_weight * of_box, {"class": of_class, "box": of_box})
