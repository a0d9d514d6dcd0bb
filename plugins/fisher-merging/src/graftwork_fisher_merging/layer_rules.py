"""What a layer's per-sample gradient is made of: its input and the gradient of its output, by kind of layer.

A rule prepares a layer's input once and then, for each gradient of its output, gives the factors of the parameter's per-sample
gradient, which is mostly never formed: for a linear layer on one vector a sample, sum_n (g_n a_n^T)^2 = (g^2)^T (a^2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Direct", "Factor", "LayerRule", "Outer", "Rows", "dense_gradient", "join", "layer_rule", "sum_of_squares"]


@dataclass(frozen=True)
class Outer:
    """A gradient that is a sum of outer products: for each sample and group, sum_t left_t right_t^T.

    Args:
        left: (N, G, T, P).
        right: (N, G, T, Q).
        input_is_left: which of the two comes from the layer's input, and so stays the same for all gradients of its output.
    """

    left: Tensor
    right: Tensor
    input_is_left: bool = False


@dataclass(frozen=True)
class Rows:
    """A gradient whose rows are sums of vectors: the one at `indices` gets `values`, as of an embedding.

    Args:
        indices: (N, T) long.
        values: (N, T, D).
    """

    indices: Tensor
    values: Tensor


@dataclass(frozen=True)
class Direct:
    """A per-sample gradient that is small enough to be formed.

    Args:
        gradient: (N, *shape of the parameter).
    """

    gradient: Tensor


Factor: TypeAlias = Outer | Rows | Direct


@dataclass(frozen=True)
class LayerRule:
    """How a kind of layer's parameters get their per-sample gradients.

    Args:
        prepare: (layer, input (N, ...), dtype) -> what `factor` takes of the input; done once for all gradients of the output.
        factor: (layer, name of the parameter, prepared input, gradient of the output (N, ...)) -> factor.
        any_axes: whether axes may stand between the samples and what the layer works on.
    """

    prepare: Callable[[Any, Tensor, torch.dtype], Tensor]
    factor: Callable[[Any, str, Tensor, Tensor], Factor]
    any_axes: bool = True


def _middle(x: Tensor, features: int) -> Tensor:
    """(N, ..., D...) to (N, 1, T, D): what stands between the sample and the features is one axis."""
    return x.reshape(len(x), 1, -1, features)


def _linear_factor(layer: Any, role: str, prepared: Tensor, gradient: Tensor) -> Factor:
    left = _middle(gradient, gradient.shape[-1])
    return Direct(left.sum(dim=(1, 2))) if role == "bias" else Outer(left, prepared)


def _transposed_factor(layer: Any, role: str, prepared: Tensor, gradient: Tensor) -> Factor:
    right = _middle(gradient, gradient.shape[-1])
    return Direct(right.sum(dim=(1, 2))) if role == "bias" else Outer(prepared, right, input_is_left=True)


def _last_axis(layer: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    return _middle(x.to(dtype), x.shape[-1])


def _patches(layer: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The patches that each position of a convolution's output sees: (N, groups, positions, channels of a group * kernel)."""
    kernel, dilation, padding, stride = (tuple(values) for values in (layer.kernel_size, layer.dilation, layer.padding, layer.stride))
    if len(kernel) == 1:  # unfold takes images only
        x, kernel, dilation, padding, stride = x.unsqueeze(2), (1, *kernel), (1, *dilation), (0, *padding), (1, *stride)
    columns = functional.unfold(x.to(dtype), kernel, dilation, padding, stride)  # (N, C * kernel, positions)
    return columns.reshape(len(x), layer.groups, -1, columns.shape[2]).transpose(2, 3)


def _convolution_factor(layer: Any, role: str, prepared: Tensor, gradient: Tensor) -> Factor:
    positions = gradient.flatten(2)  # (N, C, positions)
    if role == "bias":
        return Direct(positions.sum(dim=2))
    by_group = positions.reshape(len(positions), layer.groups, -1, positions.shape[2])
    return Outer(by_group.transpose(2, 3), prepared)


