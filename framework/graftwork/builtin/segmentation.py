"""Semantic segmentation, a class for each pixel: how it is trained and measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from graftwork.errors import DataError, InterfaceError
from graftwork.interfaces import Segmenter
from graftwork.kinds.dataset import Batch, Dataset, Split
from graftwork.kinds.evaluator import Evaluator, Figure, Report, Table, evaluating, split_batches
from graftwork.kinds.objective import Loss, Objective
from graftwork.run import Run

__all__ = ["MeanIoU", "SegmentationCrossEntropy", "dice_loss", "intersection_over_union", "pixel_cross_entropy"]

Count = Annotated[int, Field(ge=1)]
Label = Annotated[int, Field(ge=-100, le=255)]
Weight = Annotated[float, Field(ge=0)]


def pixel_cross_entropy(logits: Tensor, mask: Tensor, ignore_index: int = 255, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of each pixel's class, averaged over the pixels that count, by their classes' weights; at least in float32.

    Args:
        logits: (B, C, H, W).
        mask: (B, H, W) long.
        ignore_index: label of pixels that do not count.
        class_weights: (C,).

    Returns:
        0-d; 0, without a gradient, where no pixel counts.

    Raises:
        ValueError: if mask and logits differ in size.
    """
    _check_size(logits, mask)
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = logits.new_ones(logits.shape[1], dtype=precise.dtype) if class_weights is None else class_weights.to(precise)
    summed = functional.cross_entropy(precise, mask, weights, ignore_index=ignore_index, reduction="sum")
    counted = mask != ignore_index
    total = (weights[mask.masked_fill(~counted, 0)] * counted).sum()
    return summed / total.clamp(min=torch.finfo(precise.dtype).tiny)


def dice_loss(logits: Tensor, mask: Tensor, ignore_index: int = 255) -> Tensor:
    """1 - 2 sum p g / (sum p^2 + sum g^2), averaged over the classes that the batch shows (Milletari et al., 2016, section 3).

    p is the softmax and g is 1 at the pixels of the class; the sums run over all pixels of the batch that count. Which classes the
    batch shows is read from the mask, so that a rare class weighs as much as a frequent one. At least in float32.

    Args:
        logits: (B, C, H, W).
        mask: (B, H, W) long.
        ignore_index: label of pixels that do not count.

    Returns:
        0-d, in [0, 1]; 0, without a gradient, where no pixel counts.

    Raises:
        ValueError: if mask and logits differ in size.
    """
    _check_size(logits, mask)
    counted = (mask != ignore_index)[:, None]
    shares = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1) * counted
    truth = functional.one_hot(mask.masked_fill(mask == ignore_index, 0), logits.shape[1]).movedim(-1, 1) * counted
    overlap, sizes = ((shares * truth).sum(dim=(0, 2, 3)), (shares.square() + truth).sum(dim=(0, 2, 3)))
    shown = truth.sum(dim=(0, 2, 3)) > 0
    losses = 1 - 2 * overlap / sizes.where(shown, 1)
    return (losses * shown).sum() / shown.sum().clamp(min=1)


def _check_size(logits: Tensor, mask: Tensor) -> None:
    if logits.dim() != 4 or mask.shape != (len(logits), *logits.shape[2:]):
        raise ValueError(f"logits are (B, C, H, W) and the mask (B, H, W); found {tuple(logits.shape)} and {tuple(mask.shape)}")


