"""Where domain heads attach to a model, and how one pass over all domains serves both them and the task objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from graftwork import Backbone, DataError, Dataset, InterfaceError
from graftwork.errors import nearest
from graftwork.interfaces import input_keys
from graftwork.kinds.evaluator import evaluating, split_batches

__all__ = ["BOTTLENECK", "TappedModel", "activation_widths", "check_points", "concatenated", "merged", "pooled"]

BOTTLENECK = "bottleneck"
"""The attachment point that every backbone has: its pooled features before the classifier. An embedder's is its embedding."""


def pooled(activation: Tensor) -> Tensor:
    """An activation as one vector a row: (B, C, H, W, ...) and tokens (B, N, C) are averaged over their positions.

    Args:
        activation: (B, D), (B, N, D) or (B, D, H, W, ...).

    Returns:
        (B, D).
    """
    if activation.ndim == 2:
        return activation
    return activation.mean(dim=1) if activation.ndim == 3 else activation.flatten(2).mean(dim=2)


def check_points(model: nn.Module, points: Sequence[str]) -> None:
    """Raise unless the model has every attachment point.

    Raises:
        InterfaceError: naming the point, and the modules that there are.
    """
    names = [BOTTLENECK, *(name for name, _ in model.named_modules() if name)]
    for point in points:
        if point not in names:
            raise InterfaceError(f'{type(model).__name__} has no module "{point}"{nearest(point, names)}; it has {", ".join(names)}')


def activation_widths(model: nn.Module, points: Sequence[str], data: Dataset) -> dict[str, int]:
    """Attachment point -> width of its pooled activation, found by passing one sample through.

    Args:
        model: left as it was found.
        points: names of modules, or `BOTTLENECK`.
        data: any dataset that holds the model's inputs.

    Raises:
        DataError: if no split holds the model's inputs.
        InterfaceError: if the model lacks a point.
    """
    check_points(model, points)
    keys = input_keys(model)
    for split, samples in data.items():
        if len(samples) and all(key in samples[0] for key in keys):
            batch = next(split_batches(data, split, model, limit=1))
            with evaluating(model), TappedModel(model, points) as tapped:
                tapped.run(*(batch[key] for key in keys))
            return {point: activation.shape[1] for point, activation in tapped.activations.items()}
    raise DataError(f"no split of the dataset holds what {type(model).__name__} takes, {', '.join(keys)}, to size the domain heads by")


class TappedModel:
    """A model for one step: its first pass takes further rows along and keeps what the attachment points give for all of them.

    To a task objective it looks like the model, and gives the rows that were asked for alone. Later passes are the model's own.
    Hooks are in place between `with` and its end.

    Args:
        model: a backbone or embedder; with named points only, any module.
        points: names of modules, or `BOTTLENECK`.
        further: rows that the first pass takes along: one entry for each of the model's inputs, or nothing.

    Attributes:
        activations: point -> pooled activation (rows asked for, then further rows; D).
    """

    def __init__(self, model: nn.Module, points: Sequence[str], further: Sequence[Any] = ()):
        self.model: Any = model
        self.points, self.further = tuple(points), tuple(further)
        self.activations: dict[str, Tensor] = {}
        self._named = [point for point in points if point != BOTTLENECK]
        self._passed = False
        self._hooks: list[RemovableHandle] = []
        for name in ("num_features", "embedding_dim"):  # Protocols look at the instance
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # not there yet while it is copied
            raise AttributeError(name)
        return getattr(self.model, name)

    def __enter__(self) -> Self:
        for point in self._named:
            self._hooks.append(self.model.get_submodule(point).register_forward_hook(self._keep(point)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _keep(self, point: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            found = output[0] if isinstance(output, (tuple, list)) else output
            if not isinstance(found, Tensor):
                raise InterfaceError(f'module "{point}" gives {type(found).__name__}: a domain head attaches to a tensor')
            if point not in self.activations:
                self.activations[point] = pooled(found)

        return keep

    # -- the model's own surface -----------------------------------------------------------------------------------------------

    def __call__(self, *inputs: Any) -> Any:
        """As the model's forward; a transformers output becomes its logits in the first pass."""
        if self._passed:
            return self.model(*inputs)
        if BOTTLENECK in self.points:
            return self._classify(*inputs)
        joined, rows = self._join(inputs)
        output = self.model(*joined)
        return _first(getattr(output, "logits", output), rows)

    forward = __call__

    def forward_features(self, *inputs: Any) -> Tensor:
        """As the model's."""
        if self._passed:
            return self.model.forward_features(*inputs)  # type: ignore[no-any-return]
        joined, rows = self._join(inputs)
        return cast(Tensor, _first(self._features(*joined), rows))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """As the model's."""
        return self.model.forward_head(x, pre_logits=pre_logits)  # type: ignore[no-any-return]

    def embed(self, *inputs: Any) -> Tensor:
        """As the model's."""
        if self._passed:
            return self.model.embed(*inputs)  # type: ignore[no-any-return]
        joined, rows = self._join(inputs)
        embeddings: Tensor = self.model.embed(*joined)
        if BOTTLENECK in self.points and not isinstance(self.model, Backbone):
            self.activations[BOTTLENECK] = embeddings
        return cast(Tensor, _first(embeddings, rows))

    def run(self, *inputs: Any) -> None:
        """Pass rows through for the sake of the attachment points alone."""
        if self._named and BOTTLENECK not in self.points:
            self.model(*inputs)
        elif isinstance(self.model, Backbone):
            features = self._features(*inputs)
            if self._named:
                self.forward_head(features)
        else:
            self.embed(*inputs)
        self._passed = True

    def _classify(self, *inputs: Any) -> Tensor:
        joined, rows = self._join(inputs)
        features = self._features(*joined)
        if self._named:  # a named module of the head has to see every row
            return cast(Tensor, _first(self.forward_head(features), rows))
        return self.forward_head(_first(features, rows))

    def _features(self, *inputs: Any) -> Tensor:
        features: Tensor = self.model.forward_features(*inputs)
        if BOTTLENECK in self.points:
            self.activations[BOTTLENECK] = self.forward_head(features, pre_logits=True)
        return features

    def _join(self, inputs: Sequence[Any]) -> tuple[tuple[Any, ...], int]:
        self._passed = True
        rows = len(inputs[0])
        if not self.further:
            return tuple(inputs), rows
        return tuple(concatenated(values) for values in zip(inputs, self.further, strict=True)), rows


def _first(output: Any, rows: int) -> Any:
    return output[:rows] if len(output) > rows else output


def concatenated(values: Sequence[Any]) -> Any:
    """Rows of several batches as those of one.

    Raises:
        DataError: if they differ in shape.
    """
    if not all(isinstance(value, Tensor) for value in values):
        return [item for value in values for item in value]
    shapes = [tuple(value.shape[1:]) for value in values]
    if len(set(shapes)) > 1:
        raise DataError(
            f"the domains' batches differ in shape, {' and '.join(map(str, shapes))}: pass them apart with joint_forward: false"
        )
    return torch.cat(list(values))


def merged(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several batches as one, with the keys that all of them have.

    Raises:
        DataError: if their tensors differ in shape.
    """
    if len(batches) == 1:
        return dict(batches[0])
    shared = [key for key in batches[0] if all(key in batch for batch in batches)]
    return {key: concatenated([batch[key] for batch in batches]) for key in shared}
