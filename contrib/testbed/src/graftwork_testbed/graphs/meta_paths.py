"""How many paths lead along a meta-path: the matrices that methods for heterogeneous graphs are built on.

A meta-path is a chain of node types, such as paper - author - paper (Sun et al., PathSim, VLDB 2011,
https://doi.org/10.14778/3402707.3402736); an instance of it is a path in the graph through nodes of these types.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

__all__ = ["EdgeType", "MetaPath", "meta_path_adjacency", "meta_path_types"]

EdgeType: TypeAlias = tuple[str, str, str]
"""Source type, relation, target type."""

MetaPath: TypeAlias = str | Sequence[str] | Sequence[EdgeType]
"""Initials ("PAP"), node types, or edge types."""


def meta_path_adjacency(graph: HeteroData, path: MetaPath) -> Tensor:
    """Instances of a meta-path between every two nodes: the product of the adjacencies along it.

    Where a path returns to its type the diagonal counts the ways from a node back to itself, as PathSim's s_ij = 2 A_ij / (A_ii + A_jj)
    wants. An open path gives the incidence of what lies on the way: of PAP's context, "PA"; of APVPA's, "AP", "APV" and "APVP".
    A step follows the edge type from the one node type to the other, or one from the other to the one, backwards, where there is none;
    parallel edges count as often as they are there, and edge weights do not count.

    Args:
        graph: its edges are (2, E) `edge_index`.
        path: initials of its node types where no two begin alike, such as "PAP", in upper or lower case; or its node types; or its
            edge types, (source, relation, target) each, which is needed where two relations join the same types.

    Returns:
        (N_first, N_last) sparse COO, coalesced, long, on the CPU.

    Raises:
        ValueError: if the graph has no such type or relation, a step could be one of several, or the path is of fewer than two nodes.
    """
    steps = _steps(graph, path)
    product = _adjacency(graph, steps[0])
    for step in steps[1:]:
        product = product @ _adjacency(graph, step)
    product = product.tocoo()
    indices = torch.from_numpy(np.stack([product.row, product.col]).astype(np.int64))
    return torch.sparse_coo_tensor(indices, torch.from_numpy(product.data), product.shape, check_invariants=True).coalesce()


def meta_path_types(graph: HeteroData, path: MetaPath) -> tuple[str, ...]:
    """The node types along a meta-path.

    Args:
        graph: with these types.
        path: as `meta_path_adjacency` takes it.

    Raises:
        ValueError: as `meta_path_adjacency` does.
    """
    steps = _steps(graph, path)
    return (*(source for (source, _, _), _ in _ends(steps)), _ends(steps)[-1][0][2])


def _ends(steps: Sequence[tuple[EdgeType, bool]]) -> list[tuple[EdgeType, bool]]:
    return [((kind[2], kind[1], kind[0]), back) if back else (kind, back) for kind, back in steps]


def _steps(graph: HeteroData, path: MetaPath) -> list[tuple[EdgeType, bool]]:
    """The edge type of each step, and whether it is followed backwards."""
    if isinstance(path, str):
        path = _spelt_out(graph, path)
    if len(path) and not isinstance(path[0], str):
        return _chained(graph, [tuple(kind) for kind in path])
    if len(path) < 2:
        raise ValueError(f"a meta-path has at least two nodes; found {list(path)}")
    for kind in path:
        if kind not in graph.node_types:
            raise ValueError(f'no node type "{kind}"; the graph has {", ".join(graph.node_types)}')
    return [_step(graph, source, target) for source, target in itertools.pairwise(path)]


def _spelt_out(graph: HeteroData, initials: str) -> list[str]:
    found = []
    for letter in initials:
        kinds = [kind for kind in graph.node_types if kind[:1].lower() == letter.lower()]
        if len(kinds) != 1:
            reason = f"both {' and '.join(kinds)} begin with it" if kinds else f"the graph has {', '.join(graph.node_types)}"
            raise ValueError(f'meta-path "{initials}": "{letter}" is the initial of no one node type; {reason}')
        found += kinds
    return found


def _step(graph: HeteroData, source: str, target: str) -> tuple[EdgeType, bool]:
    forth = [kind for kind in graph.edge_types if (kind[0], kind[2]) == (source, target)]
    back = [kind for kind in graph.edge_types if (kind[2], kind[0]) == (source, target)]
    found = forth or back
    if not found:
        raise ValueError(f"no relation joins {source} and {target}; the graph has {_shown(graph.edge_types)}")
    if len(found) > 1:
        raise ValueError(f"{len(found)} relations join {source} and {target}: name the edge types of the path, such as {_shown(found)}")
    return found[0], not forth


def _chained(graph: HeteroData, kinds: list[EdgeType]) -> list[tuple[EdgeType, bool]]:
    for kind in kinds:
        if kind not in graph.edge_types:
            raise ValueError(f"no edge type {kind}; the graph has {_shown(graph.edge_types)}")
    for one, following in itertools.pairwise(kinds):
        if one[2] != following[0]:
            raise ValueError(f"{one} ends at {one[2]} and {following} begins at {following[0]}")
    return [(kind, False) for kind in kinds]


def _shown(kinds: Sequence[EdgeType]) -> str:
    return ", ".join(f"({', '.join(kind)})" for kind in kinds)


def _adjacency(graph: HeteroData, step: tuple[EdgeType, bool]) -> csr_array:
    kind, back = step
    rows, columns = graph[kind].edge_index.cpu().numpy()
    shape = (graph[kind[0]].num_nodes, graph[kind[2]].num_nodes)
    table = csr_array((np.ones(len(rows), dtype=np.int64), (rows, columns)), shape=shape)  # sums parallel edges
    return table.T.tocsr() if back else table
