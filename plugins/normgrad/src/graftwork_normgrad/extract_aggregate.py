"""Extract & aggregate on a network: maps of any cell of the grid, at any layers, from one forward and one backward pass.

Rebuffi et al., "There and Back Again: Revisiting Backpropagation Saliency Methods", CVPR 2020, https://arxiv.org/abs/2004.02866.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field
from torch import Tensor, nn

from graftwork.kinds.dataset import Batch, Dataset, Split
from graftwork.kinds.evaluator import Figure, Report, split_batches
from graftwork_grad_cam.evidence import IMAGE, Layers, Repeats, Surroundings
from graftwork_grad_cam.forward import image_key
from graftwork_grad_cam.layers import LayoutName
from graftwork_grad_cam.maps import SaliencyMaps, join_layers, resize_maps
from graftwork_grad_cam.saliency import Colormap, Columns, Count, SaliencyMethod, Share, Spec
from graftwork_grad_cam.targets import Target
from graftwork_normgrad.cells import GRID, Cell
from graftwork_normgrad.combination import combine_maps, smooth_maps
from graftwork_normgrad.observation import Observed, observe_layers
from graftwork_normgrad.phases import Phase1, Phase2
from graftwork_normgrad.pointing_target import resolve_target

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["ExtractAggregate", "LayerReduce", "SaliencyGrid", "extract_aggregate", "maps_of", "saliency_grid"]

LayerReduce: TypeAlias = Literal["product", "mean", "max"]
"""How several layers' maps are joined: multiplied, each in [0, 1] at the image's size, as the authors do; their mean or maximum."""

SMOOTH = 0.02
"""Standard deviation of the filter over a map of the input, as a share of the image's larger side."""


def extract_aggregate(
    model: nn.Module,
    batch: Tensor | Mapping[str, Any],
    target: Any = "predicted",
    layer: Layers = "auto",
    phase1: Phase1 = "conv1x1",
    phase2: Phase2 = "norm",
    *,
    spatial_average: bool = False,
    clamp: bool = False,
    layer_reduce: LayerReduce = "product",
    smooth: float = SMOOTH,
    naive: bool = False,
    **surroundings: Any,
) -> SaliencyMaps:
    """Maps of a batch, each sample for its own target, in one forward and one backward pass for all layers.

    Args:
        model: any torch module that takes images; left as it was.
        batch: images (B, C, H, W), or a batch with the keys that model and target read.
        target: a class, "predicted", "label", "top-5", a Target, or a function from the output to scores.
        layer: a module, a dotted name, several of them, or "auto"; "" or "image" for the input.
        phase1: whose weights a position contributes to.
        phase2: how a contribution becomes a number.
        spatial_average: average the gradient over positions first, as Grad-CAM does.
        clamp: negative values become 0.
        layer_reduce: how several layers' maps are joined.
        smooth: of a map of the input: deviation of a Gaussian filter, as a share of the image's larger side.
        naive: form the contributions, in place of the closed forms.
        **surroundings: `layout`, `grid`, `prefix_tokens`, `repeats`, as `Surroundings` has them.

    Returns:
        maps (B, T, H, W) at the image's size, `raw` (B, T, h, w) by layer, scores, the output. Without aggregation (`none`) `raw` holds
        the contributions (B, T, C', h, w), and maps their largest magnitude.

    Raises:
        ValueError: if there is no such phase, or a number is out of range.
        InterfaceError: as `observe_layers` does.
        DataError: as `observe_layers` does.
    """
    cell = Cell(phase1, phase2, spatial_average, clamp)
    observed = observe_layers(model, batch, target, layer, own_convolution=phase1 == "conv", surroundings=Surroundings(**surroundings))
    return maps_of(observed, cell, layer_reduce=layer_reduce, smooth=smooth, naive=naive)


