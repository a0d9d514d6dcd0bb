"""Three small social networks that networkx ships, each with the classes that are known of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from graftwork import Dataset, DatasetInfo
from graftwork_testbed.graphs.extra import need
from graftwork_testbed.graphs.features import Features, FeatureWidth, check_features, node_features
from graftwork_testbed.graphs.samples import TrainPerClass, node_dataset, split_nodes
from graftwork_testbed.splits import Fraction, Seed

__all__ = ["davis_women", "karate", "les_miserables"]

CLUBS = ("Mr. Hi", "Officer")

SECOND_GROUP = 9
"""The first woman, in the ethnographers' order, who is of the second group alone."""


def karate(
    labels: Literal["club", "community"] = "club",
    features: Features = "identity",
    feature_width: FeatureWidth = 16,
    train_per_class: TrainPerClass = None,
    val_fraction: Fraction = 0.2,
    test_fraction: Fraction = 0.4,
    seed: Seed = 0,
) -> Dataset:
    """Zachary's karate club: 34 members and the 78 ties between them that were seen outside the club, before it split.

    Zachary, An Information Flow Model for Conflict and Fission in Small Groups, Journal of Anthropological Research 33, 1977.
    `graph.edge_weight` counts the contexts in which two members met.

    Args:
        labels: "club", the one that each member joined after the split (member 9 had sided with the officers and yet joined
            Mr. Hi's, to whom he is counted); or "community", the four modularity communities that the literature on graph networks
            uses, from PyG's KarateClub (modularity 0.416; the optimum, 0.420, places three members otherwise).
        features: what stands in for features; see `graftwork_testbed.graphs.node_features`.
        feature_width: of random features.
        train_per_class: training nodes of each class, the others being val and test; by default the fractions say.
        val_fraction: share of each class that goes to val.
        test_fraction: share of each class that goes to test.
        seed: of the split and of random features.

    Raises:
        ValueError: if a parameter is out of range.
    """
    if labels not in ("club", "community"):
        raise ValueError(f"labels must be club or community; found {labels!r}")
    network = need("networkx").karate_club_graph()
    if labels == "club":
        known, classes = torch.tensor([CLUBS.index(club) for _, club in network.nodes(data="club")]), CLUBS
        described = "Zachary's karate club: members and the club that each joined"
    else:
        known = need("torch_geometric.datasets").KarateClub()[0].y.long()
        classes = tuple(f"community {number}" for number in range(1, 5))
        described = "Zachary's karate club: members and their communities"
    parts = split_nodes(known, val_fraction, test_fraction, train_per_class, seed)
    graph = _homogeneous(network, features, feature_width, seed)
    return node_dataset(graph, known, parts, _info(classes, graph, described))


def les_miserables(
    features: Features = "identity",
    feature_width: FeatureWidth = 16,
    train_per_class: TrainPerClass = None,
    val_fraction: Fraction = 0.2,
    test_fraction: Fraction = 0.4,
    seed: Seed = 0,
) -> Dataset:
    """The 77 characters of Les Misérables and the 254 pairs of them that appear in a chapter together.

    Knuth, The Stanford GraphBase, 1993. `graph.edge_weight` counts the chapters, `graph.names` holds the characters. The novel has
    no classes: these are the five communities that greedy maximisation of modularity with these weights finds (Clauset, Newman and
    Moore, https://arxiv.org/abs/cond-mat/0408187), the largest first, each named after its member of largest weighted degree.
    The rule draws nothing at random, and the classes follow from the edges alone: no method can know more than the graph says.

    Args:
        features: what stands in for features; see `graftwork_testbed.graphs.node_features`.
        feature_width: of random features.
        train_per_class: training nodes of each class, the others being val and test; by default the fractions say.
        val_fraction: share of each class that goes to val.
        test_fraction: share of each class that goes to test.
        seed: of the split and of random features.

    Raises:
        ValueError: if a parameter is out of range.
    """
    networkx = need("networkx")
    network = networkx.convert_node_labels_to_integers(networkx.les_miserables_graph(), label_attribute="name")
    names = [name for _, name in network.nodes(data="name")]
    # Communities of integers: sets of strings are ordered differently in every process, and ties would fall differently.
    communities = [sorted(one) for one in networkx.community.greedy_modularity_communities(network, weight="weight")]
    communities.sort(key=lambda one: (-len(one), one))
    known = torch.empty(len(names), dtype=torch.long)
    for number, members in enumerate(communities):
        known[members] = number
    chapters = dict(network.degree(weight="weight"))
    classes = tuple(names[max(members, key=lambda node: chapters[node])] for members in communities)
    parts = split_nodes(known, val_fraction, test_fraction, train_per_class, seed)
    graph = _homogeneous(network, features, feature_width, seed)
    graph.names = names
    return node_dataset(graph, known, parts, _info(classes, graph, "Characters of Les Misérables and their communities"))


