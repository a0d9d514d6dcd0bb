"""Conditional entropies of labels: of source given target classes through a coupling, and of one model's predictions given another's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from graftwork_osborn.transport import precise

__all__ = ["Given", "conditional_entropy", "joint_from_coupling", "joint_from_predictions", "pairwise_conditional_entropy"]

Given: TypeAlias = Literal["target", "source"]
BUDGET = 2**24
"""Codes of pairs of predictions that are sorted at once."""


def conditional_entropy(joint: Tensor, given: Given = "target") -> Tensor:
    """H(Z | Y) = - sum P(z, y) log(P(z, y) / P(y)), in nats; OSBORN's W_T.

    Args:
        joint: (..., C_source, C_target), summing to 1.
        given: "target" conditions on the last axis, as OSBORN writes; "source" on the one before, as OTCE's code does.

    Returns:
        (...), in [0, log C] where C counts the classes that are not conditioned on; float64 where the device has it.

    Raises:
        ValueError: if `joint` has fewer than two axes or `given` is neither.
    """
    if joint.dim() < 2:
        raise ValueError(f"joint is (..., C_source, C_target); found {tuple(joint.shape)}")
    if given not in ("target", "source"):
        raise ValueError(f'given is "target" or "source"; found {given!r}')
    joint = precise(joint)
    known = joint.sum(dim=-2 if given == "target" else -1)
    found: Tensor = torch.special.entr(joint).sum(dim=(-2, -1)) - torch.special.entr(known).sum(dim=-1)
    return found.clamp(min=0)


def joint_from_coupling(
    coupling: Tensor, source_labels: Tensor, target_labels: Tensor, source_classes: int | None = None, target_classes: int | None = None
) -> Tensor:
    """P(z, y): what the coupling carries from source samples of class z to target samples of class y.

    Args:
        coupling: (m, n), summing to 1.
        source_labels: (m,) long, from 0.
        target_labels: (n,) long, from 0.
        source_classes: rows of the result; by default as many as occur.
        target_classes: its columns; by default as many as occur.

    Returns:
        (C_source, C_target).

    Raises:
        ValueError: if labels and coupling differ in size.
    """
    if coupling.shape != (len(source_labels), len(target_labels)):
        found = f"{tuple(coupling.shape)}, {len(source_labels)} and {len(target_labels)}"
        raise ValueError(f"the coupling is (m, n) for m source and n target labels; found {found}")
    rows = coupling.new_zeros(source_classes or int(source_labels.max()) + 1, coupling.shape[1]).index_add_(0, source_labels, coupling)
    joint = rows.new_zeros(len(rows), target_classes or int(target_labels.max()) + 1)
    return joint.index_add_(1, target_labels, rows)


def joint_from_predictions(
    predictions: Tensor, labels: Tensor, source_classes: int | None = None, target_classes: int | None = None
) -> Tensor:
    """P(z, y): the share of target samples of class y that the source model takes for its class z.

    Args:
        predictions: (n,) long, the source model's likeliest class of each target sample.
        labels: (n,) long.
        source_classes: rows of the result; by default as many as occur.
        target_classes: its columns; by default as many as occur.

    Returns:
        (C_source, C_target), float64 where the device has it.

    Raises:
        ValueError: if the two differ in length.
    """
    if predictions.shape != labels.shape:
        raise ValueError(f"predictions and labels are one a sample; found {tuple(predictions.shape)} and {tuple(labels.shape)}")
    shape = source_classes or int(predictions.max()) + 1, target_classes or int(labels.max()) + 1
    joint = precise(torch.zeros(shape, device=labels.device))
    return joint.index_put_((predictions, labels), joint.new_full((len(labels),), 1 / len(labels)), accumulate=True)


def pairwise_conditional_entropy(predictions: Tensor | Sequence[Tensor], budget: int = BUDGET) -> Tensor:
    """H(a | b) of the predictions of every two models, in nats; the entries of OSBORN's W_C.

    Each model predicts among its own classes, however many. An entropy is log n less the mean logarithm of how many samples share a
    sample's code, so no table of classes is formed: memory is O(budget), whatever the numbers of classes.

    Args:
        predictions: (M, n) long, from 0: the likeliest class of each of n samples.
        budget: codes that are sorted at once.

    Returns:
        (M, M) with H(a | b) in row a and column b; its diagonal is 0. float64 where the device has it.

    Raises:
        ValueError: if the predictions are not (M, n) with n >= 1, or negative.
    """
    codes = predictions if isinstance(predictions, Tensor) else torch.stack(tuple(predictions))
    if codes.dim() != 2 or not codes.shape[1]:
        raise ValueError(f"predictions are (M, n) with n at least 1; found {tuple(codes.shape)}")
    if codes.is_floating_point() or (codes < 0).any():
        raise ValueError("predictions are class numbers from 0")
    codes = codes.long()
    first, second = torch.triu_indices(len(codes), len(codes), 1, device=codes.device)
    base, joint = codes.amax(dim=1) + 1, codes.new_zeros(len(codes), len(codes), dtype=precise(codes[:0]).dtype)
    parts = [torch.split(one, max(1, budget // codes.shape[1])) for one in (first, second)]
    for a, b in zip(*parts, strict=True):
        joint[a, b] = joint[b, a] = _entropy(codes[a] * base[b, None] + codes[b])
    return (joint - _entropy(codes)).clamp_(min=0).fill_diagonal_(0)


def _entropy(codes: Tensor) -> Tensor:
    """Entropy in nats of each row of codes (R, n), from the lengths of the runs of its sorted codes."""
    rows, count = codes.shape
    ordered = codes.sort(dim=1).values
    starts = torch.nn.functional.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0), value=True).flatten().nonzero()[:, 0]
    lengths = precise(torch.diff(starts, append=starts.new_tensor([rows * count])))
    sums = lengths.new_zeros(rows).index_add_(0, starts // count, torch.special.xlogy(lengths, lengths))
    return math.log(count) - sums / count
