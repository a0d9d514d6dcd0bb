"""The objectives: head, batch norm, learning rates, memory, what they hand on, and training through the engine."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import graftwork as gw
from graftwork.interfaces import Backbone, Embedder, embed
from graftwork.training import OptimizerFactory, OptimizerSpec
from graftwork_multi_similarity import (
    Contrastive,
    EmbeddingHead,
    EmbeddingModel,
    MultiSimilarity,
    MultiSimilarityMiner,
    PairWeighting,
    multi_similarity_loss,
)

CLASSES, DIM = 4, 6


class Net(nn.Module):
    """A Backbone on tabular features, with batch norm."""

    inputs = ("features",)

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 16
        self.body = nn.Linear(DIM, 16)
        self.norm = nn.BatchNorm1d(16)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(self.body(x)).relu()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else x[:, :CLASSES]


class Embedding(nn.Module):
    """An Embedder."""

    inputs = ("features",)
    embedding_dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(DIM, 5)

    def embed(self, features: Tensor) -> Tensor:
        return self.layer(features)


def points(samples: int = 64, seed: int = 0) -> gw.Dataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % CLASSES
    centres = torch.randn(CLASSES, DIM, generator=generator)
    features = centres[labels] + 0.8 * torch.randn(samples, DIM, generator=generator)
    split = gw.TensorSamples(features=features, label=labels)
    return gw.Dataset({"train": split, "test": split})


def batch_of(data: gw.Dataset, count: int = 16) -> dict[str, Tensor]:
    return data["train"].__getitems__(list(range(count)))


def ready(objective, model=None):
    torch.manual_seed(0)
    model = model if model is not None else Net()
    objective.setup(model, points())
    return objective, model


def train(objective, model, data, steps: int = 5, **optimizer):
    settings = gw.TrainConfig(steps=steps, batch_size=16, optimizer={"use": "sgd", "lr": 0.1, **optimizer})
    engine = gw.Engine(model, objective, data, settings, device="cpu")
    return engine, engine.fit()


BOTH = [MultiSimilarity, PairWeighting]


@pytest.mark.parametrize("kind", BOTH)
def test_the_head_starts_kaiming_normal_by_fan_out_with_zero_bias(kind) -> None:
    objective, _ = ready(kind(embedding_dim=400), Backbone600())
    weight = objective.head.projection.weight
    assert weight.shape == (400, 600)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.02)
    assert not objective.head.projection.bias.any()


class Backbone600(Net):
    def __init__(self) -> None:
        super().__init__()
        self.num_features = 600


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_have_unit_length(dtype) -> None:
    embeddings = EmbeddingHead(16, 8).to(dtype)(torch.randn(4, 16, dtype=dtype))
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("kind", BOTH)
def test_a_model_that_embeds_gets_no_head_and_is_handed_on_as_it_is(kind) -> None:
    objective, model = ready(kind(), Embedding())
    assert objective.head is None
    assert objective.export(model) is model
    batch = batch_of(points())
    assert objective(model, {"train": batch}, 0.0).total > 0


@pytest.mark.parametrize("kind", BOTH)
def test_a_model_that_offers_neither_interface_is_refused(kind) -> None:
    with pytest.raises(gw.InterfaceError, match=f"{kind.__name__} needs a model that offers Backbone or Embedder; Linear offers neither"):
        kind().setup(nn.Linear(2, 2), points())


def test_what_is_handed_on_joins_backbone_and_head() -> None:
    objective, model = ready(MultiSimilarity(embedding_dim=7))
    exported = objective.export(model).eval()
    batch = batch_of(points())
    assert isinstance(exported, Embedder)
    assert isinstance(exported, Backbone)
    assert (exported.embedding_dim, exported.num_features, exported.inputs) == (7, 16, ("features",))
    expected = objective.head(embed(model.eval(), batch))
    assert torch.equal(embed(exported, batch), expected)
    assert torch.equal(exported(batch["features"]), expected)
    assert torch.equal(exported.forward_head(exported.forward_features(batch["features"])), expected)
    assert torch.equal(exported.forward_head(exported.forward_features(batch["features"]), pre_logits=True), embed(model, batch))
    again = EmbeddingModel(Net(), EmbeddingHead(16, 7)).eval()
    again.load_state_dict(exported.state_dict())
    assert torch.equal(embed(again, batch), expected)


def test_the_builtin_retrieval_measures_the_learned_embedding() -> None:
    data = points()
    _, exported = train(MultiSimilarity(embedding_dim=3), Net(), data)
    found = gw.evaluator("retrieval", query="test").evaluate(exported, data).metrics["recall@1"]
    embeddings = embed(exported, data["test"].__getitems__(range(64)))
    similarity = (embeddings @ embeddings.T).fill_diagonal_(-2)
    labels = data["test"].columns["label"]
    assert found == pytest.approx((labels[similarity.argmax(dim=1)] == labels).float().mean().item())


# -- batch norm and learning rates ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norm_keeps_its_statistics_while_frozen_and_trains_its_scale_all_the_same(kind, frozen) -> None:
    model = Net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(kind(embedding_dim=3, freeze_batch_norm=frozen), model, points())
    assert torch.equal(model.norm.running_mean, before["norm.running_mean"]) == frozen
    assert torch.equal(model.norm.running_var, before["norm.running_var"]) == frozen
    assert not torch.equal(model.norm.weight, before["norm.weight"])


def test_evaluating_changes_no_mode() -> None:
    objective, model = ready(MultiSimilarity(embedding_dim=3))
    objective.eval()
    model.train()
    objective(model, {"train": batch_of(points())}, 0.0)
    assert model.norm.training


def test_the_backbone_learns_at_its_own_rate() -> None:
    objective, model = ready(MultiSimilarity(embedding_dim=3, backbone_lr_mul=0.1))
    optimizer = objective.optimizers(model, OptimizerFactory(OptimizerSpec(use="sgd", lr=0.5)))
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert {rates[parameter] for parameter in model.parameters()} == {0.5 * 0.1}
    assert {rates[parameter] for parameter in objective.parameters()} == {0.5}


def test_a_models_own_groups_are_scaled_too() -> None:
    class Grouped(Net):
        def param_groups(self, lr: float):
            return [{"params": [*self.body.parameters()], "lr": lr / 2}, {"params": [*self.norm.parameters()], "weight_decay": 0.3}]

    objective, model = ready(PairWeighting(embedding_dim=3, backbone_lr_mul=0.1), Grouped())
    groups = objective.optimizers(model, OptimizerFactory(OptimizerSpec(use="sgd", lr=0.5))).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.025, 0.05, 0.5])
    assert groups[1]["weight_decay"] == 0.3


def test_backbone_and_head_move_in_proportion_to_their_rates() -> None:
    moved = {}
    for factor in (1.0, 0.1):
        torch.manual_seed(0)
        model = Net()
        before = model.body.weight.detach().clone()
        train(MultiSimilarity(embedding_dim=3, backbone_lr_mul=factor), model, points(), steps=1)
        moved[factor] = (model.body.weight.detach() - before).norm()
    assert (moved[0.1] / moved[1.0]).item() == pytest.approx(0.1, rel=1e-3)


def test_a_rate_for_the_backbone_of_a_model_that_has_none_is_refused() -> None:
    with pytest.raises(gw.InterfaceError, match="Embedding embeds by itself and gets no head: leave it at 1"):
        MultiSimilarity(backbone_lr_mul=0.1).setup(Embedding(), points())


# -- the losses behind them ----------------------------------------------------------------------------------------------------


def test_multi_similarity_is_the_function_on_the_heads_embeddings() -> None:
    objective, model = ready(MultiSimilarity(preset="paper", embedding_dim=3, alpha=1.5))
    batch = batch_of(points())
    loss = objective(model, {"train": batch}, 0.0)
    expected = multi_similarity_loss(objective.head(embed(model, batch)), batch["label"], alpha=1.5, beta=50, threshold=1.0)
    torch.testing.assert_close(loss.total, expected)
    assert set(loss.parts) == {
        "positives_kept",
        "negatives_kept",
        "anchors_skipped",
        "anchors_unpaired",
        "hardest_positive",
        "hardest_negative",
        "positive_weight",
        "negative_weight",
    }


def test_mining_can_be_turned_off() -> None:
    objective, model = ready(MultiSimilarity(mine=False, embedding_dim=3))
    batch = batch_of(points())
    loss = objective(model, {"train": batch}, 0.0)
    torch.testing.assert_close(loss.total, multi_similarity_loss(objective.head(embed(model, batch)), batch["label"], epsilon=None))
    assert loss.parts["positives_kept"] == loss.parts["negatives_kept"] == 1


def test_pair_weighting_with_miner_and_multi_similarity_is_the_method() -> None:
    one, model = ready(MultiSimilarity(embedding_dim=3))
    other, _ = ready(PairWeighting("multi-similarity", epsilon=0.1, embedding_dim=3), model)
    other.head.load_state_dict(one.head.state_dict())
    batch = batch_of(points())
    torch.testing.assert_close(*(objective(model, {"train": batch}, 0.0) for objective in (one, other)))


def test_the_miner_stands_before_any_loss() -> None:
    objective, _ = ready(PairWeighting("contrastive", epsilon=0.1), Embedding())
    embeddings, labels = torch.randn(12, 5), torch.arange(12) % 3
    from graftwork_multi_similarity import cosine_similarities, pair_masks

    similarity, pairs = cosine_similarities(embeddings), pair_masks(labels)
    expected = Contrastive().loss(similarity, *MultiSimilarityMiner(0.1)(similarity, *pairs))
    torch.testing.assert_close(objective.embedding_loss(embeddings, labels).total, expected)
    assert expected != Contrastive().loss(similarity, *pairs)


def test_a_function_is_trained_as_it_is() -> None:
    objective, _ = ready(PairWeighting(lambda s, p, n: (s * n).exp().sum(dim=1) - (s * p).sum(dim=1)), Embedding())
    embeddings = torch.randn(12, 5, requires_grad=True)
    objective.embedding_loss(embeddings, torch.arange(12) % 3).total.backward()
    assert embeddings.grad.abs().sum() > 0


def test_an_unsound_function_is_refused() -> None:
    objective, _ = ready(PairWeighting(lambda s, p, n: (s * p).sum(dim=1)), Embedding())
    with pytest.raises(ValueError, match="no sound pair loss"):
        objective.embedding_loss(torch.randn(12, 5), torch.arange(12) % 3)


@pytest.mark.parametrize("name", ["contrastive", "triplet", "lifted-structure", "binomial-deviance", "multi-similarity"])
def test_every_loss_trains_through_the_engine(name) -> None:
    data = points()
    torch.manual_seed(0)
    objective, model = PairWeighting(name, embedding_dim=3), Net()
    losses = []
    settings = gw.TrainConfig(steps=40, batch_size=16, optimizer={"use": "adam", "lr": 0.01}, log_every=10)
    gw.Engine(model, objective, data, settings, device="cpu", log=lambda step, row: losses.append(row["loss"])).fit()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", BOTH)
def test_labels_are_all_that_is_read_beside_the_models_inputs(kind) -> None:
    assert kind.keys == {"train": (gw.INPUTS, "label")}


# -- memory --------------------------------------------------------------------------------------------------------------------


def test_anchors_are_paired_with_the_memory_too() -> None:
    objective, _ = ready(MultiSimilarity(memory=20), Embedding())
    first, second, third = (torch.randn(12, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    labels = torch.arange(12) % 3
    torch.testing.assert_close(objective.embedding_loss(first, labels).total, multi_similarity_loss(first, labels))
    expected = multi_similarity_loss(second, labels, torch.cat([second, first]), labels.repeat(2), self_index=torch.arange(12))
    torch.testing.assert_close(objective.embedding_loss(second, labels).total, expected)
    expected = multi_similarity_loss(
        third, labels, torch.cat([third, second, first[:8]]), torch.cat([labels, labels, labels[:8]]), self_index=torch.arange(12)
    )
    torch.testing.assert_close(objective.embedding_loss(third, labels).total, expected)


def test_the_memory_is_part_of_the_state() -> None:
    objective, other = (ready(MultiSimilarity(memory=20), Embedding())[0] for _ in range(2))
    labels = torch.arange(12) % 3
    objective.embedding_loss(torch.randn(12, 5), labels)
    other.load_state_dict(objective.state_dict())
    last = torch.randn(12, 5)
    torch.testing.assert_close(*(one.embedding_loss(last, labels).total for one in (objective, other)))


def test_evaluation_leaves_the_memory_alone() -> None:
    objective, _ = ready(MultiSimilarity(memory=20), Embedding())
    objective.eval()
    objective.embedding_loss(torch.randn(12, 5), torch.arange(12) % 3)
    assert not objective.past_embeddings.any()


# -- bad input -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
def test_batches_without_one_kind_of_pair_are_refused_or_cost_nothing(kind) -> None:
    strict, lax = (ready(kind(allow_empty=allowed), Embedding())[0] for allowed in (False, True))
    for labels, side in ((torch.zeros(6, dtype=torch.long), "negative"), (torch.arange(6), "positive")):
        with pytest.raises(gw.DataError, match=f"no {side} pair"):
            strict.embedding_loss(torch.randn(6, 5), labels)
    embeddings = torch.randn(6, 5, requires_grad=True)
    lax.embedding_loss(embeddings, torch.arange(6)).total.backward()
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("kind", BOTH)
def test_broken_embeddings_and_labels_of_another_length_are_refused(kind) -> None:
    objective, _ = ready(kind(), Embedding())
    with pytest.raises(gw.DataError, match="not finite, first in row 0"):
        objective.embedding_loss(torch.full((4, 5), math.nan), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="embeddings and labels differ in length: 4 and 3"):
        objective.embedding_loss(torch.randn(4, 5), torch.tensor([0, 0, 1]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MultiSimilarity(preset="thesis"), 'preset is one of code, paper; found "thesis"'),
        (lambda: MultiSimilarity(alpha=-1.0), "alpha is a scale above 0"),
        (lambda: MultiSimilarity(memory=-1), "memory is a number of embeddings"),
        (lambda: MultiSimilarity(block_rows=0), "block_rows is at least 1"),
        (lambda: MultiSimilarity(mine=False, epsilon=0.2), "mine: false turns off"),
        (lambda: MultiSimilarity(embedding_dim=0), "embedding_dim is at least 1"),
        (lambda: PairWeighting(backbone_lr_mul=0.0), "backbone_lr_mul is above 0"),
        (lambda: PairWeighting("triplet", parameters={"alpha": 1.0}), 'triplet takes no "alpha"'),
    ],
)
def test_parameters_out_of_range_are_refused(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_pipelines_name_what_is_wrong() -> None:
    with pytest.raises(gw.ConfigError, match="beta: input should be greater than 0"):
        gw.objective("multi-similarity", beta=-1)
    with pytest.raises(gw.ConfigError, match="loss: input should be 'contrastive'"):
        gw.objective("pair-weighting", loss="tripplet")


def test_balanced_batches_of_one_instance_are_refused() -> None:
    with pytest.raises((gw.ConfigError, ValueError), match="needs at least 2 instances per class"):
        gw.dataset("class-balanced-batches", data=points(), classes=4, instances=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", BOTH)
def test_a_gpu_gives_the_same_loss(kind) -> None:
    objective, model = ready(kind(embedding_dim=3))
    batch = batch_of(points())
    expected = objective(model, {"train": batch}, 0.0).total
    found = objective.cuda()(model.cuda(), {"train": {key: value.cuda() for key, value in batch.items()}}, 0.0).total
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