def davis_women(
    features: Features = "identity",
    feature_width: FeatureWidth = 16,
    train_per_class: TrainPerClass = None,
    val_fraction: Fraction = 0.2,
    test_fraction: Fraction = 0.4,
    seed: Seed = 0,
) -> Dataset:
    """18 women of Natchez, Mississippi, and the 14 social events that they attended in the 1930s, as a `HeteroData`.

    Node types `woman`, the target, and `event`; edge types (woman, attends, event), 89 edges, and (event, rev_attends, woman).
    `graph["woman"].names` and `graph["event"].names` say who and which; `graph.meta_paths` is WEW, women who met.

    Davis, Gardner and Gardner, Deep South, 1941, page 148. networkx has the attendances and no groups. The classes are the two
    cliques that the ethnographers found by interviews, as Freeman reports them (Finding Social Groups: A Meta-Analysis of the
    Southern Women Data, 2003): women 1 to 9, and women 9 to 18, in the order of their table. Woman 9, Ruth DeSand, they put on the
    fringe of both; here she is of the first.

    Args:
        features: of both types of node; see `graftwork_testbed.graphs.node_features`.
        feature_width: of random features.
        train_per_class: training women of each group, the others being val and test; by default the fractions say.
        val_fraction: share of each group that goes to val.
        test_fraction: share of each group that goes to test.
        seed: of the split and of random features.

    Raises:
        ValueError: if a parameter is out of range.
    """
    check_features(features, feature_width)
    network = need("networkx").davis_southern_women_graph()
    women, events = list(network.graph["top"]), list(network.graph["bottom"])
    attended = sorted((women.index(u), events.index(v)) for u, v in network.edges(women))
    pairs = torch.tensor(attended).T.contiguous()
    graph = need("torch_geometric.data").HeteroData()
    generator = torch.Generator().manual_seed(seed)
    for kind, row, names in (("woman", 0, women), ("event", 1, events)):
        graph[kind].num_nodes = len(names)
        made = node_features(features, torch.bincount(pairs[row], minlength=len(names)), generator, feature_width)
        if made is not None:
            graph[kind].x = made
        graph[kind].names = names
    graph["woman", "attends", "event"].edge_index = pairs
    graph["event", "rev_attends", "woman"].edge_index = pairs.flip(0)[:, pairs[1].argsort(stable=True)]
    graph.target_type = "woman"
    graph.meta_paths = {"WEW": ("woman", "event", "woman")}
    known = (torch.arange(len(women)) >= SECOND_GROUP).long()
    parts = split_nodes(known, val_fraction, test_fraction, train_per_class, seed)
    info = DatasetInfo(
        classes=("first group", "second group"),
        features=graph["woman"].num_features if features != "none" else 0,
        description="Southern women, the events they attended, and the two groups that ethnographers found",
    )
    return node_dataset(graph, known, parts, info)


def _homogeneous(network: Any, features: Features, width: int, seed: int) -> Any:
    """A networkx graph of nodes 0..N-1 with weights as `Data`: both directions of every edge, by source and then target."""
    forth = torch.tensor([(u, v) for u, v in network.edges])
    weights = torch.tensor([float(weight) for _, _, weight in network.edges(data="weight")])
    pairs, weights = torch.cat([forth, forth.flip(1)]).T, weights.repeat(2)
    order = (pairs[0] * len(network) + pairs[1]).argsort()
    pairs, weights = pairs[:, order].contiguous(), weights[order]
    made: Tensor | None = node_features(
        features, torch.bincount(pairs[0], minlength=len(network)), torch.Generator().manual_seed(seed), width
    )
    return need("torch_geometric.data").Data(x=made, edge_index=pairs, edge_weight=weights, num_nodes=len(network))


def _info(classes: Sequence[str], graph: Any, description: str) -> DatasetInfo:
    return DatasetInfo(classes=tuple(classes), features=graph.num_features, description=description)
