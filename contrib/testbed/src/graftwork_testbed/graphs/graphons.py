"""Graphs from graphons: symmetric functions W on the unit square, the limits of dense graphs.

A graph of n nodes has positions uniform in [0, 1], and an edge between positions x and y with probability W(x, y) (Lovász, Large
Networks and Graph Limits, 2012). G-Mixup (https://arxiv.org/abs/2202.07179) mixes graphs through their graphons, W2PGNN
(https://arxiv.org/abs/2303.16458) judges by them whether pre-training on some graphs can help on others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from graftwork import Dataset, DatasetInfo
from graftwork_testbed.graphs.blocks import Probability
from graftwork_testbed.graphs.extra import need
from graftwork_testbed.graphs.features import Features, FeatureWidth, check_features, node_features
from graftwork_testbed.graphs.samples import graph_dataset, within
from graftwork_testbed.splits import Fraction, Seed, stratified_split

__all__ = ["GRAPHONS", "Graphon", "GraphonName", "graphon", "graphon_grid", "sample_graphon"]

Graphon: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""W: two tensors of positions in [0, 1] -> probabilities of their shape."""

GraphonName: TypeAlias = Literal[
    "constant",
    "product",
    "exponential-power",
    "polynomial",
    "mean",
    "logistic-square",
    "logistic-max-min",
    "exponential-max",
    "exponential-min",
    "logarithmic-max",
    "distance",
    "proximity",
    "two-communities",
    "bipartite",
    "minimum",
    "maximum",
    "uniform-attachment",
]
"""A key of `GRAPHONS`."""


def _same_half(x: Tensor, y: Tensor) -> Tensor:
    return ((x < 0.5) == (y < 0.5)).to(x.dtype)


GRAPHONS: dict[str, Graphon] = {
    "constant": lambda x, y: torch.full_like(x * y, 0.5),
    "product": lambda x, y: x * y,
    "exponential-power": lambda x, y: (-(x**0.7 + y**0.7)).exp(),
    "polynomial": lambda x, y: (x**2 + y**2 + x.sqrt() + y.sqrt()) / 4,
    "mean": lambda x, y: (x + y) / 2,
    "logistic-square": lambda x, y: (2 * (x**2 + y**2)).sigmoid(),
    "logistic-max-min": lambda x, y: (torch.maximum(x, y) ** 2 + torch.minimum(x, y) ** 4).sigmoid(),
    "exponential-max": lambda x, y: (-(torch.maximum(x, y) ** 0.75)).exp(),
    "exponential-min": lambda x, y: (-(torch.minimum(x, y) + x.sqrt() + y.sqrt()) / 2).exp(),
    "logarithmic-max": lambda x, y: (torch.maximum(x, y) / 2).log1p(),
    "distance": lambda x, y: (x - y).abs(),
    "proximity": lambda x, y: 1 - (x - y).abs(),
    "two-communities": lambda x, y: 0.8 * _same_half(x, y),
    "bipartite": lambda x, y: 0.8 * (1 - _same_half(x, y)),
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "uniform-attachment": lambda x, y: 1 - torch.maximum(x, y),
}
"""Graphons by name.

"constant" is the Erdős-Rényi graph of density 1/2. From "product" to "bipartite" they are the thirteen that W2PGNN simulates, which
extend the list of Chan and Airoldi (https://arxiv.org/abs/1402.1888), their axes turned so that each is its formula. "minimum" and
"maximum" are the plainest of all; "uniform-attachment" is the limit of graphs that grow by uniform attachment (Borgs et al.,
https://arxiv.org/abs/0905.3806).
"""


