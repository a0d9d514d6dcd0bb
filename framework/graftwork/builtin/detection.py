"""Detection of objects: how well boxes, classes and scores fit what is there."""

from __future__ import annotations

from typing import Annotated, Any

import numpy
import torch
from pydantic import Field
from torch import Tensor

from graftwork.builtin.hub import need
from graftwork.errors import DataError, InterfaceError
from graftwork.interfaces import Detector
from graftwork.kinds.dataset import Dataset, Split
from graftwork.kinds.evaluator import Evaluator, Report, Table, evaluating, split_batches
from graftwork.run import Run

__all__ = ["DetectionMAP", "average_precisions"]

Count = Annotated[int, Field(ge=1)]
Found = dict[str, Tensor]


def average_precisions(truths: list[Found], detections: list[Found], most: int = 100) -> tuple[list[int], Tensor]:
    """COCO's average precision: over 101 recalls, at each of the ten overlaps 0.5, 0.55, ..., 0.95 (Lin et al., 2014).

    A detection is matched to the object of its class and image with which its intersection over union is greatest, in order of
    score; what is matched already does not match again.

    Args:
        truths: an image each: `boxes` (n, 4) as x1, y1, x2, y2 and `labels` (n,).
        detections: as many: `boxes` (m, 4), `labels` (m,) and `scores` (m,).
        most: the highest scored detections of an image and class that count.

    Returns:
        The labels of the truths in ascending order, and (10, labels) average precisions, float64.

    Raises:
        GraftworkError: if faster-coco-eval is not installed.
    """
    library = need("faster_coco_eval", "detection")
    labels = sorted({label for truth in truths for label in truth["labels"].tolist()})
    truth, guesses = library.COCO(_coco(truths, labels)), library.COCO(_coco(detections, labels))
    judge = library.COCOeval_faster(truth, guesses, iouType="bbox")
    judge.params.maxDets, judge.params.areaRng, judge.params.areaRngLbl = [most], [[0, 1e10]], ["all"]
    judge.evaluate()
    judge.accumulate()
    precision = numpy.asarray(judge.eval["precision"])  # overlaps, recalls, classes, areas, most
    return labels, torch.from_numpy(precision[:, :, :, 0, 0].mean(axis=1))


def _coco(images: list[Found], labels: list[int]) -> dict[str, Any]:
    """Boxes in COCO's own layout; ids count from 1, as 0 means no match there."""
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        boxes = image["boxes"].double().reshape(-1, 4).cpu()
        corners, sizes = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
        scores = image["scores"].tolist() if "scores" in image else [1.0] * len(boxes)
        for box, area, label, score in zip(
            torch.cat([corners, sizes], dim=1).tolist(), sizes.prod(dim=1).tolist(), image["labels"].tolist(), scores, strict=True
        ):
            one = {"image_id": number, "category_id": label, "bbox": box, "area": area, "score": score, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **one})
    return {
        "images": [{"id": number} for number in range(1, len(images) + 1)],
        "categories": [{"id": label, "name": str(label)} for label in labels],
        "annotations": annotations,
    }


class DetectionMAP(Evaluator):
    """COCO's mean average precision of boxes (Lin et al., 2014, https://arxiv.org/abs/1405.0312), by faster-coco-eval.

    Args:
        split: where to measure; its samples hold `boxes` in pixels and `labels`.
        classes: names of the classes in the order of their labels; the dataset's by default.
        most: the highest scored detections of an image and class that count; COCO's 100.
        limit: read the first so many samples only.
        batch_size: samples that the model sees at once.
    """

    keys = ("image", "boxes", "labels")
    needs = Detector

    def __init__(
        self,
        split: Split = "test",
        classes: list[str] | None = None,
        most: Count = 100,
        limit: Count | None = None,
        batch_size: Count = 32,
    ):
        self.split, self.classes, self.most, self.limit, self.batch_size = split, classes, most, limit, batch_size

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics map, over overlaps from 0.5 to 0.95, map-50 and map-75, each the mean over the classes there are; and a table.

        Raises:
            DataError: if the split has no object.
            InterfaceError: if the detector's answer is not as Detector says.
        """
        truths: list[Found] = []
        detections: list[Found] = []
        with evaluating(model):
            for batch in split_batches(data, self.split, model, limit=self.limit, batch_size=self.batch_size):
                answer = model.detect(batch["image"])
                _check(answer, len(batch["image"]), model)
                detections += [{key: one[key].detach().cpu() for key in ("boxes", "labels", "scores")} for one in answer]
                truths += [{"boxes": b.cpu(), "labels": n.cpu()} for b, n in zip(batch["boxes"], batch["labels"], strict=True)]
        objects = [label for truth in truths for label in truth["labels"].tolist()]
        if not objects:
            raise DataError(f'split "{self.split}" has no object to detect')
        labels, precisions = average_precisions(truths, detections, self.most)
        metrics = {"map": precisions.mean().item(), "map-50": precisions[0].mean().item(), "map-75": precisions[5].mean().item()}
        known = dict(enumerate(self.classes or data.info.classes))
        rows = [
            [known.get(label, str(label)), objects.count(label), *each]
            for label, each in zip(labels, torch.stack([precisions.mean(dim=0), precisions[0], precisions[5]], dim=1).tolist(), strict=True)
        ]
        caption = f"Average precision on {self.split}, a class a row: over overlaps from 0.5 to 0.95, at 0.5 and at 0.75."
        return Report(metrics, {"classes": Table(["class", "objects", "AP", "AP50", "AP75"], rows, caption)})


def _check(answer: Any, images: int, model: Any) -> None:
    """Raise InterfaceError unless a detector's answer is one dict an image with boxes, labels and scores of one length."""
    name = type(model).__name__
    if len(answer) != images:
        raise InterfaceError(f"{name} gives {len(answer)} answers for {images} images")
    for one in answer:
        if lacking := [key for key in ("boxes", "labels", "scores") if key not in one]:
            raise InterfaceError(f"{name} detects without {', '.join(lacking)}")
        if one["boxes"].shape != (len(one["labels"]), 4) or one["scores"].shape != one["labels"].shape:
            shapes = ", ".join(f"{key} {tuple(one[key].shape)}" for key in ("boxes", "labels", "scores"))
            raise InterfaceError(f"{name} detects {shapes}; boxes are (n, 4), labels and scores (n,)")