def maps_of(
    observed: Observed, cell: Cell, *, layer_reduce: LayerReduce = "product", smooth: float = SMOOTH, naive: bool = False
) -> SaliencyMaps:
    """The maps that a cell makes of what was observed; as `extract_aggregate`."""
    raw = {name: cell.map(contributions, naive) for name, contributions in observed.layers.items()}
    shown = {name: _at_size(name, each, observed.size, smooth) for name, each in raw.items()}
    maps = _joined(list(shown.values()), observed.size, layer_reduce)
    return SaliencyMaps(maps, raw, observed.scores, observed.output, observed.batch, observed.target)


def _at_size(name: str, raw: Tensor, size: tuple[int, int], smooth: float) -> Tensor:
    single = raw if raw.dim() == 4 else raw.abs().amax(dim=2)
    return smooth_maps(single, smooth * max(size)) if name == IMAGE else resize_maps(single, size)


def _joined(maps: Sequence[Tensor], size: tuple[int, int], how: LayerReduce) -> Tensor:
    if len(maps) == 1:
        return maps[0]
    return combine_maps(maps, size) if how == "product" else join_layers(maps, size, how)


@dataclass(frozen=True)
class SaliencyGrid:
    """Every cell at every layer, from one pass.

    Args:
        maps: cell -> layer -> (B, T, h, w).
        combined: cell -> the layers' product (B, T, H, W).
        observed: what the pass told.
    """

    maps: dict[Cell, dict[str, Tensor]]
    combined: dict[Cell, Tensor]
    observed: Observed


def saliency_grid(
    model: nn.Module,
    batch: Tensor | Mapping[str, Any],
    target: Any = "predicted",
    layer: Layers = "auto",
    cells: Sequence[Cell] | None = None,
    *,
    naive: bool = False,
    **surroundings: Any,
) -> SaliencyGrid:
    """Several cells at several layers from one forward and one backward pass: by default the five extracts times four aggregates.

    Args:
        model: left as it was.
        batch: images, or a batch.
        target: what is explained.
        layer: one or several.
        cells: which; None takes the authors' grid. `conv` needs layers of its own kind and a pass of its own.
        naive: form the contributions.
        **surroundings: as `Surroundings` has them.

    Raises:
        ValueError: if a cell asks for the layer's own convolution.
    """
    chosen = [Cell(row, column) for row in GRID[0] for column in GRID[1]] if cells is None else list(cells)
    if any(cell.phase1 == "conv" for cell in chosen):
        raise ValueError("a grid is of virtual identities; the layer's own convolution (conv) is asked for with extract_aggregate")
    observed = observe_layers(model, batch, target, layer, surroundings=Surroundings(**surroundings))
    maps = {cell: {name: cell.map(each, naive) for name, each in observed.layers.items()} for cell in chosen}
    single = {cell: [_at_size(name, raw, observed.size, 0.0) for name, raw in layers.items()] for cell, layers in maps.items()}
    return SaliencyGrid(maps, {cell: combine_maps(each, observed.size) for cell, each in single.items()}, observed)


