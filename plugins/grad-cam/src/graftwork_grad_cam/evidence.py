"""What saliency methods read off a network: activations and gradients at layers, laid out in space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from graftwork.errors import InterfaceError
from graftwork.kinds.dataset import Batch
from graftwork.kinds.evaluator import evaluating
from graftwork_grad_cam.capture import capturing
from graftwork_grad_cam.forward import as_batch, detached, image_key
from graftwork_grad_cam.layers import Layout, LayoutName, find_layer, find_layout, prefix_of, suffix_of, unreached_message
from graftwork_grad_cam.targets import Target, as_target, score_matrix

__all__ = [
    "IMAGE",
    "Evidence",
    "Layers",
    "Observation",
    "Repeats",
    "Surroundings",
    "full_precision",
    "layer_names",
    "observe",
    "observe_prepared",
    "prepared",
]

IMAGE = "image"
"""What the input is called among layers."""

Layers: TypeAlias = str | nn.Module | Sequence[str | nn.Module]
"""A layer or several: modules, dotted names, or "auto"."""

Repeats: TypeAlias = Literal["raise", "sum", "each", "first", "last"]
"""What to do with a layer that runs several times in one forward pass."""

Found = TypeVar("Found")
"""What an observation holds of each layer."""


@dataclass(frozen=True)
class Surroundings:
    """How layers' outputs are laid out, where it cannot be found.

    Args:
        layout: "auto" finds it.
        grid: (h, w) of tokens.
        prefix_tokens: tokens before the patches.
        repeats: for a layer that runs several times in a pass: refuse ("raise"); keep all runs ("sum", "each"); the first; the last.
    """

    layout: LayoutName = "auto"
    grid: tuple[int, int] | None = None
    prefix_tokens: int | None = None
    repeats: Repeats = "raise"

    def found(
        self, model: nn.Module, name: str, shape: Sequence[int], image: tuple[int, int], patches: tuple[int, int, int] | None
    ) -> Layout:
        """Where the positions of a layer's output are.

        Raises:
            InterfaceError: if it has none, or its tokens fit no grid.
        """
        if name == IMAGE:
            return Layout("nchw", image)
        prefix = prefix_of(model) if self.prefix_tokens is None else self.prefix_tokens
        known: dict[str, Any] = {"kind": self.layout, "grid": self.grid, "prefix": prefix, "suffix": suffix_of(model)}
        return find_layout(shape, image, patches, layer=f'layer "{name}"', **known)


@dataclass(frozen=True)
class Evidence:
    """What one run of a layer tells.

    Args:
        activations: (B, K, h, w) float32, or float64 where the model computes in it.
        gradients: (B, T, K, h, w), of each of T scores a sample.
        layout: how the layer's output lay.
        run: which run of the layer, from 0.
    """

    activations: Tensor
    gradients: Tensor
    layout: Layout
    run: int = 0


@dataclass(frozen=True)
class Observation(Generic[Found]):
    """What one forward and one backward pass tell.

    Args:
        layers: name of a layer -> what is known of it, in the order that was asked for: the evidence of its runs, or what is made of it.
        scores: (B, T) what the target gave.
        output: the model's, cut from the graph.
        batch: with the target's choices bound to it.
        target: what was asked.
        size: (H, W) of the images.
    """

    layers: dict[str, Found]
    scores: Tensor
    output: Any
    batch: Batch
    target: Target
    size: tuple[int, int]


def full_precision(tensor: Tensor) -> Tensor:
    """A tensor in float32, or float64 where it is."""
    return tensor if tensor.element_size() == 8 else tensor.float()


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
) -> Observation[list[Evidence]]:
    """Run a model forward, and backward from a target to its layers; the model is left as it was.

    Works with frozen parameters, under `torch.no_grad` and `torch.inference_mode`, and in half precision, of which the evidence is float32.

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
    return observe_prepared(model, ready, asked, names, Surroundings(layout, grid, prefix_tokens, repeats))


def observe_prepared(
    model: nn.Module,
    batch: Batch,
    target: Target,
    layers: Sequence[str | nn.Module],
    surroundings: Surroundings | None = None,
    *,
    with_image: bool = False,
) -> Observation[list[Evidence]]:
    """`observe` for a batch to which the target's choices are bound already, such as the batch of an earlier observation.

    Args:
        model: any torch module that takes images.
        batch: as `prepared` gives it.
        target: from output to score.
        layers: modules or names, without "auto".
        surroundings: of the layers.
        with_image: whether the input is observed too, as a layer called `IMAGE`.

    Raises:
        InterfaceError: as `observe` does.
    """
    where, key = surroundings or Surroundings(), image_key(model, batch)
    with capturing(model, layers) as seen:
        given = {**batch, key: seen.track(IMAGE, batch[key].detach())} if with_image else batch
        output = target.forward(model, given)
        scores = target.score(output, given)
        gradients = seen.gradients(scores)
        pinned = target.pin(output, batch)
    image = (batch[key].shape[-2], batch[key].shape[-1])
    found: dict[str, list[Evidence]] = {}
    for name in [*seen.layers, *([IMAGE] if with_image else [])]:
        found[name] = []
        for run in _runs(name, len(seen.activations[name]), where.repeats):
            activations = seen.activations[name][run]
            layout = where.found(model, name, activations.shape, image, seen.patches)
            found[name].append(_evidence(model, name, activations, gradients[name][run], layout, run))
    return Observation(found, score_matrix(scores.detach()), detached(output), pinned, target, image)


def _runs(name: str, count: int, repeats: Repeats) -> range:
    if count > 1 and repeats == "raise":
        raise InterfaceError(f'layer "{name}" ran {count} times in one forward pass: set repeats to sum, each, first or last')
    return range(count)[:1] if repeats == "first" else range(count)[-1:] if repeats == "last" else range(count)


def _evidence(model: nn.Module, name: str, activations: Tensor, gradients: Tensor, layout: Layout, run: int) -> Evidence:
    spatial = layout.spatial(gradients)
    if layout.prefix + layout.suffix and not bool(spatial.any()) and bool(gradients.any()):
        raise InterfaceError(unreached_message(model, name))
    left = full_precision(layout.spatial(activations.detach()))
    return Evidence(left, full_precision(spatial.movedim(1, 0)), layout, run)