def _function(w: str | Tensor | Graphon) -> Graphon:
    """A graphon by name, from a step matrix, or as it is.

    Raises:
        ValueError: if there is none of that name, or the matrix or function is no graphon.
    """
    if isinstance(w, str):
        if w not in GRAPHONS:
            raise ValueError(f"no graphon {w!r}; there are {', '.join(GRAPHONS)}")
        return GRAPHONS[w]
    if isinstance(w, Tensor):
        steps = w.double()
        if steps.ndim != 2 or steps.shape[0] != steps.shape[1] or not steps.numel():
            raise ValueError(f"a step graphon is a square matrix; found a shape of {tuple(steps.shape)}")
        _check_values(steps, steps.T)
        count = len(steps)
        return lambda x, y: steps[_cell(x, count), _cell(y, count)]
    grid = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    _check_values(w(*torch.meshgrid(grid, grid, indexing="ij")), w(*torch.meshgrid(grid, grid, indexing="xy")))
    return w


def _cell(x: Tensor, count: int) -> Tensor:
    return (x * count).long().clamp(max=count - 1)


def _check_values(values: Tensor, turned: Tensor) -> None:
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"a graphon's values are in [0, 1]; found {values.min().item():g} to {values.max().item():g}")
    if not torch.allclose(values, turned, rtol=0, atol=1e-6):
        raise ValueError("a graphon is symmetric: W(x, y) = W(y, x)")


def graphon_grid(w: GraphonName | Tensor | Graphon, resolution: int = 128) -> Tensor:
    """A graphon's values at the midpoints of a square grid.

    Args:
        w: name of a graphon, (k, k) step matrix in [0, 1], or function of two tensors of positions.
        resolution: cells along a side, at least 1.

    Returns:
        (resolution, resolution) float64 in [0, 1].

    Raises:
        ValueError: if it is no graphon, or the resolution is not positive.
    """
    within("resolution", resolution, 1)
    midpoints = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
    return _function(w)(*torch.meshgrid(midpoints, midpoints, indexing="ij"))


