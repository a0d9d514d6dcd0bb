"""What PyG's data sets are made of here, and that labels stay out of the graphs."""

from __future__ import annotations

import pytest
import torch
import torch_geometric.datasets
from torch_geometric.data import Batch, Data, HeteroData

import graftwork as gw
from graftwork import ConfigError, DataError
from graftwork_testbed.graphs import meta_path_adjacency, pyg_dataset
from graftwork_testbed.graphs.pyg_files import locate

CORA = {"name": "Cora"}


def counts(data):
    return {name: len(samples[0]["nodes"]) for name, samples in data.items()}


def test_nodes_come_with_the_public_masks_and_the_graph_without_labels(cora):
    data = pyg_dataset(str(cora), "Planetoid", CORA)
    assert counts(data) == {"train": 20, "val": 8, "test": 12}
    assert data["val"][0]["nodes"].tolist() == list(range(20, 28))
    assert data["val"][0]["label"].tolist() == [node % 4 for node in range(20, 28)]
    assert set(data["train"][0]["graph"].to_dict()) == {"x", "edge_index"}
    assert (data.info.classes, data.info.features) == (("0", "1", "2", "3"), 5)
    assert data.info.description == "Planetoid (name Cora) of PyTorch Geometric: nodes to classify or regress"


def test_it_is_a_component(cora):
    assert counts(gw.dataset("pyg-dataset", root=str(cora), name="Planetoid", settings=CORA))["train"] == 20
    with pytest.raises(ConfigError, match="split: "):
        gw.dataset("pyg-dataset", root=str(cora), name="Planetoid", split="public")


def test_the_graph_is_the_one_that_pyg_loads(cora):
    ours = pyg_dataset(str(cora), "Planetoid", CORA)["test"][0]["graph"]
    (cora / "Cora" / "raw").mkdir()
    for path in locate(str(cora), "Planetoid", CORA).raw:
        path.touch()  # PyG fetches raw files that it does not need
    theirs = torch_geometric.datasets.Planetoid(str(cora), "Cora")[0]
    assert ours.x.equal(theirs.x)
    assert ours.edge_index.equal(theirs.edge_index)


def test_a_stratified_split_takes_no_notice_of_masks(cora):
    data = pyg_dataset(str(cora), "Planetoid", CORA, split="stratified", train_per_class=3, val_fraction=0.25, test_fraction=0.5)
    assert counts(data) == {"train": 12, "val": 8, "test": 20}
    assert data["train"][0]["label"].bincount().tolist() == [3] * 4


def test_of_several_own_splits_the_fold_is_taken(pyg, tmp_path):
    first, second = pyg.masks(20, 8, 12), pyg.masks(10, 10, 20)
    both = {key: torch.stack([first[key], second[key]], dim=1) for key in first}
    pyg.save([pyg.toy(0, **both)], tmp_path / "cornell" / "processed" / "data.pt")
    cornell = (str(tmp_path), "WebKB", {"name": "Cornell"})
    assert counts(pyg_dataset(*cornell)) == {"train": 20, "val": 8, "test": 12}
    assert counts(pyg_dataset(*cornell, fold=1)) == {"train": 10, "val": 10, "test": 20}
    with pytest.raises(ValueError, match="fold must be 0 to 1, as there are 2 own splits; found 2"):
        pyg_dataset(*cornell, fold=2)


def test_without_val_a_share_of_train_becomes_it(pyg, tmp_path):
    own = pyg.masks(20, 0, 20)
    del own["val_mask"]
    pyg.save([pyg.toy(0, **own)], tmp_path / "processed" / "data.pt")
    data = pyg_dataset(str(tmp_path), "Actor", val_fraction=0.25)
    assert counts(data) == {"train": 16, "val": 4, "test": 20}
    assert set(data["train"][0]["nodes"].tolist() + data["val"][0]["nodes"].tolist()) == set(range(20))


