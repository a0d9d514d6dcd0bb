"""Several layers' maps as one: each resized, brought to [0, 1], then added or multiplied by weight (Rebuffi et al., 2020, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional

from graftwork_grad_cam.maps import normalize_maps, resize_maps

__all__ = ["Accumulation", "Strategy", "combine_maps", "normalized_weights", "smooth_maps", "strategy_weights", "varies"]

Accumulation: TypeAlias = Literal["sum", "product"]
"""sum_l w_l S_l, or prod_l S_l^{w_l}."""

Strategy: TypeAlias = Literal["uniform", "linear", "accuracy", "pointing-accuracy", "activation"]
"""Where layers' weights come from: all equal; rising evenly from the first layer to the last; or a measurement of each layer."""

MEASURED = ("accuracy", "pointing-accuracy", "activation")
"""Strategies whose weights are measured on data."""

CONSTANT = 1e-5
"""A map is constant when its values differ by less than this share of their magnitude, which is what rounding leaves."""


def combine_maps(
    maps: Sequence[Tensor], size: tuple[int, int], weights: Sequence[float] | None = None, accumulation: Accumulation = "product"
) -> Tensor:
    """One map of several layers' maps.

    A map without spatial variation tells nothing and is skipped, as the authors skip the bias at a ResNet's last layer: its weight goes
    to the others.

    Args:
        maps: (B, T, h, w) of each layer.
        size: (H, W) of the result.
        weights: of the layers, normalised to sum 1; None weighs each 1, as the authors' grid does.
        accumulation: whether weighted maps are added, or powers of them multiplied.

    Returns:
        (B, T, H, W) in [0, 1] (a sum without weights in [0, L]); zeros where every layer's map is constant.

    Raises:
        ValueError: if the weights do not go with the maps, are negative, or all zero.
    """
    if accumulation not in get_args(Accumulation):
        raise ValueError(f'accumulation is sum or product; found "{accumulation}"')
    resized = [resize_maps(each, size) for each in maps]
    varied = torch.stack([varies(each) for each in resized])[..., None, None]  # (L, B, T, 1, 1)
    shares = varied.to(resized[0].dtype)
    if weights is not None:
        if len(weights) != len(maps):
            raise ValueError(f"{len(weights)} weights are given for the maps of {len(maps)} layers")
        given = shares.new_tensor(normalized_weights(weights)).reshape(-1, 1, 1, 1, 1)
        shares = given * shares
        shares = shares / shares.sum(dim=0).where(shares.sum(dim=0) > 0, 1)
    stacked = torch.stack([normalize_maps(each, "minmax") for each in resized])
    if accumulation == "sum":
        return (shares * stacked).sum(dim=0)
    return stacked.pow(shares).prod(dim=0).where(varied.any(dim=0), 0)


def varies(maps: Tensor) -> Tensor:
    """Whether a map's values differ by more than rounding leaves: (..., H, W) to (...) bool."""
    low, high = maps.amin(dim=(-2, -1)), maps.amax(dim=(-2, -1))
    return high - low > CONSTANT * torch.maximum(low.abs(), high.abs())


def normalized_weights(weights: Sequence[float]) -> list[float]:
    """Weights that sum to 1.

    Raises:
        ValueError: if one is negative or not finite, or all are zero.
    """
    if any(not math.isfinite(weight) or weight < 0 for weight in weights):
        raise ValueError(f"layer weights are finite and not negative; found {list(weights)}")
    if not sum(weights) > 0:
        raise ValueError(f"layer weights are all zero: {list(weights)}; at least one layer must count")
    return [weight / sum(weights) for weight in weights]


def strategy_weights(strategy: Strategy, layers: Sequence[str], table: Mapping[str, float] | None = None) -> list[float]:
    """The weights of layers, normalised to sum 1.

    Args:
        strategy: `uniform` and `linear` (1/L, 2/L ... 1 from the first layer to the last) need no table.
        layers: in the order in which they run.
        table: layer -> weight, for the strategies that are measured.

    Raises:
        ValueError: if there is no such strategy, a measured one has no table, or the table lacks a layer.
    """
    if strategy not in get_args(Strategy):
        raise ValueError(f'a weight strategy is one of {", ".join(get_args(Strategy))}; found "{strategy}"')
    if strategy == "uniform":
        return normalized_weights([1.0] * len(layers))
    if strategy == "linear":
        return normalized_weights([(index + 1) / len(layers) for index in range(len(layers))])
    if table is None:
        raise ValueError(
            f'the weights "{strategy}" are measured: give `table` (layer: weight), or take those of an earlier stage: '
            "measured: {from: STAGE/layer-weights}"
        )
    missing = [layer for layer in layers if layer not in table]
    if missing:
        raise ValueError(f"the table of weights lacks layer {', '.join(missing)}; it has {', '.join(table)}")
    return normalized_weights([table[layer] for layer in layers])


def smooth_maps(maps: Tensor, sigma: float) -> Tensor:
    """A Gaussian filter over positions, the border repeated outside.

    Args:
        maps: (B, T, H, W).
        sigma: standard deviation in pixels; 0 changes nothing.

    Raises:
        ValueError: if it is negative.
    """
    if sigma < 0:
        raise ValueError(f"sigma must not be negative; found {sigma}")
    if sigma == 0:
        return maps
    reach = math.ceil(4 * sigma)
    steps = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.softmax(-(steps**2) / (2 * sigma**2), dim=0)
    rows = functional.pad(maps.reshape(-1, 1, *maps.shape[-2:]), (reach, reach, reach, reach), mode="replicate")
    return functional.conv2d(functional.conv2d(rows, kernel.reshape(1, 1, -1, 1)), kernel.reshape(1, 1, 1, -1)).reshape(maps.shape)
