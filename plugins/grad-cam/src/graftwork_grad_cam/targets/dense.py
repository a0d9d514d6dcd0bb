"""Targets with a place in the image: the pixels of a class, the box of an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.rnn import pad_sequence

from graftwork.errors import DataError, InterfaceError
from graftwork.kinds.dataset import Batch
from graftwork_grad_cam.boxes import from_centres, paired_iou
from graftwork_grad_cam.forward import image_key, logits_of
from graftwork_grad_cam.targets.classes import Indices, bind_indices
from graftwork_grad_cam.targets.contract import CHOSEN, Target

__all__ = ["DetectionTarget", "SegmentationTarget"]

REGION = "target region"
BOXES = "target boxes"
KNOWN = "target labels known"


@dataclass(frozen=True)
class SegmentationTarget(Target):
    """The logit of a class summed over a region (the region has the size of a mask that is given, else that of the logits).

    A sample without such a pixel has a score of 0, and a map of zeros.

    Args:
        classes: an index, one a sample, or several a sample.
        region: "predicted" (pixels where the class has the largest logit), "mask" (pixels of the sample's key `mask` that equal
            the class plus `mask_offset`), "image" (all), or a mask (H, W) or (B, H, W).
        mask_offset: value of class 0 in the key `mask`: 0 where masks hold class indices, 1 where 0 is background.
    """

    name: ClassVar[str] = "segmentation"
    classes: Indices = 0
    region: Literal["predicted", "mask", "image"] | Tensor | Sequence[Any] = "predicted"
    mask_offset: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.region, str) and self.region not in ("predicted", "mask", "image"):
            raise ValueError(f'a region is "predicted", "mask", "image" or a mask; found "{self.region}"')

    @property
    def keys(self) -> tuple[str, ...]:  # type: ignore[override]
        """("mask",) when that is the region."""
        return ("mask",) if isinstance(self.region, str) and self.region == "mask" else ()

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> Batch:
        """Bind classes and a given region."""
        image = batch[image_key(model, batch)]
        chosen = bind_indices(self.classes, len(image), image.device, "class")
        prepared = {**batch, CHOSEN: chosen}
        if isinstance(self.region, str):
            if self.region == "mask":
                if "mask" not in batch:
                    raise DataError(f"a segmentation target with region mask reads the key mask; the batch has {', '.join(batch)}")
                prepared[REGION] = batch["mask"].unsqueeze(1) == (chosen + self.mask_offset)[:, :, None, None]
            return prepared
        region = torch.as_tensor(self.region, device=image.device)
        region = region.expand(len(image), *region.shape[-2:]).unsqueeze(1)
        return {**prepared, REGION: region.expand(-1, chosen.shape[1], -1, -1)}

    def choice(self, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """(B, T) classes."""
        return batch[CHOSEN]  # type: ignore[no-any-return]

    def pin(self, output: Any, batch: Mapping[str, Any]) -> Batch:
        """Bind the region, which the output may have decided."""
        logits, region = self._logits_and_region(output, batch)
        return {**batch, REGION: region.to(logits.dtype)}

    def score(self, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """(B, T) sums of logits.

        Raises:
            InterfaceError: if the output is not (B, classes, h, w), or there is no such class.
        """
        logits, region = self._logits_and_region(output, batch)
        return (logits.float() * region).sum(dim=(2, 3))

    def _logits_and_region(self, output: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Logits of the chosen classes and their regions, both (B, T, h, w)."""
        found = output.get("out") if isinstance(output, Mapping) and "out" in output else output  # torchvision's name
        logits, chosen = logits_of(found), batch[CHOSEN]
        if logits.dim() != 4:
            raise InterfaceError(f"a segmentation target reads logits (batch, class, h, w); the model gives {tuple(logits.shape)}")
        if int(chosen.max()) >= logits.shape[1] or int(chosen.min()) < 0:
            last = logits.shape[1] - 1
            raise InterfaceError(f"class {int(chosen.max())} is asked for, but the model has {last + 1} classes, 0 to {last}")
        region = batch.get(REGION)
        if region is not None and region.shape[-2:] != logits.shape[-2:]:
            logits = interpolate(logits, size=region.shape[-2:], mode="bilinear", align_corners=False)
        picked = logits.gather(1, chosen[:, :, None, None].expand(-1, -1, *logits.shape[-2:]))
        if region is None:
            everywhere = isinstance(self.region, str) and self.region == "image"
            predicted = logits.argmax(dim=1, keepdim=True) == chosen[:, :, None, None]
            region = torch.ones_like(predicted) if everywhere else predicted
        return picked, region