def test_without_masks_nodes_are_stratified_and_unlabelled_ones_left_out(pyg, tmp_path):
    graph = pyg.toy(0)
    graph.y[:8] = -1
    pyg.save([graph], tmp_path / "processed" / "data.pt")
    data = pyg_dataset(str(tmp_path), "PolBlogs", val_fraction=0.25, test_fraction=0.25)
    assert counts(data) == {"train": 16, "val": 8, "test": 8}
    assert min(int(samples[0]["nodes"].min()) for samples in data.values()) == 8


def test_numbers_and_several_labels_at_once_are_targets(pyg, tmp_path):
    for name, y in (("EmailEUCore", torch.rand(40)), ("Yelp", (torch.rand(40, 7) > 0.5).float())):
        graph = pyg.toy(0)
        graph.y = y
        pyg.save([graph], tmp_path / name / "processed" / "data.pt")
        data = pyg_dataset(str(tmp_path / name), name)
        sample = data["test"][0]
        assert set(sample) == {"graph", "nodes", "target", "index"}
        assert sample["target"].equal(y[sample["nodes"]])
        assert data.info.classes == ()
        assert data.collate([sample])["target"].equal(sample["target"])


def test_raw_text_gives_the_graphs_that_pyg_processes(mutag):
    data = pyg_dataset(str(mutag), "TUDataset", {"name": "MUTAG"})
    assert not (mutag / "MUTAG" / "processed").exists()
    theirs = torch_geometric.datasets.TUDataset(str(mutag), "MUTAG")  # writes processed/
    again = pyg_dataset(str(mutag), "TUDataset", {"name": "MUTAG"})
    seen = []
    for name, samples in data.items():
        for row in range(len(samples)):
            sample, processed = samples[row], again[name][row]
            expected = theirs[int(sample["index"])]
            seen.append(int(sample["index"]))
            assert sample["label"] == expected.y
            assert "y" not in sample["graph"]
            for graph in (sample["graph"], processed["graph"]):
                assert graph.x.equal(expected.x)
                assert graph.edge_index.equal(expected.edge_index)
    assert sorted(seen) == list(range(20))
    assert data.info.features == 3


def test_continuous_attributes_are_left_out_unless_asked_for(mutag):
    for settings, width in (({}, 3), ({"use_node_attr": True}, 5)):
        data = pyg_dataset(str(mutag), "TUDataset", {"name": "MUTAG", **settings})
        assert data.info.features == data["train"][0]["graph"].x.shape[1] == width


def test_graphs_join_into_batches(mutag):
    data = pyg_dataset(str(mutag), "TUDataset", {"name": "MUTAG"}, val_fraction=0.2, test_fraction=0.3)
    assert {name: len(samples) for name, samples in data.items()} == {"train": 10, "val": 4, "test": 6}
    batch = data.collate([data["train"][row] for row in range(4)])
    assert isinstance(batch["graph"], Batch)
    assert batch["label"].shape == (4,)


def test_a_file_a_split_is_a_split(pyg, tmp_path):
    for split, count in (("train", 5), ("val", 3), ("test", 4)):
        graphs = [Data(x=torch.ones(3, 2), edge_index=torch.tensor([[0], [1]]), y=torch.tensor([i % 2])) for i in range(count)]
        pyg.save(graphs, tmp_path / "MNIST" / "processed" / f"{split}_data.pt")
    mnist = (str(tmp_path), "GNNBenchmarkDataset", {"name": "MNIST"})
    data = pyg_dataset(*mnist)
    assert {name: len(samples) for name, samples in data.items()} == {"train": 5, "val": 3, "test": 4}
    assert [int(data["val"][row]["index"]) for row in range(3)] == [5, 6, 7]
    mixed = pyg_dataset(*mnist, split="stratified", val_fraction=0.25, test_fraction=0.25)
    assert sum(len(samples) for samples in mixed.values()) == 12
    with pytest.raises(ValueError, match="GNNBenchmarkDataset has a file a split, and all of them are read: leave the setting split out"):
        pyg_dataset(str(tmp_path), "GNNBenchmarkDataset", {"name": "MNIST", "split": "val"})
    with pytest.raises(ValueError, match="graphs of GNNBenchmarkDataset have one type; found 'paper'"):
        pyg_dataset(*mnist, target="paper")


