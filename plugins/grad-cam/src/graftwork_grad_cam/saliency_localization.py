"""Weakly supervised localisation: a box from a classifier's map (Selvaraju et al., 2017, section 4.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork.errors import DataError
from graftwork.kinds.dataset import Dataset, Split
from graftwork.kinds.evaluator import Evaluator, Figure, Report, Table, split_batches
from graftwork.kinds.objective import INPUTS
from graftwork_grad_cam.figures import Cell, as_picture, overlay, sheet, truncated
from graftwork_grad_cam.forward import image_key
from graftwork_grad_cam.grad_cam import GradCAM
from graftwork_grad_cam.localization import correct_boxes, largest_component_boxes, localization_errors
from graftwork_grad_cam.regions import padded_boxes
from graftwork_grad_cam.saliency import Count, SaliencyMethod, class_names
from graftwork_grad_cam.targets import ClassTarget

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["SaliencyLocalization"]


class SaliencyLocalization(Evaluator):
    """Top-1 and top-5 localisation error: the class is right, and its map's box overlaps a true box of that class by half.

    A map is binarised at a share of its maximum, and boxed around its largest connected region. True boxes are the sample key `boxes`,
    their classes `labels` or each sample's `label`.

    Args:
        split: where to measure.
        saliency: the maps, by default `grad-cam` as it comes.
        threshold: share of the map's maximum above which a pixel belongs to the object.
        min_iou: overlap from which a box is right.
        top_k: how many of the predicted classes are tried; each has a map.
        limit: the first so many samples only.
        batch_size: samples at a time.
        columns: samples in a row of the figure.

    Raises:
        ValueError: if a number is out of range.
    """

    needs = nn.Module
    keys = (INPUTS, "boxes")

    def __init__(
        self,
        split: Split = "test",
        saliency: SaliencyMethod | None = None,
        threshold: Annotated[float, Field(ge=0, lt=1)] = 0.15,
        min_iou: Annotated[float, Field(gt=0, le=1)] = 0.5,
        top_k: Count = 5,
        limit: Count | None = None,
        batch_size: Count = 32,
        columns: Count = 4,
    ):
        if not 0 <= threshold < 1 or not 0 < min_iou <= 1:
            raise ValueError(f"the threshold must be in [0, 1) and min_iou in (0, 1]; found {threshold} and {min_iou}")
        self.split, self.threshold, self.min_iou, self.top_k = split, threshold, min_iou, top_k
        self.saliency: SaliencyMethod = GradCAM() if saliency is None else saliency
        self.limit, self.batch_size, self.columns = limit, batch_size, columns

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics top-1-localization-error and top-K-localization-error, with the classification errors beside them.

        Raises:
            DataError: if the split is empty, or its samples have no boxes with classes.
        """
        localised, classified = [], []
        cells: list[Cell] = []
        drawn: list[tuple[Tensor, Tensor, float]] = []
        for batch in split_batches(data, self.split, model, limit=self.limit, batch_size=self.batch_size):
            found = self.saliency.explain(model, batch, ClassTarget(f"top-{self.top_k}"))
            images, wanted = batch[image_key(model, batch)], found.target.choice(found.output, found.batch)
            truth, owners, _ = padded_boxes(batch, len(images))
            boxes = largest_component_boxes(found.maps, self.threshold)
            correct = correct_boxes(boxes, wanted, truth, owners, self.min_iou)
            localised.append(correct)
            classified.append((wanted[:, :, None] == owners[:, None, :]).any(dim=2))
            names = class_names(model, data.info.classes)
            for index in range(min(len(images), 4 * self.columns - len(cells))):
                word = int(wanted[index, 0])
                name = truncated(names[word]) if word < len(names) else str(word)
                right = bool(correct[index, 0])
                panels = [as_picture(images[index]), overlay(images[index], found.maps[index, 0])]
                cells.append(Cell(panels, f"{name}: {'found' if right else 'missed'}", right))
                real = truth[index][owners[index] >= 0]
                drawn.append((boxes[index, 0].cpu(), real.cpu(), panels[0].shape[0] / images.shape[-2]))
        if not localised:
            raise DataError(f'split "{self.split}" is empty')
        hits, known = torch.cat(localised), torch.cat(classified)
        tried = hits.shape[1]
        (first, any_), (first_class, any_class) = localization_errors(hits), localization_errors(known)
        metrics = {"top-1-localization-error": first, f"top-{tried}-localization-error": any_}
        rows = [["top-1", first, first_class], [f"top-{tried}", any_, any_class]]
        figure, axes = sheet(cells, self.columns, "Boxes from maps")
        for (_, panel), (box, real, scale) in zip(axes, drawn, strict=True):
            for each in real:
                _outline(panel, each * scale, "white")
            _outline(panel, box * scale, "black")
        return Report(
            metrics,
            {
                "errors": Table(
                    ["classes tried", "localisation error", "classification error"], rows, f"{len(hits)} images of {self.split}."
                )
            },
            {"boxes": Figure(figure, "The box of each map (black) and the true ones (white), for the predicted class.")},
        )


def _outline(axis: Any, box: Tensor, colour: str) -> None:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = (box - 0.5).tolist()
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1.6))
