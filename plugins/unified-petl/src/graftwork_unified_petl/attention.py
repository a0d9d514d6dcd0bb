"""The mathematics of prefixes: one attention over prefix and keys is a gated sum of two (He et al., 2022, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "concatenated_attention",
    "gate_from_shares",
    "gated_attention",
    "multi_head_adapter",
    "origin_values",
    "prefix_attention",
    "prefix_gate",
]


def prefix_gate(prefix_logits: Tensor, key_logits: Tensor) -> Tensor:
    """lambda: the share of the softmax that falls on the prefix (He et al., 2022, eq. 5 and 6).

    Args:
        prefix_logits: (..., n, l), q P_k^T / sqrt(d_h).
        key_logits: (..., n, m), q K^T / sqrt(d_h), with the mask added.

    Returns:
        (..., n, 1) in [0, 1], computed at least in float32.

    Raises:
        ValueError: if the two do not belong to the same queries.
    """
    if prefix_logits.shape[:-1] != key_logits.shape[:-1]:
        raise ValueError(f"prefix_logits {tuple(prefix_logits.shape)} and key_logits {tuple(key_logits.shape)} differ in their queries")
    precise = torch.promote_types(key_logits.dtype, torch.float32)
    difference = prefix_logits.to(precise).logsumexp(-1, keepdim=True) - key_logits.to(precise).logsumexp(-1, keepdim=True)
    return difference.sigmoid()


def _grouped(prefix: Tensor, heads: int) -> Tensor:
    """(h_kv, l, d) of grouped queries to (h, l, d)."""
    return prefix if len(prefix) == heads else prefix.repeat_interleave(heads // len(prefix), dim=0)


def prefix_logits(query: Tensor, prefix_key: Tensor, scaling: float = 1.0) -> Tensor:
    """(B, h, n, l) of queries (B, h, n, d_h) and prefix keys (h_kv, l, d_h)."""
    return torch.matmul(query, _grouped(prefix_key, query.shape[1]).mT) * scaling


def prefix_attention(query: Tensor, prefix_key: Tensor, prefix_value: Tensor, scaling: float, dropout: float = 0.0) -> Tensor:
    """softmax(q P_k^T s) P_v: the change that prefix tuning makes, before it is composed (He et al., 2022, eq. 5).

    Args:
        query: (B, h, n, d_h).
        prefix_key: (h_kv, l, d_h).
        prefix_value: (h_kv, l, d_h).
        scaling: of the logits, 1 / sqrt(d_h) as a rule.
        dropout: on the weights; 0 outside of training.

    Returns:
        (B, h, n, d_h).
    """
    weights = functional.dropout(prefix_logits(query, prefix_key, scaling).softmax(-1), dropout)
    return torch.matmul(weights, _grouped(prefix_value, query.shape[1]))


def multi_head_adapter(query: Tensor, prefix_key: Tensor, prefix_value: Tensor, dropout: float = 0.0) -> Tensor:
    """ReLU(q P_k^T) P_v: an adapter in each head, its logits not divided by sqrt(d_h) (He et al., 2022, table 1, multi-head PA).

    Args:
        query: (B, h, n, d_h).
        prefix_key: (h_kv, r, d_h).
        prefix_value: (h_kv, r, d_h).
        dropout: on the hidden units; 0 outside of training.

    Returns:
        (B, h, n, d_h).
    """
    hidden = functional.dropout(prefix_logits(query, prefix_key).relu(), dropout)
    return torch.matmul(hidden, _grouped(prefix_value, query.shape[1]))


def concatenated_attention(
    query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor, prefix_value: Tensor, mask: Tensor | None = None, scaling: float = 1.0
) -> Tensor:
    """Prefix tuning as Li and Liang (2021) have it: softmax over [P_k; K], values [P_v; V]. The prefix is never masked.

    Args:
        query: (B, h, n, d_h).
        key: (B, h, m, d_h).
        value: (B, h, m, d_h).
        prefix_key: (h_kv, l, d_h).
        prefix_value: (h_kv, l, d_h).
        mask: added to the keys' logits, broadcastable to (B, h, n, m).
        scaling: of the logits.

    Returns:
        (B, h, n, d_h).
    """
    logits = torch.matmul(query, key.mT) * scaling
    logits = logits if mask is None else logits + mask
    weights = torch.cat([prefix_logits(query, prefix_key, scaling), logits], dim=-1).softmax(-1)
    length = prefix_key.shape[1]
    return torch.matmul(weights[..., :length], _grouped(prefix_value, query.shape[1])) + torch.matmul(weights[..., length:], value)


def gated_attention(
    query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor, prefix_value: Tensor, mask: Tensor | None = None, scaling: float = 1.0
) -> Tensor:
    """The same as two attentions: (1 - lambda) Attn(q, K, V) + lambda Attn(q, P_k, P_v) (He et al., 2022, eq. 5).

    Takes and gives what `concatenated_attention` does.
    """
    logits = torch.matmul(query, key.mT) * scaling
    logits = logits if mask is None else logits + mask
    gate = prefix_gate(prefix_logits(query, prefix_key, scaling), logits).to(query.dtype)
    attended = torch.matmul(logits.softmax(-1), value)
    return (1 - gate) * attended + gate * prefix_attention(query, prefix_key, prefix_value, scaling)


def origin_values(length: int, count: int, width: int, like: Tensor) -> Tensor:
    """Values that say where they come from: (1, 0, ...) for each of a prefix's `length` positions, (0, 1, ...) for each of `count` keys.

    Attention over them gives lambda and 1 - lambda, from any kernel, flash attention too, although none shows its logits.

    Args:
        length: l.
        count: m.
        width: of the values, at least 2.
        like: whose type and device the values have.

    Returns:
        (l + m, width).
    """
    values = like.new_zeros(length + count, max(width, 2))
    values[:length, 0] = 1
    values[length:, 1] = 1
    return values


def gate_from_shares(shares: Tensor, query: Tensor, other: Tensor | None, prefix_key: Tensor, scaling: float) -> Tensor:
    """lambda from what attention over `origin_values` gave; nothing of the size n x m is made that the kernel did not make.

    Args:
        shares: (B, h, n, width): lambda and 1 - lambda of `query`, in the first two.
        query: (B, h, n, d_h), as the frozen attention has it.
        other: another query (B, h, n, d_h) that reads the prefix, such as one after a new LayerNorm, or None.
        prefix_key: (h_kv, l, d_h).
        scaling: of the logits.

    Returns:
        (B, h, n, 1), at least in float32.
    """
    precise = torch.promote_types(shares.dtype, torch.float32)
    prefix, rest = shares[..., :1].to(precise), shares[..., 1:2].to(precise)
    if other is None:
        return prefix / (prefix + rest)
    least = torch.finfo(precise).tiny
    moved = prefix_logits(other, prefix_key, scaling).to(precise).logsumexp(-1, keepdim=True)
    moved = moved - prefix_logits(query, prefix_key, scaling).to(precise).logsumexp(-1, keepdim=True)
    return (prefix.clamp(min=least).log() - rest.clamp(min=least).log() + moved).sigmoid()
