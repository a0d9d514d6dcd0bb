"""Combined saliency: maps of several layers, weighted, as one (Rebuffi et al., 2020, section 3.3)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from torch import Tensor, nn

from graftwork.artifact import Artifact
from graftwork.errors import InterfaceError
from graftwork.kinds.dataset import Dataset, Split
from graftwork.kinds.evaluator import Report
from graftwork_grad_cam.evidence import prepared
from graftwork_grad_cam.forward import image_key
from graftwork_grad_cam.maps import SaliencyMaps
from graftwork_grad_cam.saliency import Colormap, Columns, Count, SaliencyMethod, Share
from graftwork_normgrad.combination import MEASURED, Accumulation, Strategy, combine_maps, normalized_weights, strategy_weights
from graftwork_normgrad.layer_weights import ARTIFACT, LayerWeights, Measured
from graftwork_normgrad.layered import innermost, maps_at_layers
from graftwork_normgrad.normgrad import NormGrad
from graftwork_normgrad.pointing_target import resolve_target
from graftwork_normgrad.stages import combination_layers

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["CombinedSaliency", "combined_saliency"]


def combined_saliency(
    model: nn.Module,
    batch: Tensor | Mapping[str, Any],
    saliency: SaliencyMethod,
    target: Any = "predicted",
    layers: Sequence[str] | Literal["auto"] = "auto",
    *,
    accumulation: Accumulation = "sum",
    weights: Strategy | Sequence[float] = "uniform",
    table: Mapping[str, float] | None = None,
) -> SaliencyMaps:
    """A saliency at several layers, each map resized and brought to [0, 1], then added or multiplied by weight.

    Args:
        model: left as it was.
        batch: images (B, C, H, W), or a batch.
        saliency: of which the layer can be chosen.
        target: what is explained.
        layers: by name, first to last; "auto" finds the last one at each resolution.
        accumulation: sum_l w_l S_l, or prod_l S_l^{w_l}.
        weights: a strategy, or a number for each layer.
        table: layer -> weight, for strategies that are measured.

    Returns:
        maps (B, T, H, W); `raw` holds each layer's own.

    Raises:
        ValueError: if the weights do not fit the layers, are negative, or all zero.
        InterfaceError: if the saliency has no layer to choose.
    """
    ready, asked = prepared(model, batch, resolve_target(target))
    found_layers = combination_layers(model, ready, asked) if isinstance(layers, str) else list(layers)
    shares = strategy_weights(weights, found_layers, table) if isinstance(weights, str) else normalized_weights(list(weights))
    maps, found = maps_at_layers(saliency, model, ready, asked, found_layers)
    size = tuple(ready[image_key(model, ready)].shape[-2:])
    joined = combine_maps(maps, (size[0], size[1]), shares, accumulation)
    return SaliencyMaps(joined, dict(zip(found_layers, maps, strict=True)), found.scores, found.output, found.batch, found.target)


class CombinedSaliency(SaliencyMethod):
    """Maps of any saliency at several layers, weighted and joined.

    Args:
        split: whose samples are shown.
        limit: how many of them; none shows all.
        saliency: whose layer is chosen, by default `normgrad`. Its own target is explained.
        layers: names, first to last; "auto" takes the last layer at each resolution, or four blocks of a network of tokens.
        accumulation: the weighted sum of maps, or the product of their powers.
        weights: all equal; rising evenly from the first layer to the last; or as measured: accuracy of a linear probe of each layer,
            pointing accuracy of each layer's maps, spread of each layer's activations.
        table: layer and weight, where they were measured elsewhere.
        measured: what the evaluator `layer-weights` found in an earlier stage.
        measure_on: split on which weights are measured when the evaluator runs by itself, with neither table nor earlier stage.
        fit_on: split on which the linear probe of `accuracy` is fitted then.
        columns: samples in a row of the figure.
        overlay: share of the image in the overlay.
        colormap: of the overlay, as matplotlib names it.
        batch_size: samples at a time.

    Raises:
        ValueError: if a weight is negative, or all are zero.
        InterfaceError: if the saliency has no layer to choose.
        ArtifactError: if `measured` is of another type.
    """

    name: ClassVar[str] = "combined-saliency"
    title: ClassVar[str] = "Combined saliency"
    caption: ClassVar[str] = "Beside each image, where several layers together find evidence."

    def __init__(
        self,
        split: Split = "test",
        limit: Count | None = 16,
        saliency: SaliencyMethod | None = None,
        layers: Literal["auto"] | list[str] = "auto",
        accumulation: Accumulation = "sum",
        weights: Strategy = "uniform",
        table: dict[str, float] | None = None,
        measured: Artifact | None = None,
        measure_on: Split | None = None,
        fit_on: Split | None = None,
        columns: Columns = 4,
        overlay: Share = 0.5,
        colormap: Colormap = "jet",
        batch_size: Count = 32,
    ):
        self.saliency: SaliencyMethod = NormGrad() if saliency is None else saliency
        super().__init__(split, limit, self.saliency.target, columns, batch_size, overlay, colormap)
        if not hasattr(innermost(self.saliency), "layer"):
            raise InterfaceError(f'the saliency "{self.saliency.name}" has no layer to choose, so that there is nothing to combine')
        if table is not None:
            normalized_weights(list(table.values()))
        if measured is not None:
            table = dict(measured.check(ARTIFACT).data["weights"].get(weights) or {}) or None
        self.layers, self.accumulation, self.weights, self.table, self.measured = layers, accumulation, weights, table, measured
        self.measure_on, self.fit_on = measure_on, fit_on

    def explain(self, model: nn.Module, batch: Tensor | Mapping[str, Any], target: Any = None) -> SaliencyMaps:
        """Combined maps of a batch.

        Raises:
            ValueError: if the weights are measured and neither table nor measurement is given.
        """
        asked = self.target if target is None else target
        return combined_saliency(
            model, batch, self.saliency, asked, self.layers, accumulation=self.accumulation, weights=self.weights, table=self.table
        )

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics combined-saliency-empty-maps and combined-saliency-area, pictures, a table; the weights, if measured.

        Raises:
            ArtifactError: if the weights were measured on another model.
            DataError: if the split is empty.
        """
        if self.measured is not None:
            self.measured.check(ARTIFACT, model=model)
        if self.weights not in MEASURED or self.table is not None or self.measure_on is None:
            return super().evaluate(model, data, run)
        measured = cast(Measured, self.weights)
        ranking = LayerWeights(
            self.measure_on, self.fit_on or self.measure_on, [measured], self.layers, self.saliency, batch_size=self.batch_size
        ).evaluate(model, data, run)
        ready = copy.copy(self)
        ready.table = dict(ranking.artifacts[ARTIFACT].data["weights"][self.weights])
        report = super(CombinedSaliency, ready).evaluate(model, data, run)
        return Report(report.metrics, {**report.tables, **ranking.tables}, {**report.figures, **ranking.figures}, ranking.artifacts)
