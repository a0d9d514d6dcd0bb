"""The paper's table: how well each cell of the grid points at objects, at each layer, and with the layers combined, from one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from graftwork.errors import DataError
from graftwork.kinds.dataset import Batch, Dataset, Split
from graftwork.kinds.evaluator import Evaluator, Figure, Report, Table, evaluating, split_batches
from graftwork.kinds.objective import INPUTS
from graftwork_grad_cam.evidence import prepared
from graftwork_grad_cam.forward import as_batch, call_model
from graftwork_grad_cam.localization import ClassCounts, peaks, pointing_hits
from graftwork_grad_cam.maps import resize_maps
from graftwork_grad_cam.pointing_game import asked_classes
from graftwork_grad_cam.regions import class_masks, present_classes
from graftwork_grad_cam.saliency import Count
from graftwork_normgrad.cells import as_cell
from graftwork_normgrad.extract_aggregate import saliency_grid
from graftwork_normgrad.labels import short_names
from graftwork_normgrad.pointing_target import class_logits, class_target
from graftwork_normgrad.stages import combination_layers

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["PointingGrid"]

CELLS = ["grad-cam", "linear-approximation", "normgrad", "selective-normgrad", "gradient-sum"]


class PointingGrid(Evaluator):
    """Pointing accuracy of several cells at several layers, of the layers' mean, and of their product, averaged over classes.

    All cells and layers share one forward and one backward pass a batch. Objects are read from `mask`, or from `boxes` with `labels`.

    Args:
        split: where to play.
        cells: methods by name, or phases such as "conv3x3+max".
        layers: names, first to last; "auto" takes the last layer at each resolution, or four blocks of a network of tokens.
        tolerance: a pixel of the object strictly nearer than this counts; 15 is meant for images of a few hundred pixels, 0 asks for the
            object itself.
        mask_offset: value of class 0 in `mask`; 1 where 0 is background.
        limit: the first so many samples only.
        batch_size: samples at a time.

    Raises:
        ConfigError: if there is no such cell.
        ValueError: if the tolerance is negative.
    """

    needs = nn.Module
    keys = (INPUTS,)

    def __init__(
        self,
        split: Split = "test",
        cells: list[str] = CELLS,
        layers: Literal["auto"] | list[str] = "auto",
        tolerance: Annotated[float, Field(ge=0)] = 15,
        mask_offset: Annotated[int, Field(ge=0)] = 1,
        limit: Count | None = None,
        batch_size: Count = 32,
    ):
        if tolerance < 0:
            raise ValueError(f"the tolerance must not be negative; found {tolerance}")
        self.cells = {name: as_cell(name) for name in cells}
        self.split, self.layers, self.tolerance, self.mask_offset = split, layers, tolerance, mask_offset
        self.limit, self.batch_size = limit, batch_size

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics pointing-CELL-N at the Nth layer, pointing-CELL-mean over layers, pointing-CELL-combined, pointing-CELL-drop (its best
        layer less its worst), pointing-centre.

        Raises:
            DataError: if samples have neither mask nor boxes, or no object is found.
        """
        layers = None if isinstance(self.layers, str) else list(self.layers)
        counts: dict[tuple[str, str], ClassCounts] = {}
        for batch in split_batches(data, self.split, model, limit=self.limit, batch_size=self.batch_size):
            if not {"mask", "boxes"} & set(batch):
                raise DataError(f"pointing reads where objects are from `mask` or `boxes`; the samples have {', '.join(batch)}")
            if layers is None:
                layers = combination_layers(model, *prepared(model, batch, "predicted"))
            self._play(model, batch, layers, counts)
        if layers is None or not counts or not float(counts["centre", ""].total.sum()):
            raise DataError(f'split "{self.split}" shows no object that could be pointed at')
        return self._report(layers, {key: count.accuracy for key, count in counts.items()})

    def _play(self, model: nn.Module, batch: Batch, layers: Sequence[str], counts: dict[tuple[str, str], ClassCounts]) -> None:
        ready = as_batch(batch)
        with evaluating(model):
            output = call_model(model, ready)
        logits = class_logits(output)
        wanted, counted = asked_classes(present_classes(batch, logits.shape[1], self.mask_offset))
        found = saliency_grid(model, ready, class_target(output, wanted), layers, list(self.cells.values()))
        size = found.observed.size
        masks = class_masks(batch, wanted, size, self.mask_offset)

        def add(key: tuple[str, str], points: Tensor) -> None:
            tally = counts.setdefault(key, ClassCounts.empty(logits.shape[1], logits.device))
            tally.add(pointing_hits(points, masks, self.tolerance), wanted, counted)

        for name, cell in self.cells.items():
            for layer, maps in zip(layers, found.maps[cell].values(), strict=True):
                add((name, layer), peaks(resize_maps(maps, size)))
            add((name, "combined"), peaks(found.combined[cell]))
        middle = wanted.new_tensor([size[0] // 2, size[1] // 2]).expand(*wanted.shape, 2)
        add(("centre", ""), middle)

    def _report(self, layers: Sequence[str], accuracy: Mapping[tuple[str, str], float]) -> Report:
        metrics = {"pointing-centre": accuracy["centre", ""]}
        rows: list[list[Any]] = []
        for name in self.cells:
            single = [accuracy[name, layer] for layer in layers]
            mean, combined = sum(single) / len(single), accuracy[name, "combined"]
            metrics |= {f"pointing-{name}-{number + 1}": value for number, value in enumerate(single)}
            metrics |= {f"pointing-{name}-mean": mean, f"pointing-{name}-combined": combined}
            metrics[f"pointing-{name}-drop"] = max(single) - min(single)
            rows.append([name, *single, mean, combined])
        table = Table(
            ["method", *layers, "mean", "combined"],
            rows,
            f"Pointing accuracy on {self.split}; the centre has {metrics['pointing-centre']:.3f}.",
        )
        caption = f"Pointing accuracy on {self.split}, from the first layer to the last; dotted, the layers combined."
        return Report(metrics, {"pointing": table}, {"pointing": Figure(_curves(layers, rows, metrics["pointing-centre"]), caption)})


def _curves(layers: Sequence[str], rows: Sequence[Sequence[Any]], centre: float) -> Any:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(2.6 + 1.1 * len(layers), 3.8), layout="constrained")
    axes = canvas.add_subplot(ylabel="pointing accuracy", ylim=(0, 1.02))
    places = range(len(layers))
    for name, *values in rows:
        (line,) = axes.plot(places, values[: len(layers)], marker="o", markersize=4, label=name)
        axes.axhline(values[-1], color=line.get_color(), linestyle=":", linewidth=1)
    axes.axhline(centre, color="grey", linewidth=0.8, label="centre")
    axes.set_xticks(places, short_names(layers), fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, bbox_to_anchor=(1.0, 1.0), loc="upper left")
    return canvas