def sample_graphon(w: GraphonName | Tensor | Graphon, nodes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a simple undirected graph from a graphon.

    Args:
        w: name of a graphon, (k, k) step matrix in [0, 1], or function of two tensors of positions.
        nodes: of the graph, at least 1.
        generator: draws the positions first, and then a coin for each pair of nodes.

    Returns:
        (2, 2E) long, both directions of every edge, by source and then target; and the nodes' positions, (nodes,) float64.

    Raises:
        ValueError: if it is no graphon, or there is no node.
    """
    within("nodes", nodes, 1)
    function = _function(w)
    positions = torch.rand(nodes, dtype=torch.float64, generator=generator)
    first, second = torch.triu_indices(nodes, nodes, 1)
    chance = function(positions[first], positions[second])
    edge = torch.rand(len(first), dtype=torch.float64, generator=generator) < chance
    codes = torch.cat([first[edge] * nodes + second[edge], second[edge] * nodes + first[edge]]).sort().values
    return torch.stack([codes // nodes, codes % nodes]), positions


def _scaled(name: str, w: Graphon, density: float | None) -> Graphon:
    """The graphon times what brings its mean to `density`."""
    if density is None:
        return w
    values = graphon_grid(w, 512)
    mean, largest = values.mean().item(), values.max().item()
    if mean == 0 or density * largest / mean > 1:
        limit = mean / largest if largest else 0.0
        raise ValueError(f'density {density} would take graphon "{name}" above 1; its density can be {limit:.2f} at most')
    return lambda x, y: w(x, y) * (density / mean)


def graphon(
    graphons: Annotated[list[GraphonName], Field(min_length=1)] | None = None,
    steps: dict[str, list[list[Probability]]] | None = None,
    graphs_per_class: Annotated[int, Field(ge=4, le=100_000)] = 100,
    min_nodes: Annotated[int, Field(ge=2, le=5000)] = 20,
    max_nodes: Annotated[int, Field(ge=2, le=5000)] = 60,
    density: Annotated[float, Field(gt=0, lt=1)] | None = None,
    features: Features = "degree",
    feature_width: FeatureWidth = 16,
    val_fraction: Fraction = 0.1,
    test_fraction: Fraction = 0.25,
    seed: Seed = 0,
) -> Dataset:
    """Graphs drawn from graphons; the class of a graph is its graphon.

    Samples: `graph`, `label`, and `index`, the graph's number; graphs of all classes are mixed in random order.

    Args:
        graphons: names of the classes, in the order of `label`; without `steps`, by default "product", "mean", "proximity" and
            "two-communities", which differ in how their nodes' degrees are distributed. "two-communities" and "bipartite" have the
            same degrees but for the luck of how many nodes fall in each half.
        steps: further classes by name: a (k, k) step matrix each, whose rows hold the probabilities between k equal parts.
        graphs_per_class: graphs of each class, over all splits.
        min_nodes: fewest nodes of a graph; how many is drawn uniformly from there to `max_nodes`.
        max_nodes: most nodes of a graph.
        density: rescales every graphon to this mean, so that the number of edges does not tell the classes.
        features: what stands in for features; see `graftwork_testbed.graphs.node_features`. Not "identity": the nodes of two graphs
            do not correspond. "onehot-degree" has `max_nodes` columns.
        feature_width: of random features.
        val_fraction: share of each class that goes to val.
        test_fraction: share of each class that goes to test.
        seed: of the graphs, their features and the split.

    Raises:
        ValueError: if a parameter is out of range, a class is named twice, or a graphon cannot have that density.
    """
    within("graphs_per_class", graphs_per_class, 4)
    within("max_nodes", max_nodes, 2, 5000)
    if not 2 <= min_nodes <= max_nodes:
        raise ValueError(f"min_nodes must be 2 to max_nodes, {max_nodes}; found {min_nodes}")
    if density is not None and not 0 < density < 1:
        raise ValueError(f"density must be between 0 and 1; found {density}")
    check_features(features, feature_width)
    if features == "identity":
        raise ValueError("features cannot be identity: the nodes of two graphs do not correspond")
    within("seed", seed, 0)
    functions = {name: _scaled(name, w, density) for name, w in _classes(graphons, steps or {}).items()}
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(functions)).repeat_interleave(graphs_per_class)
    labels = labels[torch.randperm(len(labels), generator=generator)]
    sizes = torch.randint(min_nodes, max_nodes + 1, (len(labels),), generator=generator)
    kinds, data = list(functions.values()), need("torch_geometric.data").Data
    graphs = []
    for label, nodes in zip(labels.tolist(), sizes.tolist(), strict=True):
        pairs, _ = sample_graphon(kinds[label], nodes, generator)
        made = node_features(features, torch.bincount(pairs[0], minlength=nodes), generator, feature_width, max_nodes - 1)
        graphs.append(data(x=made, edge_index=pairs, num_nodes=nodes))
    info = DatasetInfo(
        classes=tuple(functions), features=graphs[0].num_features, description="Graphs, each drawn from the graphon that is its class"
    )
    return graph_dataset(graphs, labels, stratified_split(labels, val_fraction, test_fraction, seed), info)


def _classes(names: Sequence[str] | None, steps: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Graphon]:
    standard = [] if steps else ["product", "mean", "proximity", "two-communities"]
    chosen = standard if names is None else list(names)
    twice = sorted({name for name in chosen if chosen.count(name) > 1} | {name for name in steps if name in chosen})
    if twice:
        raise ValueError(f"graphons and steps name {', '.join(twice)} twice")
    found = {name: _function(name) for name in chosen}
    for name, rows in steps.items():
        if len({len(row) for row in rows} | {len(rows)}) != 1:
            raise ValueError(f'step graphon "{name}" is not square: {len(rows)} rows of {[len(row) for row in rows]} columns')
        try:
            found[name] = _function(torch.tensor(rows, dtype=torch.float64))
        except ValueError as error:
            raise ValueError(f'step graphon "{name}": {error}') from None
    return found
