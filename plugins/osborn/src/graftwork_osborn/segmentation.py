"""IoU-EEP: how well the averaged expected empirical prediction of segmenters covers the target's masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork import DataError, Dataset, Evaluator, Report, Split, Table
from graftwork.interfaces import Segmenter, require
from graftwork.kinds.evaluator import evaluating, split_batches
from graftwork_osborn.eep import empirical_conditional
from graftwork_osborn.pool import Pool, check_pool
from graftwork_osborn.transport import precise

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["IoUEEP", "intersection_over_union_of_eep"]

Count = Annotated[int, Field(ge=1)]
Batches = Callable[[], Iterator[Mapping[str, Any]]]


def intersection_over_union_of_eep(
    segmenters: Sequence[nn.Module], batches: Batches, ignore_index: int = 255, soft: bool = False, target_classes: int | None = None
) -> Tensor:
    """IoU of each target class of the segmenters' mean EEP with the masks (Agostinelli et al., 2022, section 3).

    Two passes over the target: one counts P(y, z) of each segmenter over all pixels, the other predicts. Nothing is held but one batch
    and tables of classes.

    Args:
        segmenters: at least one Segmenter, with classes of their own.
        batches: called twice; gives batches with `image` (B, C, H, W) and `mask` (B, H, W) long.
        ignore_index: label of pixels that do not count.
        soft: sums of probabilities instead of likeliest classes: sum p g / sum (p + g - p g).
        target_classes: C_target; by default as many as the masks show.

    Returns:
        (C_target,) in [0, 1]; NaN for a class that is in neither masks nor predictions.

    Raises:
        DataError: if no pixel counts.
    """
    joints: list[Tensor | None] = [None] * len(segmenters)
    for batch in batches():
        mask = batch["mask"]
        counted = mask != ignore_index
        labels = mask[counted]
        for place, segmenter in enumerate(segmenters):
            shares = _probabilities(segmenter, batch["image"], counted)
            known = joints[place]
            rows = max(target_classes or 0, 0 if known is None else len(known), int(labels.max()) + 1 if len(labels) else 0)
            grown = precise(torch.zeros(rows, shares.shape[1], device=shares.device))
            if known is not None:
                grown[: len(known)] = known
            joints[place] = grown.index_add_(0, labels, shares.to(grown.dtype))
    if joints[0] is None or not joints[0].sum():
        raise DataError("the masks have no pixel that counts")
    conditionals = [empirical_conditional(joint).float() for joint in joints if joint is not None]
    overlap, union = (torch.zeros(len(conditionals[0]), dtype=joints[0].dtype, device=joints[0].device) for _ in range(2))
    for batch in batches():
        counted = batch["mask"] != ignore_index
        parts = (
            _probabilities(segmenter, batch["image"], counted) @ conditional.T
            for segmenter, conditional in zip(segmenters, conditionals, strict=True)
        )
        eep = torch.stack(list(parts)).mean(dim=0)
        truth = nn.functional.one_hot(batch["mask"][counted], eep.shape[1]).float()
        guess = eep if soft else nn.functional.one_hot(eep.argmax(dim=1), eep.shape[1]).float()
        both = (guess * truth).to(overlap.dtype)
        overlap += both.sum(dim=0)
        union += (guess + truth).to(overlap.dtype).sum(dim=0) - both.sum(dim=0)
    return overlap / union


def _probabilities(segmenter: Any, images: Tensor, counted: Tensor) -> Tensor:
    """Softmax of the pixels that count, (p, C_source) in float32."""
    logits: Tensor = segmenter.segment(images)
    if logits.shape[2:] != counted.shape[1:]:
        raise DataError(
            f"{type(segmenter).__name__} segments to {tuple(logits.shape[2:])} pixels where the masks have {tuple(counted.shape[1:])}"
        )
    return logits.float().softmax(dim=1).movedim(1, -1)[counted]


class IoUEEP(Evaluator):
    """IoU-EEP: mean IoU of a set of segmenters' averaged expected empirical prediction with the target's masks.

    From Agostinelli et al. (2022, section 3). The mean is over the classes that are in the masks or the predictions.

    Args:
        pool: name -> Segmenter, label spaces of their own.
        split: the target's labelled samples.
        soft: intersection and union of probabilities instead of likeliest classes.
        ignore_index: label of pixels that do not count.
        limit: read the first so many images only.
        batch_size: images that a model sees at once.

    Attributes:
        higher_is_better: true.

    Raises:
        ValueError: if the pool is empty.
        InterfaceError: if a model does not segment.
    """

    keys = ("image", "mask")
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self,
        pool: Pool,
        split: Split = "train",
        soft: bool = False,
        ignore_index: Annotated[int, Field(ge=-100, le=255)] = 255,
        limit: Count | None = None,
        batch_size: Count = 16,
    ):
        check_pool(pool, None)
        for model in pool.values():
            require(model, Segmenter, "iou-eep")
        self.pool, self.split, self.soft = pool, split, soft
        self.ignore_index, self.limit, self.batch_size = ignore_index, limit, batch_size

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metric iou-eep, in [0, 1]; a table of the classes.

        Raises:
            DataError: if no pixel counts, or a model's output is not of the masks' size.
        """
        models = list(self.pool.values())
        with ExitStack() as modes:
            for one in models:
                modes.enter_context(evaluating(one))
            found = intersection_over_union_of_eep(
                models,
                lambda: split_batches(data, self.split, models[0], limit=self.limit, batch_size=self.batch_size),
                self.ignore_index,
                self.soft,
            )
        names = data.info.classes
        names = next((each for each in (names, ("background", *names)) if len(each) == len(found)), tuple(map(str, range(len(found)))))
        rows = [[name, None if math.isnan(value) else value] for name, value in zip(names, found.tolist(), strict=True)]
        table = Table(["class", "IoU"], rows, f"Each class of {self.split}, {'soft' if self.soft else 'hard'}.")
        return Report({"iou-eep": float(found.nanmean())}, {"classes": table})
