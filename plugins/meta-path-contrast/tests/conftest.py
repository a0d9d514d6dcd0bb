"""Small typed graphs, by hand and drawn, and what meta-paths make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

import graftwork as gw
from graftwork_meta_path_contrast import MetaPathEncoder, MetaPathViews, labelled_graph

PATHS = {
    "PAP": ("paper", "author", "paper"),
    "PSP": ("paper", "subject", "paper"),
    "PAIAP": ("paper", "author", "institute", "author", "paper"),
}


def _graph_of(edges: dict[tuple[str, str], list[tuple[int, int]]], counts: dict[str, int], features: dict[str, Tensor]) -> HeteroData:
    graph = HeteroData()
    for kind, count in counts.items():
        graph[kind].num_nodes = count
        if kind in features:
            graph[kind].x = features[kind]
    for (source, target), pairs in edges.items():
        graph[source, "has", target].edge_index = torch.tensor(pairs).T
    return graph


@pytest.fixture
def hand() -> HeteroData:
    """Four papers, three authors, two subjects, two institutes; paper 3 has no author."""
    edges = {
        ("paper", "author"): [(0, 0), (0, 1), (1, 1), (2, 1), (2, 2)],
        ("paper", "subject"): [(0, 0), (1, 0), (2, 1), (3, 1)],
        ("author", "institute"): [(0, 0), (1, 0), (1, 1), (2, 1)],
    }
    features = {"paper": torch.tensor([[1.0, 3, 0], [0, 2, 2], [4, 0, 0], [1, 1, 2]]), "author": torch.tensor([[1.0, 1], [0, 5], [3, 1]])}
    return _graph_of(edges, {"paper": 4, "author": 3, "subject": 2, "institute": 2}, features)


def _drawn(nodes: int = 24, seed: int = 0) -> tuple[HeteroData, Tensor]:
    """Papers of three classes whose authors and subjects mostly are of their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(nodes) % 3

    def linked(count: int, each: int) -> list[tuple[int, int]]:
        own = labels[:, None] + 3 * torch.randint(count // 3, (nodes, each), generator=generator)
        other = torch.randint(count, (nodes, each), generator=generator)
        chosen = torch.where(torch.rand(nodes, each, generator=generator) < 0.8, own, other)
        return sorted({(row, int(column)) for row in range(nodes) for column in chosen[row]})

    institutes = [(author, author % 4) for author in range(12)]
    x = torch.rand(nodes, 6, generator=generator) + torch.eye(3)[labels].repeat(1, 2)
    edges = {("paper", "author"): linked(12, 2), ("paper", "subject"): linked(6, 1), ("author", "institute"): institutes}
    features = {"paper": x, "author": torch.rand(12, 5, generator=generator)}
    return _graph_of(edges, {"paper": nodes, "author": 12, "subject": 6, "institute": 4}, features), labels


@pytest.fixture
def small() -> gw.Dataset:
    """The drawn graph as a dataset with views."""
    graph, labels = _drawn()
    data = labelled_graph(graph, "paper", labels, per_class=[3], meta_paths=PATHS)
    return gw.dataset("meta-path-views", data=data, top_k=12)


@pytest.fixture
def views(small: gw.Dataset) -> MetaPathViews:
    return small["train"][0]["views"]


def _encoder_for(views: MetaPathViews, seed: int = 0, **settings: Any) -> MetaPathEncoder:
    torch.manual_seed(seed)
    sizes = {"hidden": 8, "embedding_dim": 8, **settings}
    return MetaPathEncoder("paper", views.widths, [path.types for path in views.paths], **sizes)


@pytest.fixture
def paths() -> dict[str, tuple[str, ...]]:
    """Meta-paths of the graphs here."""
    return dict(PATHS)


@pytest.fixture
def graph_of() -> Callable[..., HeteroData]:
    """Makes a typed graph of pairs, counts and features."""
    return _graph_of


@pytest.fixture
def drawn() -> Callable[..., tuple[HeteroData, Tensor]]:
    """Draws a typed graph with labels."""
    return _drawn


@pytest.fixture
def encoder_for() -> Callable[..., MetaPathEncoder]:
    """Makes a small encoder for views, from a seed."""
    return _encoder_for
