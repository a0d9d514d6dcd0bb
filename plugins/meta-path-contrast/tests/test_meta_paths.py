"""Counts, PathSim, filters, masks, contexts: against enumeration and numbers worked out by hand."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch_geometric.data import HeteroData

import graftwork as gw
from graftwork_meta_path_contrast import (
    Propagation,
    context_incidences,
    keep_top_k,
    mask_edges,
    mask_features,
    mean_over_context,
    meta_path_views,
    meta_paths,
    normalised,
    path_counts,
    path_sim,
)

COUNTS = csr_array(np.array([[2.0, 1, 1, 0], [1, 1, 1, 0], [1, 1, 2, 0], [0, 0, 0, 1]]))
"""PAP of the hand graph, with a self-loop for paper 3."""


def enumerated(graph: HeteroData, types: tuple[str, ...]) -> torch.Tensor:
    """Counts of path instances, every chain of nodes tried."""
    links: dict[tuple[str, str], set[tuple[int, ...]]] = {}
    for (source, _, target), index in graph.edge_index_dict.items():
        links[source, target] = set(map(tuple, index.T.tolist()))
        links[target, source] = set(map(tuple, index.flip(0).T.tolist()))
    counts = torch.zeros(graph[types[0]].num_nodes, graph[types[-1]].num_nodes)
    for chain in itertools.product(*(range(graph[kind].num_nodes) for kind in types)):
        steps = zip(itertools.pairwise(types), itertools.pairwise(chain), strict=True)
        counts[chain[0], chain[-1]] += all(pair in links[kinds] for kinds, pair in steps)
    return counts


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", ["PAP", "PSP", "PAIAP"])
def test_counts_from_sparse_products_equal_an_enumeration_of_paths(hand, name, paths) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counts = torch.from_numpy(path_counts(hand, paths[name], "paper").toarray())
    expected = enumerated(hand, paths[name])
    expected[expected.sum(1) == 0] += torch.eye(4)[expected.sum(1) == 0]
    assert torch.equal(counts, expected)


def test_counts_made_in_blocks_of_rows_are_the_same(hand, monkeypatch, paths) -> None:
    whole = path_counts(hand, paths["PSP"], "paper", 2).toarray()
    monkeypatch.setattr(meta_paths, "BLOCK", 4)
    assert (path_counts(hand, paths["PSP"], "paper", 2).toarray() == whole).all()


@pytest.mark.parametrize("path", ["PAP", ["paper", "author", "paper"]])
def test_a_path_may_be_spelt_by_initials_or_types(hand, path) -> None:
    with pytest.warns(UserWarning, match="self-loop"):
        assert (path_counts(hand, path, "paper").toarray() == COUNTS.toarray()).all()


def test_a_node_on_no_path_gets_a_self_loop_and_a_warning(hand) -> None:
    with pytest.warns(UserWarning, match="1 of 4 paper nodes lie on no instance of meta-path PAP; each gets a self-loop"):
        counts = path_counts(hand, "PAP", "paper")
    assert counts.toarray()[3].tolist() == [0, 0, 0, 1]


def test_path_sim_on_four_nodes_is_what_the_hand_says() -> None:
    s = path_sim(COUNTS).toarray()
    expected = [[1, 2 / 3, 1 / 2, 0], [2 / 3, 1, 2 / 3, 0], [1 / 2, 2 / 3, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(s, expected)
    assert (s == s.T).all()


def test_the_filter_keeps_counts_of_the_most_similar_and_always_the_node_itself() -> None:
    assert keep_top_k(COUNTS, 2).toarray().tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 2, 0], [0, 0, 0, 1]]
    alike = csr_array(np.ones((5, 5)))  # all similarities are 1: a node could lose itself to its equals
    assert keep_top_k(alike, 1).toarray().tolist() == np.eye(5).tolist()


def test_a_filter_of_all_nodes_keeps_everything() -> None:
    assert (keep_top_k(COUNTS, 4).toarray() == COUNTS.toarray()).all()


def test_normalisation_scales_by_row_sums_and_transposes_between() -> None:
    a = np.array([[1.0, 3, 0], [0, 1, 0], [0, 0, 0]])
    d = np.diag([1 / 2, 1, 0])  # row sums 4, 1 and 0, the last taken as 0
    np.testing.assert_allclose(normalised(csr_array(a)).toarray(), d @ a.T @ d, rtol=1e-6)


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_masked_edges_are_a_share_of_those_off_the_diagonal_made_one_with_identity(fraction) -> None:
    masked = mask_edges(COUNTS, fraction, generator()).toarray()
    assert masked.diagonal().tolist() == [1, 1, 1, 1]
    rest = masked - np.eye(4)
    assert rest.sum() == 6 - int(6 * fraction)
    assert ((rest == 0) | (COUNTS.toarray() > 0)).all()
    assert set(rest.flatten()) <= {0.0, 1.0}


def test_masked_features_lose_a_share_of_what_is_not_zero() -> None:
    x = torch.tensor([[1.0, 0, 2], [0, 3, 4]])
    masked = mask_features(x, 0.5, generator())
    assert (masked != 0).sum() == 2
    assert torch.equal(masked[masked != 0], x[masked != 0])
    sparse = mask_features(Propagation.of(csr_array(x.numpy())), 0.5, generator())
    assert torch.equal(sparse.to_dense(), masked)


def test_contexts_of_a_long_path_are_all_nodes_between_its_ends(hand, paths) -> None:
    found = context_incidences(hand, paths["PAIAP"], "paper")
    assert [kind for kind, _ in found] == ["author", "institute", "author"]
    for length, (_, table) in enumerate(found, start=2):
        assert torch.equal(torch.from_numpy(table.toarray()), enumerated(hand, paths["PAIAP"][:length]))


def test_a_context_averages_over_the_nodes_reached_each_once(hand, paths) -> None:
    (_, table), *_ = context_incidences(hand, paths["PAP"], "paper")
    x = hand["author"].x
    expected = torch.stack([(x[0] + x[1]) / 2, x[1], (x[1] + x[2]) / 2, torch.zeros(2)])
    torch.testing.assert_close(Propagation.of(mean_over_context(table)) @ x, expected)
    twice = csr_array(np.array([[2.0, 0, 1]]))
    assert mean_over_context(twice).toarray().tolist() == [[0.5, 0, 0.5]]


def test_a_propagation_has_the_gradient_of_the_dense_product() -> None:
    matrix = csr_array(np.array([[0.0, 2, 0], [1, 0, 3]]))
    x = torch.randn(3, 4, generator=generator(), requires_grad=True)
    (Propagation.of(matrix) @ x).square().sum().backward()
    dense = x.detach().clone().requires_grad_()
    (torch.tensor(matrix.toarray(), dtype=torch.float32) @ dense).square().sum().backward()
    torch.testing.assert_close(x.grad, dense.grad)


def test_features_are_divided_by_their_sum_and_types_without_get_identity(hand, paths) -> None:
    with pytest.warns(UserWarning, match="self-loop"):
        views = meta_path_views(hand, "paper", paths)
    torch.testing.assert_close(views.features["paper"].to_dense().sum(1), torch.ones(4))
    assert torch.equal(views.features["subject"].to_dense(), torch.eye(2))
    hand["paper"].x[0, 0] = -1
    with pytest.warns(UserWarning, match="self-loop"):
        assert torch.equal(meta_path_views(hand, "paper", paths).features["paper"], hand["paper"].x)


def test_the_coarse_adjacency_is_the_mean_of_the_paths(hand, paths) -> None:
    with pytest.warns(UserWarning, match="self-loop"):
        views = meta_path_views(hand, "paper", ["PAP", "PSP"], top_k=[3, 2])
    tables = [
        normalised(keep_top_k(csr_array(enumerated(hand, paths["PSP"]).numpy()), 2)).toarray(),
        normalised(keep_top_k(COUNTS, 3)).toarray(),
    ]
    np.testing.assert_allclose(views.coarse.to_dense().numpy(), (tables[0] + tables[1]) / 2, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:.*self-loop")
def test_dense_matrices_are_those_of_the_sparse_layout(hand, paths) -> None:
    sparse, dense = (meta_path_views(hand, "paper", paths, layout=layout) for layout in ("sparse", "dense"))
    for one, other in zip(sparse.paths, dense.paths, strict=True):
        assert torch.equal(one.masked.to_dense(), other.masked)


@pytest.mark.filterwarnings("ignore:.*self-loop")
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"meta_paths": ["APA"]}, gw.DataError, "meta-path APA leads from author to author; it must start and end at paper"),
        ({"meta_paths": [["paper", "venue", "paper"]]}, gw.DataError, 'no node type "venue"; the graph has paper, author'),
        ({"meta_paths": ["PIP"]}, gw.DataError, "no relation joins paper and institute"),
        ({"meta_paths": []}, ValueError, "names at least one meta-path"),
        ({"meta_paths": ["PAP", "PAP"]}, ValueError, "a path twice: PAP, PAP"),
        ({"top_k": 5}, ValueError, "top_k must be 1 to 4, the number of target nodes; found 5"),
        ({"top_k": [1, 2]}, ValueError, "top_k has 2 values for 3 meta-paths"),
        ({"edge_mask": 1.0}, ValueError, "edge_mask must be at least 0 and below 1; found 1.0"),
        ({"feature_mask": -0.1}, ValueError, "feature_mask must be at least 0 and below 1; found -0.1"),
        ({"target": "venue"}, gw.DataError, "the graph has no node type venue"),
    ],
)
def test_what_does_not_fit_the_graph_is_refused(hand, settings, error, message, paths) -> None:
    with pytest.raises(error, match=message):
        meta_path_views(hand, **{"target": "paper", "meta_paths": paths, **settings})


def test_a_dense_layout_of_many_nodes_is_refused_in_favour_of_the_sparse_one(graph_of) -> None:
    graph = graph_of({("paper", "author"): [(0, 0)]}, {"paper": 20_000, "author": 1}, {})
    with pytest.raises(gw.DataError, match=r"dense adjacencies of 20,000 nodes .* set layout to sparse"):
        meta_path_views(graph, "paper", ["PAP"], layout="dense")


def test_a_product_of_too_many_entries_is_refused_in_favour_of_top_k(hand, monkeypatch) -> None:
    monkeypatch.setattr(meta_paths, "MOST_ENTRIES", 3)
    with pytest.raises(gw.DataError, match="meta-path PSP joins more than 3 pairs of paper: set top_k"):
        path_counts(hand, "PSP", "paper")