@dataclass(frozen=True)
class DetectionTarget(Target):
    """The class score of the detection that best overlaps a given box, plus a share of that overlap.

    For detectors of transformers (`logits` (B, Q, classes), `pred_boxes` (B, Q, 4) as centre and size in shares of the image) the
    score is the logit; for torchvision's (a list of `boxes`, `labels`, `scores`) the score that it reports, which is a probability.

    Args:
        boxes: xyxy pixels (N, 4) for all samples or (B, N, 4), or None to read each sample's key `boxes`. Every box has a map.
        classes: of the boxes: one for all, or one a box; None reads the key `labels` where `boxes` is read too and it is there, and
            else takes the class that the matched detection scores highest.
        iou_weight: what the overlap counts beside the class score; 1 in pytorch-grad-cam, 0 leaves it out.
        min_iou: a box that no detection overlaps by more than this has a score of 0; 0.5 in pytorch-grad-cam.

    Raises:
        ValueError: if a number is out of range.
    """

    name: ClassVar[str] = "detection"
    boxes: Sequence[Any] | Tensor | None = None
    classes: Indices | None = None
    iou_weight: float = 1.0
    min_iou: float = 0.0

    def __post_init__(self) -> None:
        if self.iou_weight < 0 or not 0 <= self.min_iou < 1:
            raise ValueError(f"iou_weight must not be negative and min_iou be in [0, 1); found {self.iou_weight} and {self.min_iou}")

    @property
    def keys(self) -> tuple[str, ...]:  # type: ignore[override]
        """("boxes",) unless boxes are given."""
        return ("boxes",) if self.boxes is None else ()

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> Batch:
        """Bind boxes (B, N, 4), in shares of the image, and their classes (B, N): -1 is padding, -2 whatever is detected."""
        image = batch[image_key(model, batch)]
        given = batch.get("boxes") if self.boxes is None else torch.as_tensor(self.boxes, device=image.device)
        if given is None:
            raise DataError(f"a detection target reads the key boxes unless boxes are given; the batch has {', '.join(batch)}")
        if isinstance(given, Tensor):
            given = list(given.expand(len(image), -1, 4))
        counts = torch.tensor([len(each) for each in given], device=image.device)
        boxes = pad_sequence([each.to(image) for each in given], batch_first=True)
        there = torch.arange(boxes.shape[1], device=image.device) < counts[:, None]
        if self.classes is not None:
            chosen = torch.as_tensor(self.classes, device=image.device).expand(there.shape)
        elif self.boxes is None and "labels" in batch:
            chosen = pad_sequence([each.to(image.device) for each in batch["labels"]], batch_first=True)
        else:
            chosen = torch.full_like(there, -2, dtype=torch.long)
        height, width = image.shape[-2:]
        shares = boxes / boxes.new_tensor([width, height, width, height])
        known = getattr(getattr(model, "config", None), "num_labels", None)  # DETR has one logit more, for "no object"
        return {**batch, BOXES: shares, CHOSEN: chosen.where(there, -1), KNOWN: known}

    def score(self, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """(B, N) scores, one a box.

        Raises:
            InterfaceError: if the output holds no detections, or there is no such class.
        """
        wanted, chosen = batch[BOXES], batch[CHOSEN]
        scores, boxes = _detections(output, batch)
        scores = scores[:, :, : batch[KNOWN]]
        if int(chosen.max()) >= scores.shape[2]:
            raise InterfaceError(
                f"class {int(chosen.max())} is asked for, but the model has {scores.shape[2]} classes, 0 to {scores.shape[2] - 1}"
            )
        overlaps = paired_iou(wanted, boxes.float())  # (B, N, Q)
        with torch.no_grad():
            possible = scores.transpose(1, 2).gather(1, chosen.clamp(min=0)[:, :, None].expand(-1, -1, scores.shape[1])).isfinite()
            candidates = overlaps.masked_fill(~possible & (chosen >= 0)[:, :, None], -1.0)
            best, matched = candidates.max(dim=2)
            matched_scores = scores.gather(1, matched[:, :, None].expand(-1, -1, scores.shape[2]))
            known = chosen.where(chosen >= 0, matched_scores.argmax(dim=2))
            counts = (chosen != -1) & (best >= 0) & ((best > self.min_iou) | (self.min_iou == 0))
        rows = torch.arange(len(scores), device=scores.device)[:, None]
        total = scores[rows, matched, known] + self.iou_weight * overlaps.gather(2, matched[:, :, None]).squeeze(2)
        return total.where(counts, total.new_zeros(()))

    def captions(self, output: Any, batch: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
        """The class of each box."""
        return [[names[i] if 0 <= i < len(names) else "box" if i == -2 else str(i) for i in row] for row in batch[CHOSEN].tolist()]


def _detections(output: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Class scores (B, Q, C) and boxes (B, Q, 4) as xyxy shares of the image; a score of -inf where a class is not reported."""
    if isinstance(output, (list, tuple)) and output and isinstance(output[0], Mapping) and "boxes" in output[0]:
        height, width = next(value for key in ("image", "pixel_values") if (value := batch.get(key)) is not None).shape[-2:]
        boxes = pad_sequence([each["boxes"] for each in output], batch_first=True)
        labels = pad_sequence([each["labels"] for each in output], batch_first=True, padding_value=-1)
        reported = pad_sequence([each["scores"] for each in output], batch_first=True)
        asked = max(int(labels.max()) if labels.numel() else 0, int(batch[CHOSEN].max()), 0)
        table = torch.arange(asked + 1, device=boxes.device) == labels[:, :, None]
        scores = reported[:, :, None].where(table, reported.new_tensor(-torch.inf))
        return scores, boxes / boxes.new_tensor([width, height, width, height])
    logits, boxes = getattr(output, "logits", None), getattr(output, "pred_boxes", None)
    if not isinstance(logits, Tensor) or not isinstance(boxes, Tensor):
        raise InterfaceError(
            f"a detection target reads `logits` and `pred_boxes`, or a list of `boxes`, `labels`, `scores`; found {type(output).__name__}"
        )
    return logits, from_centres(boxes)
