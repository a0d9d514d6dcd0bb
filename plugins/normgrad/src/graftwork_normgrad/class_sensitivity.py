"""Class sensitivity: does a saliency tell the likeliest class from the least likely one? (Rebuffi et al., 2020, section 4.)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork.errors import DataError
from graftwork.kinds.dataset import Dataset, Split
from graftwork.kinds.evaluator import Evaluator, Figure, Report, Table, evaluating, split_batches
from graftwork.kinds.objective import INPUTS
from graftwork_grad_cam.figures import Cell, as_picture, overlay, sheet, truncated
from graftwork_grad_cam.forward import as_batch, call_model, image_key
from graftwork_grad_cam.saliency import Count, SaliencyMethod, class_names
from graftwork_normgrad.normgrad import NormGrad
from graftwork_normgrad.pointing_target import class_logits, class_target
from graftwork_normgrad.similarity import EPSILON, finite_summary, map_correlation

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["ClassSensitivity", "Extremes", "class_correlation"]


@dataclass(frozen=True)
class Extremes:
    """What a saliency shows for two classes.

    Args:
        correlation: (B,) float64, nan where a map is constant.
        maps: (B, 2, H, W) for the likeliest class and the least likely one.
        classes: (B, 2).
    """

    correlation: Tensor
    maps: Tensor
    classes: Tensor


def class_correlation(model: nn.Module, batch: Tensor | Mapping[str, Any], saliency: SaliencyMethod, epsilon: float = EPSILON) -> Extremes:
    """Rank correlation of the maps for the likeliest and the least likely class. Both come from one forward pass, backward together.

    Args:
        model: a classifier; left as it was.
        batch: images (B, C, H, W), or a batch.
        saliency: any.
        epsilon: added to the maps.
    """
    with torch.inference_mode(False), evaluating(model):
        ready = as_batch(batch)
        output = call_model(model, ready)
        logits = class_logits(output)
        classes = torch.stack([logits.argmax(dim=1), logits.argmin(dim=1)], dim=1)  # softmax keeps the order
    maps = saliency.explain(model, ready, class_target(output, classes)).maps
    return Extremes(map_correlation(maps[:, 0], maps[:, 1], epsilon=epsilon), maps, classes)


class ClassSensitivity(Evaluator):
    """Rank correlation of a saliency's maps for the likeliest and the least likely class: near 1 it does not see the class; low is good.

    Spearman's, over all pixels at the image's size. An image with a constant map has none: it is left out, and counted.

    Args:
        split: where to measure.
        saliency: the maps, by default `normgrad`; its own target plays no part.
        epsilon: added to the maps before they are ranked.
        limit: the first so many samples only.
        batch_size: samples at a time.
        columns: samples in a row of the figure.
    """

    needs = nn.Module
    keys = (INPUTS,)

    def __init__(
        self,
        split: Split = "test",
        saliency: SaliencyMethod | None = None,
        epsilon: Annotated[float, Field(ge=0)] = EPSILON,
        limit: Count | None = None,
        batch_size: Count = 32,
        columns: Count = 4,
    ):
        self.split, self.epsilon, self.limit, self.batch_size, self.columns = split, epsilon, limit, batch_size, columns
        self.saliency: SaliencyMethod = NormGrad() if saliency is None else saliency

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics class-sensitivity (mean correlation), class-sensitivity-std, class-sensitivity-dropped (images left out).

        Raises:
            DataError: if the split is empty, or no image has two maps that vary.
        """
        found: list[Tensor] = []
        cells: list[Cell] = []
        rows: list[list[Any]] = []
        for batch in split_batches(data, self.split, model, limit=self.limit, batch_size=self.batch_size):
            seen = class_correlation(model, batch, self.saliency, self.epsilon)
            names = class_names(model, data.info.classes)
            for index, (pair, value) in enumerate(zip(seen.classes.tolist(), seen.correlation.tolist(), strict=True)):
                words = [names[each] if each < len(names) else str(each) for each in pair]
                rows.append([len(rows), *words, value])
                if len(cells) < 2 * self.columns:
                    image = batch[image_key(model, batch)][index]
                    panels = [as_picture(image), *(overlay(image, each) for each in seen.maps[index])]
                    notes = ["", f"for {truncated(words[0])}", f"for {truncated(words[1])}"]
                    cells.append(Cell(panels, f"rank correlation {value:.2f}", None, notes))
            found.append(seen.correlation)
        if not found:
            raise DataError(f'split "{self.split}" is empty')
        mean, spread, dropped = finite_summary(torch.cat(found))
        if dropped == len(rows):
            raise DataError(f'no image of "{self.split}" has two maps that vary: "{self.saliency.name}" gives constant maps')
        metrics = {"class-sensitivity": mean, "class-sensitivity-std": spread, "class-sensitivity-dropped": float(dropped)}
        table = Table(
            ["sample", "likeliest", "least likely", "correlation"], rows, f"Images of {self.split}; near 1 the class is not seen."
        )
        figure, _ = sheet(cells, max(1, self.columns // 2), "Class sensitivity", ("jet", "evidence for the class"))
        caption = f"Each image of {self.split}, its map for the likeliest class, and for the least likely one."
        return Report(metrics, {"images": table}, {"classes": Figure(figure, caption)})
