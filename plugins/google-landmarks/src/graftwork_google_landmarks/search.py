"""Exact nearest neighbours in chunks: matrix products and a running top-k, with ties broken by position."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["Metric", "Neighbours", "Precision", "exact_topk"]

Metric = Literal["cosine", "dot", "l2"]
Precision = Literal["float32", "bfloat16", "float16"]

FIRST = 1024
"""Gallery rows that are sorted outright; later ones are only held against the k-th best so far."""

ENTRIES = 2**23
"""Similarities held at once on a CPU: 32 MB."""


class Neighbours(NamedTuple):
    """The nearest of a gallery.

    Args:
        scores: (Q, k) float32, descending: cosine, dot product, or minus the squared L2 distance.
        indices: (Q, k) long, rows of the gallery; among equal scores ascending.
    """

    scores: Tensor
    indices: Tensor


def exact_topk(
    queries: Tensor,
    gallery: Tensor,
    k: int,
    metric: Metric = "cosine",
    precision: Precision = "float32",
    query_chunk: int | None = None,
    gallery_chunk: int | None = None,
) -> Neighbours:
    """The k nearest rows of the gallery to each query, by exhaustive search.

    A block of queries meets the gallery chunk by chunk. The first rows are sorted; of each later chunk only what beats a query's
    k-th best so far is kept, which is little, and merged by a stable sort. Since a later row must be strictly better, equal scores
    always go to the earlier row. Memory is O(query_chunk * gallery_chunk + Q k), whatever the gallery's size.

    Args:
        queries: (Q, D), on any device.
        gallery: (N, D), on any device; a chunk at a time is brought to the queries'.
        k: neighbours; of a smaller gallery all.
        metric: "cosine" brings both sides to unit length first; "l2" ranks by squared L2 distance.
        precision: of the matrix products' inputs; their sums are float32 on GPUs, and so is everything that is compared.
        query_chunk: queries at once; by default as suits the device.
        gallery_chunk: gallery rows at once; by default as suits the device.

    Returns:
        Scores and indices, (Q, min(k, N)) each, on the queries' device.

    Raises:
        ValueError: if k is not positive, the widths differ or the gallery is empty.
    """
    if k < 1:
        raise ValueError(f"k is at least 1; found {k}")
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1] or not len(gallery):
        raise ValueError(f"queries (Q, D) and a gallery (N, D) that is not empty are wanted; found {_shape(queries)} and {_shape(gallery)}")
    on_cpu = queries.device.type == "cpu"
    rows = gallery_chunk or (8192 if on_cpu else 65536)
    block = query_chunk or max(1, (ENTRIES if on_cpu else 2**28) // rows)
    found = [_block(part, gallery, min(k, len(gallery)), metric, getattr(torch, precision), rows) for part in torch.split(queries, block)]
    if not found:
        shape = (0, min(k, len(gallery)))
        return Neighbours(queries.new_zeros(shape, dtype=torch.float32), torch.zeros(shape, dtype=torch.long, device=queries.device))
    return Neighbours(torch.cat([one.scores for one in found]), torch.cat([one.indices for one in found]))


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _block(queries: Tensor, gallery: Tensor, k: int, metric: Metric, dtype: torch.dtype, rows: int) -> Neighbours:
    """The neighbours of one block of queries."""
    wide = queries.float()
    left = (normalize(wide, dim=1) if metric == "cosine" else wide).to(dtype)
    best = Neighbours(wide.new_zeros(len(wide), 0), torch.zeros(len(wide), 0, dtype=torch.long, device=wide.device))
    start = 0
    while start < len(gallery):
        size = max(k, FIRST) if start == 0 else min(rows, max(FIRST, start))  # growing, so that few are better than the k-th best
        part = gallery[start : start + size].to(wide.device, torch.float32)
        scores = (left @ (normalize(part, dim=1) if metric == "cosine" else part).to(dtype).T).float()
        if metric == "l2":  # 2 q.g - |g|^2: the query's own norm is taken off at the end
            scores.mul_(2).sub_(part.square().sum(dim=1))
        best = _sorted(scores, start, k) if start == 0 else _merged(best, scores, start, k)
        start += len(part)
    return Neighbours(best.scores - wide.square().sum(dim=1, keepdim=True), best.indices) if metric == "l2" else best


def _sorted(scores: Tensor, start: int, k: int) -> Neighbours:
    top, at = scores.sort(dim=1, descending=True, stable=True)
    return Neighbours(top[:, :k], at[:, :k] + start)


def _merged(best: Neighbours, scores: Tensor, start: int, k: int) -> Neighbours:
    """The best of what is held, all of which comes earlier, and of a chunk."""
    query, column = (scores > best.scores[:, -1:]).nonzero(as_tuple=True)
    if not len(query):
        return best
    counts = torch.bincount(query, minlength=len(scores))
    slot = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
    width = int(counts.max())
    values = scores.new_full((len(scores), width), -torch.inf)
    values[query, slot] = scores[query, column]
    indices = torch.zeros(len(scores), width, dtype=torch.long, device=query.device)
    indices[query, slot] = column + start
    top, at = torch.cat([best.scores, values], dim=1).sort(dim=1, descending=True, stable=True)
    return Neighbours(top[:, :k], torch.cat([best.indices, indices], dim=1).gather(1, at[:, :k]))
