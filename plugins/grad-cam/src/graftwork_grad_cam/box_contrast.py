"""How much stronger a map is inside a box than outside (Selvaraju et al., 2017, section 7.1, on dense captions)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from graftwork.errors import DataError
from graftwork.kinds.dataset import Dataset, Split
from graftwork.kinds.evaluator import Evaluator, Report, Table, split_batches
from graftwork.kinds.objective import INPUTS
from graftwork_grad_cam.grad_cam import GradCAM
from graftwork_grad_cam.localization import box_contrast, mass_inside
from graftwork_grad_cam.regions import class_masks, padded_boxes
from graftwork_grad_cam.saliency import Count, SaliencyMethod
from graftwork_grad_cam.targets import ClassTarget

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["BoxContrast"]


class BoxContrast(Evaluator):
    """Mean of a map inside its object's box over its mean outside, a map for each box; 1 says that the map knows nothing of it.

    Boxes are the sample key `boxes`. By default a box's map explains the class of what is in it (`labels`, or `label`); a saliency
    with a target that has a map for each box (`detection`), or one a sample (`caption`), is asked for its own with `own_target`.

    Args:
        split: where to measure.
        saliency: the maps, by default `grad-cam` as it comes. Negative values count as 0.
        own_target: whether the saliency's own target is explained, in place of each box's class.
        limit: the first so many samples only.
        batch_size: samples at a time.
    """

    needs = nn.Module
    keys = (INPUTS, "boxes")

    def __init__(
        self,
        split: Split = "test",
        saliency: SaliencyMethod | None = None,
        own_target: bool = False,
        limit: Count | None = None,
        batch_size: Count = 32,
    ):
        self.split, self.own_target, self.limit, self.batch_size = split, own_target, limit, batch_size
        self.saliency: SaliencyMethod = GradCAM() if saliency is None else saliency

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics box-contrast (mean of the ratios that are finite) and mass-in-box (mean share of a map's sum).

        Raises:
            DataError: if no ratio is finite, or the saliency's own target gives neither one map a sample nor one a box.
        """
        ratios, shares = [], []
        for batch in split_batches(data, self.split, model, limit=self.limit, batch_size=self.batch_size):
            boxes, owners, _ = padded_boxes(batch, len(batch["boxes"]))
            there = owners >= 0
            maps = self.saliency.explain(model, batch, None if self.own_target else ClassTarget(owners.clamp(min=0))).maps.clamp(min=0)
            if maps.shape[1] not in (1, boxes.shape[1]):
                raise DataError(f"the saliency gave {maps.shape[1]} maps a sample, but the samples have up to {boxes.shape[1]} boxes")
            maps = maps.expand(-1, boxes.shape[1], -1, -1)
            inside = class_masks({"boxes": boxes, "labels": owners}, owners, tuple(maps.shape[-2:]))
            ratios.append(box_contrast(maps, boxes)[there])
            shares.append(mass_inside(maps, inside)[there])
        if not ratios:
            raise DataError(f'split "{self.split}" is empty')
        ratio, share = torch.cat(ratios), torch.cat(shares)
        finite = ratio[ratio.isfinite()]
        if not len(finite):
            raise DataError(f"none of {len(ratio)} maps has a finite contrast: each is 0 outside its box, or everywhere")
        metrics = {
            "box-contrast": finite.mean().item(),
            "mass-in-box": share[share.isfinite()].mean().nan_to_num(0.0).item(),
        }
        row = [
            len(ratio),
            int(ratio.isnan().sum()),
            int(ratio.isinf().sum()),
            *finite.quantile(finite.new_tensor([0.25, 0.5, 0.75])).tolist(),
        ]
        columns = ["boxes", "empty maps", "nothing outside", "25 %", "median", "75 %"]
        return Report(metrics, {"contrast": Table(columns, [row], f"Mean inside over mean outside the boxes of {self.split}.")})
