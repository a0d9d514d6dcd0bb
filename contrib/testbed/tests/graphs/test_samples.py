"""What every graph data set keeps to: its samples, its splits, its batches, and that no label is in its feed."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader
from torch_geometric.data import Batch, Data, HeteroData

import graftwork as gw
from graftwork import DataError, DatasetInfo
from graftwork_testbed.graphs import graph_dataset, join_graphs, join_nodes, node_dataset, split_nodes

NODES = {
    "karate": {},
    "les-miserables": {},
    "davis-women": {},
    "stochastic-block-model": {},
    "academic-network": {"papers": 300, "authors": 200, "terms": 60},
}
FEED = {"x", "edge_index", "edge_weight", "num_nodes", "names", "target_type", "meta_paths"}


@pytest.fixture(params=NODES, scope="module")
def nodes(request):
    return gw.dataset(request.param, **NODES[request.param])


def target_nodes(graph):
    return graph[graph.target_type].num_nodes if isinstance(graph, HeteroData) else graph.num_nodes


def test_a_split_is_one_sample_of_nodes_and_their_labels(nodes):
    assert list(nodes) == ["train", "val", "test"]
    for samples in nodes.values():
        sample = samples[0]
        assert len(samples) == 1
        assert set(sample) == {"graph", "nodes", "label", "index"}
        assert sample["nodes"].dtype == sample["label"].dtype == torch.long
        assert sample["nodes"].shape == sample["label"].shape
        assert sample["index"] == 0
        assert sample["label"].max() < len(nodes.info.classes)


def test_splits_share_the_graph_and_divide_its_nodes(nodes):
    graphs = [samples[0]["graph"] for samples in nodes.values()]
    assert all(graph is graphs[0] for graph in graphs)
    divided = torch.cat([samples[0]["nodes"] for samples in nodes.values()])
    assert divided.sort().values.equal(torch.arange(target_nodes(graphs[0])))


def test_no_label_is_in_the_feed(nodes):
    """The graph holds what is listed and nothing else, and no column of it is the classes under another name."""
    graph = nodes["train"][0]["graph"]
    labels = torch.empty(target_nodes(graph), dtype=torch.long)
    for samples in nodes.values():
        labels[samples[0]["nodes"]] = samples[0]["label"]
    for store in graph.stores:
        assert set(store) <= FEED
        x = store.get("x")
        if x is not None and len(x) == len(labels):
            for column in x.T:
                within_class = torch.stack([column[labels == number].std() for number in labels.unique()])
                assert within_class.max() > 0 or column.std() == 0


def test_every_class_is_in_every_split_and_features_are_as_wide_as_said(nodes):
    for samples in nodes.values():
        assert samples[0]["label"].unique().tolist() == list(range(len(nodes.info.classes)))
    graph = nodes["train"][0]["graph"]
    x = graph[graph.target_type].x if isinstance(graph, HeteroData) else graph.x
    assert x.shape[1] == nodes.info.features
    assert x.dtype == torch.float32


def test_edges_go_both_ways_and_none_is_doubled_or_a_loop(nodes):
    graph = nodes["train"][0]["graph"]
    assert graph.validate()
    if isinstance(graph, HeteroData):
        for source, relation, target in graph.edge_types:
            forth = graph[source, relation, target].edge_index
            back = relation.removeprefix("rev_") if relation.startswith("rev_") else f"rev_{relation}"
            assert set(zip(*forth.tolist(), strict=True)) == set(zip(*graph[target, back, source].edge_index.flip(0).tolist(), strict=True))
            assert forth.unique(dim=1).shape == forth.shape
    else:
        assert graph.is_undirected()
        assert not graph.has_self_loops()
        assert graph.is_coalesced()


@pytest.mark.parametrize("name", NODES)
def test_the_seed_alone_decides_and_global_random_numbers_are_left_alone(name):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (gw.dataset(name, seed=seed, **NODES[name]).fingerprint() for seed in (3, 3, 4))
    assert first == again != other
    assert torch.get_rng_state().equal(before)


def test_a_batch_of_nodes_is_the_sample_itself():
    data = gw.dataset("karate")
    (batch,) = DataLoader(data["val"], batch_size=8, collate_fn=data.collate)
    sample = data["val"][0]
    assert batch["graph"] is sample["graph"]
    assert batch["label"].equal(sample["label"])
    assert batch["nodes"].equal(sample["nodes"])
    assert batch["index"].tolist() == [0]
    assert join_nodes([sample])["label"].equal(sample["label"])


def pair(edges, nodes, **more):
    return Data(edge_index=torch.tensor(edges).T, num_nodes=nodes, **more)


def test_nodes_of_several_graphs_count_into_their_batch():
    one, two = pair([[0, 1], [1, 0]], 3), pair([[0, 2], [2, 0]], 4)
    samples = [
        {"graph": one, "nodes": torch.tensor([0, 2]), "label": torch.tensor([5, 6]), "index": 0},
        {"graph": two, "nodes": torch.tensor([1, 3]), "label": torch.tensor([7, 8]), "index": 1},
    ]
    batch = join_nodes(samples)
    assert isinstance(batch["graph"], Batch)
    assert batch["nodes"].tolist() == [0, 2, 4, 6]
    assert batch["label"].tolist() == [5, 6, 7, 8]
    assert batch["index"].tolist() == [0, 1]
    with pytest.raises(DataError, match="heterogeneous graphs come one graph a batch; found 2"):
        join_nodes([{**sample, "graph": HeteroData(a={"num_nodes": 3})} for sample in samples])


def graphs(count=6):
    made = [pair([[0, 1], [1, 0]], 2 + number) for number in range(count)]
    return graph_dataset(made, torch.arange(count) % 2, {"train": torch.tensor([4, 1, 0]), "test": torch.tensor([2, 3])}, DatasetInfo())


def test_graphs_join_into_a_batch_either_way_they_are_fetched():
    data = graphs()
    train = data["train"]
    assert {key: int(train[0][key]) for key in ("label", "index")} == {"label": 0, "index": 4}
    assert train[0]["graph"].num_nodes == 6
    for batch in (data.collate(train.__getitems__([0, 2])), join_graphs([train[0], train[2]])):
        assert isinstance(batch["graph"], Batch)
        assert batch["graph"].ptr.tolist() == [0, 6, 8]
        assert batch["label"].tolist() == [0, 0]
        assert batch["index"].tolist() == [4, 0]


def test_graphs_go_through_a_loader():
    data = graphs()
    (batch,) = DataLoader(data["train"], batch_size=3, collate_fn=data.collate)
    assert batch["graph"].num_graphs == 3
    assert batch["label"].tolist() == [0, 1, 0]


def test_a_fingerprint_covers_edges_features_and_weights():
    def of(**change):
        parts = {"edge_index": torch.tensor([[0, 1], [1, 0]]), "x": torch.ones(3, 2), "edge_weight": torch.ones(2)} | change
        return node_dataset(Data(**parts), torch.zeros(3, dtype=torch.long), {"train": torch.arange(3)}, DatasetInfo()).fingerprint()

    different = [of(), of(edge_index=torch.tensor([[0, 2], [2, 0]])), of(x=torch.zeros(3, 2)), of(edge_weight=torch.zeros(2))]
    assert len(set(different)) == 4
    assert of() == different[0]


def test_a_fingerprint_covers_a_heterogeneous_graph():
    def of(edge):
        graph = HeteroData(a={"num_nodes": 2}, b={"num_nodes": 2})
        graph["a", "to", "b"].edge_index = torch.tensor([[edge], [0]])
        return node_dataset(graph, None, {"train": torch.arange(2)}, DatasetInfo()).fingerprint()

    assert of(0) == of(0) != of(1)


def test_fractions_share_out_every_class():
    labels = torch.tensor([0] * 40 + [1] * 20 + [-1] * 5)
    parts = split_nodes(labels, 0.25, 0.5)
    assert {name: torch.bincount(labels[part]).tolist() for name, part in parts.items()} == {
        "train": [10, 5],
        "val": [10, 5],
        "test": [20, 10],
    }
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(60))


def test_train_per_class_takes_that_many_and_leaves_the_rest_to_val_and_test():
    labels = torch.tensor([0] * 50 + [2] * 30 + [-1] * 5)
    parts = split_nodes(labels, 0.2, 0.6, train_per_class=10, seed=3)
    assert torch.bincount(labels[parts["train"]]).tolist() == [10, 0, 10]
    assert torch.bincount(labels[parts["val"]]).tolist() == [10, 0, 5]
    assert torch.bincount(labels[parts["test"]]).tolist() == [30, 0, 15]
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(80))
    assert not parts["train"].equal(split_nodes(labels, 0.2, 0.6, train_per_class=10, seed=4)["train"])


def test_which_nodes_train_is_uniform_within_a_class():
    labels = torch.arange(2000).repeat_interleave(10)
    chosen = torch.bincount(split_nodes(labels, 0.5, 0.5, train_per_class=3)["train"] % 10, minlength=10) / 2000
    assert (chosen - 0.3).abs().max() < 4.5 * (0.3 * 0.7 / 2000) ** 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_per_class": 4}, "train_per_class 4 leaves class 1 none of its 4 nodes to test"),
        ({"train_per_class": 0}, "train_per_class must be at least 1; found 0"),
        ({"train_per_class": 1, "val_fraction": 0.0}, "val_fraction must be between 0 and 1; found 0"),
        ({"train_per_class": 1, "test_fraction": 1.5}, "test_fraction must be between 0 and 1; found 1.5"),
        ({"train_per_class": 1, "seed": -1}, "seed must be at least 0; found -1"),
        ({"val_fraction": 0.6, "test_fraction": 0.6}, "must be positive and leave a share to train"),
    ],
)
def test_bad_divisions_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        split_nodes(torch.tensor([0] * 6 + [1] * 4), **{"val_fraction": 0.25, "test_fraction": 0.25} | change)
