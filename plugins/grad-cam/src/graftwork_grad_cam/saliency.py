"""What every saliency evaluator shares: a batch in, maps out, and a sheet of pictures of the first samples of a split."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias

from pydantic import Field
from torch import Tensor, nn

from graftwork.errors import DataError
from graftwork.kinds.dataset import Batch, Dataset
from graftwork.kinds.evaluator import Evaluator, Figure, Report, Table, split_batches
from graftwork.kinds.objective import INPUTS
from graftwork_grad_cam.figures import Cell, Picture, as_picture, overlay, sheet, truncated
from graftwork_grad_cam.forward import image_key, logits_of
from graftwork_grad_cam.maps import SaliencyMaps
from graftwork_grad_cam.targets import Target, as_target

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["Colormap", "Columns", "Count", "SaliencyMethod", "Share", "Spec", "class_names", "predictions"]

Spec: TypeAlias = int | str | dict[str, Any] | Target
"""A target as YAML writes it: a class index, "label", "predicted", "top-N", a target's name, or a mapping with `name`."""

Count: TypeAlias = Annotated[int, Field(ge=1)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Columns: TypeAlias = Annotated[int, Field(ge=1, le=12, description="samples in a row of the figure")]
Colormap: TypeAlias = Annotated[str, Field(description='of matplotlib: "jet" is the usual one; "viridis" reads well without colour vision')]

AREA = 0.15
"""A map covers the pixels above this share of its maximum."""


def check_colormap(name: str) -> str:
    """The name of a colour map that matplotlib has.

    Raises:
        ValueError: if it has none of that name.
    """
    from matplotlib import colormaps

    if name not in colormaps:
        raise ValueError(f'matplotlib has no colour map "{name}"; try jet, viridis, inferno or turbo')
    return name


class SaliencyMethod(Evaluator):
    """An evaluator that makes maps. Other evaluators take one by reference and call `explain`; a new method defines that alone.

    Args:
        split: whose samples are shown.
        limit: how many of them.
        target: what is explained.
        columns: samples in a row of the figure.
        batch_size: samples at a time.
        overlay: share of the image in the overlay.
        colormap: of the overlay.
    """

    name: ClassVar[str]
    needs = nn.Module

    def __init__(
        self,
        split: str = "test",
        limit: int | None = 16,
        target: Any = "label",
        columns: int = 4,
        batch_size: int = 32,
        overlay: float = 0.5,
        colormap: str = "jet",
    ):
        self.split, self.limit, self.columns, self.batch_size = split, limit, columns, batch_size
        self.target = as_target(target)
        self.overlay, self.colormap = overlay, check_colormap(colormap)
        self.keys = (INPUTS, *self.target.keys)

    @abstractmethod
    def explain(self, model: nn.Module, batch: Tensor | Mapping[str, Any], target: Any = None) -> SaliencyMaps:
        """Maps of a batch.

        Args:
            model: left as it was.
            batch: images, or a batch.
            target: instead of the evaluator's own; None takes that.
        """

    def panels(self, image: Tensor, found: SaliencyMaps, index: int) -> list[Picture]:
        """Pictures of one sample beside its image: by default each map laid over it."""
        return [overlay(image, each, self.overlay, self.colormap) for each in found.maps[index]]

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics NAME-empty-maps (share without a value above 0) and NAME-area (mean share of the image above 15 % of the
        maximum); a sheet of pictures; a table, a sample a row.

        Raises:
            DataError: if the split is empty.
        """
        cells: list[Cell] = []
        rows: list[list[Any]] = []
        for batch in split_batches(data, self.split, model, limit=self.limit, batch_size=self.batch_size):
            batch_cells, batch_rows = self._describe(model, batch, data.info.classes, len(rows))
            cells += batch_cells
            rows += batch_rows
        if not rows:
            raise DataError(f'split "{self.split}" is empty')
        values = [(row[-2], row[-1]) for row in rows]
        metrics = {
            f"{self.name}-empty-maps": sum(highest <= 0 for highest, _ in values) / len(values),
            f"{self.name}-area": sum(area for _, area in values) / len(values),
        }
        columns = ["sample", "true", "predicted", "explained", "score", "maximum", "area"]
        figure, _ = sheet(cells, self.columns, self.title, (self.colormap, self.legend) if self.legend else None)
        return Report(
            metrics,
            {"maps": Table(columns, rows, f"The maps of {self.split}; area is the share of the image above 15 % of the maximum.")},
            {"maps": Figure(figure, f"{self.title}: samples of {self.split}. {self.caption}")},
        )

    title: ClassVar[str] = "Saliency"
    legend: ClassVar[str] = "evidence for the class"
    caption: ClassVar[str] = ""

    def _describe(self, model: nn.Module, batch: Batch, classes: Sequence[str], start: int) -> tuple[list[Cell], list[list[Any]]]:
        found = self.explain(model, batch)
        names = class_names(model, classes)
        images = batch[image_key(model, batch)]
        true, predicted = _words(batch.get("label"), names), _words(predictions(found.output), names)
        asked = found.target.captions(found.output, found.batch, names)
        highest = found.maps.amax(dim=(2, 3), keepdim=True)
        area = ((found.maps > AREA * highest) & (highest > 0)).float().mean(dim=(2, 3)).mean(dim=1).tolist()
        top, scores = highest.flatten(1).amax(dim=1).tolist(), found.scores.expand(len(images), -1).tolist()
        cells, rows = [], []
        for index, image in enumerate(images):
            panels = self.panels(image, found, index)
            title, right = _title(true[index], predicted[index])
            explained = asked[index] if asked else []
            notes = _notes(explained, predicted[index], highest[index].flatten().tolist())
            cells.append(Cell([as_picture(image), *panels], title, right, notes))
            shown = ", ".join(explained)
            rows.append([start + index, true[index], predicted[index], shown, scores[index][0], top[index], area[index]])
        return cells, rows


def class_names(model: nn.Module, classes: Sequence[str]) -> list[str]:
    """Names of a model's classes: the dataset's, else those of a transformers configuration."""
    if classes:
        return list(classes)
    labels = getattr(getattr(model, "config", None), "id2label", None) or {}
    return [str(labels[index]) for index in sorted(labels)]


def predictions(output: Any) -> Tensor | None:
    """(B,) the class of the largest logit, for outputs that are (B, classes); else None."""
    try:
        logits = logits_of(output)
    except Exception:  # an output without logits has no prediction
        return None
    return logits.argmax(dim=1) if logits.dim() == 2 and logits.shape[1] > 1 else None


def _words(indices: Any, names: Sequence[str]) -> Any:
    """A name for each index, or None for each sample where there are none."""
    if not isinstance(indices, Tensor) or indices.dim() != 1:
        return _Nothing()
    return [names[index] if 0 <= index < len(names) else str(index) for index in indices.tolist()]


class _Nothing:
    def __getitem__(self, index: int) -> None:
        return None


def _title(true: str | None, predicted: str | None) -> tuple[str, bool | None]:
    if true is None or predicted is None:
        known = predicted or true
        return (truncated(f"{'predicted' if predicted else 'true'} {known}", 26) if known else ""), None
    if true == predicted:
        return f"{truncated(true)}, recognised", True
    return f"{truncated(true)}, taken for {truncated(predicted)}", False


def _notes(explained: Sequence[str], predicted: str | None, maxima: Sequence[float]) -> list[str]:
    """Under each map: what it explains, where that is not what the title says; and that it is empty, where it is."""
    told = [f"for {truncated(each, 30)}" for each in explained] if explained and list(explained) != [predicted] else [""] * len(maxima)
    notes = [
        " ".join(filter(None, (what, "" if highest > 0 else "no evidence found"))) for what, highest in zip(told, maxima, strict=False)
    ]
    return ["", *notes] if any(notes) else []
