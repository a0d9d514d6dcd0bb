"""Where nodes stand: springs inside each component, components side by side, and the order of a matrix's rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graftwork_testbed.graphs.extra import need

__all__ = ["neighbourhood", "order_nodes", "seriation", "spring_positions"]

FEW = 120
"""Nodes of a component up to which distances in the graph are worth their cubic cost."""

GAP = 1.15
"""Room for a component, as a multiple of its side."""

STRONG = 0.6
"""Ratio of the second eigenvalue to the first above which a graph is in two parts more than it has a centre."""


def spring_positions(pairs: Tensor, nodes: int, seed: int, weights: Tensor | None = None) -> NDArray[np.float64]:
    """Positions in [-1, 1] by Fruchterman and Reingold's springs.

    A small component begins where its distances would have its nodes (Kamada and Kawai). Components stand in rows, the largest first.

    Args:
        pairs: (2, E) edges.
        nodes: N.
        seed: where the nodes of large components begin.
        weights: (E,) positive; heavier edges pull harder, by their logarithm.

    Returns:
        (N, 2).
    """
    networkx = need("networkx")
    network = networkx.Graph()
    network.add_nodes_from(range(nodes))
    pulls = torch.ones(pairs.shape[1]) if weights is None else weights.float().log1p()
    network.add_weighted_edges_from(zip(*pairs.tolist(), pulls.tolist(), strict=True))
    components = sorted((sorted(one) for one in networkx.connected_components(network)), key=lambda one: (-len(one), one))
    shapes = [_component(networkx, network.subgraph(members), members, seed) for members in components]
    positions = np.zeros((nodes, 2))
    for members, shape, corner in zip(components, shapes, _shelves([GAP * 2 * len(one) ** 0.5 for one in components]), strict=True):
        positions[members] = corner + (shape + GAP) * len(members) ** 0.5
    positions -= (positions.max(0) + positions.min(0)) / 2
    return positions / max(np.abs(positions).max(), 1e-9)


def _component(networkx: Any, network: Any, members: Sequence[int], seed: int) -> NDArray[np.float64]:
    """(n, 2) positions in [-1, 1] of a connected graph's nodes, in the order given."""
    if len(members) == 1:
        return np.zeros((1, 2))
    if len(members) <= FEW:
        begin = networkx.kamada_kawai_layout(network, weight=None)
        found = networkx.spring_layout(network, pos=begin, k=1.3 / len(members) ** 0.5, iterations=30, seed=seed)
    else:
        found = networkx.spring_layout(network, iterations=80, seed=seed)
    shape = np.array([found[node] for node in members])
    shape -= (shape.max(0) + shape.min(0)) / 2
    return shape / max(np.abs(shape).max(), 1e-9)


def _shelves(sides: Sequence[float]) -> list[tuple[float, float]]:
    """The lower left corner of each square, in rows about as wide as they are high together."""
    widest = max(max(sides), 1.1 * float(np.sqrt(np.square(sides).sum())))
    corners, left, top, tall = [], 0.0, 0.0, sides[0]
    for side in sides:
        if left and left + side > widest:
            left, top, tall = 0.0, top - tall, side
        corners.append((left, top - side))
        left += side
    return corners


def neighbourhood(pairs: Tensor, starts: Sequence[int], limit: int, spread: int) -> Tensor:
    """Nodes near some nodes, breadth first, until there are enough.

    Args:
        pairs: (2, E) edges, both directions.
        starts: where to begin.
        limit: nodes at most.
        spread: neighbours that are followed from a node at most, evenly spaced among them.

    Returns:
        (n,) long, ascending.
    """
    order = pairs[0].argsort(stable=True)
    ends, nodes = pairs[1][order], max(int(pairs.max()) + 1 if pairs.numel() else 0, max(starts) + 1)
    bounds = [0, *torch.bincount(pairs[0], minlength=nodes).cumsum(0).tolist()]
    queue = list(dict.fromkeys(starts))[:limit]
    seen = set(queue)
    for node in queue:  # which grows below
        near = ends[bounds[node] : bounds[node + 1]]
        for other in near[torch.linspace(0, len(near) - 1, min(spread, len(near))).long()].tolist():
            if other not in seen and len(seen) < limit:
                seen.add(other)
                queue.append(other)
    return torch.tensor(sorted(seen), dtype=torch.long)


def order_nodes(pairs: Tensor, nodes: int, classes: Tensor | None = None) -> Tensor:
    """(N,) nodes by class, if there are classes, and by falling degree."""
    order = torch.bincount(pairs[0], minlength=nodes).argsort(descending=True, stable=True)
    return order if classes is None else order[classes[order].argsort(stable=True)]


def seriation(pairs: Tensor, nodes: int) -> Tensor:
    """(N,) nodes by falling degree, or, of a graph in two parts, by its second eigenvector.

    Two communities, and the two sides of a bipartite graph, have an eigenvalue nearly as large in magnitude as the first, whose
    eigenvector tells the two apart; a degree does not.
    """
    adjacency = torch.zeros(nodes, nodes, dtype=torch.float64)
    adjacency[pairs[0], pairs[1]] = 1
    values, vectors = torch.linalg.eigh(adjacency)
    first, second = values.abs().topk(2).indices if nodes > 1 else (0, 0)
    if nodes < 2 or values[second].abs() <= STRONG * values[first].abs():
        return order_nodes(pairs, nodes)
    return vectors[:, second if values[first] > 0 else first].argsort()
