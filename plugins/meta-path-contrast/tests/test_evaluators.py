"""The probe, the clustering scores, and the analysis of weights: against scikit-learn, a plain loop, and cases with known answers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork_meta_path_contrast import NegativeWeightAnalysis, NodeClassificationProbe, NodeClustering, NodeFeatures, logistic_probe

CLASSES = 3


def nodes(count: int, noise: float = 1.0, seed: int = 0):
    labels = torch.arange(count) % CLASSES
    return 2 * torch.eye(CLASSES, 5)[labels] + noise * torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)), labels


def test_all_runs_at_once_are_each_run_alone_and_count_at_their_best_validation_step() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    train, val, test = nodes(12), nodes(30, seed=1), nodes(60, seed=2)
    found = logistic_probe(train, val, test, CLASSES, runs=3, steps=25, lr=0.05, weight_decay=0.01, seed=4)
    generator = torch.Generator().manual_seed(4)
    starts = (2 * torch.rand(3, CLASSES, 5, generator=generator) - 1) * (6 / 8) ** 0.5
    for run, start in enumerate(starts):
        layer = nn.Linear(5, CLASSES)
        layer.weight.data, layer.bias.data = start.clone(), torch.zeros(CLASSES)
        solver = torch.optim.Adam(layer.parameters(), lr=0.05, weight_decay=0.01)
        rows = []
        for _ in range(25):
            solver.zero_grad()
            nn.functional.cross_entropy(layer(train[0]), train[1]).backward()
            solver.step()
            guesses, tested = layer(val[0]).argmax(1), layer(test[0]).detach()
            rows.append(
                (
                    metrics.f1_score(val[1], guesses, average="macro"),
                    metrics.f1_score(val[1], guesses, average="micro"),
                    metrics.f1_score(test[1], tested.argmax(1), average="macro"),
                    metrics.f1_score(test[1], tested.argmax(1), average="micro"),
                    metrics.roc_auc_score(test[1], tested.softmax(1), multi_class="ovr"),
                )
            )
        macro, micro = (max(range(25), key=lambda step, place=place: rows[step][place]) for place in (0, 1))
        assert found.macro_f1[run].item() == pytest.approx(rows[macro][2], abs=1e-5)
        assert found.micro_f1[run].item() == pytest.approx(rows[micro][3], abs=1e-5)
        assert found.auc[run].item() == pytest.approx(rows[micro][4], abs=1e-4)


def test_the_probe_reads_labelled_nodes_and_leaves_the_global_stream_alone(small) -> None:
    before = torch.get_rng_state()
    report = NodeClassificationProbe(runs=2, steps=30, lr=0.1).evaluate(NodeFeatures(), small)
    assert torch.equal(torch.get_rng_state(), before)
    assert set(report.metrics) == {"macro-f1", "micro-f1", "auc"}
    assert report.metrics["micro-f1"] > 1 / CLASSES
    assert "train 9" in report.tables["probe"].caption


def test_a_class_that_neither_occurs_nor_is_guessed_does_not_count() -> None:
    part = nodes(12)
    wide = logistic_probe(part, part, part, CLASSES + 2, runs=1, steps=60, lr=0.3)
    assert wide.macro_f1.item() == pytest.approx(1.0, abs=0.2)
    assert wide.auc.item() > 0.9


def test_clusters_that_are_the_classes_score_one(small) -> None:
    class Oracle(NodeFeatures):
        def embed(self, views, nodes=None):
            return torch.eye(3)[torch.arange(24) % 3][nodes]

    report = NodeClustering(runs=2, restarts=3).evaluate(Oracle(), small)
    assert report.metrics == pytest.approx({"nmi": 1.0, "ari": 1.0})
    assert report.figures["embeddings"].figure.axes


def test_nmi_and_ari_are_scikit_learns(small) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    from graftwork_meta_path_contrast import k_means
    from graftwork_meta_path_contrast.probe import embedded

    evaluator = NodeClustering(splits=["test"], runs=1, restarts=2, iterations=20, seed=3)
    ((x, labels),) = embedded(NodeFeatures(), small, ["test"])
    found = k_means(x, 3, "euclidean", 20, 2, 3).assignments
    report = evaluator.evaluate(NodeFeatures(), small)
    assert report.metrics["nmi"] == pytest.approx(metrics.normalized_mutual_info_score(labels, found), abs=1e-5)
    assert report.metrics["ari"] == pytest.approx(metrics.adjusted_rand_score(labels, found), abs=1e-5)


class Weighing(nn.Module):
    """Weights as a function of whether two nodes are of one class."""

    def __init__(self, same: float, different: float):
        super().__init__()
        self.same, self.different = same, different

    def negative_weights(self, views, nodes):
        return torch.where((nodes % 3)[:, None] == nodes % 3, self.same, self.different)


@pytest.mark.parametrize(("same", "different", "auc"), [(0.2, 0.8, 1.0), (0.8, 0.2, 0.0), (0.5, 0.5, 0.5)])
def test_the_auc_says_how_often_a_false_negative_weighs_less(small, same, different, auc) -> None:
    report = NegativeWeightAnalysis().evaluate(Weighing(same, different), small)
    assert report.metrics["same-class-weight"] == pytest.approx(same)
    assert report.metrics["different-class-weight"] == pytest.approx(different)
    assert report.metrics["false-negative-auc"] == pytest.approx(auc)
    assert report.metrics["collapsed"] == 0
    assert report.figures["weights"].figure.axes


def test_weights_that_all_but_vanish_have_collapsed(small) -> None:
    assert NegativeWeightAnalysis().evaluate(Weighing(0.001, 0.002), small).metrics["collapsed"] == 1


def test_only_as_many_nodes_as_asked_for_are_paired(small) -> None:
    table = NegativeWeightAnalysis(limit=6).evaluate(Weighing(0.0, 1.0), small).tables["weights"]
    assert sum(row[1] for row in table.rows) == 6 * 5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NodeClassificationProbe(runs=0), "runs must be at least 1; found 0"),
        (lambda: NodeClassificationProbe(lr=0), "lr must be positive"),
        (lambda: NodeClustering(splits=[]), "at least one split"),
        (lambda: NodeClustering(restarts=0), "restarts must be at least 1; found 0"),
        (lambda: NegativeWeightAnalysis(limit=1), "limit must be at least 2; found 1"),
    ],
)
def test_bad_settings_are_refused(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_embeddings_that_are_not_finite_or_not_one_a_label_are_refused(small) -> None:
    class Broken(NodeFeatures):
        def embed(self, views, nodes=None):
            return torch.full((len(nodes), 2), torch.nan)

    class Whole(NodeFeatures):
        inputs = ("views",)

    with pytest.raises(gw.DataError, match='Broken gives embeddings that are not finite on split "train"'):
        NodeClassificationProbe().evaluate(Broken(), small)
    with pytest.raises(gw.DataError, match='Whole gives 24 embeddings for the 9 labels of split "train"'):
        NodeClassificationProbe().evaluate(Whole(), small)
    with pytest.raises(gw.DataError, match="labels 0 to 2; labels of 2 classes, 0 to 1, are expected"):
        logistic_probe(nodes(6), nodes(6), nodes(6), 2)
