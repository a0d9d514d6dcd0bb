"""What layers see and give in a forward pass, held so that gradients of the outputs can be asked for sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from graftwork_fisher_merging.layer_rules import LayerRule

__all__ = [
    "Batch",
    "Call",
    "Called",
    "Forward",
    "Seen",
    "captured",
    "output_axes",
    "parameter_edges",
    "rows",
    "rows_of",
    "zero_beyond_first",
]

Batch: TypeAlias = Mapping[str, Any]
"""Tensors with a leading batch axis, or lists as long."""

Forward: TypeAlias = Callable[[nn.Module, Batch], Tensor]
"""Gives a model's outputs (N, ...) for a batch of N samples."""


@dataclass(frozen=True)
class Call:
    """One call of a layer.

    Args:
        layer: which.
        input: (N, ...), detached.
        output: (N, ...) or (N * parts, ...), a node of the graph.
        parts: how many rows of the output are one sample's, as where images are cut into windows.
    """

    layer: nn.Module
    input: Tensor
    output: Tensor
    parts: int = 1

    def by_sample(self, gradient: Tensor) -> Tensor:
        """A gradient of the output as (N, ...)."""
        return gradient.reshape(-1, self.parts, *gradient.shape[1:]) if self.parts > 1 else gradient


class Called(nn.Module):
    """A forward function as a module, so that `torch.func.functional_call` can exchange the model's parameters.

    Args:
        model: a submodule, under the name "model".
        forward: what is called.
    """

    def __init__(self, model: nn.Module, forward: Forward):
        super().__init__()
        self.model, self._function = model, forward
        self.training = model.training

    def forward(self, batch: Batch) -> Tensor:
        """Outputs (N, ...)."""
        return self._function(self.model, batch)


def rows_of(batch: Batch) -> int:
    """How many samples a batch holds: the length of its first tensor or list; 0 where it has none."""
    return next((len(value) for value in batch.values() if isinstance(value, list) or (isinstance(value, Tensor) and value.dim())), 0)


def rows(batch: Batch, start: int, stop: int) -> dict[str, Any]:
    """Some samples of a batch; what is not one a sample is handed on as it is."""
    count = rows_of(batch)

    def cut(value: Any) -> Any:
        one_each = isinstance(value, list) or (isinstance(value, Tensor) and value.dim() > 0)
        return value[start:stop] if one_each and len(value) == count else value

    return {key: cut(value) for key, value in batch.items()}


@dataclass
class Seen:
    """What the layers did in a forward pass.

    Args:
        calls: in their order; those whose output needs no gradient are left out.
        unusable: layers that were called in a way that gives no gradient a sample.
    """

    calls: list[Call] = field(default_factory=list)
    unusable: set[nn.Module] = field(default_factory=set)


@contextmanager
def captured(layers: Mapping[nn.Module, LayerRule], count: int, shared: Collection[nn.Module] = ()) -> Iterator[Seen]:
    """Record the calls of some layers.

    Each layer hands on a copy of its output, so that a later operation in place leaves the recorded one as it was.

    Args:
        layers: which, with their rules.
        count: samples in the batch.
        shared: layers whose one output serves all samples, such as embeddings of positions: it is repeated for each of them, so
            that each has a gradient of its own.
    """
    seen = Seen()

    def hook(layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.requires_grad:
            return None
        given = arguments[0].detach() if arguments and isinstance(arguments[0], Tensor) else None
        if given is not None and layer in shared and len(output) == len(given) == 1:
            given, output = given.expand(count, *given.shape[1:]), output.expand(count, *output.shape[1:])
        parts = 0 if given is None or not given.dim() or not output.dim() or len(given) != len(output) else len(output) // count
        if given is None or not parts or parts * count != len(output) or (parts > 1 and not layers[layer].any_axes):
            seen.unusable.add(layer)
            return None
        seen.calls.append(Call(layer, given.reshape(count, parts, *given.shape[1:]) if parts > 1 else given, output, parts))
        return output.clone()

    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def output_axes(layers: Collection[nn.Module]) -> Iterator[dict[nn.Module, int]]:
    """Record how many axes the output of each layer has; layers that give no tensor, or others each time, are left out."""
    found: dict[nn.Module, int] = {}

    def hook(layer: nn.Module, arguments: Any, output: Any) -> None:
        axes = output.dim() if isinstance(output, Tensor) else 0
        found[layer] = axes if found.get(layer, axes) == axes else 0

    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def parameter_edges(output: Tensor) -> dict[int, int]:
    """How often each parameter enters the graph of a tensor: id of the parameter -> edges that lead to it.

    A layer whose weight is also used elsewhere, as by a tied output layer, shows more edges than it was called.
    """
    edges: dict[int, int] = {}
    waiting: list[Any] = [output.grad_fn]
    visited = set(waiting)  # holds the nodes, whose identity lasts only as long as they are held
    while waiting:
        node = waiting.pop()
        for following, _ in node.next_functions if node is not None else ():
            variable = getattr(following, "variable", None)
            if isinstance(variable, Tensor):
                edges[id(variable)] = edges.get(id(variable), 0) + 1
            elif following is not None and following not in visited:
                visited.add(following)
                waiting.append(following)
    return edges


def zero_beyond_first(gradient: Tensor | None) -> bool:
    """Whether only the first sample has a gradient."""
    return gradient is None or not bool(torch.count_nonzero(gradient[1:]))
