"""The additive baselines: the loss term, where its gradient goes, and the history behind it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

import graftwork as gw
from graftwork_tram import InputNoise, TrustRegionRegulariser, kl_divergence

SGD = {"use": "sgd", "lr": 0.1}


def ready(model, data, **settings):
    objective = TrustRegionRegulariser(**settings)
    objective.setup(model, data)
    return objective


def test_with_noise_it_is_r3f_with_gradients_through_both_predictions(net, data, batch) -> None:
    model = net()
    objective = ready(model, data, weight=2.5, eps=0.3, noise="normal")
    drawn = InputNoise(0.3, seed=objective.trust_region.region.seed).noise_like(batch["features"])
    clean, noisy = model(batch["features"]), model(batch["features"] + drawn)
    d = kl_divergence(noisy, clean, "symmetric")
    expected = torch.autograd.grad(cross_entropy(clean, batch["label"]) + 2.5 * d, list(model.parameters()))
    loss = objective(model, {"train": batch}, 0.5)
    torch.testing.assert_close(loss.parts["divergence"], d)
    torch.testing.assert_close(loss.parts["task"], cross_entropy(clean, batch["label"]))
    torch.testing.assert_close(torch.autograd.grad(loss.total, list(model.parameters())), expected)


def test_earlier_weights_predict_constants(net, data, batch) -> None:
    model = net()
    objective = ready(model, data, region="pretrained", weight=3.0)
    start = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    logits = model(batch["features"])
    d = kl_divergence(start(batch["features"]).detach(), logits, "symmetric")
    expected = torch.autograd.grad(cross_entropy(logits, batch["label"]) + 3 * d, list(model.parameters()))
    loss = objective(model, {"train": batch}, 0.5)
    torch.testing.assert_close(torch.autograd.grad(loss.total, list(model.parameters())), expected)


def test_weight_zero_trains_as_the_inner_objective_does_to_the_bit(net, data) -> None:
    config = gw.TrainConfig.model_validate({"steps": 5, "batch_size": 16, "optimizer": SGD})
    plain, regularised = (
        gw.Engine(net(norm=True), objective, data, config, device="cpu").fit()
        for objective in (gw.objective("cross-entropy"), TrustRegionRegulariser(weight=0.0, eps=0.3))
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), regularised.state_dict().values(), strict=True))


@pytest.mark.parametrize("region", ["previous", "pretrained", "ema"])
def test_a_heavier_weight_keeps_predictions_nearer_to_earlier_ones(net, data, batch, region) -> None:
    moved = []
    for weight in (0.0, 20.0):
        model, start = net(), net()
        config = gw.TrainConfig.model_validate({"steps": 10, "batch_size": 16, "optimizer": {"use": "sgd", "lr": 0.02}})
        gw.Engine(model, TrustRegionRegulariser(region=region, weight=weight), data, config, device="cpu").fit()
        moved.append(kl_divergence(start(batch["features"]), model(batch["features"])).item())
    assert moved[1] < moved[0]


def test_the_divergence_is_zero_at_the_first_step_of_a_history_and_not_later(net, data) -> None:
    rows: list[dict] = []
    config = gw.TrainConfig.model_validate({"steps": 4, "batch_size": 16, "optimizer": SGD, "log_every": 1})
    objective = TrustRegionRegulariser(region="previous")
    gw.Engine(net(), objective, data, config, device="cpu", log=lambda step, row: rows.append(row)).fit()
    assert rows[0]["divergence"] == 0
    assert all(row["divergence"] > 0 for row in rows[1:])


def test_micro_batches_move_the_history_once_a_step(net, data) -> None:
    def run(batch_size: int, accumulate: int):
        config = gw.TrainConfig.model_validate({"steps": 4, "batch_size": batch_size, "accumulate": accumulate, "optimizer": SGD})
        objective = TrustRegionRegulariser(region="ema", decay=0.5)
        return gw.Engine(net(), objective, data, config, device="cpu").fit(), objective

    (one, first), (other, second) = run(16, 1), run(4, 4)
    torch.testing.assert_close(list(one.parameters()), list(other.parameters()), rtol=1e-4, atol=1e-6)
    shadows = [objective.trust_region.region.shadow for objective in (first, second)]
    torch.testing.assert_close(*shadows, rtol=1e-4, atol=1e-6)


def test_batch_norm_records_the_first_pass_alone_and_the_graph_survives(net, data, batch) -> None:
    model, once = net(norm=True), net(norm=True)
    objective = ready(model, data, eps=0.3)
    objective(model, {"train": batch}, 0.5).total.backward()
    once(batch["features"])
    assert torch.equal(model.body[1].running_mean, once.body[1].running_mean)
    assert model.body[1].num_batches_tracked == 1


def test_the_r3f_defaults() -> None:
    region = TrustRegionRegulariser().trust_region
    assert (region.region.eps, region.region.distribution, region.divergence.name) == (1e-5, "uniform", "symmetric-kl")


def test_parameters_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weight is at least 0; found -1\.0"):
        TrustRegionRegulariser(weight=-1.0)
