"""What passes through named layers, forward and backward, leaving no trace on the model.

The graph begins at the first captured layer: parameters are frozen for the while, so what lies before it is computed without a graph,
and the backward pass goes from the score to the layer and no further.

    with capturing(model, ["layer4"]) as seen:
        logits = model(images)
        gradients = seen.gradients(logits[:, 3])
    seen.activations["layer4"][0], gradients["layer4"][0]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from graftwork.errors import InterfaceError, nearest
from graftwork.kinds.evaluator import evaluating

__all__ = ["Capture", "capturing", "find_module", "first_tensor", "frozen"]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Parameters that require no gradient; those that did do so again afterwards. No `.grad` is read or written."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def find_module(model: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    """A layer's dotted name and module.

    Args:
        model: the whole.
        layer: a module of it, or a dotted name, in which a negative number counts from the end of a list: "blocks.-1.norm1".

    Raises:
        InterfaceError: if the model has no such layer; the nearest name is given.
    """
    if isinstance(layer, nn.Module):
        for name, module in model.named_modules():
            if module is layer:
                return name, module
        raise InterfaceError(f"the {type(layer).__name__} given as a layer is no part of the {type(model).__name__}")
    found: list[str] = []
    module = model
    for part in layer.split("."):
        children = dict(module.named_children())
        if part.startswith("-") and part[1:].isdigit() and 0 < int(part) + len(children) + 1 <= len(children):
            part = list(children)[int(part)]
        if part not in children:
            near = nearest(layer, [name for name, _ in model.named_modules()])
            inside = f'"{".".join(found)}"' if found else f"the {type(model).__name__}"
            raise InterfaceError(f'there is no layer "{layer}"{near}: {inside} has {", ".join(children) or "no children"}')
        found.append(part)
        module = children[part]
    return ".".join(found), module


def first_tensor(output: Any) -> Tensor | None:
    """The first tensor of floats with three or more dimensions in a layer's output, which may be a tuple or a mapping; else None."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() >= 3:
            return leaf
    return None


class Capture:
    """The activations of one forward pass, and the gradients of scores with respect to them.

    Attributes:
        activations: layer -> one tensor for each time it ran, in order, as the layer gave it.
        patches: (h, w, channels) of the image once cut into patches by a convolution that does not overlap; None without one.
    """

    def __init__(self, layers: Sequence[str]):
        self.layers = tuple(layers)
        self.activations: dict[str, list[Tensor]] = {}
        self.patches: tuple[int, int, int] | None = None

    def track(self, name: str, tensor: Tensor) -> Tensor:
        """Record a tensor under a name; what comes back must be used in its place.

        A copy goes on, so that an in-place operation behind the layer changes neither the record nor its gradient.
        """
        seen = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        self.activations.setdefault(name, []).append(seen)
        return seen.clone()

    def gradients(self, scores: Tensor, *, retain_graph: bool = False) -> dict[str, list[Tensor]]:
        """Gradients of scores, each sample's with respect to its own activations, in one backward pass.

        Scores are summed over the batch, which gives each sample its own gradient as long as it depends on itself alone. Several
        scores a sample share the forward pass; their backward passes are batched (vmap).

        Args:
            scores: (B, T), (B,) or a scalar; summed in float32.
            retain_graph: whether the graph is kept for another call.

        Returns:
            layer -> one (T, *activation's shape) for each time that it ran; T is 1 unless scores are (B, T).

        Raises:
            InterfaceError: if a layer did not run, the scores are not differentiable, or they do not depend on a layer.
        """
        idle = [name for name in self.layers if name not in self.activations]
        if idle:
            raise InterfaceError(f"did not run in the forward pass, or gave no tensor with positions: layer {', '.join(idle)}")
        if not scores.requires_grad:
            raise InterfaceError(
                "the target is not differentiable: its score has no gradient (is it an argmax, a rounding, or computed without gradients?)"
            )
        totals = (scores if scores.dim() == 2 else scores.reshape(-1, 1)).float().sum(dim=0)
        flat = [tensor for calls in self.activations.values() for tensor in calls]
        if len(totals) == 1:
            found = torch.autograd.grad(totals[0], flat, allow_unused=True, retain_graph=retain_graph)
            gradients = iter([None if gradient is None else gradient.unsqueeze(0) for gradient in found])
        else:
            each = torch.eye(len(totals), device=totals.device)
            gradients = iter(torch.autograd.grad(totals, flat, each, allow_unused=True, retain_graph=retain_graph, is_grads_batched=True))
        by_layer = {name: [next(gradients) for _ in calls] for name, calls in self.activations.items()}
        for name, calls in by_layer.items():
            if all(gradient is None for gradient in calls):
                raise InterfaceError(f'the target does not depend on layer "{name}": no gradient comes to its output')
            shapes = (tensor.shape for tensor in self.activations[name])
            by_layer[name] = [
                totals.new_zeros(len(totals), *shape) if gradient is None else gradient
                for gradient, shape in zip(calls, shapes, strict=True)
            ]
        return by_layer


@contextmanager
def capturing(model: nn.Module, layers: Sequence[str | nn.Module] = ()) -> Iterator[Capture]:
    """Record what named layers give while the block runs.

    In the block the model is in eval mode with frozen parameters, and gradients are on, whatever the caller's mode. Afterwards
    modes, `requires_grad` and hooks are as they were, also after an exception.

    Args:
        model: whose layers.
        layers: modules, or their names as for `find_module`.

    Yields:
        the record, which fills as the model runs.

    Raises:
        InterfaceError: if the model has no such layer.
    """
    modules = dict(find_module(model, layer) for layer in layers)
    capture = Capture(list(modules))
    handles = []
    try:
        with torch.inference_mode(False), frozen(model), evaluating(model, gradients=True):
            handles += [module.register_forward_hook(_recorder(capture, name)) for name, module in modules.items()]
            note_patches = _patch_recorder(capture)
            handles += [module.register_forward_hook(note_patches) for module in model.modules() if isinstance(module, nn.Conv2d)]
            yield capture
    finally:
        for handle in handles:
            handle.remove()


def _recorder(capture: Capture, name: str) -> Any:
    def record(module: nn.Module, arguments: Any, output: Any) -> Any:
        tensor = first_tensor(output)
        if tensor is None:
            tensor = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()), None)
        if tensor is None:
            return output
        tracked = capture.track(name, tensor)
        return tracked if output is tensor else tree_map(lambda leaf: tracked if leaf is tensor else leaf, output)

    return record


def _patch_recorder(capture: Capture) -> Any:
    """Notes the grid of patches if the first convolution to run, the one that sees the image, cuts it without overlap."""
    first: list[nn.Module] = []

    def record(module: nn.Conv2d, arguments: Any, output: Tensor) -> None:
        first.append(module)
        if len(first) == 1 and module.kernel_size == module.stride and min(module.stride) > 1:
            capture.patches = (output.shape[-2], output.shape[-1], output.shape[-3])

    return record
