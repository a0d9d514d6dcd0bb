"""InfoNCE with weighted negatives, in blocks of rows (Yu et al., 2023 and 2024)."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from graftwork import DataError

__all__ = ["PairWeights", "WeightedInfoNCE", "weighted_info_nce"]

BLOCK = 2**22
"""Numbers that a block of rows makes, at most."""


class PairWeights(Protocol):
    """The weights of pairs of an anchor and a key, made where they are used."""

    @property
    def width(self) -> int:
        """Numbers that a pair takes to make."""
        ...

    def log_weights(self, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        """log w (b, S) of the anchors `rows` (b,) with the keys `columns` (S,), or with all of them."""
        ...

    def log_total(self, logs: Tensor, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        """(b,) log of the sum of each row of `logs`, which `log_weights` gave for the same rows and columns."""
        ...


class WeightedInfoNCE(NamedTuple):
    """The loss, and the mean weight of the pairs.

    Args:
        loss: 0-d; may be negative, since the positive need not be among what it is divided by.
        mean_weight: 0-d, without gradient; 1 where all pairs weigh the same.
    """

    loss: Tensor
    mean_weight: Tensor


def weighted_info_nce(
    anchors: Tensor,
    keys: Tensor,
    weights: PairWeights | None = None,
    temperature: float = 0.4,
    *,
    columns: Tensor | None = None,
    row_mean: bool = False,
    block_rows: int | None = None,
    check: bool | None = None,
) -> WeightedInfoNCE:
    """-mean_i log[ exp(a_i . k_i / tau) / sum_j w_ij exp(a_i . k_j / tau) ], in O(block x N) memory.

    Row i of its gradient with respect to k_j, j other than i, is w_ij e_ij / (sum_k w_ik e_ik) a_i / (tau N) with e = exp(a . k / tau):
    a pair's share of the push is its weight's share. Where there are several blocks each is made anew in the backward pass.

    Args:
        anchors: (N, D), rows of unit length.
        keys: (N, D), rows of unit length; the i-th is the positive of the i-th anchor.
        weights: of pairs; None weighs every pair 1, the positive too, which is the plain InfoNCE.
        temperature: tau > 0.
        columns: (S,) long, keys to sum over instead of all, drawn evenly; their sum is scaled by N / S.
        row_mean: divide each row of weights by its mean.
        block_rows: rows at once; by default as many as make about 4 million numbers.
        check: raise where an anchor's weights are all zero; by default on the CPU, as looking stalls an accelerator.

    Raises:
        ValueError: if shapes differ, or a number is out of range.
        DataError: if every weight of an anchor is 0, so that its loss is infinite.
    """
    _check(anchors, keys, temperature, block_rows)
    anchors, keys = (z.to(torch.promote_types(z.dtype, torch.float32)) for z in (anchors, keys))
    chosen = keys if columns is None else keys[columns]
    total, picked = len(keys), len(chosen)
    rows = block_rows or max(1, BLOCK // (picked * (1 if weights is None else weights.width)))

    def block(part: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(part.device.type, enabled=False):  # sums of exponentials want float32
            similarity = (part / temperature) @ chosen.T
            if weights is None:
                return similarity.logsumexp(dim=1), similarity.new_full((len(part),), math.log(picked))
            logs = weights.log_weights(index, columns)
            return similarity.add_(logs).logsumexp(dim=1), weights.log_total(logs, index, columns)

    parts, indices = torch.split(anchors, rows), torch.split(torch.arange(total, device=keys.device), rows)
    again = len(parts) > 1 and torch.is_grad_enabled()
    made = [
        checkpoint(block, part, index, use_reentrant=False, preserve_rng_state=False) if again else block(part, index)
        for part, index in zip(parts, indices, strict=True)
    ]
    log_sum, log_total = (torch.cat(column) for column in zip(*made, strict=True))
    if check if check is not None else keys.device.type == "cpu":
        _check_weights(log_total)
    log_mean = log_total - math.log(picked)
    log_sum = log_sum + math.log(total / picked) - (log_mean if row_mean else 0.0)
    positive = torch.einsum("nd,nd->n", anchors, keys) / temperature
    return WeightedInfoNCE((log_sum - positive).mean(), log_mean.detach().exp().mean())


def _check(anchors: Tensor, keys: Tensor, temperature: float, block_rows: int | None) -> None:
    if anchors.ndim != 2 or anchors.shape != keys.shape:
        raise ValueError(f"anchors and keys are both (N, D); found {tuple(anchors.shape)} and {tuple(keys.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive; found {temperature}")
    if block_rows is not None and block_rows < 1:
        raise ValueError(f"block_rows must be at least 1; found {block_rows}")


def _check_weights(log_total: Tensor) -> None:
    empty = int(log_total.isneginf().sum())
    if empty:
        raise DataError(
            f"every weight of {empty} of {len(log_total)} anchors is 0, so their loss is infinite: all nodes share one cluster in every "
            "clustering; ask for more clusters"
        )
