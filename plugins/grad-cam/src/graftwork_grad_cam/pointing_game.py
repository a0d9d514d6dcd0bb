"""The pointing game: does a map's maximum lie on the object that it explains?

Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016, https://arxiv.org/abs/1608.00507; the tolerance and the
counting are TorchRay's, the variant with recall is Grad-CAM's (Selvaraju et al., 2017, section 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork.errors import DataError
from graftwork.kinds.dataset import Batch, Dataset, Split
from graftwork.kinds.evaluator import Evaluator, Figure, Report, Table, evaluating, split_batches
from graftwork.kinds.objective import INPUTS
from graftwork_grad_cam.figures import Cell, as_picture, overlay, sheet, truncated
from graftwork_grad_cam.forward import call_model, image_key, logits_of
from graftwork_grad_cam.grad_cam import GradCAM
from graftwork_grad_cam.localization import ClassCounts, mass_inside, peaks, pointing_hits, rejections
from graftwork_grad_cam.regions import class_masks, present_classes
from graftwork_grad_cam.saliency import Count, SaliencyMethod, class_names
from graftwork_grad_cam.targets import ClassTarget

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["PointingGame", "asked_classes"]


def asked_classes(present: Tensor) -> tuple[Tensor, Tensor]:
    """The classes that are present, as many columns as the fullest sample has.

    Args:
        present: (B, C) bool.

    Returns:
        (B, T) classes, and (B, T) whether each is one; the others fill up the rows.
    """
    most = max(1, int(present.sum(dim=1).max()))
    there, classes = present.to(torch.int8).sort(dim=1, descending=True, stable=True)
    return classes[:, :most], there[:, :most].bool()


class PointingGame(Evaluator):
    """Accuracy of pointing at each class that an image shows by the maximum of its map, averaged over classes.

    The objects are read from the sample key `mask` or, without it, from `boxes` with `labels`; boxes marked in `difficult` do not ask
    for a map of their own, so that images with no others are skipped. The centre of the image plays along as a baseline. With
    `reject_below`, maps are asked for the `top_k` predicted classes that are absent too, and saying no is right there: a map does so
    when its maximum is below the threshold. Saying no to a class that is present is a miss.

    Args:
        split: where to play.
        saliency: the maps, by default `grad-cam` as it comes.
        tolerance: a pixel of the object strictly nearer than this counts; 15 is meant for images of a few hundred pixels, 0 asks for
            the object itself.
        mask_offset: value of class 0 in `mask`; 1 where 0 is background.
        reject_below: maximum under which a map says that its class is absent, in the map's own units; none plays without recall.
        top_k: how many of the predicted classes are asked for with recall.
        limit: the first so many samples only.
        batch_size: samples at a time.
        columns: samples in a row of the figure.
    """

    needs = nn.Module

    def __init__(
        self,
        split: Split = "test",
        saliency: SaliencyMethod | None = None,
        tolerance: Annotated[float, Field(ge=0)] = 15,
        mask_offset: Annotated[int, Field(ge=0)] = 1,
        reject_below: float | None = None,
        top_k: Count = 5,
        limit: Count | None = None,
        batch_size: Count = 32,
        columns: Count = 4,
    ):
        if tolerance < 0:
            raise ValueError(f"the tolerance must not be negative; found {tolerance}")
        self.split, self.tolerance, self.mask_offset, self.reject_below, self.top_k = split, tolerance, mask_offset, reject_below, top_k
        self.saliency: SaliencyMethod = GradCAM() if saliency is None else saliency
        self.limit, self.batch_size, self.columns = limit, batch_size, columns
        self.keys = (INPUTS,)

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics pointing-accuracy, centre-accuracy, mass-on-object (mean share of a map's sum), and with recall pointing-recall.

        Raises:
            DataError: if samples have neither mask nor boxes, or no object is found.
        """
        tally = _Tally(self)
        for batch in split_batches(data, self.split, model, limit=self.limit, batch_size=self.batch_size):
            tally.add(model, batch, data.info.classes)
        return tally.report()


