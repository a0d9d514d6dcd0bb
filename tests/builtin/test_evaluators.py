"""Evaluators against scikit-learn, torchmetrics and plain loops."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork.builtin import evaluators
from graftwork.builtin.evaluators import (
    Accuracy,
    KNNProbe,
    LinearProbe,
    RegressionError,
    Retrieval,
    knn_vote,
    logistic_regression,
    retrieval_scores,
)


class Features(nn.Module):
    """Hands its input on as features and, through a fixed matrix, as logits."""

    inputs = ("features",)

    def __init__(self, width: int, outputs: int = 5):
        super().__init__()
        self.num_features = width
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(width, outputs)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(outputs, width))
            self.head.bias.zero_()

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def samples(count: int, width: int = 6, classes: int = 5, seed: int = 0, spread: float = 1.0) -> gw.TensorSamples:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (count,), generator=generator)
    features = nn.functional.one_hot(label, width) + spread * torch.randn(count, width, generator=generator)
    return gw.TensorSamples(features=features, label=label)


def dataset(**settings: float) -> gw.Dataset:
    return gw.Dataset({"train": samples(150, seed=1, **settings), "test": samples(90, seed=2, **settings)})


# -- accuracy -----------------------------------------------------------------------------------------------------------------


def test_accuracy_equals_torchmetrics_and_the_table_adds_up() -> None:
    functional = pytest.importorskip("torchmetrics.functional")
    data, model = dataset(), Features(6)
    report = Accuracy(top_k=2).evaluate(model, data)
    logits, label = data["test"].columns["features"][:, :5], data["test"].columns["label"]
    settings = {"task": "multiclass", "num_classes": 5}
    assert report.metrics["accuracy"] == pytest.approx(functional.accuracy(logits, label, **settings, average="micro").item())
    assert report.metrics["macro-accuracy"] == pytest.approx(functional.accuracy(logits, label, **settings, average="macro").item())
    top = functional.accuracy(logits, label, **settings, average="micro", top_k=2).item()
    assert report.metrics["top-2-accuracy"] == pytest.approx(top)
    rows = report.tables["classes"].rows
    assert [row[1] for row in rows] == torch.bincount(label, minlength=5).tolist()
    assert sum(row[1] * row[2] for row in rows) / 90 == pytest.approx(report.metrics["accuracy"])


def test_accuracy_leaves_the_model_in_training_mode_and_measures_without_dropout() -> None:
    model, data = Features(6).train(), dataset()
    model.head.eval()
    first, second = (Accuracy().evaluate(model, data).metrics for _ in range(2))
    assert first == second
    assert model.training
    assert model.drop.training
    assert not model.head.training


def test_a_class_without_samples_has_no_accuracy_and_does_not_count() -> None:
    data = gw.Dataset({"test": gw.TensorSamples(features=torch.eye(5)[[0, 0, 1, 1]], label=torch.tensor([0, 0, 1, 2]))})
    report = Accuracy().evaluate(Features(5), data)
    assert report.metrics == pytest.approx({"accuracy": 0.75, "macro-accuracy": 2 / 3})  # classes 0, 1, 2: 1, 1, 0
    assert [row[2] for row in report.tables["classes"].rows] == [1.0, 1.0, 0.0, None, None]


def test_the_table_names_the_classes_and_the_figure_shows_them() -> None:
    data = gw.Dataset(dict(dataset()), gw.DatasetInfo(classes=("ant", "bee", "cat", "dog", "elk")))
    report = Accuracy(limit=30).evaluate(Features(6), data)
    assert [row[0] for row in report.tables["classes"].rows] == ["ant", "bee", "cat", "dog", "elk"]
    assert sum(row[1] for row in report.tables["classes"].rows) == 30
    axes = report.figures["confusion"].figure.axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["ant", "bee", "cat", "dog", "elk"]


def test_accuracy_names_what_does_not_fit() -> None:
    data = gw.Dataset({"test": gw.TensorSamples(features=torch.zeros(2, 6), label=torch.tensor([0, 7]))})
    with pytest.raises(gw.DataError, match='split "test" has labels 0 to 7, but the model has 5 outputs'):
        Accuracy().evaluate(Features(6), data)
    with pytest.raises(gw.DataError, match="top_k is 6, but the model has 5 outputs"):
        Accuracy(top_k=6).evaluate(Features(6), data)
    empty = gw.Dataset({"test": gw.TensorSamples(features=torch.zeros(0, 6), label=torch.zeros(0).long())})
    with pytest.raises(gw.DataError, match='split "test" is empty'):
        Accuracy().evaluate(Features(6), empty)


# -- regression ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_errors_equal_scikit_learn(outputs: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    features, noise = torch.randn(40, 4), torch.randn(40, outputs)
    model = Features(4, outputs)
    target = features[:, :outputs] + 0.3 * noise
    data = gw.Dataset({"test": gw.TensorSamples(features=features, target=target[:, 0] if outputs == 1 else target)})
    found = RegressionError().evaluate(model, data).metrics
    truth, guess = target.numpy(), features[:, :outputs].numpy()
    expected = {
        "rmse": math.sqrt(metrics.mean_squared_error(truth, guess)),
        "mae": metrics.mean_absolute_error(truth, guess),
        "r2": metrics.r2_score(truth, guess),
    }
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_regression_needs_two_samples() -> None:
    data = gw.Dataset({"test": gw.TensorSamples(features=torch.zeros(1, 4), target=torch.zeros(1))})
    with pytest.raises(gw.DataError, match='split "test" has one sample: R2 needs two'):
        RegressionError().evaluate(Features(4, 1), data)


# -- retrieval ----------------------------------------------------------------------------------------------------------------


def by_loop(queries, labels, gallery, gallery_labels, alone: bool, ks: tuple[int, ...]) -> dict[str, float]:
    """Recall@K, mAP and MAP@R, one query and one rank at a time."""
    queries, gallery = (x / numpy.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery))
    recalls, average, at_r = {k: [] for k in ks}, [], []
    for i, query in enumerate(queries):
        ranked = sorted((j for j in range(len(gallery)) if not (alone and j == i)), key=lambda j: -float(query @ gallery[j]))
        relevant = [gallery_labels[j] == labels[i] for j in ranked]
        if not any(relevant):
            continue
        precisions = [sum(relevant[: r + 1]) / (r + 1) for r in range(len(ranked))]
        average.append(sum(p for p, hit in zip(precisions, relevant, strict=True) if hit) / sum(relevant))
        at_r.append(sum(p for p, hit in list(zip(precisions, relevant, strict=True))[: sum(relevant)] if hit) / sum(relevant))
        for k in ks:
            recalls[k].append(any(relevant[:k]))
    return {**{f"recall@{k}": numpy.mean(hits) for k, hits in recalls.items()}, "map": numpy.mean(average), "map@r": numpy.mean(at_r)}


@pytest.mark.parametrize("chunk", [2**22, 200])
@pytest.mark.parametrize("gallery", [None, "train"])
def test_retrieval_equals_a_loop_over_queries(gallery: str | None, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluators, "CHUNK", chunk)
    data = dataset(spread=1.5)
    found = Retrieval(gallery=gallery, recall_at=[1, 2, 7]).evaluate(Features(6), data).metrics
    query, searched = data["test"].columns, data[gallery or "test"].columns
    arrays = [x.double().numpy() for x in (query["features"], query["label"], searched["features"], searched["label"])]
    assert found == pytest.approx(by_loop(*arrays, gallery is None, (1, 2, 7)), abs=1e-6)
    assert 0.2 < found["recall@1"] < 0.9  # neither trivial nor hopeless


def test_map_at_r_equals_pytorch_metric_learning() -> None:
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    try:
        reference = calculator.AccuracyCalculator(
            include=("mean_average_precision_at_r", "precision_at_1"), k="max_bin_count", knn_func=calculator_knn()
        )
    except ImportError as missing:
        pytest.skip(str(missing))
    rows = dataset(spread=1.5)["test"].columns
    features = nn.functional.normalize(rows["features"], dim=1)
    expected = reference.get_accuracy(features, rows["label"])
    ahead, _, at_r = retrieval_scores(rows["features"], rows["label"])
    assert at_r.mean().item() == pytest.approx(expected["mean_average_precision_at_r"], abs=1e-6)
    assert (ahead < 1).float().mean().item() == pytest.approx(expected["precision_at_1"], abs=1e-6)


def calculator_knn():
    inference = pytest.importorskip("pytorch_metric_learning.utils.inference")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    return inference.CustomKNN(distances.CosineSimilarity())


def test_four_unit_vectors_by_hand() -> None:
    angles = torch.deg2rad(torch.tensor([0.0, 30.0, 45.0, 120.0]))
    queries, labels = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0, 0, 1, 1])
    ahead, ap, at_r = retrieval_scores(queries, labels)
    assert ahead.tolist() == [0, 1, 2, 0]  # nearest first: 0 -> 1 2 3; 1 -> 2 0 3; 2 -> 1 0 3; 3 -> 2 1 0
    assert ap.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1])
    assert at_r.tolist() == [1, 0, 0, 1]


def test_a_negative_that_ties_with_the_best_positive_is_not_ahead_of_it() -> None:
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    ahead, _, _ = retrieval_scores(queries, torch.tensor([0, 1, 0]))
    assert ahead[0] == 0


def test_queries_without_a_positive_are_left_out_and_counted() -> None:
    data = gw.Dataset({"test": gw.TensorSamples(features=torch.eye(6)[[0, 0, 3]], label=torch.tensor([0, 0, 1]))})
    report = Retrieval(recall_at=[1]).evaluate(Features(6), data)
    assert report.metrics == {"recall@1": 1.0, "map": 1.0, "map@r": 1.0}
    assert report.tables["queries"].rows == [[3, 1, 3]]
    alone = gw.Dataset({"test": gw.TensorSamples(features=torch.eye(6)[:3], label=torch.arange(3))})
    with pytest.raises(gw.DataError, match='no sample of "test" has another of its class in "test"'):
        Retrieval().evaluate(Features(6), alone)


# -- linear probe -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_logistic_regression_equals_scikit_learn(strength: float) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    rows = samples(200, spread=0.7).columns
    reference = linear.LogisticRegression(C=strength, max_iter=10_000, tol=1e-10).fit(rows["features"].double().numpy(), rows["label"])
    weights, intercepts = logistic_regression(rows["features"], rows["label"], strength)
    assert weights.numpy() == pytest.approx(reference.coef_, abs=2e-3 * abs(reference.coef_).max())
    assert (intercepts - intercepts.mean()).numpy() == pytest.approx(reference.intercept_ - reference.intercept_.mean(), abs=2e-3)


@pytest.mark.parametrize("standardize", [False, True])
def test_the_linear_probe_scores_as_a_scikit_learn_pipeline(standardize: bool) -> None:
    linear, preprocessing = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.preprocessing")
    data = dataset(spread=0.8)
    for split in data.values():
        split.columns["features"] *= torch.tensor([1.0, 20.0, 0.1, 1.0, 5.0, 0.0])  # the last is constant
    train, test = ({key: column.double().numpy() for key, column in data[split].columns.items()} for split in ("train", "test"))
    scale = preprocessing.StandardScaler(with_mean=standardize, with_std=standardize).fit(train["features"])
    reference = linear.LogisticRegression(C=0.5, max_iter=10_000, tol=1e-8).fit(scale.transform(train["features"]), train["label"])
    found = LinearProbe(strength=0.5, standardize=standardize).evaluate(Features(6).train(), data).metrics
    assert found["linear-probe-accuracy"] == pytest.approx(reference.score(scale.transform(test["features"]), test["label"]))
    assert found["linear-probe-train-accuracy"] == pytest.approx(reference.score(scale.transform(train["features"]), train["label"]))


def test_labels_need_not_be_contiguous_in_the_training_split() -> None:
    rows = dataset(spread=0.1)
    data = gw.Dataset({name: gw.TensorSamples(features=s.columns["features"], label=10 * s.columns["label"]) for name, s in rows.items()})
    assert LinearProbe().evaluate(Features(6), data).metrics["linear-probe-accuracy"] > 0.95


def test_a_linear_probe_needs_two_classes_and_finite_features() -> None:
    one = gw.TensorSamples(features=torch.randn(4, 6), label=torch.zeros(4).long())
    with pytest.raises(gw.DataError, match='split "train" has one class only: a linear probe needs two'):
        LinearProbe().evaluate(Features(6), gw.Dataset({"train": one, "test": one}))
    broken = gw.TensorSamples(features=torch.full((4, 6), torch.nan), label=torch.arange(4))
    with pytest.raises(gw.DataError, match='Features gives features that are not finite on split "train"'):
        LinearProbe().evaluate(Features(6), gw.Dataset({"train": broken, "test": broken}))


# -- nearest neighbours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [None, 0.07])
def test_the_vote_equals_scikit_learn(temperature: float | None) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    data = dataset(spread=1.2)
    train, test = (data[split].columns for split in ("train", "test"))

    def weigh(distance):
        return numpy.exp((1 - distance) / temperature)

    classifier = neighbors.KNeighborsClassifier(9, metric="cosine", weights=weigh if temperature else "uniform")
    expected = classifier.fit(train["features"].double().numpy(), train["label"]).predict(test["features"].double().numpy())
    assert knn_vote(test["features"], train["features"], train["label"], 9, temperature).tolist() == expected.tolist()
    accuracy = KNNProbe(k=9, temperature=temperature).evaluate(Features(6), data).metrics["knn-accuracy"]
    assert accuracy == pytest.approx((expected == test["label"].numpy()).mean())


def test_a_small_temperature_does_not_overflow() -> None:
    rows = samples(50).columns
    assert torch.equal(knn_vote(rows["features"], rows["features"], rows["label"], 5, 1e-3), rows["label"])  # itself is nearest


def test_more_neighbours_than_samples_are_refused() -> None:
    with pytest.raises(gw.DataError, match='k is 200, but split "train" has 150 samples'):
        KNNProbe(k=200).evaluate(Features(6), dataset())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("evaluator", [Accuracy(), Retrieval(), LinearProbe(), KNNProbe()], ids=lambda e: type(e).__name__)
def test_evaluators_measure_the_same_on_a_gpu(evaluator: gw.Evaluator) -> None:
    data = dataset()
    on_cpu, on_gpu = (evaluator.evaluate(Features(6).to(device), data).metrics for device in ("cpu", "cuda"))
    assert on_gpu == pytest.approx(on_cpu, abs=1e-4)
