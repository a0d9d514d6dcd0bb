"""What each layer is worth, measured on data: accuracy of a linear probe, pointing accuracy of its maps, spread of its activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork.artifact import Artifact, fingerprint
from graftwork.builtin.evaluators import logistic_regression
from graftwork.errors import DataError
from graftwork.kinds.dataset import Batch, Dataset, Split
from graftwork.kinds.evaluator import Evaluator, Figure, Report, Table, split_batches
from graftwork.kinds.objective import INPUTS
from graftwork_grad_cam.capture import capturing, find_module
from graftwork_grad_cam.evidence import Surroundings, full_precision, prepared
from graftwork_grad_cam.forward import call_model, image_key
from graftwork_grad_cam.pointing_game import PointingGame
from graftwork_grad_cam.saliency import Count, SaliencyMethod
from graftwork_normgrad.combination import MEASURED, normalized_weights
from graftwork_normgrad.labels import short_names
from graftwork_normgrad.layered import at_layers
from graftwork_normgrad.normgrad import NormGrad
from graftwork_normgrad.stages import combination_layers

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["ARTIFACT", "LayerWeights", "Measured", "activation_spread", "layer_activations", "probe_accuracy"]

ARTIFACT = "layer-weights"
"""Type of the artifact: `weights` in its data is strategy -> layer -> weight, normalised to sum 1."""

Measured: TypeAlias = Literal["accuracy", "pointing-accuracy", "activation"]
"""Strategies whose weights are measured."""


def layer_activations(model: nn.Module, batch: Batch, layers: Sequence[str]) -> dict[str, Tensor]:
    """What layers give for a batch, as (B, K, h, w) in float32, without gradients.

    Raises:
        InterfaceError: if there is no such layer, or it keeps no positions.
    """
    image = batch[image_key(model, batch)].shape[-2:]
    with capturing(model, layers) as seen, torch.no_grad():
        call_model(model, batch)
    found = {}
    for layer in layers:
        name = find_module(model, layer)[0]
        value = seen.activations[name][-1].detach()
        layout = Surroundings().found(model, name, value.shape, (image[0], image[1]), seen.patches)
        found[layer] = full_precision(layout.spatial(value))
    return found


def _over(
    model: nn.Module, data: Dataset, split: str, layers: Sequence[str], limit: int | None, size: int
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    empty = True
    for batch in split_batches(data, split, model, limit=limit, batch_size=size):
        empty = False
        yield batch, layer_activations(model, batch, layers)
    if empty:
        raise DataError(f'split "{split}" is empty')


def activation_spread(
    model: nn.Module, data: Dataset, split: str, layers: Sequence[str], limit: int | None = None, batch_size: int = 32
) -> dict[str, float]:
    """The standard deviation of a layer's activations over images and positions, averaged over its channels.

    Raises:
        DataError: if the split is empty.
    """
    counts = dict.fromkeys(layers, 0)
    means: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    for _, activations in _over(model, data, split, layers, limit, batch_size):
        for layer, value in activations.items():
            count = value.numel() // value.shape[1]
            mean = value.mean(dim=(0, 2, 3))
            square = (value - mean[:, None, None]).square().sum(dim=(0, 2, 3))
            if layer not in means:
                means[layer], squares[layer] = mean, square
            else:  # the parts' moments together (Chan et al., 1979)
                before, after = counts[layer], counts[layer] + count
                shift = mean - means[layer]
                squares[layer] = squares[layer] + square + shift.square() * before * count / after
                means[layer] = means[layer] + shift * count / after
            counts[layer] += count
    return {layer: (squares[layer] / counts[layer]).sqrt().mean().item() for layer in layers}


def probe_accuracy(
    model: nn.Module, data: Dataset, train: str, test: str, layers: Sequence[str], limit: int | None = None, batch_size: int = 32
) -> dict[str, float]:
    """Accuracy of a logistic regression on the spatial mean of a layer's activations, standardised; fitted on `train`, measured on `test`.

    Raises:
        DataError: if a split is empty, or its samples have no `label`.
    """

    def pooled(split: str) -> tuple[dict[str, Tensor], Tensor]:
        rows: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        labels: list[Tensor] = []
        for batch, activations in _over(model, data, split, layers, limit, batch_size):
            if "label" not in batch:
                raise DataError(f'a linear probe reads the key label; the samples of "{split}" have {", ".join(batch)}')
            labels.append(batch["label"])
            for layer, value in activations.items():
                rows[layer].append(value.mean(dim=(2, 3)))
        return {layer: torch.cat(each) for layer, each in rows.items()}, torch.cat(labels)

    (fitted, fit_labels), (measured, labels) = pooled(train), pooled(test)
    found = {}
    for layer in layers:
        mean, spread = fitted[layer].mean(dim=0), fitted[layer].std(dim=0).clamp(min=1e-8)
        weights, intercepts = logistic_regression((fitted[layer] - mean) / spread, fit_labels)
        guesses = ((measured[layer] - mean) / spread).to(weights.dtype) @ weights.T + intercepts
        found[layer] = (guesses.argmax(dim=1) == labels).float().mean().item()
    return found


class LayerWeights(Evaluator):
    """What each layer is worth, for `combined-saliency`: probe accuracy, pointing accuracy, spread of activations.

    Args:
        split: where layers are measured.
        train: where the linear probes are fitted.
        strategies: what is measured: accuracy, pointing-accuracy (needs masks or boxes), activation.
        layers: names, first to last; "auto" takes the last layer at each resolution, or four blocks of a network of tokens.
        saliency: whose maps point, by default `normgrad`.
        tolerance: of pointing, in pixels.
        mask_offset: value of class 0 in `mask`; 1 where 0 is background.
        limit: the first so many samples of each split only.
        batch_size: samples at a time.

    Raises:
        ValueError: if no strategy is given, or one is not measured.
    """

    needs = nn.Module
    keys = (INPUTS,)

    def __init__(
        self,
        split: Split = "test",
        train: Split = "train",
        strategies: list[Measured] = ["accuracy", "activation"],  # noqa: B006 - read only
        layers: Literal["auto"] | list[str] = "auto",
        saliency: SaliencyMethod | None = None,
        tolerance: Annotated[float, Field(ge=0)] = 0,
        mask_offset: Annotated[int, Field(ge=0)] = 1,
        limit: Count | None = None,
        batch_size: Count = 32,
    ):
        if not strategies or set(strategies) - set(MEASURED):
            raise ValueError(f"strategies are some of {', '.join(MEASURED)}; found {strategies}")
        self.split, self.train, self.strategies, self.layers = split, train, list(strategies), layers
        self.saliency: SaliencyMethod = NormGrad() if saliency is None else saliency
        self.tolerance, self.mask_offset, self.limit, self.batch_size = tolerance, mask_offset, limit, batch_size

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics STRATEGY-best-layer (from 1, the first); table and figure `layer-weights`; the artifact `layer-weights`.

        Raises:
            DataError: if a split is empty, or its samples lack what is measured.
        """
        layers = self._layers(model, data)
        raw = {strategy: self._measure(strategy, model, data, layers) for strategy in self.strategies}
        weights: dict[str, dict[str, float]] = {
            name: dict(zip(layers, normalized_weights(list(found.values())), strict=True)) for name, found in raw.items()
        }
        rows = [[layer, *(each for name in raw for each in (raw[name][layer], weights[name][layer]))] for layer in layers]
        columns = ["layer", *(f"{name}{what}" for name in raw for what in ("", ", weight"))]
        table = Table(columns, rows, f"What each layer is worth on {self.split}; weights sum to 1.")
        artifact = Artifact(ARTIFACT, data={"layers": layers, "weights": weights}, model=fingerprint(model), dataset=data.fingerprint())
        metrics = {f"{name}-best-layer": float(1 + max(range(len(layers)), key=lambda i: found[layers[i]])) for name, found in raw.items()}
        return Report(metrics, {ARTIFACT: table}, {ARTIFACT: Figure(_bars(layers, weights), table.caption)}, {ARTIFACT: artifact})

    def _layers(self, model: nn.Module, data: Dataset) -> list[str]:
        if not isinstance(self.layers, str):
            return list(self.layers)
        for batch in split_batches(data, self.split, model, limit=1, batch_size=1):
            ready, asked = prepared(model, batch, "predicted")
            return combination_layers(model, ready, asked)
        raise DataError(f'split "{self.split}" is empty')

    def _measure(self, strategy: str, model: nn.Module, data: Dataset, layers: Sequence[str]) -> dict[str, float]:
        if strategy == "activation":
            return activation_spread(model, data, self.split, layers, self.limit, self.batch_size)
        if strategy == "accuracy":
            return probe_accuracy(model, data, self.train, self.split, layers, self.limit, self.batch_size)
        found = {}
        for layer in layers:
            game = PointingGame(
                self.split,
                at_layers(self.saliency, layer),
                self.tolerance,
                self.mask_offset,
                limit=self.limit,
                batch_size=self.batch_size,
            )
            found[layer] = game.evaluate(model, data).metrics["pointing-accuracy"]
        return found


def _bars(layers: Sequence[str], weights: dict[str, dict[str, float]]) -> Any:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(1.6 + 1.1 * len(layers), 3.4), layout="constrained")
    axes = canvas.add_subplot(ylabel="weight")
    width = 0.8 / len(weights)
    for index, (name, each) in enumerate(weights.items()):
        places = [place + width * (index - (len(weights) - 1) / 2) for place in range(len(layers))]
        axes.bar(places, [each[layer] for layer in layers], width=width, label=name)
    axes.set_xticks(range(len(layers)), short_names(layers), fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return canvas
