"""From a typed graph to what meta-paths make of it: filtered counts, normalised adjacencies, contexts, masks. All of it is sparse.

PathSim is of Sun et al., VLDB 2011, https://doi.org/10.14778/3402707.3402736; the rest follows Yu et al., arXiv:2212.13847, and the
authors' code (jianxiangyu/MEOW).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array, eye_array, vstack

from graftwork import DataError
from graftwork_meta_path_contrast.propagation import Matrix, Propagation
from graftwork_testbed.graphs.meta_paths import MetaPath, meta_path_adjacency, meta_path_types

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData  # type: ignore[import-untyped]

__all__ = [
    "MetaPath",
    "context_incidences",
    "keep_top_k",
    "mask_edges",
    "mask_features",
    "mean_over_context",
    "normalised",
    "path_counts",
    "path_sim",
]

BLOCK = 20_000_000
"""Entries of a product that are made at once, at most."""

MOST_ENTRIES = 200_000_000
"""Entries of one adjacency that are kept, at most: 2.4 GB."""

Counts: TypeAlias = csr_array
"""(N, N) float32: how many instances of a meta-path lead from one target node to another, a node itself included."""


def path_counts(graph: HeteroData, path: MetaPath, target: str, top_k: int | None = None, name: str | None = None) -> Counts:
    """Instances of a meta-path between target nodes, filtered by PathSim, made in blocks of rows: no full product is ever held.

    Nodes that no instance starts from get a self-loop, with a warning.

    Args:
        graph: the typed graph.
        path: initials, node types or edge types; it starts and ends at `target`.
        target: type of the nodes.
        top_k: neighbours that each node keeps, itself included, as `keep_top_k`; None keeps all.
        name: what messages call the path; its spelling by default.

    Raises:
        ValueError: if `top_k` is below 1 or above the number of nodes.
        DataError: if the path does not exist, does not start and end at the target type, or more entries than memory allows are left.
    """
    types = path_types(graph, path, target)
    nodes = graph[target].num_nodes
    _check_top_k(top_k, nodes)
    steps = len(types) - 1
    middle = (steps + 1) // 2
    left = _incidence(graph, _part(path, 0, middle))
    right = _incidence(graph, _part(path, middle, steps)) if steps > middle else eye_array(nodes, format="csr", dtype=np.float32)
    diagonal = np.asarray(left.multiply(right.T.tocsr()).sum(axis=1)).ravel()
    rows = max(1, BLOCK // nodes)
    blocks, entries = [], 0
    for start in range(0, nodes, rows):
        block = (left[start : start + rows] @ right).tocsr()
        kept = block if top_k is None else _kept(block, start, diagonal, top_k)
        entries += kept.nnz
        if entries > MOST_ENTRIES:
            raise DataError(
                f"meta-path {name or path_name(path)} joins more than {MOST_ENTRIES:,} pairs of {target}: set top_k, so that each keeps "
                "its nearest"
            )
        blocks.append(kept)
    return _with_self_loops(vstack(blocks, format="csr").astype(np.float32), name or path_name(path), target)


def path_types(graph: HeteroData, path: MetaPath, target: str) -> tuple[str, ...]:
    """The node types along a meta-path that starts and ends at `target`.

    Raises:
        DataError: if the graph has no such type or relation, or the path is no closed one of the target type.
    """
    try:
        types = meta_path_types(graph, path)
    except ValueError as error:
        raise DataError(f"meta-path {path_name(path)}: {error}") from None
    if types[0] != target or types[-1] != target:
        raise DataError(f"meta-path {path_name(path)} leads from {types[0]} to {types[-1]}; it must start and end at {target}")
    return types


def path_name(path: MetaPath) -> str:
    """How a meta-path is called: its initials as they are, types and relations joined by hyphens."""
    if isinstance(path, str):
        return path
    steps = list(path)
    if steps and not isinstance(steps[0], str):
        return "-".join([steps[0][0], *(f"{step[1]}-{step[2]}" for step in steps)])
    return "-".join(map(str, steps))


def path_sim(counts: csr_array) -> csr_array:
    """PathSim: s_ij = 2 A_ij / (A_ii + A_jj), where A counts instances; 0 where neither node has an instance to itself.

    Args:
        counts: (N, N).

    Returns:
        (N, N) float64, with the entries of `counts`.
    """
    return _similarities(counts.tocsr(), 0, counts.diagonal())


def keep_top_k(counts: csr_array, top_k: int) -> csr_array:
    """The counts of each row's `top_k` most similar by PathSim; what is kept is the count, not the similarity.

    A node itself comes first (s_ii = 1 is the largest); other ties go to the lower column, so the choice is the same on any machine.

    Args:
        counts: (N, N).
        top_k: in 1..N; N keeps everything.

    Raises:
        ValueError: if `top_k` is out of range.
    """
    _check_top_k(top_k, counts.shape[0])
    return _kept(counts.tocsr(), 0, counts.diagonal(), top_k)


def normalised(adjacency: csr_array) -> csr_array:
    """D^-1/2 A^T D^-1/2 with D the row sums of A, 1/0 taken as 0, in float32.

    The authors' code transposes between the two scalings, which matters where a filter or mask has left A asymmetric: who keeps j as
    a neighbour is then whom j hears.

    Args:
        adjacency: (N, N), non-negative.
    """
    degree = np.asarray(adjacency.sum(axis=1), dtype=np.float64).ravel()
    scale = np.divide(1.0, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
    table = adjacency.T.tocoo()
    values = (table.data * scale[table.row] * scale[table.col]).astype(np.float32)
    return coo_array((values, (table.row, table.col)), shape=table.shape).tocsr()


def mask_edges(counts: csr_array, fraction: float, generator: torch.Generator) -> csr_array:
    """Without a fraction of the entries off the diagonal: the rest become 1, and the identity is added.

    Args:
        counts: (N, N); its own diagonal does not count.
        fraction: dropped, in [0, 1); floor(fraction * entries) of them, each direction of a pair for itself.
        generator: draws.

    Raises:
        ValueError: if the fraction is out of range.
    """
    _check_fraction("edge_mask", fraction)
    table = counts.tocoo()
    other = (table.row != table.col) & (table.data != 0)
    row, column = table.row[other], table.col[other]
    kept = torch.randperm(len(row), generator=generator)[int(fraction * len(row)) :].numpy()
    ones = np.ones(len(kept), dtype=np.float32)
    return (csr_array((ones, (row[kept], column[kept])), shape=counts.shape) + eye_array(counts.shape[0], dtype=np.float32)).tocsr()


def mask_features(features: Matrix, fraction: float, generator: torch.Generator) -> Matrix:
    """A copy in which a fraction of the entries that are not zero are set to zero.

    Args:
        features: dense (N, ...), or a Propagation (N, D).
        fraction: in [0, 1); floor(fraction * entries) of them.
        generator: draws.

    Raises:
        ValueError: if the fraction is out of range.
    """
    _check_fraction("feature_mask", fraction)
    if isinstance(features, Propagation):
        table = features.to_scipy()
        table.data = mask_features(torch.from_numpy(table.data), fraction, generator).numpy()  # type: ignore[union-attr]
        return Propagation.of(table)
    masked = features.clone()
    filled = masked.view(-1).nonzero().squeeze(1)
    dropped = torch.randperm(len(filled), generator=generator)[: int(fraction * len(filled))]
    masked.view(-1)[filled[dropped]] = 0
    return masked


def context_incidences(graph: HeteroData, path: MetaPath, target: str) -> list[tuple[str, csr_array]]:
    """What lies on the way: for each node between a meta-path's ends its type, and the (N, N_type) counts of getting there.

    Of A-P-C-P-A these are P, then C reached through P, then P reached through C.

    Raises:
        DataError: as `path_types`.
    """
    types = path_types(graph, path, target)
    return [(types[place], _incidence(graph, _part(path, 0, place))) for place in range(1, len(types) - 1)]


def mean_over_context(incidence: csr_array) -> csr_array:
    """The matrix that averages over the nodes reached, each counted once; a row that reaches none stays zero.

    Args:
        incidence: (N, M), non-zero where a node is reached.

    Returns:
        (N, M) float32, rows of which sum to 1 or 0.
    """
    reached = (incidence != 0).astype(np.float32).tocsr()
    count = np.maximum(np.diff(reached.indptr), 1)
    reached.data = (reached.data / np.repeat(count, np.diff(reached.indptr))).astype(np.float32)
    return reached


def _part(path: MetaPath, start: int, stop: int) -> MetaPath:
    """Steps start..stop-1 of a path: as many edge types, or one node more."""
    return path[start:stop] if not isinstance(path, str) and not isinstance(path[0], str) else path[start : stop + 1]


def _incidence(graph: HeteroData, path: MetaPath) -> csr_array:
    table = meta_path_adjacency(graph, path)
    row, column = table.indices().numpy()
    return csr_array((table.values().numpy().astype(np.float32), (row, column)), shape=tuple(table.shape))


def _similarities(block: csr_array, start: int, diagonal: np.ndarray) -> csr_array:
    row = np.repeat(np.arange(start, start + block.shape[0]), np.diff(block.indptr))
    total = diagonal[row].astype(np.float64) + diagonal[block.indices]
    scores = np.divide(2.0 * block.data, total, out=np.zeros(block.nnz), where=total > 0)
    return csr_array((scores, block.indices, block.indptr), shape=block.shape)


def _kept(block: csr_array, start: int, diagonal: np.ndarray, top_k: int) -> csr_array:
    """The top entries of rows start, start + 1, ... of the counts whose diagonal is given."""
    if block.nnz == 0 or np.diff(block.indptr).max() <= top_k:
        return block
    scores = _similarities(block, start, diagonal).data
    row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    scores = np.where(block.indices == row + start, np.inf, scores)
    order = np.lexsort((block.indices, -scores, row))
    rank = np.arange(len(order)) - np.repeat(block.indptr[:-1], np.diff(block.indptr))  # the order keeps each row's place
    chosen = np.sort(order[rank < top_k])
    return csr_array((block.data[chosen], (row[chosen], block.indices[chosen])), shape=block.shape)


def _with_self_loops(counts: csr_array, name: str, target: str) -> csr_array:
    alone = np.flatnonzero(np.diff(counts.indptr) == 0)
    if not len(alone):
        return counts
    warnings.warn(
        f"{len(alone)} of {counts.shape[0]} {target} nodes lie on no instance of meta-path {name}; each gets a self-loop", stacklevel=3
    )
    return (counts + csr_array((np.ones(len(alone), dtype=np.float32), (alone, alone)), shape=counts.shape)).tocsr()


def _check_top_k(top_k: int | None, nodes: int) -> None:
    if top_k is not None and not 1 <= top_k <= nodes:
        raise ValueError(f"top_k must be 1 to {nodes}, the number of target nodes; found {top_k}")


def _check_fraction(name: str, fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise ValueError(f"{name} must be at least 0 and below 1; found {fraction}")
