"""Fisher-weighted means of tensors, one at a time, so that merging never holds whole models.

theta*_j = sum_i lambda_i F_i,j theta_i,j / sum_i lambda_i F_i,j maximises sum_i lambda_i log N(theta; theta_i, F_i^-1) (Matena and
Raffel, 2022, section 3, https://arxiv.org/abs/2111.09832).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from graftwork import ArtifactError

__all__ = ["check_coefficients", "fisher_norms", "fisher_weighted_mean", "merged_tensors", "normalized"]


def fisher_weighted_mean(
    values: Iterable[Tensor],
    coefficients: Sequence[float],
    fishers: Iterable[Tensor] | None = None,
    floor: float = 1e-6,
    favor_target: bool = True,
) -> Tensor:
    """The weighted mean of M tensors, entry by entry.

    The mean is moved towards one value after another by its share of the weight so far: it never leaves the range of the values, a
    value that has all the weight comes out as it is, and only a handful of tensors is held, whatever M.

    Args:
        values: M tensors of one shape, the target's first; read once, in order.
        coefficients: M numbers >= 0, already divided by the Fishers' norms where that is wanted.
        fishers: M non-negative tensors of that shape, read alongside; None weighs all entries alike.
        floor: the least that a Fisher's entry counts.
        favor_target: floor the target's Fisher alone, so that its value wins where no Fisher says anything; otherwise floor all, and
            there the result is the mean by coefficients.

    Returns:
        In the type of the first value, on its device; computed in float32, or float64 where the first value is.

    Raises:
        ValueError: if there are not M values, or Fishers.
    """
    targets = iter(values)
    first = next(targets)
    dtype = torch.promote_types(first.dtype, torch.float32)
    mean, weight = (torch.zeros_like(first, dtype=dtype) for _ in range(2))
    fallback, total = first.to(dtype, copy=True), coefficients[0]  # stands where nothing has weight
    precisions = iter(fishers) if fishers is not None else None
    for index, coefficient in enumerate(coefficients):
        value = first if index == 0 else next(targets, None)
        fisher = next(precisions, None) if precisions is not None else None
        if value is None or (precisions is not None and fisher is None):
            raise ValueError(f"there are {len(coefficients)} coefficients, but fewer values or Fishers")
        value = value.to(mean.device, dtype)
        if fisher is None:
            share = torch.full_like(weight, coefficient)
        else:
            share = fisher.to(mean.device, dtype, copy=True)
            share = (share.clamp_(min=floor) if index == 0 or not favor_target else share).mul_(coefficient)
        weight += share
        mean.lerp_(value, share.div_(weight).nan_to_num_(nan=0.0))  # 0 / 0: nothing has weight yet
        if index and coefficient and not favor_target:
            total += coefficient
            fallback.lerp_(value, coefficient / total)
    return torch.where(weight > 0, mean, fallback).to(first.dtype)


def fisher_norms(fishers: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> list[float]:
    """The L2 norm of each model's Fisher over all merged entries, in float64, read key by key.

    Args:
        fishers: name -> tensor, of each model.
        names: what is merged.

    Raises:
        ArtifactError: if a Fisher lacks a name, or holds a number that is negative or not finite.
    """
    found = []
    for index, fisher in enumerate(fishers):
        squares = 0.0
        for name in names:
            if name not in fisher:
                raise ArtifactError(f'the Fisher of model {index} has no "{name}", which is to be merged; it has {len(fisher)} parameters')
            tensor = fisher[name].double()
            norm = float(tensor.square().sum())
            if not math.isfinite(norm) or (tensor.numel() and float(tensor.min()) < 0):
                raise ArtifactError(f'the Fisher of model {index} has numbers that are negative or not finite in "{name}": compute it anew')
            squares += norm
        found.append(math.sqrt(squares))
    return found


def check_coefficients(coefficients: Sequence[float], models: int) -> list[float]:
    """The coefficients as they are.

    Raises:
        ValueError: unless there is one for each model, none is negative or not finite, and one is above 0.
    """
    given = [float(one) for one in coefficients]
    if len(given) != models:
        raise ValueError(f"there are {models} models but {len(given)} coefficients: {given}")
    if not all(math.isfinite(one) and one >= 0 for one in given) or not any(given):
        raise ValueError(f"coefficients are not negative and not all 0; found {given}")
    return given


def normalized(coefficients: Sequence[float], norms: Sequence[float]) -> list[float]:
    """lambda_i / ||F_i||, so that a model with large gradients does not dominate; a Fisher that is 0 throughout stays as it is."""
    return [one / norm if norm > 0 else one for one, norm in zip(coefficients, norms, strict=True)]


def merged_tensors(
    models: Sequence[Mapping[str, Tensor]],
    names: Iterable[str],
    coefficients: Sequence[float],
    fishers: Sequence[Mapping[str, Tensor]] | None = None,
    floor: float = 1e-6,
    favor_target: bool = True,
) -> Iterator[tuple[str, Tensor]]:
    """Merge key by key: of each model and Fisher one tensor is read at a time, and dropped.

    Args:
        models: name -> tensor, of each model, the target first; may be read from disk on demand.
        names: what is merged.
        coefficients: as `fisher_weighted_mean` takes them.
        fishers: name -> tensor, of each model; None for a plain weighted mean.
        floor: as `fisher_weighted_mean` takes it.
        favor_target: as `fisher_weighted_mean` takes it.

    Yields:
        Name and merged tensor, in the order of `names`.
    """
    for name in names:
        values = (model[name].detach() for model in models)
        precisions = (fisher[name] for fisher in fishers) if fishers is not None else None
        yield name, fisher_weighted_mean(values, coefficients, precisions, floor, favor_target)