def test_labels_of_molecules_written_as_numbers_are_classes(pyg, tmp_path):
    known = torch.tensor([0.0, 1.0] * 12)
    known[3] = torch.nan
    graphs = [Data(x=torch.ones(2, 2), edge_index=torch.tensor([[0], [1]]), y=y.view(1, 1)) for y in known]
    pyg.save(graphs, tmp_path / "bace" / "processed" / "data.pt")
    data = pyg_dataset(str(tmp_path), "MoleculeNet", {"name": "BACE"})
    rows = torch.cat([samples.columns["index"] for samples in data.values()])
    assert 3 not in rows
    assert len(rows) == 23
    assert data.info.classes == ("0", "1")
    assert data["train"][0]["label"] == int(known[data["train"][0]["index"]])


def test_nodes_of_many_graphs_are_samples_by_graph(pyg, tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        graphs = [pyg.toy(seed, nodes=6 + seed) for seed in range(count)]
        pyg.save(graphs, tmp_path / "PATTERN" / "processed" / f"{split}_data.pt")
    pattern = (str(tmp_path), "GNNBenchmarkDataset", {"name": "PATTERN"})
    data = pyg_dataset(*pattern)
    sample = data["train"][2]
    assert sample["nodes"].equal(torch.arange(8))
    assert sample["label"].equal(torch.arange(8) % 4)
    assert "y" not in sample["graph"]
    batch = data.collate([data["train"][0], data["train"][1]])
    assert batch["nodes"].tolist() == list(range(13))
    assert batch["graph"].num_graphs == 2
    with pytest.raises(DataError, match="labels of nodes in many graphs, which only its own files can divide: set split to own"):
        pyg_dataset(*pattern, split="stratified")


def test_a_heterogeneous_graph_comes_from_its_raw_tables(dblp):
    data = pyg_dataset(str(dblp), "DBLP")
    sample = data["test"][0]
    graph = sample["graph"]
    assert isinstance(graph, HeteroData)
    assert graph.target_type == "author"
    assert sample["nodes"].tolist() == [8, 9, 10, 11]
    assert sample["label"].tolist() == [0, 1, 2, 3]
    assert not any(key == "y" or key.endswith("_mask") for store in graph.stores for key in store)
    assert data.info.features == 6
    assert not (dblp / "processed").exists()
    written = meta_path_adjacency(graph, "APA").to_dense()
    papers = torch.bincount(graph["author", "paper"].edge_index[0], minlength=12)
    assert written.diag().equal(papers)


def test_raw_tables_give_the_graph_that_pyg_processes(dblp):
    ours = pyg_dataset(str(dblp), "DBLP")["train"][0]["graph"]
    theirs = torch_geometric.datasets.DBLP(str(dblp))[0]  # writes processed/
    again = pyg_dataset(str(dblp), "DBLP")["train"][0]["graph"]
    for graph in (ours, again):
        assert graph.node_types == theirs.node_types
        assert all(graph[kind].x.equal(theirs[kind].x) for kind in ("author", "paper", "term"))
        assert all(graph[kind].edge_index.equal(theirs[kind].edge_index) for kind in theirs.edge_types)


def hetero(**labels):
    graph = HeteroData()
    for kind in ("paper", "venue"):
        graph[kind].x = torch.ones(12, 2)
        if kind in labels:
            graph[kind].y = labels[kind]
    graph["paper", "to", "venue"].edge_index = torch.tensor([[0, 1], [1, 0]])
    return graph


def test_of_several_labelled_types_one_is_named(pyg, tmp_path):
    labels = torch.arange(12) % 2
    pyg.save([hetero(paper=labels, venue=1 - labels)], tmp_path / "processed" / "data.pt")
    with pytest.raises(DataError, match="IMDB has labels of paper, venue: name one as target"):
        pyg_dataset(str(tmp_path), "IMDB")
    data = pyg_dataset(str(tmp_path), "IMDB", target="venue", val_fraction=0.3, test_fraction=0.3)
    graph = data["train"][0]["graph"]
    assert graph.target_type == "venue"
    assert "y" not in graph["paper"]
    with pytest.raises(ValueError, match="target 'author' has no labels in IMDB; paper, venue has"):
        pyg_dataset(str(tmp_path), "IMDB", target="author")


def test_heterogeneous_graphs_that_do_not_fit_are_named(pyg, tmp_path):
    path = tmp_path / "processed" / "data.pt"
    for graphs, message in (
        ([hetero()], "IMDB has no labels"),
        ([hetero(paper=torch.zeros(5, dtype=torch.long))], "IMDB has 5 labels of 12 nodes of type paper"),
        ([hetero(paper=torch.zeros(12, dtype=torch.long))] * 2, "IMDB has 2 heterogeneous graphs; one is expected"),
    ):
        pyg.save(graphs, path)
        with pytest.raises(DataError, match=message):
            pyg_dataset(str(tmp_path), "IMDB")


def test_graphs_without_usable_labels_are_named(pyg, tmp_path):
    path = tmp_path / "processed" / "data.pt"
    bare = Data(x=torch.ones(3, 2), edge_index=torch.tensor([[0], [1]]))
    for graphs, message in (
        ([bare], "EmailEUCore has no labels"),
        ([Data(**bare.to_dict(), y=torch.zeros(2, dtype=torch.long))] * 2, "neither one label a graph nor one a node"),
        ([Data(**bare.to_dict(), y=torch.zeros(3, dtype=torch.long))] * 2, "only its own files can divide"),
    ):
        pyg.save(graphs, path)
        with pytest.raises(DataError, match=message):
            pyg_dataset(str(tmp_path), "EmailEUCore")


def test_own_splits_that_are_empty_are_named(pyg, tmp_path):
    pyg.save([pyg.toy(0, **pyg.masks(20, 0, 20))], tmp_path / "processed" / "data.pt")
    with pytest.raises(DataError, match="the data set's own splits leave val empty: set split to stratified"):
        pyg_dataset(str(tmp_path), "Actor")


def test_splits_that_pyg_would_draw_after_loading_are_not_pretended(cora):
    for split in ("full", "random"):
        with pytest.raises(ValueError, match=f"Planetoid draws its split '{split}' when it has loaded: set split to stratified"):
            pyg_dataset(str(cora), "Planetoid", {**CORA, "split": split})


def test_bad_parameters_are_named(cora, mutag):
    with pytest.raises(ValueError, match="fold must be 0 to 0, as there are 1 own splits; found 1"):
        pyg_dataset(str(cora), "Planetoid", CORA, fold=1)
    with pytest.raises(ValueError, match="train_per_class 5 divides nodes by class: set split to stratified"):
        pyg_dataset(str(cora), "Planetoid", CORA, train_per_class=5)
    with pytest.raises(ValueError, match="train_per_class 5 is of nodes; TUDataset has graphs to divide"):
        pyg_dataset(str(mutag), "TUDataset", {"name": "MUTAG"}, train_per_class=5)
    with pytest.raises(ValueError, match="split must be own or stratified; found 'public'"):
        pyg_dataset(str(cora), "Planetoid", CORA, split="public")
    with pytest.raises(ValueError, match="fold must be at least 0; found -1"):
        pyg_dataset(str(cora), "Planetoid", CORA, fold=-1)
