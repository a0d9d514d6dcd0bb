"""The analysis of pair losses: what each reacts to, found by moving similarities, and the report."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import graftwork as gw
from graftwork_multi_similarity import (
    BinomialDeviance,
    Contrastive,
    LiftedStructure,
    MultiSimilarityMiner,
    MultiSimilarityPairs,
    PairWeights,
    Triplet,
    Weighting,
    pair_masks,
    reactions,
)
from graftwork_multi_similarity.analysis import weight_curve
from graftwork_multi_similarity.evaluator import balanced_batch


class Embedding(nn.Module):
    inputs = ("features",)
    embedding_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(6, 4), nn.Dropout(0.5)

    def embed(self, features: Tensor) -> Tensor:
        return self.drop(self.layer(features))


def points(samples: int = 90, classes: int = 6) -> gw.Dataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % classes
    features = torch.randn(classes, 6, generator=generator)[labels] + 0.5 * torch.randn(samples, 6, generator=generator)
    return gw.Dataset({"test": gw.TensorSamples(features=features, label=labels)})


@pytest.fixture(scope="module")
def report() -> gw.Report:
    torch.manual_seed(0)
    return PairWeights().evaluate(Embedding(), points())


def similarities() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeddings = nn.functional.normalize(torch.randn(24, 5, generator=generator, dtype=torch.float64), dim=1)
    return embeddings @ embeddings.T, *pair_masks(torch.arange(24) % 4)


@pytest.mark.parametrize(
    ("weighting", "reacts"),
    [
        (Weighting(Contrastive()), {"S"}),
        (Weighting(BinomialDeviance()), {"S"}),
        (Weighting(Triplet()), {"P"}),
        (Weighting(LiftedStructure()), {"N"}),
        (Weighting(MultiSimilarityPairs()), {"S", "N"}),
        (Weighting(MultiSimilarityPairs(), MultiSimilarityMiner(0.1)), {"S", "N", "P"}),
        (Weighting(Contrastive(), MultiSimilarityMiner(0.1)), {"S", "P"}),
    ],
)
def test_weights_of_negatives_react_to_what_the_paper_says_of_each_loss(weighting, reacts) -> None:
    found = reactions(weighting, *similarities())
    assert {one.probe for one in found if one.side == "negative" and one.probe != "own" and one.reacts} == reacts


def test_a_loss_that_nobody_has_seen_is_told_by_moving_similarities() -> None:
    def ranked(similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Pushes negatives in proportion to the anchor's nearest positive."""
        nearest = similarity.masked_fill(~positive, -1).amax(dim=1, keepdim=True).detach()
        return ((similarity * (1 + nearest)).masked_fill(~negative, 0)).sum(dim=1)

    weighting = Weighting(gw_function(ranked))
    found = {one.probe: one.reacts for one in reactions(weighting, *similarities()) if one.side == "negative"}
    assert found == {"own": False, "S": True, "N": False, "P": True}


def gw_function(function):
    from graftwork_multi_similarity import FunctionPairLoss

    return FunctionPairLoss(function)


def test_a_curve_is_the_weight_with_the_neighbours_as_they_are() -> None:
    similarity, positive, negative = similarities()
    weighting = Weighting(MultiSimilarityPairs())
    column = int(negative[0].nonzero()[0])
    grid = torch.tensor([-1.0, similarity[0, column].item(), 1.0], dtype=torch.float64)
    curve = weight_curve(weighting, similarity[0], positive[0], negative[0], column, grid)
    assert curve[1] == weighting(similarity, positive, negative)[1][0, column]
    assert curve[0] < curve[1] < curve[2]


def test_metrics_table_and_figure_cover_every_loss(report) -> None:
    names = ["contrastive", "triplet", "lifted-structure", "binomial-deviance", "multi-similarity"]
    keys = ["weighted_positives", "weighted_negatives", "S", "N", "P"]
    assert set(report.metrics) == {f"{name}/{key}" for name in names for key in keys}
    assert [row[0] for row in report.tables["reactions"].rows[::2]] == names
    told = {row[0]: row[-1] for row in report.tables["reactions"].rows if row[1] == "negative"}
    assert told["multi-similarity"] == "S N P"
    axes = report.figures["pair-weights"].figure.axes
    assert len(axes) == 10
    assert all(axis.lines and axis.collections for axis in axes)


def test_the_table_averages_the_weights_of_each_bin(report) -> None:
    artifact = report.artifacts["binomial-deviance"]
    similarity, negative = artifact.tensors["similarity"], artifact.tensors["negative"]
    table = report.tables["weights"]
    row = table.rows[5]
    assert row[0] == "0.0 to 0.2"
    inside = negative & (similarity > 0) & (similarity <= 0.2)
    assert row[table.columns.index("negatives")] == inside.sum()
    expected = artifact.tensors["negative_weights"][inside].mean().item()
    assert row[table.columns.index("binomial-deviance w-")] == pytest.approx(expected, abs=1e-4)
    assert sum(row[table.columns.index("negatives")] for row in table.rows) == negative.sum()


def test_artifacts_hold_both_weight_matrices_with_their_pairs(report) -> None:
    for name, weighting in PairWeights().weightings.items():
        tensors = report.artifacts[name].tensors
        expected = weighting(tensors["similarity"], tensors["positive"], tensors["negative"])
        torch.testing.assert_close((tensors["positive_weights"], tensors["negative_weights"]), expected)
        assert tensors["positive_weights"].shape == (40, 40)


def test_the_model_is_left_as_it_was() -> None:
    model = Embedding()
    PairWeights(losses=["contrastive"]).evaluate(model, points())
    assert model.training
    assert model.drop.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_batch_holds_the_first_instances_of_each_class() -> None:
    data = points()
    model = Embedding().eval()
    embeddings, labels = balanced_batch(model, data, "test", classes=3, instances=4)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    expected = model.embed(data["test"].columns["features"][[0, 6, 12, 18]])
    torch.testing.assert_close(embeddings[:4], expected)


def test_a_split_with_too_few_samples_of_a_class_is_refused() -> None:
    with pytest.raises(gw.DataError, match='5 classes with 20 samples each were asked for; split "test" has 0 such classes'):
        PairWeights(instances=20).evaluate(Embedding(), points())


def test_a_model_that_embeds_to_nan_is_refused() -> None:
    model = Embedding()
    nn.init.constant_(model.layer.bias, torch.nan)
    with pytest.raises(gw.DataError, match="embeddings are not finite"):
        PairWeights().evaluate(model, points())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": []}, "losses names at least one pair loss"),
        ({"instances": 1}, "at least 2 classes and 2 instances of each; found 5 and 1"),
        ({"losses": ["triplet"], "parameters": {"contrastive": {}}}, "parameters are given for contrastive, which losses leaves out"),
        ({"parameters": {"triplet": {"beta": 1.0}}}, 'triplet takes no "beta"'),
    ],
)
def test_parameters_out_of_range_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        PairWeights(**options)


def test_parameters_reach_their_loss() -> None:
    assert PairWeights(parameters={"triplet": {"margin": 0.3}}).weightings["triplet"].loss == Triplet(0.3)
    assert PairWeights(epsilon=None).weightings["multi-similarity"].miner is None
