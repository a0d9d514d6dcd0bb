"""What saliency methods read off a network: activations and gradients at layers, laid out in space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from graftwork.errors import InterfaceError
from graftwork.kinds.dataset import Batch
from graftwork.kinds.evaluator import evaluating
from graftwork_grad_cam.capture import capturing
from graftwork_grad_cam.forward import as_batch, detached, image_key
from graftwork_grad_cam.layers import Layout, LayoutName, find_layer, find_layout, prefix_of, suffix_of, unreached_message
from graftwork_grad_cam.targets import Target, as_target, score_matrix

__all__ = ["Evidence", "Layers", "Observation", "Repeats", "layer_names", "observe", "observe_prepared", "prepared"]

Layers: TypeAlias = str | nn.Module | Sequence[str | nn.Module]
"""A layer or several: modules, dotted names, or "auto"."""

Repeats: TypeAlias = Literal["raise", "sum", "each", "first", "last"]
"""What to do with a layer that runs several times in one forward pass."""


@dataclass(frozen=True)
class Evidence:
    """What one run of a layer tells.

    Args:
        activations: (B, K, h, w) float32.
        gradients: (B, T, K, h, w) float32, of each of T scores a sample.
        layout: how the layer's output lay.
    """

    activations: Tensor
    gradients: Tensor
    layout: Layout


@dataclass(frozen=True)
class Observation:
    """What one forward and one backward pass tell.

    Args:
        layers: name of a layer -> its runs.
        scores: (B, T) what the target gave.
        output: the model's, cut from the graph.
        batch: with the target's choices bound to it.
        target: what was asked.
        size: (H, W) of the images.
    """

    layers: dict[str, list[Evidence]]
    scores: Tensor
    output: Any
    batch: Batch
    target: Target
    size: tuple[int, int]


def prepared(model: nn.Module, batch: Tensor | Mapping[str, Any], target: Any) -> tuple[Batch, Target]:
    """The batch with the target's choices bound to it, and the target."""
    asked = as_target(target)
    with torch.inference_mode(False), evaluating(model):
        return asked.prepare(model, as_batch(batch)), asked


def layer_names(model: nn.Module, batch: Mapping[str, Any], target: Target, layer: Layers) -> list[str | nn.Module]:
    """The layers that are asked for, "auto" replaced by the one that is found."""
    asked = list(layer) if isinstance(layer, Sequence) and not isinstance(layer, str) else [layer]
    if not asked:
        raise ValueError('no layer is given: name one, or "auto"')
    return [find_layer(model, batch, target) if each == "auto" else each for each in asked]  # type: ignore[comparison-overlap]


def observe(
    model: nn.Module,
    batch: Tensor | Mapping[str, Any],
    target: Any = "predicted",
    layer: Layers = "auto",
    *,
    layout: LayoutName = "auto",
    grid: tuple[int, int] | None = None,
    prefix_tokens: int | None = None,
    repeats: Repeats = "raise",
) -> Observation:
    """Run a model forward, and backward from a target to its layers; the model is left as it was.

    Works with frozen parameters, under `torch.no_grad` and `torch.inference_mode`, and in half precision: the evidence is float32.

    Args:
        model: any torch module that takes images.
        batch: images (B, C, H, W), or a batch with the keys that the model and the target read.
        target: as `as_target` takes it.
        layer: one or several.
        layout: of the layers' outputs; "auto" finds it.
        grid: (h, w) of tokens, where it cannot be found.
        prefix_tokens: number of tokens before the patches, where it cannot be found.
        repeats: for a layer that runs several times in the pass: refuse ("raise"), take the first or the last run, or keep all
            ("sum", "each").

    Raises:
        InterfaceError: if there is no such layer, it keeps no positions, it did not run, it ran repeatedly and `repeats` does not
            say what then, no gradient comes to it, or the model does not have what the target asks for.
        DataError: if the batch lacks what is read.
    """
    ready, asked = prepared(model, batch, target)
    names = layer_names(model, ready, asked, layer)
    return observe_prepared(model, ready, asked, names, layout=layout, grid=grid, prefix_tokens=prefix_tokens, repeats=repeats)


def observe_prepared(
    model: nn.Module,
    batch: Batch,
    target: Target,
    layers: Sequence[str | nn.Module],
    *,
    layout: LayoutName = "auto",
    grid: tuple[int, int] | None = None,
    prefix_tokens: int | None = None,
    repeats: Repeats = "raise",
) -> Observation:
    """`observe` for a batch to which the target's choices are bound already, such as the batch of an earlier observation."""
    with capturing(model, layers) as seen:
        output = target.forward(model, batch)
        scores = target.score(output, batch)
        gradients = seen.gradients(scores)
        pinned = target.pin(output, batch)
    image = tuple(batch[image_key(model, batch)].shape[-2:])
    prefix, suffix = prefix_of(model) if prefix_tokens is None else prefix_tokens, suffix_of(model)
    found: dict[str, list[Evidence]] = {}
    for name, activations in seen.activations.items():
        found[name] = []
        for run in _runs(name, len(activations), repeats):
            shape = activations[run].shape
            where = find_layout(shape, image, seen.patches, kind=layout, grid=grid, prefix=prefix, suffix=suffix, layer=f'layer "{name}"')
            found[name].append(_evidence(model, name, activations[run], gradients[name][run], where))
    return Observation(found, score_matrix(scores.detach()), detached(output), pinned, target, image)


def _runs(name: str, count: int, repeats: Repeats) -> range:
    if count > 1 and repeats == "raise":
        raise InterfaceError(f'layer "{name}" ran {count} times in one forward pass: set repeats to sum, each, first or last')
    return range(count)[:1] if repeats == "first" else range(count)[-1:] if repeats == "last" else range(count)


def _evidence(model: nn.Module, name: str, activations: Tensor, gradients: Tensor, layout: Layout) -> Evidence:
    spatial = layout.spatial(gradients)
    if layout.prefix + layout.suffix and not bool(spatial.any()) and bool(gradients.any()):
        raise InterfaceError(unreached_message(model, name))
    return Evidence(layout.spatial(activations.detach()).float(), spatial.movedim(1, 0).float(), layout)