class ExtractAggregate(SaliencyMethod):
    """Maps of any cell of the phase-1 x phase-2 grid for a split's first samples, and the whole grid for the first one.

    Args:
        split: whose samples are shown.
        limit: how many of them; none shows all.
        phase1: whose weights a position contributes to: an imagined identity behind the layer, or its own convolution (conv).
        phase2: how a contribution becomes a number.
        layer: a dotted name ("features.29", "layer4"), a list of them, "auto" for the last that keeps positions, "image" for the input.
        target: "label", "predicted", "top-N", a class index, or a target by name with its parameters.
        spatial_average: average the gradient over positions first, as Grad-CAM does; exact before global average pooling only.
        clamp: negative values become 0.
        layer_reduce: how several layers' maps are joined.
        smooth: of a map of the input: deviation of a Gaussian filter, as a share of the image's larger side.
        naive: form the contributions, in place of the closed forms; for comparison.
        layout: of the layer's output.
        grid: (h, w) of tokens, where it cannot be found.
        prefix_tokens: tokens before the patches, where it cannot be found.
        repeats: what to do with a layer that runs several times; sum adds the contributions, as the gradient of shared weights does.
        gallery: whether the grid of all cells is drawn for the first sample.
        columns: samples in a row of the figure.
        overlay: share of the image in the overlay.
        colormap: of the overlay, as matplotlib names it.
        batch_size: samples at a time.

    Raises:
        ConfigError: if there is no such target.
        ValueError: if there is no such phase or colour map.
    """

    name: ClassVar[str] = "extract-aggregate"
    title: ClassVar[str] = "Extract & aggregate"
    caption: ClassVar[str] = "Beside each image, how much each place contributes to the gradient of the layer's weights."
    legend: ClassVar[str] = "contribution"

    def __init__(
        self,
        split: Split = "test",
        limit: Count | None = 16,
        phase1: Phase1 = "conv1x1",
        phase2: Phase2 = "norm",
        layer: str | list[str] = "auto",
        target: Spec = "label",
        spatial_average: bool = False,
        clamp: bool = False,
        layer_reduce: LayerReduce = "product",
        smooth: Annotated[float, Field(ge=0)] = SMOOTH,
        naive: bool = False,
        layout: LayoutName = "auto",
        grid: tuple[int, int] | None = None,
        prefix_tokens: Annotated[int | None, Field(ge=0)] = None,
        repeats: Repeats = "raise",
        gallery: bool = True,
        columns: Columns = 4,
        overlay: Share = 0.5,
        colormap: Colormap = "jet",
        batch_size: Count = 32,
    ):
        super().__init__(split, limit, resolve_target(target), columns, batch_size, overlay, colormap)
        if smooth < 0:
            raise ValueError(f"smooth must not be negative; found {smooth}")
        self.cell, self.layer, self.gallery = Cell(phase1, phase2, spatial_average, clamp), layer, gallery
        self.surroundings = Surroundings(layout, None if grid is None else (grid[0], grid[1]), prefix_tokens, repeats)
        self.making: dict[str, Any] = {"layer_reduce": layer_reduce, "smooth": smooth, "naive": naive}

    def explain(self, model: nn.Module, batch: Tensor | Mapping[str, Any], target: Any = None) -> SaliencyMaps:
        """Maps of a batch."""
        return self.of_observed(self.observe(model, batch, target, self.layer))

    def observe(self, model: nn.Module, batch: Tensor | Mapping[str, Any], target: Any, layer: Layers) -> Observed:
        """What one pass tells of layers."""
        asked: Target = self.target if target is None else resolve_target(target)
        own = self.cell.phase1 == "conv"
        return observe_layers(model, batch, asked, layer, own_convolution=own, surroundings=self.surroundings)

    def of_observed(self, observed: Observed) -> SaliencyMaps:
        """The maps made of what was observed."""
        return maps_of(observed, self.cell, **self.making)

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics NAME-empty-maps and NAME-area, a sheet of pictures, a table, and the grid of cells for the first sample.

        Raises:
            DataError: if the split is empty.
        """
        report = super().evaluate(model, data, run)
        if not self.gallery or self.cell.phase1 == "conv":
            return report
        first: Batch = next(iter(split_batches(data, self.split, model, limit=1, batch_size=1)))
        found = saliency_grid(model, first, self.target, self.layer, **vars(self.surroundings))
        from graftwork_normgrad.gallery import grid_figure

        figure = grid_figure(first[image_key(model, first)][0], found, self.colormap)
        caption = (
            f"The first sample of {self.split}: a row an extract, a column an aggregate; each map from its least to its most; "
            "a constant map, which shows no place, is left out."
        )
        return Report(report.metrics, report.tables, {**report.figures, "grid": Figure(figure, caption)}, report.artifacts)