class _Tally:
    """Counts of one evaluation."""

    def __init__(self, game: PointingGame):
        self.game = game
        self.names: list[str] = []
        self.points: ClassCounts | None = None
        self.masses: list[Tensor] = []
        self.maxima: dict[str, list[Tensor]] = {"present": [], "absent": []}
        self.skipped = 0
        self.cells: list[Cell] = []
        self.marks: list[tuple[int, int, bool]] = []

    def add(self, model: nn.Module, batch: Batch, classes: Sequence[str]) -> None:
        game = self.game
        if not {"mask", "boxes"} & set(batch):
            raise DataError(f"the pointing game reads where objects are from `mask` or `boxes`; the samples have {', '.join(batch)}")
        logits = _logits(model, batch)
        count = logits.shape[1]
        if self.points is None:
            self.points, self.centre, self.recall = (ClassCounts.empty(count, logits.device) for _ in range(3))
            known = class_names(model, classes)[:count]
            self.names = [*known, *map(str, range(len(known), count))]
        present = present_classes(batch, count, game.mask_offset)
        self.skipped += int((~present.any(dim=1)).sum())
        asked = present
        if game.reject_below is not None:
            likely = torch.zeros_like(present).scatter_(1, logits.topk(min(game.top_k, count), dim=1).indices, True)
            asked = present | likely
        wanted, counted = asked_classes(asked)
        maps = game.saliency.explain(model, batch, ClassTarget(wanted)).maps
        masks = class_masks(batch, wanted, tuple(maps.shape[-2:]), game.mask_offset)
        shown = present.gather(1, wanted) & counted
        points = peaks(maps)
        hit = pointing_hits(points, masks, game.tolerance)
        self.points.add(hit, wanted, shown)
        middle = points.new_tensor([maps.shape[-2] // 2, maps.shape[-1] // 2]).expand_as(points)
        self.centre.add(pointing_hits(middle, masks, game.tolerance), wanted, shown)
        self.masses.append(mass_inside(maps.clamp(min=0), masks)[shown])
        self.maxima["present"].append(maps.amax(dim=(2, 3))[shown])
        self.maxima["absent"].append(maps.amax(dim=(2, 3))[counted & ~shown])
        if game.reject_below is not None:
            says_no = rejections(maps, game.reject_below)
            self.recall.add(torch.where(shown, hit & ~says_no, says_no), wanted, counted)
        self._draw(model, batch, maps, wanted, shown, points, hit)

    def _draw(
        self, model: nn.Module, batch: Mapping[str, Any], maps: Tensor, wanted: Tensor, shown: Tensor, points: Tensor, hit: Tensor
    ) -> None:
        images = batch[image_key(model, batch)]
        for row, column in shown.nonzero().tolist():
            if len(self.cells) >= 4 * self.game.columns:
                return
            right = bool(hit[row, column])
            word = truncated(self.names[int(wanted[row, column])])
            panels = [as_picture(images[row]), overlay(images[row], maps[row, column])]
            self.cells.append(Cell(panels, f"{word}: {'hit' if right else 'miss'}", right))
            scale = panels[0].shape[0] / images.shape[-2]
            y, x = points[row, column].tolist()
            self.marks.append((round((x + 0.5) * scale), round((y + 0.5) * scale), right))

    def report(self) -> Report:
        if self.points is None or not float(self.points.total.sum()):
            raise DataError(f'split "{self.game.split}" shows no object that could be pointed at')
        mass = torch.cat(self.masses)
        metrics = {"pointing-accuracy": self.points.accuracy, "centre-accuracy": self.centre.accuracy}
        metrics["mass-on-object"] = mass[mass.isfinite()].mean().nan_to_num(0.0).item()
        if self.game.reject_below is not None:
            metrics["pointing-recall"] = self.recall.accuracy
        totals, hits, centre = self.points.total.tolist(), self.points.hits.tolist(), self.centre.hits.tolist()
        rows = [
            [name, int(total), hit / total, middle / total]
            for name, total, hit, middle in zip(self.names, totals, hits, centre, strict=True)
            if total
        ]
        tables = {
            "classes": Table(
                ["class", "maps", "accuracy", "centre's accuracy"], rows, f"A class a row; {self.skipped} images without one are skipped."
            ),
            "maxima": Table(
                ["the class is", "maps", "10 %", "median", "90 %"],
                [row for name, found in self.maxima.items() if (row := _quantiles(name, torch.cat(found)))],
                "Maxima of the maps, to choose a threshold for recall by.",
            ),
        }
        figure, axes = sheet(self.cells, self.game.columns, "Pointing game")
        for panels, (x, y, right) in zip(axes, self.marks, strict=True):
            for axis in panels:
                axis.plot(x, y, marker="o", markersize=7, markerfacecolor="none", markeredgecolor="white", markeredgewidth=2.4)
                axis.plot(x, y, marker="o", markersize=7, markerfacecolor="none", markeredgecolor="#1b7837" if right else "#b2182b")
        return Report(metrics, tables, {"points": Figure(figure, f"Maxima of the maps on {self.game.split}, a class at a time.")})


def _quantiles(name: str, values: Tensor) -> list[Any] | None:
    if not len(values):
        return None
    ordered = values.float().sort().values
    return [name, len(values), *(ordered[round(share * (len(values) - 1))].item() for share in (0.1, 0.5, 0.9))]


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    with evaluating(model):
        logits = logits_of(call_model(model, batch))
    if logits.dim() != 2:
        raise DataError(f"the pointing game asks a classifier, with logits (batch, class); the model gives {tuple(logits.shape)}")
    return logits
