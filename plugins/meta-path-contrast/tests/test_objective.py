"""The objectives: what they feed on, their sums, ablations, state, stopping, and training through the engine."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork_meta_path_contrast import (
    AdaMeow,
    ContrastedEncoder,
    Meow,
    PrototypeContrast,
    cluster_all,
    cluster_pair_weights,
    prototype_loss,
    weighted_info_nce,
)

CLUSTERS = [3, 6]


@pytest.fixture
def ready(encoder_for, small):
    """Sets an objective up: gives its encoder in eval mode, and a batch."""

    def set_up(objective, seed: int = 0):
        model = encoder_for(small["train"][0]["views"], seed).eval()
        torch.manual_seed(seed)
        objective.setup(model, small)
        return model, {"train": {"views": small["train"][0]["views"]}}

    return set_up


@pytest.fixture
def train(encoder_for, small):
    """Trains an encoder: gives what the objective hands on, and the rows that were logged."""

    def trained(objective, steps: int = 6, precision: str | None = None):
        rows = []
        settings = gw.TrainConfig(steps=steps, optimizer={"use": "adam", "lr": 1e-2}, log_every=1, precision=precision)
        model = encoder_for(small["train"][0]["views"])
        engine = gw.Engine(model, objective, small, settings, device="cpu", log=lambda step, row: rows.append(row))
        return engine.fit(), rows

    return trained


def test_meow_anchors_coarse_views_and_clusters_the_projected_fine_ones(ready) -> None:
    objective = Meow(clusters=CLUSTERS, prototype_weight=0.5)
    model, batches = ready(objective)
    coarse, fine = (objective.projection(z) for z in model.encode_views(batches["train"]["views"]))
    found = cluster_all(fine, CLUSTERS)
    info = weighted_info_nce(coarse, fine, cluster_pair_weights([one.assignments for one in found]), 0.4).loss
    prototype = prototype_loss(coarse, found, 0.4)
    loss = objective(model, batches, 0.0)
    torch.testing.assert_close(loss.total, info + 0.5 * prototype)
    torch.testing.assert_close(loss.parts["prototype"], prototype)


def test_adameow_anchors_fine_views(ready) -> None:
    objective = AdaMeow(temperature=0.9, hidden=4, projection_dim=5)
    model, batches = ready(objective)
    coarse, fine = (objective.projection(z) for z in model.encode_views(batches["train"]["views"]))
    assert coarse.shape == (24, 5)
    expected = weighted_info_nce(fine, coarse, objective.pair_network.bind(fine, coarse), 0.9)
    loss = objective(model, batches, 0.0)
    torch.testing.assert_close(loss.total, expected.loss)
    torch.testing.assert_close(loss.parts["mean_weight"], expected.mean_weight)


@pytest.mark.parametrize("objective", [Meow(weighted=False, prototype_weight=0), AdaMeow(temperature=0.4, weighted=False)])
def test_without_weights_and_prototypes_it_is_plain_info_nce(objective, ready) -> None:
    model, batches = ready(objective)
    coarse, fine = (objective.projection(z) for z in model.encode_views(batches["train"]["views"]))
    pair = (coarse, fine) if isinstance(objective, Meow) else (fine, coarse)
    torch.testing.assert_close(objective(model, batches, 0.0).total, weighted_info_nce(*pair, None, 0.4).loss)


def test_the_pair_network_learns_and_normalised_rows_are_another_loss(ready) -> None:
    objective, plain = AdaMeow(weight_norm="row-mean"), AdaMeow()
    model, batches = ready(objective)
    loss = objective(model, batches, 0.0).total
    loss.backward()
    assert all(p.grad.any() for p in objective.pair_network.parameters() if p.ndim == 2)
    ready(plain)
    assert not torch.allclose(plain(model, batches, 0.0).total, loss)


def test_labels_are_not_in_the_feed(train) -> None:
    seen = []

    class Watching(Meow):
        def forward(self, model, batches, progress):
            seen.append(set(batches["train"]))
            return super().forward(model, batches, progress)

    train(Watching(clusters=CLUSTERS), steps=1)
    assert seen == [{"views"}]


@pytest.mark.parametrize(
    ("kind", "settings"), [(Meow, {"clusters": CLUSTERS}), (AdaMeow, {}), (PrototypeContrast, {"clusters": CLUSTERS, "projection_dim": 4})]
)
def test_training_is_bitwise_the_same_under_a_seed_and_moves_the_encoder(kind, settings, train, small, encoder_for) -> None:
    (one, rows), (other, again) = (train(kind(**settings)) for _ in range(2))
    assert rows == again
    assert all(math.isfinite(row["loss"]) for row in rows)
    states = [getattr(model, "encoder", model).state_dict() for model in (one, other)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    start = encoder_for(small["train"][0]["views"]).state_dict()
    assert not torch.equal(states[0]["gcn.first.weight"], start["gcn.first.weight"])


@pytest.mark.parametrize("objective", [Meow(clusters=CLUSTERS), AdaMeow()])
def test_mixed_precision_gives_nearly_the_loss_of_single(objective, train) -> None:
    (_, half), (_, single) = train(objective, steps=1, precision="bf16"), train(objective, steps=1)
    assert half[0]["loss"] == pytest.approx(single[0]["loss"], rel=0.05)


def test_weights_are_made_anew_at_every_step(ready) -> None:
    objective = Meow(clusters=CLUSTERS, patience=None)
    model, batches = ready(objective)
    seen = []
    objective.cluster.register_forward_hook(lambda _, __, found: seen.append(found[1].assignments))
    for _ in range(2):
        objective(model, batches, 0.0)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(seen))))
    assert len(seen) == 2
    assert not torch.equal(*seen)


def test_training_stops_when_the_loss_finds_no_new_minimum(train) -> None:
    class Rising(Meow):
        def forward(self, model, batches, progress):
            loss = super().forward(model, batches, progress)
            return gw.Loss(loss.total - loss.total.detach() + self.steps, loss.parts)

    _, rows = train(Rising(clusters=CLUSTERS, patience=3), steps=50)
    assert len(rows) == 1 + 3
    _, rows = train(Rising(clusters=CLUSTERS, patience=None), steps=8)
    assert len(rows) == 8


def test_what_is_carried_between_steps_is_in_the_state(ready) -> None:
    def made():
        return Meow(clusters=CLUSTERS, warm_start=True, negatives=10, patience=5)

    first, second = made(), made()
    model, batches = ready(first)
    first(model, batches, 0.0)
    first.best, first.waited = 1.5, 2
    ready(second, seed=1)
    second.load_state_dict(first.state_dict())
    assert (second.steps, second.best, second.waited) == (1, 1.5, 2)
    torch.testing.assert_close(second(model, batches, 0.0).total, first(model, batches, 0.0).total, rtol=0, atol=0)
    cold = made()
    ready(cold)
    assert not cold.cluster.started
    assert second.cluster.started


def test_sampled_negatives_are_drawn_anew_each_step(ready) -> None:
    objective = AdaMeow(negatives=5)
    model, batches = ready(objective)
    assert objective(model, batches, 0.0).total != objective(model, batches, 0.0).total


def test_what_is_handed_on_embeds_as_the_encoder_and_knows_its_weights(train, small) -> None:
    batch = small["test"][0]
    for objective in (Meow(clusters=CLUSTERS), AdaMeow(), Meow(weighted=False, prototype_weight=0)):
        model, _ = train(objective, steps=2)
        assert isinstance(model, ContrastedEncoder)
        torch.testing.assert_close(model.embed(batch["views"], batch["nodes"]), model.encoder.embed(batch["views"])[batch["nodes"]])
        weights = model.negative_weights(batch["views"], batch["nodes"])
        assert weights.shape == (len(batch["nodes"]),) * 2
    assert torch.equal(weights, torch.ones_like(weights))


def test_a_contrasted_encoder_is_trained_further_by_its_encoder(train, small) -> None:
    model, _ = train(AdaMeow(), steps=1)
    engine = gw.Engine(model, Meow(clusters=CLUSTERS), small, gw.TrainConfig(steps=1), device="cpu")
    assert engine.fit().encoder is model.encoder


class Embedding(nn.Module):
    """An Embedder of tables."""

    inputs = ("features",)
    embedding_dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def embed(self, features):
        return self.layer(features)


def test_prototypes_draw_any_embeddings() -> None:
    objective, model = PrototypeContrast(clusters=[2, 4], density="distance"), Embedding()
    objective.setup(model, gw.Dataset({}))
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    z = nn.functional.normalize(model.embed(x), dim=1)
    loss = objective(model, {"train": {"features": x}}, 0.0).total
    torch.testing.assert_close(loss, prototype_loss(z, cluster_all(z, [2, 4]), 0.4, "distance"))
    loss.backward()
    assert model.layer.weight.grad.any()


@pytest.mark.parametrize("kind", [Meow, AdaMeow, PrototypeContrast])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive; found 0.0"),
        ({"projection_dim": 0}, "projection_dim must be at least 1; found 0"),
    ],
)
def test_bad_settings_are_refused(kind, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clusters": [1, 5]}, r"each at least 2 \(one tells nothing apart\); found \[1, 5\]"),
        ({"clusters": []}, "each at least 2"),
        ({"prototype_weight": -1.0}, "prototype_weight must be at least 0; found -1.0"),
        ({"patience": 0}, "patience must be at least 1; found 0"),
        ({"kmeans_restarts": 0}, "kmeans_restarts must be at least 1; found 0"),
    ],
)
def test_bad_settings_of_meow_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        Meow(**settings)


def test_more_clusters_or_negatives_than_nodes_are_refused_before_training(ready) -> None:
    with pytest.raises(gw.DataError, match="25 clusters of 24 points were asked for: ask for fewer clusters"):
        ready(Meow(clusters=[5, 25]))
    with pytest.raises(gw.DataError, match="negatives are 25 of 24 nodes"):
        ready(AdaMeow(negatives=25))


def test_a_model_without_two_views_is_refused(small) -> None:
    with pytest.raises(gw.InterfaceError, match="Meow needs a model that offers TwoViewEncoder; Linear lacks"):
        gw.Engine(nn.Linear(2, 2), Meow(clusters=CLUSTERS), small, gw.TrainConfig(steps=1), device="cpu")
