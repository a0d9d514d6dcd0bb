"""Merging for inference: LoRA into the matrix beside it, a parallel adapter into the ReLU feed-forward beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graftwork_unified_petl.bottleneck import Adapter, LowRank
from graftwork_unified_petl.sites import FeedForward, Projection

__all__ = ["Merge", "widened_ffn", "with_low_rank"]


@dataclass(frozen=True, eq=False)
class Merge:
    """Parameters that take the place of frozen ones, and those, to be put back.

    Args:
        path: of the first module that changes.
        changes: module, name of its parameter, what it becomes and what it was.
    """

    path: str
    changes: Sequence[tuple[Any, str, nn.Parameter | None, nn.Parameter | None]]

    def apply(self) -> None:
        """Put the merged parameters in."""
        for module, name, new, _ in self.changes:
            _put(module, name, new)

    def undo(self) -> None:
        """Put the frozen parameters back."""
        for module, name, _, old in self.changes:
            _put(module, name, old)


def _put(module: Any, name: str, value: nn.Parameter | None) -> None:
    setattr(module, name, value)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif hasattr(module, "nf"):
        module.nf = module.weight.shape[1]


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=False)


@torch.no_grad()
def with_low_rank(projection: Projection, change: LowRank) -> Merge:
    """W + s B A, on the rows of W that are this projection's (Hu et al., 2021, section 4.1).

    Raises:
        ValueError: if the change is not one fixed linear map.
    """
    delta, module = change.delta(), projection.module
    merged = _frozen(module.weight)
    rows = slice(projection.start, projection.start + projection.width)
    if projection.transposed:
        merged[:, rows] += delta.T
    else:
        merged[rows] += delta
    return Merge(projection.path, [(module, "weight", merged, module.weight)])


@torch.no_grad()
def widened_ffn(ffn: FeedForward, change: Adapter, path: str) -> Merge:
    """A ReLU feed-forward with r more hidden units: [W_1; W_down] and [W_2, s W_up] (He et al., 2022, section 3.1).

    Raises:
        ValueError: if activations differ, the FFN is gated, or the adapter is not ReLU units alone.
    """
    if not (isinstance(ffn.activation, nn.ReLU) or ffn.activation in (torch.relu, nn.functional.relu)) or len(ffn.inputs) > 1:
        name = type(ffn.activation).__name__
        raise ValueError(f"{path}: an adapter's ReLU units join a plain ReLU FFN alone; this one has {len(ffn.inputs)} x {name}")
    if change.norm is not None or isinstance(change.scale, nn.Parameter):
        raise ValueError(f'{path}: an adapter with a layernorm or scale "learnable" cannot be merged')
    first, last, scale = ffn.inputs[0], ffn.output, change.scale
    changes = []
    for projection, weight, bias, hidden_first in (
        (first, change.down.weight, change.down.bias, True),
        (last, change.up.weight * scale, change.up.bias * scale, False),
    ):
        module, old = projection.module, projection.module.weight
        added = weight.T if projection.transposed else weight
        joined = torch.cat([old, added], dim=int(projection.transposed) if hidden_first else int(not projection.transposed))
        changes.append((module, "weight", _frozen(joined), old))
        held = module.bias if module.bias is not None else old.new_zeros(projection.width)
        changes.append((module, "bias", _frozen(torch.cat([held, bias]) if hidden_first else held + bias), module.bias))
    return Merge(first.path, changes)
