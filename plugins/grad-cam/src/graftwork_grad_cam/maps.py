"""Saliency maps as tensors (B, T, H, W), T maps a sample: resized, normalised, joined over layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from graftwork.kinds.dataset import Batch
from graftwork_grad_cam.targets import Target

__all__ = ["LayerReduce", "Normalization", "SaliencyMaps", "join_layers", "normalize_maps", "principal_maps", "resize_maps", "weighted_sum"]

Normalization: TypeAlias = Literal["none", "max", "minmax"]
"""How a map's values are scaled: not at all, by its maximum, or from 0 at its minimum to 1 at its maximum."""

LayerReduce: TypeAlias = Literal["mean", "max"]
"""How the maps of several layers are joined."""


@dataclass(frozen=True)
class SaliencyMaps:
    """Maps of a batch, on the model's device.

    Args:
        maps: (B, T, H, W) at the size of the image, raw unless a normalisation was asked for.
        raw: layer (or "image") -> the map before it was resized: (B, T, h, w), or (B, T, C, H, W) for signed maps of the input.
        scores: (B, T) of the target.
        output: the model's.
        batch: with the target's choices bound to it.
        target: what was asked.
    """

    maps: Tensor
    raw: Mapping[str, Tensor]
    scores: Tensor
    output: Any
    batch: Batch
    target: Target


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, T, h, w) to (B, T, H, W): bilinear, corners not aligned, as OpenCV does."""
    return maps if tuple(maps.shape[-2:]) == size else interpolate(maps, size=size, mode="bilinear", align_corners=False)


def normalize_maps(maps: Tensor, how: Normalization = "max") -> Tensor:
    """Scale each map (..., H, W) by itself; one without a maximum above 0 (or, for minmax, a constant one) becomes 0."""
    if how == "none":
        return maps
    if how == "minmax":
        maps = maps - maps.amin(dim=(-2, -1), keepdim=True)
    highest = maps.amax(dim=(-2, -1), keepdim=True)
    return torch.where(highest > 0, maps / highest.where(highest > 0, 1), 0)


def join_layers(maps: Sequence[Tensor], size: tuple[int, int], how: LayerReduce = "mean") -> Tensor:
    """The maps of several layers as one, at the size of the image.

    One layer's map is only resized and keeps its values. Those of several have scales of their own, so that each is first brought
    to [0, 1], as pytorch-grad-cam does.

    Args:
        maps: (B, T, h, w) of each layer.
        size: (H, W).
        how: mean or maximum over the layers.

    Returns:
        (B, T, H, W).
    """
    if len(maps) == 1:
        return resize_maps(maps[0], size)
    stacked = torch.stack([resize_maps(normalize_maps(each, "minmax"), size) for each in maps])
    return stacked.mean(dim=0) if how == "mean" else stacked.amax(dim=0)


def weighted_sum(weights: Tensor, activations: Tensor) -> Tensor:
    """Channels added up by weight, in the precision that they come in, whatever autocast says.

    Args:
        weights: (B, T, K).
        activations: (B, K, h, w).

    Returns:
        (B, T, h, w).
    """
    with torch.autocast(activations.device.type, enabled=False):
        return torch.einsum("btk,bkhw->bthw", weights, activations)


def principal_maps(contributions: Tensor) -> Tensor:
    """Each position's contributions, less their mean over positions, on their first principal direction ("eigen smoothing").

    A direction has no sign of its own: the one is taken that agrees with the plain sum over channels.

    Args:
        contributions: (B, T, K, h, w), such as weights times activations.

    Returns:
        (B, T, h, w), not rectified.
    """
    rows = contributions.flatten(-2).transpose(-2, -1)  # (B, T, h*w, K)
    centred = rows - rows.mean(dim=-2, keepdim=True)
    with torch.autocast(rows.device.type, enabled=False):
        direction = torch.linalg.svd(centred, full_matrices=False).Vh[..., :1, :]
        projected = (centred @ direction.transpose(-2, -1)).squeeze(-1)
    agreement = (projected * centred.sum(dim=-1)).sum(dim=-1, keepdim=True)
    return torch.where(agreement < 0, -projected, projected).unflatten(-1, contributions.shape[-2:])
