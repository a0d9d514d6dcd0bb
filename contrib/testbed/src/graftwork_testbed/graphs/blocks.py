"""Graphs with planted communities: the stochastic block model of Holland, Laskey and Leinhardt (Social Networks 5, 1983).

With features that depend on the class it is the contextual block model of Deshpande et al. (https://arxiv.org/abs/1807.09596).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from graftwork import Dataset, DatasetInfo
from graftwork_testbed.graphs.extra import need
from graftwork_testbed.graphs.features import Features, FeatureWidth, check_features, node_features
from graftwork_testbed.graphs.samples import TrainPerClass, node_dataset, split_nodes, within
from graftwork_testbed.splits import Fraction, Seed

__all__ = ["class_features", "sample_stochastic_block_model", "stochastic_block_model"]

Probability: TypeAlias = Annotated[float, Field(ge=0, le=1)]
"""Of an edge."""

BlockSize: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000)]
"""Nodes of a block."""

DENSE = 0.1
"""Probability of an edge above which a coin for every pair is cheaper than drawing as many distinct pairs."""

TOSSES = 2**22
"""Coins that are tossed at once."""


def sample_stochastic_block_model(sizes: Sequence[int] | Tensor, probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a simple undirected graph in which every pair of nodes is an edge by itself, with its blocks' probability.

    How many of the pairs between two blocks are edges is binomial, and given that, which ones is uniform over the sets of so many:
    together this is the same distribution as a coin for each pair, at a cost that grows with the edges and not with the pairs.
    Where more than a tenth of the pairs are edges, coins are cheaper, and are tossed.

    Args:
        sizes: (K,) nodes of each block; the first block's nodes come first.
        probabilities: (K, K) in [0, 1], symmetric.
        generator: draws the edges.

    Returns:
        (2, 2E) long, both directions of every edge, by source and then target.

    Raises:
        ValueError: if there is no block, one is empty, or the probabilities do not fit.
    """
    sizes = torch.as_tensor(sizes, dtype=torch.long)
    probabilities = torch.as_tensor(probabilities, dtype=torch.float64)
    _check_blocks(sizes, probabilities)
    first, second = torch.triu_indices(len(sizes), len(sizes))
    same = first == second
    pairs = torch.where(same, sizes[first] * (sizes[first] - 1) // 2, sizes[first] * sizes[second])
    chance = probabilities[first, second]
    dense = chance > DENSE
    edges = torch.binomial(pairs.double(), torch.where(dense, 0.0, chance), generator=generator).long()
    positions = torch.cat([_distinct(pairs, edges, generator), _tossed(pairs, chance, dense, generator)])
    group = _group(positions, pairs)
    local = positions - (pairs.cumsum(0) - pairs)[group]
    upper, lower = _triangle(local)
    width = sizes[second[group]]
    start = sizes.cumsum(0) - sizes
    source = start[first[group]] + torch.where(same[group], upper, local // width)
    target = start[second[group]] + torch.where(same[group], lower, local % width)
    nodes = int(sizes.sum())
    codes = torch.cat([source * nodes + target, target * nodes + source]).sort().values
    return torch.stack([codes // nodes, codes % nodes])


def _check_blocks(sizes: Tensor, probabilities: Tensor) -> None:
    if sizes.ndim != 1 or not len(sizes) or (sizes < 1).any():
        raise ValueError(f"sizes must be the nodes of at least one block, each at least 1; found {sizes.tolist()}")
    if probabilities.shape != (len(sizes), len(sizes)):
        raise ValueError(
            f"probabilities must be {len(sizes)} x {len(sizes)}, as there are {len(sizes)} blocks; found a shape of "
            f"{tuple(probabilities.shape)}"
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError(f"probabilities must be in [0, 1]; found {probabilities.min().item():g} to {probabilities.max().item():g}")
    if not probabilities.equal(probabilities.T):
        raise ValueError("probabilities must be symmetric, as the edges have no direction")


def _group(positions: Tensor, capacity: Tensor) -> Tensor:
    """Of positions in the concatenation of all groups, the group of each."""
    return torch.bucketize(positions, capacity.cumsum(0), right=True)


def _distinct(capacity: Tensor, count: Tensor, generator: torch.Generator) -> Tensor:
    """Sorted positions of `count` (G,) distinct members of each group of `capacity` (G,), every such set equally likely.

    Drawing one at a time and passing over what was drawn before gives such a set; drawing all that are still missing at once is the
    same, as no round can draw more than are missing.
    """
    start = capacity.cumsum(0) - capacity
    found = torch.empty(0, dtype=torch.long)
    missing = count
    while missing.any():
        group = torch.arange(len(capacity)).repeat_interleave(missing)
        uniform = torch.rand(len(group), dtype=torch.float64, generator=generator)
        found = torch.cat([found, start[group] + (uniform * capacity[group]).long()]).unique()
        missing = count - torch.bincount(_group(found, capacity), minlength=len(capacity))
    return found


def _tossed(capacity: Tensor, chance: Tensor, groups: Tensor, generator: torch.Generator) -> Tensor:
    """Positions that a coin for every member of some groups (a mask) picks."""
    chosen = groups.nonzero().squeeze(1)
    sizes = capacity[chosen]
    ends = sizes.cumsum(0)
    shift = (capacity.cumsum(0) - capacity)[chosen] - (ends - sizes)
    picked = [torch.empty(0, dtype=torch.long)]
    for begin in range(0, int(sizes.sum()), TOSSES):  # in pieces, so that memory stays bounded
        inside = torch.arange(begin, min(begin + TOSSES, int(ends[-1])))
        group = torch.bucketize(inside, ends, right=True)
        heads = torch.rand(len(inside), dtype=torch.float64, generator=generator) < chance[chosen[group]]
        picked.append((inside + shift[group])[heads])
    return torch.cat(picked)


def _triangle(position: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column, row > column >= 0, of a position in the lower triangle read row by row."""
    row = ((1 + (1 + 8 * position.double()).sqrt()) / 2).long()
    row = row - (row * (row - 1) // 2 > position).long()  # the root is rounded where it is nearly whole
    row = row + (row * (row + 1) // 2 <= position).long()
    return row, position - row * (row - 1) // 2


def class_features(labels: Tensor, width: int, strength: float, generator: torch.Generator) -> Tensor:
    """Gaussian features around a mean for each class, unit variance, any two means `strength` apart.

    The means are orthogonal in a random basis. From its features alone, a node of one of two equally likely classes can be told
    from the other with an error of Phi(-strength / 2) at best: 0.31 at strength 1, 0.16 at 2, 0.023 at 4.

    Args:
        labels: (N,) long.
        width: at least the number of classes.
        strength: distance of two means in standard deviations; 0 makes the features pure noise.
        generator: draws the basis and the noise.

    Returns:
        (N, width) float32.

    Raises:
        ValueError: if the width is less than the number of classes, or the strength is negative.
    """
    classes = int(labels.max()) + 1
    if width < classes:
        raise ValueError(f"feature_width must be at least the number of classes, {classes}, to hold their means; found {width}")
    within("feature_strength", strength, 0)
    basis = torch.linalg.qr(torch.randn(width, classes, dtype=torch.float64, generator=generator)).Q
    noise = torch.randn(len(labels), width, dtype=torch.float64, generator=generator)
    return (noise + strength / math.sqrt(2) * basis.T[labels]).float()


def stochastic_block_model(
    sizes: Annotated[list[BlockSize], Field(min_length=1)] | None = None,
    p_in: Probability = 0.1,
    p_out: Probability = 0.01,
    probabilities: list[list[Probability]] | None = None,
    features: Features | Literal["gaussian"] = "gaussian",
    feature_width: FeatureWidth = 16,
    feature_strength: Annotated[float, Field(ge=0, le=100)] = 1.0,
    train_per_class: TrainPerClass = None,
    val_fraction: Fraction = 0.2,
    test_fraction: Fraction = 0.4,
    seed: Seed = 0,
) -> Dataset:
    """One graph from a stochastic block model; the class of a node is its block.

    Nodes are in random order, so that their numbers say nothing of their blocks. Two equal blocks of n nodes can be told apart from
    the edges better than by chance if and only if n (p_in - p_out)^2 > p_in + p_out, where edges are few and n is large (Mossel,
    Neeman and Sly, https://arxiv.org/abs/1311.4115).

    Args:
        sizes: nodes of each block; four blocks of 100 by default.
        p_in: probability of an edge inside a block.
        p_out: probability of an edge between two blocks.
        probabilities: all of them, K x K and symmetric, instead of `p_in` and `p_out`.
        features: "gaussian", which depend on the class, or what stands in for features; see `graftwork_testbed.graphs.node_features`.
        feature_width: of gaussian and random features.
        feature_strength: distance between the means of two classes in standard deviations; 0 leaves the edges alone to tell.
        train_per_class: training nodes of each class, the others being val and test; by default the fractions say.
        val_fraction: share of each class that goes to val.
        test_fraction: share of each class that goes to test.
        seed: of the graph, its features and the split.

    Raises:
        ValueError: if a parameter is out of range or the probabilities do not fit the sizes.
    """
    blocks = torch.tensor([100] * 4 if sizes is None else sizes, dtype=torch.long)
    within("seed", seed, 0)
    for name, chance in (("p_in", p_in), ("p_out", p_out)):
        within(name, chance, 0, 1)
    if features != "gaussian":
        check_features(features, feature_width)
    generator = torch.Generator().manual_seed(seed)
    table = _uniform(len(blocks), p_in, p_out) if probabilities is None else _table(probabilities)
    pairs, labels = _shuffled(sample_stochastic_block_model(blocks, table, generator), blocks, generator)
    nodes = len(labels)
    if features == "gaussian":
        made: Tensor | None = class_features(labels, feature_width, feature_strength, generator)
    else:
        made = node_features(features, torch.bincount(pairs[0], minlength=nodes), generator, feature_width)
    graph = need("torch_geometric.data").Data(x=made, edge_index=pairs, num_nodes=nodes)
    info = DatasetInfo(
        classes=tuple(f"block {number}" for number in range(1, len(blocks) + 1)),
        features=graph.num_features,
        description="A graph with planted communities, drawn from a stochastic block model",
    )
    return node_dataset(graph, labels, split_nodes(labels, val_fraction, test_fraction, train_per_class, seed), info)


def _shuffled(pairs: Tensor, blocks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The graph with its nodes in random order, and each node's block."""
    nodes = int(blocks.sum())
    place = torch.randperm(nodes, generator=generator)
    codes = (place[pairs[0]] * nodes + place[pairs[1]]).sort().values
    labels = torch.empty(nodes, dtype=torch.long)
    labels[place] = torch.arange(len(blocks)).repeat_interleave(blocks)
    return torch.stack([codes // nodes, codes % nodes]), labels


def _uniform(blocks: int, p_in: float, p_out: float) -> Tensor:
    return torch.full((blocks, blocks), p_out, dtype=torch.float64).fill_diagonal_(p_in)


def _table(rows: Sequence[Sequence[float]]) -> Tensor:
    if len({len(row) for row in rows}) != 1:
        raise ValueError(f"the rows of probabilities differ in length: {[len(row) for row in rows]}")
    return torch.tensor(rows, dtype=torch.float64)
