from __future__ import annotations

import networkx
import pytest
import torch

from graftwork_testbed.graphs import davis_women, karate, les_miserables, meta_path_adjacency


def whole(data):
    """The graph and the label of every node."""
    graph = data["train"][0]["graph"]
    labels = torch.empty(sum(len(samples[0]["nodes"]) for samples in data.values()), dtype=torch.long)
    for samples in data.values():
        labels[samples[0]["nodes"]] = samples[0]["label"]
    return graph, labels


def modularity(graph, labels, weighted):
    """Newman's Q = sum_c (e_cc - a_c^2), from the matrix of edge weights between communities."""
    weight = graph.edge_weight.double() if weighted else torch.ones(graph.num_edges, dtype=torch.float64)
    between = torch.zeros(int(labels.max()) + 1, int(labels.max()) + 1, dtype=torch.float64)
    between.index_put_((labels[graph.edge_index[0]], labels[graph.edge_index[1]]), weight, accumulate=True)
    between /= weight.sum()
    return float(between.trace() - between.sum(1).square().sum())


def test_the_karate_club_is_zachary_s():
    graph, labels = whole(karate())
    degree = torch.bincount(graph.edge_index[0])
    assert (graph.num_nodes, graph.num_edges) == (34, 2 * 78)
    assert (degree[0], degree[33]) == (16, 17)  # the instructor and the administrator
    assert graph.edge_weight.sum() == 2 * 231
    assert labels.bincount().tolist() == [17, 17]
    assert (labels[0], labels[33]) == (0, 1)


def test_member_9_counts_to_the_club_he_joined():
    assert whole(karate())[1][8] == 0


def test_the_four_communities_are_three_members_from_the_best_partition():
    graph, labels = whole(karate("community"))
    assert labels.unique().tolist() == [0, 1, 2, 3]
    assert modularity(graph, labels, weighted=False) == pytest.approx(0.4156, abs=5e-5)
    best = labels.clone()
    best[9], best[[23, 27]] = labels[33], labels[24]
    assert modularity(graph, best, weighted=False) == pytest.approx(0.4198, abs=5e-5)  # the optimum (Brandes et al., 2008)
    assert karate("community").info.classes == ("community 1", "community 2", "community 3", "community 4")


def greedy_communities(graph):
    """Clauset, Newman and Moore's agglomeration as their paper states it: join the pair with the largest gain while there is one."""
    between = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.float64)
    between[graph.edge_index[0], graph.edge_index[1]] = graph.edge_weight.double()
    between /= between.sum()
    members = [{node} for node in range(graph.num_nodes)]
    while True:
        share = between.sum(1)
        gain = (2 * (between - share[:, None] * share)).triu(1)
        gain[between == 0] = -1
        best = int(gain.triu(1).argmax())
        one, other = divmod(best, len(share))
        if one >= other or gain[one, other] <= 0:
            return members
        between[one] += between[other]
        between[:, one] += between[:, other]
        keep = torch.arange(len(share)) != other
        between = between[keep][:, keep]
        members[one] |= members.pop(other)


def test_the_novel_s_communities_are_those_of_greedy_modularity():
    data = les_miserables()
    graph, labels = whole(data)
    assert (graph.num_nodes, graph.num_edges, graph.edge_weight.sum()) == (77, 2 * 254, 2 * 820)
    expected = sorted(map(sorted, greedy_communities(graph)))
    assert sorted((labels == number).nonzero().squeeze(1).tolist() for number in range(5)) == expected
    sizes = labels.bincount().tolist()
    assert sizes == sorted(sizes, reverse=True)


def test_a_community_of_the_novel_is_named_after_its_busiest_member():
    data = les_miserables()
    graph, labels = whole(data)
    assert data.info.classes == ("Valjean", "Enjolras", "Fantine", "Myriel", "Judge")
    busy = torch.zeros(77).index_add_(0, graph.edge_index[0], graph.edge_weight)
    for number, name in enumerate(data.info.classes):
        node = graph.names.index(name)
        assert labels[node] == number
        assert busy[node] == busy[labels == number].max()


def test_the_novel_s_weights_belong_to_their_edges():
    graph, _ = whole(les_miserables())
    source, target = graph.names.index("Cosette"), graph.names.index("Valjean")
    for edge in ((source, target), (target, source)):
        at = (graph.edge_index == torch.tensor(edge)[:, None]).all(0)
        assert graph.edge_weight[at].tolist() == [31]


def test_the_southern_women_attend_their_events():
    graph, labels = whole(davis_women())
    pairs = graph["woman", "attends", "event"].edge_index
    assert torch.bincount(pairs[0]).tolist() == [8, 7, 8, 7, 4, 4, 4, 3, 4, 4, 4, 6, 7, 8, 5, 2, 2, 2]  # Davis et al., page 148
    assert torch.bincount(pairs[1]).tolist() == [3, 3, 6, 4, 8, 8, 10, 14, 12, 5, 4, 6, 3, 3]
    assert (graph["woman"].names[8], graph["event"].names[13]) == ("Ruth DeSand", "E14")
    assert labels.tolist() == [0] * 9 + [1] * 9


def test_women_who_met_are_counted_along_the_meta_path():
    graph, _ = whole(davis_women())
    met = meta_path_adjacency(graph, "WEW").to_dense()
    assert met[:3, :3].tolist() == [[8, 6, 7], [6, 7, 6], [7, 6, 8]]  # Breiger, The Duality of Persons and Groups, 1974, table 3
    assert met.equal(met.T)


@pytest.mark.parametrize("build", [karate, les_miserables, davis_women])
def test_features_are_as_asked(build):
    data = build(features="random", feature_width=5)
    graph = data["train"][0]["graph"]
    stores = [graph["woman"], graph["event"]] if build is davis_women else [graph]
    assert all(store.x.shape == (store.num_nodes, 5) for store in stores)
    assert data.info.features == 5
    bare = build(features="none")
    assert bare.info.features == 0
    graph = bare["train"][0]["graph"]
    assert all("x" not in store for store in graph.node_stores)


def test_degrees_of_the_bipartite_graph_are_of_each_side():
    graph = davis_women(features="degree")["train"][0]["graph"]
    assert graph["woman"].x[0] == 8
    assert graph["event"].x[7] == 14


def test_bad_parameters_are_named():
    with pytest.raises(ValueError, match="labels must be club or community; found 'faction'"):
        karate("faction")
    for build in (karate, les_miserables, davis_women):
        with pytest.raises(ValueError, match="features must be one of"):
            build(features="onehot")
        with pytest.raises(ValueError, match="leaves class"):
            build(train_per_class=30)


def test_networkx_graphs_are_what_is_built_from():
    expected = networkx.to_numpy_array(networkx.karate_club_graph(), weight="weight")
    graph, _ = whole(karate())
    dense = torch.zeros(34, 34)
    dense[graph.edge_index[0], graph.edge_index[1]] = graph.edge_weight
    assert (dense.numpy() == expected).all()
