"""The training loop: held against a bare PyTorch loop, and each thing that an objective may own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graftwork as gw

from .small_training import Fit, Net, data, net, train


class Seen(Fit):
    """Remembers which samples and which progress it was given."""

    keys = {"train": ("inputs", "label", "index")}

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[int]] = []
        self.progress: list[float] = []

    def forward(self, model, batches, progress):
        self.seen.append(batches["train"]["index"].tolist())
        self.progress.append(progress)
        return super().forward(model, batches, progress)


def by_hand(order: list[list[int]], make_optimizer, factor=lambda step: 1.0, clip: float | None = None) -> Net:
    """A bare loop over the same batches."""
    model, samples = net(), data()["train"].columns
    optimizer = make_optimizer(model.parameters())
    base = optimizer.param_groups[0]["lr"]
    for step, indices in enumerate(order):
        optimizer.param_groups[0]["lr"] = base * factor(step)
        loss = nn.functional.cross_entropy(model(samples["features"][indices]), samples["label"][indices])
        optimizer.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return model


def same(one: nn.Module, other: nn.Module, **tolerance: float) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(a, b, **tolerance) if tolerance else torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("settings", "make", "factor", "clip"),
    [
        ({}, lambda p: torch.optim.SGD(p, lr=0.1), lambda step: 1.0, None),
        (
            {"optimizer": {"use": "adamw", "lr": 1e-2, "weight_decay": 0.3}},
            lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.3),
            lambda step: 1.0,
            None,
        ),
        ({"schedule": {"use": "linear", "final": 0.5}}, lambda p: torch.optim.SGD(p, lr=0.1), lambda step: 1 - 0.5 * step / 12, None),
        ({"schedule": {"use": "constant", "warmup": 4}}, lambda p: torch.optim.SGD(p, lr=0.1), lambda step: min(1.0, (step + 1) / 4), None),
        (
            {"schedule": {"use": "constant", "warmup": 0.5}},
            lambda p: torch.optim.SGD(p, lr=0.1),
            lambda step: min(1.0, (step + 1) / 6),
            None,
        ),
        ({"clip_norm": 0.05}, lambda p: torch.optim.SGD(p, lr=0.1), lambda step: 1.0, 0.05),
    ],
)
def test_training_equals_a_bare_loop_bit_for_bit(settings, make, factor, clip) -> None:
    objective = Seen()
    engine = train(objective, **settings)
    assert len(objective.seen) == 12
    assert same(engine.model, by_hand(objective.seen, make, factor, clip))


def test_accumulated_batches_equal_one_batch_of_their_union() -> None:
    objective = Seen()
    engine = train(objective, batch_size=8, accumulate=2)
    joined = [a + b for a, b in zip(objective.seen[::2], objective.seen[1::2], strict=True)]
    assert engine.steps_done == 12
    assert same(engine.model, by_hand(joined, lambda p: torch.optim.SGD(p, lr=0.1)), rtol=1e-5, atol=1e-7)


def test_each_epoch_sees_every_sample_once_in_a_new_order() -> None:
    objective = Seen()
    train(objective)
    epochs = [[index for batch in objective.seen[i : i + 4] for index in batch] for i in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(64)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_progress_goes_from_0_towards_1_by_optimiser_steps() -> None:
    objective = Seen()
    train(objective, steps=10, epochs=None)
    assert objective.progress == [pytest.approx(step / 10) for step in range(10)]


class Paired(gw.Objective):
    feeds = ("source", "target")
    keys = {"source": ("inputs", "label"), "target": ("inputs",)}

    def __init__(self) -> None:
        super().__init__()
        self.given: list[dict[str, set[str]]] = []
        self.counts: list[tuple[int, int]] = []

    def forward(self, model, batches, progress):
        self.given.append({feed: set(batch) for feed, batch in batches.items()})
        self.counts.append((len(batches["source"]["features"]), len(batches["target"]["features"])))
        return gw.Loss(nn.functional.cross_entropy(model(batches["source"]["features"]), batches["source"]["label"]))


def test_an_objective_is_given_no_key_that_it_does_not_list() -> None:
    objective = Paired()
    train(objective, feeds={"source": "train", "target": "val"})
    assert objective.given[0] == {"source": {"features", "label"}, "target": {"features"}}


def test_a_shorter_feed_begins_anew_and_each_has_its_batch_size() -> None:
    objective = Paired()
    small = gw.TensorSamples(features=torch.randn(10, 4))
    train(
        objective, dataset=data(short=small), feeds={"source": "train", "target": "short"}, batch_size={"source": 16, "target": 5}, epochs=2
    )
    assert objective.counts == [(16, 5)] * 8


class TwoOptimisers(Fit):
    """Owns the optimisers and the step: the head learns in every step, the trunk in every second one."""

    def optimizers(self, model, make):
        return {"trunk": make(model.trunk.parameters(), lr=0.5), "head": make(model.head.parameters())}

    def update(self, engine, batches):
        loss = engine.loss(batches)
        engine.backward(loss.total)
        engine.step("head")
        if engine.steps_done % 2:
            engine.step("trunk")
        return loss


def test_an_objective_may_own_its_optimisers_and_step() -> None:
    model = net()
    before = model.trunk.weight.clone()
    engine = train(TwoOptimisers(), model, epochs=None, steps=1)
    assert torch.equal(model.trunk.weight, before)
    assert engine.optimizers["trunk"].param_groups[0]["lr"] == 0.5
    assert engine.optimizers["head"].param_groups[0]["lr"] == 0.1
    assert not torch.equal(train(TwoOptimisers(), net(), epochs=None, steps=2).model.trunk.weight, before)


class OwnLoop(Fit):
    def fit(self, engine):
        with torch.no_grad():
            engine.model.head.weight.fill_(7)


def test_an_objective_may_own_the_whole_fit() -> None:
    assert (train(OwnLoop()).model.head.weight == 7).all()


class Surgery(Fit):
    """Per-part gradients through the engine."""

    def update(self, engine, batches):
        loss = engine.loss(batches)
        parameters = list(engine.model.parameters())
        gradients = engine.gradients({"one": loss.total, "half": loss.total / 2}, parameters)
        for parameter, one, half in zip(parameters, gradients["one"], gradients["half"], strict=True):
            assert parameter.grad is None
            parameter.grad = one + half
        engine.step()
        return loss


def test_gradients_of_parts_are_those_of_the_parts() -> None:
    objective = Surgery()
    whole = train(objective, optimizer={"use": "sgd", "lr": 0.1})
    assert same(whole.model, train(Fit(), optimizer={"use": "sgd", "lr": 0.15}).model, rtol=1e-5, atol=1e-6)


class Exporting(Fit):
    def setup(self, model, data):
        self.extra = nn.Linear(model.num_features, len(data["train"]))

    def export(self, model):
        return nn.Sequential(model, self.extra)


def test_an_objective_may_end_training_and_the_step_that_does_is_the_last() -> None:
    class Done(Fit):
        def update(self, engine, batches):
            if engine.steps_done == 2:
                engine.stop()
            return super().update(engine, batches)

    engine = gw.Engine(net(), Done(), data(), gw.TrainConfig(steps=50), device="cpu")
    engine.fit()
    assert engine.steps_done == 3


def test_what_an_objective_exports_is_handed_on_and_its_own_parameters_train() -> None:
    objective = Exporting()
    engine = gw.Engine(net(), objective, data(), gw.TrainConfig(epochs=1), device="cpu")
    assert any(parameter is objective.extra.weight for group in engine.optimizers[""].param_groups for parameter in group["params"])
    assert isinstance(engine.fit(), nn.Sequential)


def test_a_models_own_parameter_groups_are_obeyed() -> None:
    class Grouped(Net):
        def param_groups(self, lr):
            return [{"params": self.trunk.parameters(), "lr": lr / 10}, {"params": self.head.parameters()}]

    engine = gw.Engine(Grouped(), Fit(), data(), gw.TrainConfig(epochs=1, optimizer={"use": "sgd", "lr": 0.1}), device="cpu")
    assert [group["lr"] for group in engine.optimizers[""].param_groups] == [pytest.approx(0.01), pytest.approx(0.1)]


def test_bf16_runs_the_forward_in_bf16_and_keeps_float32_weights() -> None:
    kinds: list[torch.dtype] = []

    class Watching(Fit):
        def forward(self, model, batches, progress):
            kinds.append(model(batches["train"]["features"]).dtype)
            return super().forward(model, batches, progress)

    engine = train(Watching(), precision="bf16")
    assert set(kinds) == {torch.bfloat16}
    assert engine.model.head.weight.dtype == torch.float32
    assert set(train(Watching()).model.state_dict()) == set(engine.model.state_dict())


def test_logged_figures_are_means_since_the_last_row() -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    losses: list[float] = []

    class Watching(Fit):
        def forward(self, model, batches, progress):
            loss = super().forward(model, batches, progress)
            losses.append(loss.total.item())
            return gw.Loss(loss.total, {"twice": 2 * loss.total})

    settings = gw.TrainConfig(steps=5, batch_size=16, log_every=2, optimizer={"use": "sgd", "lr": 0.1})
    gw.Engine(net(), Watching(), data(), settings, device="cpu", log=lambda step, row: rows.append((step, row))).fit()
    assert [step for step, _ in rows] == [2, 4, 5]
    assert rows[1][1]["loss"] == pytest.approx(sum(losses[2:4]) / 2, rel=1e-5)
    assert rows[1][1]["twice"] == pytest.approx(sum(losses[2:4]), rel=1e-5)


def test_a_figure_that_is_given_now_and_then_is_a_mean_over_where_it_was_given() -> None:
    rows: list[dict[str, float]] = []

    class Watching(Fit):
        def forward(self, model, batches, progress):
            loss = super().forward(model, batches, progress)
            return gw.Loss(loss.total, {"rare": torch.tensor(3.0)} if progress == 0.25 else {})

    settings = gw.TrainConfig(steps=4, batch_size=16, log_every=4)
    gw.Engine(net(), Watching(), data(), settings, device="cpu", log=lambda step, row: rows.append(row)).fit()
    assert rows[0]["rare"] == 3.0


def test_an_objective_may_have_no_optimiser_at_all() -> None:
    class Counting(OwnLoop):
        def optimizers(self, model, make):
            return {}

    engine = train(Counting())
    assert not engine.optimizers
    assert (engine.model.head.weight == 7).all()


class Composed(gw.Dataset):
    def batch_sampler(self, split, batch_size, generator):
        return [[0, 1, 2], [3, 4, 5]]


def test_a_dataset_may_compose_the_batches() -> None:
    objective = Seen()
    train(objective, dataset=Composed(dict(data())), epochs=2)
    assert objective.seen == [[0, 1, 2], [3, 4, 5]] * 2


def test_a_dataset_is_refreshed_with_the_model_after_each_epoch() -> None:
    class Refreshed(gw.Dataset):
        calls = 0

        def refresh(self, model):
            assert isinstance(model, Net)
            self.calls += 1

    dataset = Refreshed(dict(data()))
    train(Fit(), dataset=dataset, epochs=3)
    assert dataset.calls == 3


def test_workers_load_the_same_batches() -> None:
    alone, helped = Seen(), Seen()
    train(alone, epochs=1)
    train(helped, epochs=1, workers=1)
    assert alone.seen == helped.seen


def test_what_cannot_train_says_why() -> None:
    with pytest.raises(gw.InterfaceError, match="Fit needs a model that offers Backbone; Linear lacks forward_features"):
        train(Fit(), nn.Linear(4, 3))
    with pytest.raises(gw.DataError, match='reads "label" from feed "train"; the samples of "train" have features'):
        train(Fit(), dataset=gw.Dataset({"train": gw.TensorSamples(features=torch.zeros(3, 4))}))
    with pytest.raises(gw.DataError, match="is empty"):
        train(Fit(), dataset=gw.Dataset({"train": gw.TensorSamples(features=torch.zeros(0, 4), label=torch.zeros(0).long())}))
    frozen = net().requires_grad_(False)
    with pytest.raises(gw.ConfigError, match="nothing to train"):
        train(Fit(), frozen)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_to_the_same_figures() -> None:
    settings = gw.TrainConfig(epochs=3, batch_size=16, optimizer={"use": "sgd", "lr": 0.1})
    here = gw.Engine(net(), Fit(), data(), settings, device="cpu").fit()
    there = gw.Engine(net(), Fit(), data(), settings, device="cuda").fit().cpu()
    assert same(here, there, rtol=1e-4, atol=1e-5)
