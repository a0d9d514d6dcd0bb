from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

import graftwork_testbed.graphs.graphons as module
from graftwork_testbed.graphs import GRAPHONS, graphon, graphon_grid, sample_graphon

MEANS = {  # of each graphon over the unit square, by hand
    "constant": 1 / 2,
    "product": 1 / 4,
    "polynomial": (2 / 3 + 4 / 3) / 4,
    "mean": 1 / 2,
    "distance": 1 / 3,
    "proximity": 2 / 3,
    "two-communities": 0.4,
    "bipartite": 0.4,
    "minimum": 1 / 3,
    "maximum": 2 / 3,
    "uniform-attachment": 1 / 3,
    "logarithmic-max": 1.5 - 3 * math.log(1.5),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_name_is_a_graphon():
    assert get_args(module.GraphonName) == tuple(GRAPHONS)
    for name in GRAPHONS:
        grid = graphon_grid(name, 64)
        assert grid.dtype == torch.float64
        assert grid.min() >= 0
        assert grid.max() <= 1
        assert torch.allclose(grid, grid.T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", MEANS)
def test_means_are_those_of_the_formulas(name):
    assert graphon_grid(name, 400).mean() == pytest.approx(MEANS[name], abs=2e-4)


def test_values_are_those_of_the_formulas():
    x, y = torch.tensor([0.25, 0.49], dtype=torch.float64), torch.tensor([0.81, 0.04], dtype=torch.float64)
    expected = {
        "exponential-power": [math.exp(-(0.25**0.7 + 0.81**0.7)), math.exp(-(0.49**0.7 + 0.04**0.7))],
        "polynomial": [(0.0625 + 0.6561 + 0.5 + 0.9) / 4, (0.2401 + 0.0016 + 0.7 + 0.2) / 4],
        "logistic-square": [1 / (1 + math.exp(-2 * (0.0625 + 0.6561))), 1 / (1 + math.exp(-2 * (0.2401 + 0.0016)))],
        "logistic-max-min": [1 / (1 + math.exp(-(0.81**2 + 0.25**4))), 1 / (1 + math.exp(-(0.49**2 + 0.04**4)))],
        "exponential-max": [math.exp(-(0.81**0.75)), math.exp(-(0.49**0.75))],
        "exponential-min": [math.exp(-0.5 * (0.25 + 0.5 + 0.9)), math.exp(-0.5 * (0.04 + 0.7 + 0.2))],
        "logarithmic-max": [math.log(1 + 0.405), math.log(1 + 0.245)],
        "two-communities": [0, 0.8],
        "bipartite": [0.8, 0],
    }
    for name, values in expected.items():
        assert GRAPHONS[name](x, y).tolist() == pytest.approx(values)


def test_a_step_matrix_is_read_by_cells():
    steps = torch.tensor([[0.1, 0.2], [0.2, 0.9]])
    grid = graphon_grid(steps, 4)
    assert grid.equal(steps.double().repeat_interleave(2, 0).repeat_interleave(2, 1))


@pytest.mark.parametrize("nodes", [1, 2, 60])
def test_the_graph_is_simple_and_sorted(nodes):
    pairs, positions = sample_graphon("proximity", nodes, seeded())
    codes = pairs[0] * nodes + pairs[1]
    assert positions.shape == (nodes,)
    assert codes.equal(codes.unique())
    assert (pairs[0] != pairs[1]).all()
    assert (pairs[1] * nodes + pairs[0]).sort().values.equal(codes)


def test_constant_graphons_give_graphs_of_that_density():
    for chance in (0.2, 0.7):
        pairs, _ = sample_graphon(lambda x, y, chance=chance: torch.full_like(x * y, chance), 400, seeded(1))
        trials = 400 * 399 / 2
        assert abs(pairs.shape[1] / 2 - trials * chance) < 4.5 * (trials * chance * (1 - chance)) ** 0.5


def test_edges_are_as_likely_as_the_graphon_says_at_their_ends_positions():
    pairs, positions = sample_graphon("product", 1500, seeded(2))
    cell = (positions * 4).long()
    expected, seen, variance = torch.zeros(4, 4), torch.zeros(4, 4), torch.zeros(4, 4)
    seen.index_put_((cell[pairs[0]], cell[pairs[1]]), torch.ones(pairs.shape[1]), accumulate=True)
    chance = (positions[:, None] * positions).fill_diagonal_(0)
    for row in range(4):
        for column in range(4):
            block = chance[cell == row][:, cell == column]
            expected[row, column], variance[row, column] = block.sum(), (block * (1 - block)).sum()
    both = 1 + torch.eye(4)  # inside a cell each edge is seen twice
    assert ((seen - expected).abs() < 4.5 * (variance * both).sqrt()).all()


def test_motif_densities_are_those_of_the_graphon():
    """t(edge) and t(triangle) of W = xy are 1/4 and 1/27; over 60 graphs of 100 nodes, within 4.5 standard errors."""
    generator = seeded(3)
    edges, triangles = [], []
    for _ in range(60):
        pairs, _ = sample_graphon("product", 100, generator)
        dense = torch.zeros(100, 100, dtype=torch.float64)
        dense[pairs[0], pairs[1]] = 1
        edges.append(dense.sum() / (100 * 99))
        triangles.append((dense @ dense * dense).sum() / (100 * 99 * 98))
    for seen, expected in ((edges, 1 / 4), (triangles, 1 / 27)):
        seen = torch.stack(seen)
        assert abs(seen.mean() - expected) < 4.5 * seen.std() / 60**0.5


@pytest.mark.parametrize(
    ("w", "message"),
    [
        ("xy", "no graphon 'xy'; there are constant, product"),
        (torch.rand(2, 3), r"square matrix; found a shape of \(2, 3\)"),
        (torch.tensor([[0.5, 2.0], [2.0, 0.5]]), r"values are in \[0, 1\]; found 0.5 to 2"),
        (torch.tensor([[0.5, 0.1], [0.2, 0.5]]), "a graphon is symmetric"),
        (lambda x, y: x + 0 * y, "a graphon is symmetric"),
        (lambda x, y: x + y, r"values are in \[0, 1\]"),
    ],
)
def test_what_is_no_graphon_is_refused(w, message):
    with pytest.raises(ValueError, match=message):
        sample_graphon(w, 5, seeded())


def test_counts_of_nothing_are_refused():
    with pytest.raises(ValueError, match="nodes must be at least 1; found 0"):
        sample_graphon("mean", 0, seeded())
    with pytest.raises(ValueError, match="resolution must be at least 1; found 0"):
        graphon_grid("mean", 0)


def test_a_dataset_has_as_many_graphs_of_each_class_and_size():
    data = graphon(graphs_per_class=40, min_nodes=10, max_nodes=14)
    assert data.info.classes == ("product", "mean", "proximity", "two-communities")
    columns = [samples.columns for samples in data.values()]
    labels = torch.cat([one["label"] for one in columns])
    assert labels.bincount().tolist() == [40] * 4
    assert torch.cat([one["index"] for one in columns]).sort().values.tolist() == list(range(160))
    sizes = {graph.num_nodes for one in columns for graph in one["graph"]}
    assert sizes == {10, 11, 12, 13, 14}
    assert not any("y" in graph for one in columns for graph in one["graph"])
    assert data["train"][0]["graph"].x.shape == (data["train"][0]["graph"].num_nodes, 1)


def test_a_graph_s_number_says_nothing_of_its_class():
    data = graphon(["mean", "constant"], graphs_per_class=150, max_nodes=20)
    labels = torch.empty(300, dtype=torch.long)
    for samples in data.values():
        labels[samples.columns["index"]] = samples.columns["label"]
    assert abs((labels[1:] != labels[:-1]).sum() - 150) < 4.5 * 8.7


def test_two_communities_and_bipartite_graphs_are_what_they_are_called():
    data = graphon(["two-communities", "bipartite"], graphs_per_class=8, min_nodes=30, max_nodes=30)
    for sample in (data["train"][row] for row in range(len(data["train"]))):
        dense = torch.zeros(30, 30)
        dense[sample["graph"].edge_index[0], sample["graph"].edge_index[1]] = 1
        triangles = (dense @ dense * dense).sum()
        assert triangles == 0 if sample["label"] == 1 else triangles > 0


def test_graphs_of_one_density_cannot_be_told_by_their_edges():
    data = graphon(["product", "mean", "proximity"], graphs_per_class=60, min_nodes=50, max_nodes=50, density=0.2)
    density = {0: [], 1: [], 2: []}
    for samples in data.values():
        for graph, label in zip(samples.columns["graph"], samples.columns["label"].tolist(), strict=True):
            density[label].append(graph.num_edges / (50 * 49))
    for seen in density.values():
        seen = torch.tensor(seen)
        assert abs(seen.mean() - 0.2) < 4.5 * seen.std() / 60**0.5


def test_steps_are_classes_too():
    data = graphon(["mean"], steps={"rich club": [[1.0, 0.2], [0.2, 0.0]]}, graphs_per_class=10)
    assert data.info.classes == ("mean", "rich club")
    assert graphon(steps={"empty": [[0.0]], "full": [[1.0]]}, graphs_per_class=10).info.classes == ("empty", "full")


@pytest.mark.parametrize(("kind", "width"), [("onehot-degree", 25), ("random", 7), ("constant", 1), ("none", 0)])
def test_features_are_as_wide_in_every_graph(kind, width):
    data = graphon(["mean"], graphs_per_class=10, max_nodes=25, features=kind, feature_width=7)
    assert data.info.features == width
    assert {graph.num_features for samples in data.values() for graph in samples.columns["graph"]} == {width}


def test_the_seed_alone_decides():
    first, again, other = (graphon(graphs_per_class=5, seed=seed).fingerprint() for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"graphs_per_class": 3}, "graphs_per_class must be at least 4; found 3"),
        ({"min_nodes": 1}, "min_nodes must be 2 to max_nodes, 60; found 1"),
        ({"min_nodes": 61}, "min_nodes must be 2 to max_nodes, 60; found 61"),
        ({"max_nodes": 6000}, "max_nodes must be 2 to 5,000; found 6000"),
        ({"density": 1.0}, "density must be between 0 and 1; found 1.0"),
        ({"density": 0.5}, 'density 0.5 would take graphon "product" above 1; its density can be 0.25 at most'),
        ({"features": "identity"}, "features cannot be identity: the nodes of two graphs do not correspond"),
        ({"features": "ones"}, "features must be one of"),
        ({"graphons": ["mean", "mean"]}, "graphons and steps name mean twice"),
        ({"graphons": ["mean"], "steps": {"mean": [[0.5]]}}, "graphons and steps name mean twice"),
        ({"graphons": ["mena"]}, "no graphon 'mena'"),
        ({"steps": {"s": [[0.5, 0.1]]}}, r'step graphon "s" is not square: 1 rows of \[2\] columns'),
        ({"steps": {"s": [[0.5, 0.1], [0.2, 0.5]]}}, 'step graphon "s": a graphon is symmetric'),
        ({"seed": -1}, "seed must be at least 0; found -1"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        graphon(**parameters)
