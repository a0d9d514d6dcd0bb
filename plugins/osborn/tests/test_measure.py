"""From models and sets to terms: what is read, drawn, coupled, and refused."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork_osborn import (
    Reading,
    Source,
    Task,
    Transport,
    class_balanced_indices,
    conditional_entropy,
    exact_coupling,
    joint_from_coupling,
    joint_from_predictions,
    leep,
    measure_pool,
    pairwise_conditional_entropy,
    read_outputs,
    squared_distances,
)
from graftwork_osborn import outputs as outputs_module


@pytest.fixture
def measured(pool, data, sources):
    def measure(**settings):
        given = {name: Source(data, split) for name, split in sources.items()}
        return measure_pool(settings.pop("pool", pool), given, settings.pop("data", data), "train", **settings)

    return measure


def columns(data: gw.Dataset, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    return data[split].columns["features"], data[split].columns["label"]


def test_every_term_is_that_of_the_models_own_features(measured, pool, data, sources) -> None:
    table = measured()
    (x, y), predictions = columns(data, "train"), []
    for index, (name, model) in enumerate(pool.items()):
        s, z = columns(data, sources[name])
        cost = squared_distances(model.body(s).detach(), model.body(x).detach())
        coupling = exact_coupling(cost)
        assert float(table.domain[index]) == pytest.approx(float((coupling * cost).sum()), rel=1e-6)
        assert float(table.task[index]) == pytest.approx(float(conditional_entropy(joint_from_coupling(coupling, z, y))), abs=1e-9)
        assert float(table.leep[index]) == pytest.approx(float(leep(model(x).softmax(dim=1).detach(), y)), abs=1e-6)
        predictions.append(model(x).argmax(dim=1))
    torch.testing.assert_close(table.cohesion, pairwise_conditional_entropy(predictions))
    assert table.names == ("model-0", "model-1", "model-2")


def test_the_task_is_read_from_predictions_or_given_the_source_where_asked(measured, pool, data) -> None:
    x, y = columns(data, "train")
    guesses = measured(task=Task(joint="prediction"))
    for index, model in enumerate(pool.values()):
        joint = joint_from_predictions(model(x).argmax(dim=1), y)
        assert float(guesses.task[index]) == pytest.approx(float(conditional_entropy(joint)), abs=1e-12)
    assert not torch.allclose(measured(task=Task(given="source")).task, measured().task)


@pytest.mark.filterwarnings("ignore:sinkhorn")
def test_the_solvers_measure_nearly_the_same_and_never_less_than_the_exact_one(measured) -> None:
    exact = measured().domain
    for transport in (Transport("sinkhorn"), Transport("frobenius", gamma=1e-3)):
        found = measured(transport=transport).domain
        assert (found >= exact - 1e-9).all()
        torch.testing.assert_close(found, exact, rtol=0.1, atol=0)


def test_models_coupled_in_small_groups_are_measured_alike(measured, monkeypatch) -> None:
    together = measured(transport=Transport("sinkhorn", epsilon=0.1)).domain
    monkeypatch.setattr("graftwork_osborn.measure.BUDGET", 1)
    torch.testing.assert_close(measured(transport=Transport("sinkhorn", epsilon=0.1)).domain, together, rtol=1e-6, atol=0)


def test_nothing_is_trained_and_modes_come_back(measured, pool) -> None:
    before = {name: gw.fingerprint(model) for name, model in pool.items()}
    state = torch.get_rng_state()
    pool["model-0"].train()
    measured(reading=Reading(samples=10))
    assert pool["model-0"].training
    assert {name: gw.fingerprint(model) for name, model in pool.items()} == before
    assert all(parameter.grad is None for model in pool.values() for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_set_is_passed_once_until_weights_data_or_draw_change(net, data, monkeypatch) -> None:
    passes = []
    run = outputs_module._pass
    monkeypatch.setattr(outputs_module, "_pass", lambda *given: passes.append(1) or run(*given))
    model = net()
    for _ in range(2):
        read_outputs(model, data, "train")
    assert len(passes) == 1
    for step, (other, split, reading) in enumerate(
        [(data, "test", Reading()), (data, "train", Reading(samples=9)), (gw.Dataset({"train": data["source-0"]}), "train", Reading())]
    ):
        read_outputs(model, other, split, reading)
        assert len(passes) == step + 2
    with torch.no_grad():
        model.body.weight[0, 0] += 1
    read_outputs(model, data, "train")
    assert len(passes) == 5


def test_features_logits_and_labels_come_of_one_pass_over_the_backbone(net, data) -> None:
    model, calls = net(), []
    model.body.register_forward_hook(lambda *_: calls.append(1))
    found = read_outputs(model, data, "train", Reading(batch_size=10))
    x, y = columns(data, "train")
    assert len(calls) == 3
    torch.testing.assert_close(found.features, model.body(x).detach())
    torch.testing.assert_close(found.probabilities, model(x).detach().softmax(dim=1))
    assert torch.equal(found.predictions, model(x).argmax(dim=1))
    assert torch.equal(found.labels, y)


def test_a_named_layer_gives_the_features_of_any_classifier(data) -> None:
    class Plain(nn.Module):
        inputs = ("features",)

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.last(self.first(x))

    model = Plain()
    assert read_outputs(model, data, "train").features is None
    found = read_outputs(model, data, "train", Reading(layer="last"))
    torch.testing.assert_close(found.features, model.first(columns(data, "train")[0]).detach())
    model.unused = nn.Identity()
    with pytest.raises(gw.InterfaceError, match='layer "unused" of Plain took nothing in the forward pass: name one that runs'):
        read_outputs(model, data, "train", Reading(layer="unused"))
    with pytest.raises(gw.InterfaceError, match='Plain has no layer "lsat"; its last are , first, last, unused'):
        read_outputs(model, data, "train", Reading(layer="lsat"))
    with pytest.raises(gw.InterfaceError, match='model "plain" gives no features, which W_D measures'):
        measure_pool({"plain": model}, {"plain": Source(data, "test")}, data)


def test_a_named_layer_of_a_backbone_takes_the_place_of_its_pooled_features(net, data) -> None:
    found = read_outputs(net(), data, "train", Reading(layer="body"))
    torch.testing.assert_close(found.features, columns(data, "train")[0])


def test_draws_are_balanced_bounded_and_seeded() -> None:
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    drawn = class_balanced_indices(labels, 30, torch.Generator().manual_seed(0))
    assert len(drawn.unique()) == 30
    assert torch.equal(drawn, drawn.sort().values)
    shares = torch.stack(
        [labels[class_balanced_indices(labels, 30, torch.Generator().manual_seed(s))].bincount(minlength=3) for s in range(50)]
    )
    counts = shares.double().mean(dim=0)
    assert counts[1] > 8 and counts[2] > 5  # noqa: PT018 - even draws expect 2.7 and 0.3
    assert torch.equal(drawn, class_balanced_indices(labels, 30, torch.Generator().manual_seed(0)))
    even = class_balanced_indices(labels, 300, torch.Generator().manual_seed(0), balanced=False)
    assert (labels[even] == 0).double().mean() > 0.8
    assert class_balanced_indices(labels, 5000, torch.Generator()).tolist() == list(range(1000))


def test_the_draw_follows_the_seed_and_all_models_see_the_same_target(measured) -> None:
    reading = Reading(samples=12)
    first, again, other = (measured(reading=reading, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.domain, again.domain)
    assert not torch.equal(first.domain, other.domain)
    assert first.likelihoods.shape == (3, 12)
    assert torch.equal(measured(reading=Reading(samples=12, seed=0), seed=1).domain, first.domain)


def test_a_pool_entry_without_a_source_set_is_named(pool, data) -> None:
    with pytest.raises(gw.DataError, match="osborn needs each model's source dataset to measure W_D; there is none for model-1, model-2"):
        measure_pool(pool, {"model-0": Source(data, "source-0")}, data)


def test_features_that_are_not_finite_name_the_model(measured, pool) -> None:
    with torch.no_grad():
        pool["model-1"].body.weight[0] = math.nan
    with pytest.raises(gw.DataError, match='model "model-1" gives features that are not finite on split "train"'):
        measured()


def test_a_width_that_differs_between_source_and_target_is_told(data) -> None:
    class Ragged(nn.Module):
        """As wide as its input is tall."""

        inputs, num_features = ("features",), 4

        def forward_features(self, x):
            return x

        def forward_head(self, x, pre_logits=False):
            return x

    wide = gw.Dataset({"source": gw.TensorSamples(features=torch.randn(6, 9), label=torch.arange(6) % 3)})
    with pytest.raises(gw.DataError, match='model "ragged" gives 9 features on its source set and 4 on the target'):
        measure_pool({"ragged": Ragged()}, {"ragged": Source(wide, "source")}, data)


def test_a_target_class_without_a_sample_is_named(measured, data) -> None:
    x, y = columns(data, "train")
    short = gw.Dataset({**data, "train": gw.TensorSamples(features=x[y != 1], label=y[y != 1])}, data.info)
    with pytest.raises(gw.DataError, match='split "train" has no sample of target class b, and every class needs one'):
        measured(data=short)
    unnamed = gw.Dataset(dict(short))
    with pytest.raises(gw.DataError, match="has no sample of target class 1"):
        measured(data=unnamed)


def test_a_model_trained_on_the_target_is_warned_of(pool, data) -> None:
    x, y = columns(data, "source-0")
    own, other = columns(data, "train")
    mixed = gw.Dataset({"source": gw.TensorSamples(features=torch.cat([x, own[:5]]), label=torch.cat([y, other[:5]]))})
    given = {name: Source(data, f"source-{index}") for index, name in enumerate(pool)}
    with pytest.warns(UserWarning, match='model "model-1" was trained on the target: 5 of 24 samples of "train" are in its source set'):
        measure_pool(pool, {**given, "model-1": Source(mixed, "source")}, data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure_pool(pool, given, data)


def test_empty_and_unlabelled_sets_and_bad_settings_are_told(net, data) -> None:
    empty = gw.Dataset({"train": gw.TensorSamples(features=torch.empty(0, 4), label=torch.empty(0, dtype=torch.long))})
    with pytest.raises(gw.DataError, match='split "train" is empty'):
        read_outputs(net(), empty, "train")
    with pytest.raises(gw.DataError, match="the samples have no label: they have features"):
        read_outputs(net(), gw.Dataset({"train": gw.TensorSamples(features=torch.zeros(3, 4))}), "train")
    with pytest.raises(gw.DataError, match="has label -1; classes are numbered from 0"):
        read_outputs(net(), gw.Dataset({"train": gw.TensorSamples(features=torch.zeros(2, 4), label=torch.tensor([0, -1]))}), "train")
    with pytest.raises(gw.DataError, match="the pool has no model"):
        measure_pool({}, {}, data)
    for refused, message in (
        (lambda: Reading(samples=0), "samples is at least 1; found 0"),
        (lambda: Task(joint="plan"), 'joint is "coupling" or "prediction"; found \'plan\''),
        (lambda: Task(given="all"), 'given is "target" or "source"; found \'all\''),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_terms_are_those_of_the_cpu_on_a_gpu(measured, pool) -> None:
    here = measured()
    there = measured(pool={name: model.cuda() for name, model in pool.items()})
    torch.testing.assert_close(there.domain, here.domain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(there.cohesion, here.cohesion, rtol=1e-4, atol=1e-5)