def _layer_normalised(layer: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    return functional.layer_norm(x.to(dtype), layer.normalized_shape, eps=layer.eps)


def _rms_normalised(layer: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    return functional.rms_norm(x.to(dtype), layer.normalized_shape, eps=layer.eps)


def _trailing_norm_factor(layer: Any, role: str, prepared: Tensor, gradient: Tensor) -> Factor:
    shape = layer.normalized_shape
    share = gradient * prepared if role == "weight" else gradient
    return Direct(share.reshape(len(share), -1, *shape).sum(dim=1))


def _group_normalised(layer: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    return functional.group_norm(x.to(dtype), layer.num_groups, eps=layer.eps)


def _batch_normalised(layer: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    return functional.batch_norm(x.to(dtype), layer.running_mean.to(dtype), layer.running_var.to(dtype), eps=layer.eps)


def _channel_norm_factor(layer: Any, role: str, prepared: Tensor, gradient: Tensor) -> Factor:
    share = gradient * prepared if role == "weight" else gradient
    return Direct(share.reshape(*share.shape[:2], -1).sum(dim=2))


def _indices(layer: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.reshape(len(x), -1).long()


def _embedding_factor(layer: Any, role: str, prepared: Tensor, gradient: Tensor) -> Factor:
    values = gradient.reshape(*prepared.shape, -1)
    if layer.padding_idx is not None:
        values = values.masked_fill((prepared == layer.padding_idx)[..., None], 0.0)
    return Rows(prepared, values)


LINEAR = LayerRule(_last_axis, _linear_factor)
TRANSPOSED = LayerRule(_last_axis, _transposed_factor)
CONVOLUTION = LayerRule(_patches, _convolution_factor, any_axes=False)
EMBEDDING = LayerRule(_indices, _embedding_factor)
BATCH_NORM = LayerRule(_batch_normalised, _channel_norm_factor, any_axes=False)
RULES: dict[type[nn.Module], LayerRule] = {
    nn.Linear: LINEAR,
    nn.Conv1d: CONVOLUTION,
    nn.Conv2d: CONVOLUTION,
    nn.Embedding: EMBEDDING,
    nn.LayerNorm: LayerRule(_layer_normalised, _trailing_norm_factor),
    nn.RMSNorm: LayerRule(_rms_normalised, _trailing_norm_factor),
    nn.GroupNorm: LayerRule(_group_normalised, _channel_norm_factor, any_axes=False),
    nn.BatchNorm1d: BATCH_NORM,
    nn.BatchNorm2d: BATCH_NORM,
    nn.BatchNorm3d: BATCH_NORM,
}


def layer_rule(layer: nn.Module) -> LayerRule | None:
    """The rule of a layer, or None: for other kinds, for settings that the rule does not cover, and where `forward` was replaced."""
    kind = type(layer)
    if kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils":  # a linear layer that keeps its weight transposed
        return TRANSPOSED
    base = next((one for one in kind.__mro__ if one in RULES), None)
    if base is None or kind.forward is not base.forward or "forward" in vars(layer):
        return None
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return None
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse):
        return None
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None):
        return None  # it would mix the samples
    return RULES[base]


def join(factors: Sequence[Factor]) -> Factor | None:
    """The factor of a parameter that is used several times, where the uses are of one kind; None where they are not."""
    first = factors[0]
    if len(factors) == 1:
        return first
    if isinstance(first, Direct) and all(isinstance(one, Direct) for one in factors):
        return Direct(torch.stack([one.gradient for one in factors if isinstance(one, Direct)]).sum(dim=0))
    if isinstance(first, Outer):
        outers = [one for one in factors if isinstance(one, Outer) and one.input_is_left == first.input_is_left]
        if len(outers) == len(factors):
            return Outer(torch.cat([one.left for one in outers], 2), torch.cat([one.right for one in outers], 2), first.input_is_left)
    if isinstance(first, Rows) and all(isinstance(one, Rows) for one in factors):
        rows = [one for one in factors if isinstance(one, Rows)]
        return Rows(torch.cat([one.indices for one in rows], dim=1), torch.cat([one.values for one in rows], dim=1))
    return None


def dense_gradient(factor: Factor, shape: torch.Size, start: int, stop: int) -> Tensor:
    """The per-sample gradients (stop - start, *shape) of some samples, formed."""
    if isinstance(factor, Direct):
        return factor.gradient[start:stop].reshape(-1, *shape)
    if isinstance(factor, Outer):
        return torch.einsum("ngtp,ngtq->ngpq", factor.left[start:stop], factor.right[start:stop]).reshape(-1, *shape)
    indices, values = factor.indices[start:stop], factor.values[start:stop]
    formed = values.new_zeros(len(values), *shape)
    return formed.scatter_add_(1, indices[..., None].expand_as(values), values)


def sum_of_squares(factor: Factor, shape: torch.Size, budget: int) -> Tensor:
    """sum_n (gradient of sample n)^2, of the parameter's shape.

    Args:
        factor: of the per-sample gradients.
        shape: of the parameter.
        budget: numbers of per-sample gradients that may be held at once.
    """
    if isinstance(factor, Direct):
        return factor.gradient.square().sum(dim=0).reshape(shape)
    if isinstance(factor, Rows):
        return _squared_rows(factor, shape)
    left, right = factor.left, factor.right
    if left.shape[2] == 1:
        return torch.einsum("ngp,ngq->gpq", left[:, :, 0].square(), right[:, :, 0].square()).reshape(shape)
    total = left.new_zeros(left.shape[1], left.shape[3], right.shape[3])
    step = max(1, budget // total.numel())
    for some_left, some_right in zip(torch.split(left, step), torch.split(right, step), strict=True):
        total += torch.einsum("ngtp,ngtq->ngpq", some_left, some_right).square_().sum(dim=0)
    return total.reshape(shape)


def _squared_rows(factor: Rows, shape: torch.Size) -> Tensor:
    """Values of one sample and row are added up before they are squared; no (N, rows, D) is formed."""
    sample = torch.arange(len(factor.indices), device=factor.indices.device)[:, None]
    keys, place = torch.unique(sample * shape[0] + factor.indices, return_inverse=True)
    values = factor.values.flatten(0, 1)
    added = values.new_zeros(len(keys), values.shape[1]).index_add_(0, place.flatten(), values)
    return values.new_zeros(shape).index_add_(0, keys % shape[0], added.square_())
