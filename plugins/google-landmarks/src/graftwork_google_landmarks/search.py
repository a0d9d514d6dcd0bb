"""Exact nearest neighbours in chunks: matrix products and a running top-k, with ties broken by position."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["Metric", "Neighbours", "Precision", "exact_topk"]

Metric = Literal["cosine", "dot", "l2"]
Precision = Literal["float32", "bfloat16", "float16"]

GROUP = 16
"""Gallery rows of which only the best is compared with the k-th best so far, and the others where it is better."""

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

    A block of queries meets the gallery chunk by chunk. Of a chunk's groups of rows the maxima are taken; only groups whose maximum
    beats a query's k-th best so far are looked into, and what beats it there, which is little, is merged. Scores and positions are one
    integer while they are ranked, so that equal scores always go to the earlier row. Memory is O(query_chunk * gallery_chunk + Q k),
    whatever the gallery's size.

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
        ValueError: if k is not positive, the widths differ, the gallery is empty, or too few similarities are numbers.
    """
    if k < 1:
        raise ValueError(f"k is at least 1; found {k}")
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1] or not len(gallery):
        raise ValueError(f"queries (Q, D) and a gallery (N, D) that is not empty are wanted; found {_shape(queries)} and {_shape(gallery)}")
    on_cpu = queries.device.type == "cpu"
    rows = gallery_chunk or (8192 if on_cpu else 65536)
    block = query_chunk or max(1, (ENTRIES if on_cpu else 2**28) // rows)
    k = min(k, len(gallery))
    if not len(queries):
        return Neighbours(queries.new_zeros(0, k, dtype=torch.float32), torch.zeros(0, k, dtype=torch.long, device=queries.device))
    found = [_block(part, gallery, k, metric, getattr(torch, precision), rows) for part in torch.split(queries, block)]
    return Neighbours(torch.cat([one.scores for one in found]), torch.cat([one.indices for one in found]))


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _block(queries: Tensor, gallery: Tensor, k: int, metric: Metric, dtype: torch.dtype, rows: int) -> Neighbours:
    """The neighbours of one block of queries."""
    wide = queries.float()
    left = (normalize(wide, dim=1) if metric == "cosine" else wide).to(dtype)
    best = torch.empty(len(wide), 0, dtype=torch.long, device=wide.device)
    for start in range(0, len(gallery), rows):
        part = gallery[start : start + rows].to(wide.device, torch.float32)
        scores = ((normalize(part, dim=1) if metric == "cosine" else part).to(dtype) @ left.T).float()  # (rows, queries)
        if metric == "l2":  # 2 q.g - |g|^2: the query's own norm is taken off at the end
            scores.mul_(2).sub_(part.square().sum(dim=1, keepdim=True))
        best = _merged(best, scores, start, k)
    found = _unpacked(best)
    if best.shape[1] < k or bool((found.indices >= len(gallery)).any()):
        raise ValueError("queries and gallery give similarities that are not numbers (NaN)")
    return Neighbours(found.scores - wide.square().sum(dim=1, keepdim=True), found.indices) if metric == "l2" else found


def _merged(best: Tensor, scores: Tensor, start: int, k: int) -> Tensor:
    """The k best of what is held (Q, h), packed, all of which comes earlier, and of a chunk (rows, Q).

    Where fewer than k are held, the k-th best of the groups' maxima stands for the k-th best score: k rows at least are as good.
    """
    rows, queries = scores.shape
    group = max(1, min(GROUP, rows // (2 * k)))
    whole = rows // group * group
    maxima = scores[:whole].view(-1, group, queries).amax(dim=1)
    if best.shape[1] == k:
        floor, better = _unpacked(best[:, -1]).scores, torch.gt
    else:
        floor, better = maxima.topk(k, dim=0).values[-1] if len(maxima) >= k else maxima.new_full((queries,), -torch.inf), torch.ge
    at, query = better(maxima, floor).nonzero(as_tuple=True)
    first = at * group * queries + query  # of a group's scores, which lie `queries` apart
    inside = scores.view(-1)[first[:, None] + torch.arange(group, device=first.device) * queries]
    found, within = better(inside, floor[query, None]).nonzero(as_tuple=True)
    rest, asked = better(scores[whole:], floor).nonzero(as_tuple=True)
    values = torch.cat([inside[found, within], scores[whole:][rest, asked]])
    query, row = torch.cat([query[found], asked]), torch.cat([at[found] * group + within, rest + whole])
    if not len(query):
        return best
    query, order = query.sort()
    counts = torch.bincount(query, minlength=queries)
    slot = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
    keys = best.new_full((queries, int(counts.max())), torch.iinfo(torch.long).min)
    keys[query, slot] = _packed(values, row + start)[order]
    together = torch.cat([best, keys], dim=1)
    return together.topk(min(k, together.shape[1]), dim=1).values


def _packed(scores: Tensor, indices: Tensor) -> Tensor:
    """One integer of a float32 and a position below 2^32: larger where the score is, and among equal scores where the position is less."""
    bits = (scores + 0.0).view(torch.int32)  # one zero, not two
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) + (2**32 - 1 - indices)


def _unpacked(keys: Tensor) -> Neighbours:
    bits = (keys >> 32).int()
    return Neighbours((bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32), 2**32 - 1 - (keys & (2**32 - 1)))
