"""That graphs go through graftwork's own engine, objective and evaluator."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCNConv, global_mean_pool

import graftwork as gw
from graftwork_testbed.graphs import graphon, karate


class NodeClassifier(nn.Module):
    """Two graph convolutions over the whole graph; logits of the nodes asked for."""

    inputs = ("graph", "nodes")

    def __init__(self, width, classes):
        super().__init__()
        self.first, self.second = GCNConv(width, 16), GCNConv(16, classes)

    def forward(self, graph, nodes):
        return self.second(self.first(graph.x, graph.edge_index).relu(), graph.edge_index)[nodes]


class GraphClassifier(nn.Module):
    """One graph convolution and the mean over each graph of a batch."""

    inputs = ("graph",)

    def __init__(self, width, classes):
        super().__init__()
        self.first, self.head = GCNConv(width, 16), nn.Linear(16, classes)

    def forward(self, graph):
        return self.head(global_mean_pool(self.first(graph.x, graph.edge_index).relu(), graph.batch))


def trained(model, data, epochs):
    train = gw.TrainConfig(epochs=epochs, batch_size=16, optimizer={"use": "adam", "lr": 0.02})
    gw.Engine(model, gw.objective("cross-entropy"), data, train, device="cpu").fit()
    return {split: gw.evaluator("accuracy", split=split).evaluate(model, data, None).metrics["accuracy"] for split in data}


def test_nodes_of_a_graph_are_learnt_and_told():
    torch.manual_seed(0)
    data = karate(train_per_class=4)
    accuracy = trained(NodeClassifier(data.info.features, 2), data, 60)
    assert accuracy["train"] == 1
    assert accuracy["test"] > 0.8


def test_graphs_are_learnt_and_told():
    torch.manual_seed(0)
    data = graphon(["product", "proximity"], graphs_per_class=30)
    assert trained(GraphClassifier(data.info.features, 2), data, 20)["test"] > 0.9


def test_a_method_cannot_see_labels_of_other_splits():
    """Predictions are the same whatever the labels of val and test: nothing but the training labels reaches the model."""

    def predictions(data):
        torch.manual_seed(0)
        model = NodeClassifier(data.info.features, 2)
        trained(model, data, 3)
        return model(data["test"][0]["graph"], torch.arange(34))

    honest, altered = karate(), karate()
    for split in ("val", "test"):
        columns = altered[split].columns
        columns["label"] = [1 - columns["label"][0]]
    assert predictions(honest).equal(predictions(altered))
    columns = altered["train"].columns
    columns["label"] = [1 - columns["label"][0]]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(predictions(honest), predictions(altered))
