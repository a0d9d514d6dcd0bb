from __future__ import annotations

import itertools

import pytest
import torch
from torch_geometric.data import HeteroData

from graftwork_testbed.graphs import academic_network, meta_path_adjacency, meta_path_types

EDGES = {
    ("author", "writes", "paper"): [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)],
    ("paper", "published_in", "venue"): [(0, 0), (1, 0), (2, 1)],
    ("paper", "cites", "paper"): [(0, 1), (0, 2), (1, 2)],
}
SIZES = {"author": 3, "paper": 3, "venue": 2}


@pytest.fixture
def graph():
    made = HeteroData()
    for kind, size in SIZES.items():
        made[kind].num_nodes = size
    for kind, pairs in EDGES.items():
        made[kind].edge_index = torch.tensor(pairs).T
    return made


def enumerated(graph, path):
    """Counts by walking every path, one node at a time."""
    counts = torch.zeros(graph[path[0]].num_nodes, graph[path[-1]].num_nodes, dtype=torch.long)
    links = {}
    for source, _, target in graph.edge_types:
        for u, v in graph[source, target].edge_index.T.tolist():
            links.setdefault((source, target, u), []).append(v)
    for start in range(len(counts)):
        ends = [start]
        for source, target in itertools.pairwise(path):
            ends = [following for node in ends for following in links.get((source, target, node), [])]
        for end in ends:
            counts[start, end] += 1
    return counts


def test_counts_are_those_by_hand(graph):
    assert meta_path_adjacency(graph, "PVP").to_dense().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert meta_path_adjacency(graph, "APA").to_dense().tolist() == [[2, 1, 0], [1, 2, 1], [0, 1, 1]]
    assert meta_path_adjacency(graph, "APVPA").to_dense().tolist() == [[4, 2, 0], [2, 2, 1], [0, 1, 1]]


@pytest.mark.parametrize("target", ["paper", "author"])
def test_counts_are_those_of_walking_every_path(target):
    graph = academic_network(target, papers=40, authors=40, terms=20, title_words=3)["train"][0]["graph"]
    for name, path in graph.meta_paths.items():
        adjacency = meta_path_adjacency(graph, name)
        assert adjacency.to_dense().equal(enumerated(graph, path))
        assert adjacency.to_dense().equal(adjacency.to_dense().T)
        assert meta_path_types(graph, name) == path


def test_the_result_is_sparse_coalesced_and_counts_exactly(graph):
    adjacency = meta_path_adjacency(graph, ["author", "paper", "author"])
    assert adjacency.is_sparse
    assert adjacency.is_coalesced()
    assert adjacency.dtype == torch.long


def test_an_open_path_is_the_incidence_of_what_lies_on_the_way(graph):
    assert meta_path_adjacency(graph, "APV").to_dense().tolist() == [[2, 0], [1, 1], [0, 1]]
    assert meta_path_types(graph, "apv") == ("author", "paper", "venue")


def test_the_ways_of_writing_a_path_agree(graph):
    edge_types = [("author", "writes", "paper"), ("paper", "published_in", "venue")]
    expected = meta_path_adjacency(graph, "APV").to_dense()
    assert meta_path_adjacency(graph, ("author", "paper", "venue")).to_dense().equal(expected)
    assert meta_path_adjacency(graph, edge_types).to_dense().equal(expected)
    assert meta_path_types(graph, edge_types) == ("author", "paper", "venue")


def test_a_relation_of_a_type_with_itself_keeps_its_direction(graph):
    assert meta_path_adjacency(graph, "PP").to_dense().tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0]]
    assert meta_path_adjacency(graph, "PPP").to_dense().tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_parallel_edges_count_each(graph):
    graph["author", "writes", "paper"].edge_index = torch.tensor([[0, 0], [1, 1]])
    assert meta_path_adjacency(graph, "AP").to_dense()[0].tolist() == [0, 2, 0]


def test_a_type_without_edges_gives_no_paths(graph):
    graph["author", "writes", "paper"].edge_index = torch.empty(2, 0, dtype=torch.long)
    adjacency = meta_path_adjacency(graph, "APA")
    assert adjacency.shape == (3, 3)
    assert adjacency.values().numel() == 0


def test_paths_that_are_none_are_named(graph):
    for path, message in (
        ("AXA", 'meta-path "AXA": "X" is the initial of no one node type; the graph has author, paper, venue'),
        (["author", "book"], 'no node type "book"; the graph has author, paper, venue'),
        ("AV", r"no relation joins author and venue; the graph has \(author, writes, paper\)"),
        ("A", r"at least two nodes; found \['author'\]"),
        ([], r"at least two nodes; found \[\]"),
        ([("author", "reads", "paper")], r"no edge type \('author', 'reads', 'paper'\)"),
        ([("author", "writes", "paper"), ("author", "writes", "paper")], "ends at paper and .* begins at author"),
    ):
        with pytest.raises(ValueError, match=message):
            meta_path_adjacency(graph, path)


def test_what_could_be_meant_in_two_ways_is_refused(graph):
    graph["paper", "reviewed_at", "venue"].edge_index = torch.tensor([[0], [1]])
    with pytest.raises(ValueError, match="2 relations join paper and venue: name the edge types"):
        meta_path_adjacency(graph, "PV")
    graph["publisher"].num_nodes = 1
    with pytest.raises(ValueError, match='"P" is the initial of no one node type; both paper and publisher begin with it'):
        meta_path_adjacency(graph, "PV")