class SegmentationCrossEntropy(Objective):
    """Cross-entropy of each pixel's class (Long et al., 2015, https://arxiv.org/abs/1411.4038), with an optional Dice term.

    Args:
        ignore_index: label of pixels that do not count, such as the outlines of PASCAL VOC.
        class_weights: weight of each class in the cross-entropy; all equal by default.
        dice: weight of the Dice loss (Milletari et al., 2016, https://arxiv.org/abs/1606.04797), which is added.
    """

    keys = {"train": ("image", "mask")}
    needs = Segmenter

    def __init__(
        self,
        ignore_index: Label = 255,
        class_weights: Annotated[list[Weight], Field(min_length=1)] | None = None,
        dice: Weight = 0.0,
    ):
        super().__init__()
        if dice < 0:
            raise ValueError(f"dice is at least 0; found {dice}")
        if class_weights is not None and (min(class_weights) < 0 or max(class_weights) == 0):
            raise ValueError(f"class_weights are at least 0, and one is above it; found {class_weights}")
        self.ignore_index, self.dice = ignore_index, dice
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None if class_weights is None else torch.tensor(class_weights), persistent=False)

    def setup(self, model: Any, data: Dataset) -> None:
        """Raise InterfaceError if classes, weights and the model's outputs are known to differ in number."""
        outputs, named = getattr(model, "num_classes", None), len(data.info.classes)
        if isinstance(outputs, int) and named > outputs:
            raise InterfaceError(f"the dataset has {named} classes, {type(model).__name__} only {outputs} outputs: build it with {named}")
        if self.class_weights is not None and isinstance(outputs, int) and len(self.class_weights) != outputs:
            raise InterfaceError(f"there are {len(self.class_weights)} class_weights, but {type(model).__name__} has {outputs} outputs")

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The loss, its terms where there are two, and the share of pixels whose likeliest class is theirs."""
        image, mask = batches["train"]["image"], batches["train"]["mask"]
        logits = model.segment(image)
        if logits.shape[2:] != mask.shape[1:]:
            raise DataError(
                f"{type(model).__name__} segments to {tuple(logits.shape[2:])} pixels where the masks have {tuple(mask.shape[1:])}"
            )
        entropy, counted = pixel_cross_entropy(logits, mask, self.ignore_index, self.class_weights), mask != self.ignore_index
        parts = {"pixel-accuracy": ((logits.argmax(dim=1) == mask) & counted).sum() / counted.sum().clamp(min=1)}
        if not self.dice:
            return Loss(entropy, parts)
        overlap = dice_loss(logits, mask, self.ignore_index)
        return Loss(entropy + self.dice * overlap, {"cross-entropy": entropy, "dice": overlap, **parts})


def intersection_over_union(confusion: Tensor) -> Tensor:
    """Of each class, the pixels that it has in truth and prediction over those that it has in either (Jaccard, 1912).

    Args:
        confusion: (C, C) counts, a row a class in truth, a column one in prediction.

    Returns:
        (C,) in [0, 1], NaN for a class that is in neither.
    """
    hits = confusion.diagonal().double()
    return hits / (confusion.sum(dim=0) + confusion.sum(dim=1) - hits)


class MeanIoU(Evaluator):
    """Intersection over union of each class over all pixels of a split, and its mean (Everingham et al., 2010; Long et al., 2015).

    Only counts are kept, never the logits of a split.

    Args:
        split: where to measure.
        ignore_index: label of pixels that do not count.
        classes: names of the classes in the order of their labels; by default the dataset's where there are as many as outputs,
            after "background" where there is one output more.
        examples: images of which a figure shows truth and prediction beside them.
        limit: read the first so many samples only.
        batch_size: samples that the model sees at once.
    """

    keys = ("image", "mask")
    needs = Segmenter

    def __init__(
        self,
        split: Split = "test",
        ignore_index: Label = 255,
        classes: list[str] | None = None,
        examples: Annotated[int, Field(ge=0, le=32)] = 4,
        limit: Count | None = None,
        batch_size: Count = 32,
    ):
        if not 0 <= examples <= 32:
            raise ValueError(f"examples is 0 to 32; found {examples}")
        self.split, self.ignore_index, self.classes = split, ignore_index, classes
        self.examples, self.limit, self.batch_size = examples, limit, batch_size

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics mean-iou, over the classes that are in truth or prediction, and pixel-accuracy; a table of the classes, a figure.

        Raises:
            DataError: if no pixel counts, a label has no output, or `classes` are not as many as the outputs.
        """
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        confusion: Tensor | None = None
        shown: list[list[Tensor]] = []
        with evaluating(model):
            for batch in split_batches(data, self.split, model, limit=self.limit, batch_size=self.batch_size):
                logits, mask = model.segment(batch["image"]), batch["mask"]
                outputs, guesses = logits.shape[1], logits.argmax(dim=1)
                beyond = (mask != self.ignore_index) & ((mask < 0) | (mask >= outputs))
                if beyond.any():
                    raise DataError(f'split "{self.split}" has label {int(mask[beyond][0])} in a mask; the model has {outputs} outputs')
                found = multiclass_confusion_matrix(guesses, mask, outputs, ignore_index=self.ignore_index)
                confusion = found if confusion is None else confusion + found
                few = max(0, self.examples - len(shown))
                shown += [[each.cpu() for each in one] for one in zip(batch["image"][:few], mask[:few], guesses[:few], strict=True)]
        if confusion is None or not confusion.sum():
            raise DataError(f'split "{self.split}" has no pixel that counts')
        return self._report(confusion.cpu(), shown, data)

    def _report(self, confusion: Tensor, shown: list[list[Tensor]], data: Dataset) -> Report:
        outputs = len(confusion)
        overlaps, counts, hits = intersection_over_union(confusion), confusion.sum(dim=1), confusion.diagonal()
        metrics = {"mean-iou": overlaps.nanmean().item(), "pixel-accuracy": (hits.sum() / counts.sum()).item()}
        names = self._names(outputs, list(data.info.classes))
        columns = zip(names, counts.tolist(), overlaps.tolist(), (hits / counts).tolist(), strict=True)
        rows = [[name, count, None if math.isnan(iou) else iou, share if count else None] for name, count, iou, share in columns]
        table = Table(["class", "pixels", "IoU", "accuracy"], rows, f"Pixels of {self.split}, a class a row.")
        caption = f"From {self.split}: images, truth and prediction. Black does not count."
        figures = {"examples": Figure(_triples(shown, outputs, self.ignore_index), caption)} if shown else {}
        return Report(metrics, {"classes": table}, figures)

    def _names(self, outputs: int, known: list[str]) -> list[str]:
        if self.classes is not None and len(self.classes) != outputs:
            raise DataError(f"there are {len(self.classes)} classes, but the model has {outputs} outputs")
        for names in (self.classes, known, ["background", *known]):
            if names is not None and len(names) == outputs:
                return names
        return list(map(str, range(outputs)))


def _triples(shown: list[list[Tensor]], outputs: int, ignore_index: int) -> Any:
    """A matplotlib figure: a row an image, beside it truth and prediction in one colour a class."""
    import numpy
    from matplotlib import colormaps
    from matplotlib.figure import Figure as Canvas

    palette = colormaps["tab20" if outputs <= 20 else "nipy_spectral"](
        numpy.arange(outputs) if outputs <= 20 else numpy.linspace(0, 1, outputs)
    )
    colours = numpy.concatenate([palette[:, :3], [[0, 0, 0]]])  # the last for what does not count
    canvas = Canvas(figsize=(6.0, 2.0 * len(shown)), layout="constrained")
    for axes, title in zip(canvas.subplots(len(shown), 3, squeeze=False)[0], ("image", "truth", "prediction"), strict=True):
        axes.set_title(title)
    for row, (image, mask, guess) in enumerate(shown):
        pixels = image.float().clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0) if len(image) in (1, 3) else image.float().mean(dim=0)
        truth = mask.where(mask != ignore_index, outputs)
        for axes, picture in zip(canvas.axes[3 * row : 3 * row + 3], (pixels.numpy(), colours[truth], colours[guess]), strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set_axis_off()
    return canvas
