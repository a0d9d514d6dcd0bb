"""The objective on real pipelines: stratified losses, methods, state, averages, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import graftwork as gw
from graftwork_denoising_task_clustering import (
    ClusteredDenoising,
    clustered_errors,
    denoiser_of,
    gradient_matrix,
    noise_levels,
    pcgrad,
    projection_orders,
)

KINDS = ["pixels", "classes", "captions", "flow"]
METHODS = ["none", "pcgrad", "nash-mtl", "uncertainty-weighting"]


def weights_of(pipeline) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in denoiser_of(pipeline).network.parameters()])


def frozen_parameters(pipeline) -> list[Tensor]:
    parts = [part for name, part in pipeline.components.items() if name.startswith(("vae", "text"))]
    return [parameter.detach() for part in parts for parameter in part.parameters()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_pipeline_trains_with_every_method(kind, method, pipeline, data, train) -> None:
    model = pipeline(kind)
    before, frozen = weights_of(model), [parameter.clone() for parameter in frozen_parameters(model)]
    engine = train(ClusteredDenoising(mtl=method, k=3, ema_decay=0.5), model, data(kind), batch_size=7)
    assert all(math.isfinite(value) for row in engine.rows for value in row.values())
    assert {"cluster-0", "cluster-1", "cluster-2", "mse"} <= set(engine.rows[0])
    assert not torch.equal(weights_of(model), before)
    assert all(torch.equal(a, b) for a, b in zip(frozen, frozen_parameters(model), strict=True))


@pytest.mark.parametrize("kind", ["pixels", "captions", "flow"])
def test_the_target_is_what_the_pipelines_own_training_loss_compares_with(kind, pipeline, data) -> None:
    """A network that answered with the target would have no error: put in its place one that does."""
    model = pipeline(kind)
    denoiser, levels = denoiser_of(model), noise_levels(model.scheduler)
    batch = data(kind)["train"].__getitems__(list(range(6)))
    samples, condition = denoiser.samples(batch), denoiser.condition(batch, 0.0)
    times = levels.spread(torch.arange(6) * 10)
    torch.manual_seed(7)
    target = levels.target(samples, torch.randn_like(samples), times)

    class Oracle(type(denoiser)):
        def predict(self, noisy, times, condition):
            return target[: len(noisy)] + 2 if len(noisy) == 6 else target

    torch.manual_seed(7)
    (errors,) = clustered_errors(Oracle(model), levels, samples, times, condition, (6,))
    torch.testing.assert_close(errors, torch.full((6,), 4.0))


@pytest.mark.parametrize("kind", KINDS)
def test_cutting_the_batch_leaves_each_rows_error_as_it_is(kind, pipeline, data) -> None:
    model = pipeline(kind)
    denoiser, levels = denoiser_of(model), noise_levels(model.scheduler)
    denoiser.network.eval()
    batch = data(kind)["train"].__getitems__(list(range(7)))
    samples, condition = denoiser.samples(batch), denoiser.condition(batch, 0.0)
    times = levels.spread(torch.arange(7) * 10)
    found = []
    for cuts in ((7,), (2, 2, 3)):
        torch.manual_seed(3)
        found.append(torch.cat(clustered_errors(denoiser, levels, samples, times, condition, cuts)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_flux_tokens_are_unpacked_as_the_pipeline_unpacks_them(pipeline) -> None:
    model = pipeline("flow")
    latents = torch.randn(2, 4, 8, 8)
    packed = model._pack_latents(latents, 2, 4, 8, 8)
    model.transformer.forward = lambda **kwargs: type("Output", (), {"sample": kwargs["hidden_states"]})
    condition = {"encoder_hidden_states": torch.zeros(2, 3, 16), "pooled_projections": torch.zeros(2, 16)}
    assert torch.equal(denoiser_of(model).predict(latents, torch.rand(2), condition), latents)
    assert packed.shape == (2, 16, 16)


def test_a_dits_variances_are_left_out_and_its_labels_dropped_in_training(pipeline) -> None:
    model = pipeline("classes")
    denoiser = denoiser_of(model)
    noisy, times, labels = torch.randn(64, 4, 8, 8), torch.full((64,), 50), {"class_labels": torch.zeros(64, dtype=torch.long)}
    torch.nn.init.normal_(model.transformer.proj_out_2.weight)
    assert denoiser.predict(noisy, times, labels).shape == noisy.shape
    same = noisy[:1].expand(64, -1, -1, -1)
    spread = {
        mode: float(denoiser.predict(same, times, labels).std(0).max())
        for mode in (True, False)
        if model.transformer.train(mode) is not None
    }
    assert spread[True] > 1e-3 > spread[False]


def test_a_pcgrad_step_is_surgery_on_the_clusters_gradients(pipeline, data, train) -> None:
    model = pipeline("pixels")
    start, objective = weights_of(model), ClusteredDenoising(mtl="pcgrad", k=3, ema_decay=0)
    engine = gw.Engine(model, objective, data("pixels"), train_settings(), device="cpu")
    batch = {"train": data("pixels")["train"].__getitems__(list(range(8)))}
    orders = projection_orders(3, torch.Generator().manual_seed(objective.balancer.generator.initial_seed()))
    torch.manual_seed(11)
    losses = torch.stack([value for name, value in objective(model, batch, 0.0).parts.items() if name.startswith("cluster")])
    expected = pcgrad(gradient_matrix(losses / 3, list(model.unet.parameters())), orders)
    torch.manual_seed(11)
    objective.update(engine, batch)
    torch.testing.assert_close(weights_of(model) - start, -0.01 * expected, rtol=1e-3, atol=1e-6)


def train_settings() -> gw.TrainConfig:
    return gw.TrainConfig(steps=1, batch_size=8, optimizer={"use": "sgd", "lr": 0.01})


@pytest.mark.parametrize("method", ["pcgrad", "nash-mtl"])
def test_a_cluster_apart_has_the_loss_that_it_has_in_the_whole_batch(method, pipeline, data) -> None:
    model, found = pipeline("pixels"), []
    batch = {"train": data("pixels")["train"].__getitems__(list(range(8)))}
    for mtl in ("none", method):
        objective = ClusteredDenoising(mtl=mtl, k=3, ema_decay=0, weighting="p2", reweight_density=True, clusters="log-snr")
        objective.setup(model, data("pixels"))
        torch.manual_seed(5)
        loss = objective(model, batch, 0.0)
        found.append(torch.stack([loss.total, *loss.parts.values()]).detach())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_nash_differentiates_the_losses_one_by_one_only_when_it_refreshes(pipeline, data, train, monkeypatch) -> None:
    import graftwork_denoising_task_clustering.clustered_denoising as module

    cuts = []
    original = module.clustered_errors
    monkeypatch.setattr(module, "clustered_errors", lambda *arguments: cuts.append(len(arguments[-1])) or original(*arguments))
    train(ClusteredDenoising(mtl="nash-mtl", k=3, every=2), pipeline("pixels"), data("pixels"), steps=5)
    assert cuts == [3, 1, 3, 1, 3]


@pytest.mark.parametrize(("clip", "bound"), [(None, 0.01 * 1e-3), (0.5, 0.01 * 0.5)])
def test_nash_clips_the_gradient_unless_training_does(clip, bound, pipeline, data, train) -> None:
    model = pipeline("pixels")
    start = weights_of(model)
    train(ClusteredDenoising(mtl="nash-mtl", k=3, max_norm=1e-3), model, data("pixels"), steps=1, clip_norm=clip)
    assert float((weights_of(model) - start).norm()) == pytest.approx(bound, rel=0.05)


def test_uncertainty_weighting_has_an_optimiser_of_its_own_and_is_checkpointed(pipeline, data, train) -> None:
    objective = ClusteredDenoising(k=3)
    engine = train(objective, pipeline("pixels"), data("pixels"))
    assert set(engine.optimizers) == {"model", "uncertainty"}
    assert engine.optimizers["uncertainty"].param_groups[0]["lr"] == 0.025
    assert objective.balancer.log_variances.abs().min() > 0
    assert "balancer.log_variances" in objective.state_dict()
    assert any(name.startswith("average.") for name in objective.state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_state_that_is_carried_over_goes_on_as_unbroken_training(method, pipeline, data) -> None:
    """Five steps are those of a second objective, and optimisers, that take over after three: between two refreshes of Nash-MTL."""
    model = pipeline("pixels")
    batch = {"train": data("pixels")["train"].__getitems__(list(range(8)))}

    def engine_of(model):
        objective = ClusteredDenoising(mtl=method, k=3, ema_decay=0.9, every=2, clusters="random")
        return gw.Engine(model, objective, data("pixels"), train_settings(), device="cpu")

    def step(engine, first: int, last: int) -> None:
        for number in range(first, last):
            torch.manual_seed(number)
            engine.objective.update(engine, batch)

    first = engine_of(model)
    step(first, 0, 3)
    second = engine_of(pipeline("pixels", seed=9))
    second.joined.load_state_dict(first.joined.state_dict())
    for name, optimizer in first.optimizers.items():
        second.optimizers[name].load_state_dict(optimizer.state_dict())
    step(first, 3, 5)
    step(second, 3, 5)
    carried_over = second.joined.state_dict()
    for key, value in first.joined.state_dict().items():
        assert torch.equal(value, carried_over[key]), key


def test_the_average_is_handed_on_and_training_keeps_its_own_weights(pipeline, data, train) -> None:
    model = pipeline("pixels")
    engine = train(ClusteredDenoising(ema_decay=0.9), model, data("pixels"), optimizer={"use": "sgd", "lr": 0.5}, steps=4)
    own = weights_of(model)
    assert not torch.equal(weights_of(engine.exported), own)
    again = engine.objective.export(model)
    assert torch.equal(weights_of(model), own)
    assert torch.equal(weights_of(again), weights_of(engine.exported))
    assert all(parameter.requires_grad for parameter in again.unet.parameters())
    plain = train(ClusteredDenoising(ema_decay=0), model, data("pixels"))
    assert plain.exported is model


def test_what_is_handed_on_saves_and_loads_through_graftwork(pipeline, data, train, tmp_path) -> None:
    exported = train(ClusteredDenoising(ema_decay=0.5), pipeline("pixels"), data("pixels")).exported
    exported.save_pretrained(tmp_path)
    loaded = gw.model("diffusers-pipeline", name=str(tmp_path))
    assert torch.equal(weights_of(loaded), weights_of(exported))
    train(ClusteredDenoising(mtl="pcgrad"), loaded, data("pixels"))


def test_one_interval_can_be_trained_alone(pipeline, data, train) -> None:
    objective = ClusteredDenoising(k=4, interval=2, ema_decay=0)
    engine = train(objective, pipeline("pixels"), data("pixels"))
    assert objective.balancer is None
    assert {"cluster-2", "mse", "loss", "lr"} == set(engine.rows[0])
    seen = objective.groups.draw(200, only=2).timesteps
    assert (int(seen.min()) // 25, int(seen.max()) // 25) == (2, 2)


def test_accumulated_batches_make_one_step_of_the_method(pipeline, data, train) -> None:
    for method in METHODS:
        objective = ClusteredDenoising(mtl=method, k=3, every=1)
        engine = train(objective, pipeline("pixels"), data("pixels"), accumulate=2, steps=2, batch_size=6)
        assert engine.steps_done == 2
        assert int(objective.average.n_averaged) == 2
        if method == "nash-mtl":
            assert objective.balancer.steps == 2


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_autocast_trains(method, pipeline, data, train) -> None:
    engine = train(ClusteredDenoising(mtl=method, k=3), pipeline("pixels"), data("pixels"), precision="bf16")
    assert all(math.isfinite(row["loss"]) for row in engine.rows)


def test_images_go_through_the_pipelines_autoencoder(pipeline) -> None:
    model = pipeline("captions")
    images = torch.rand(3, 3, 16, 16)
    torch.manual_seed(0)
    found = denoiser_of(model).samples({"image": images})
    torch.manual_seed(0)
    expected = model.vae.encode(2 * images - 1).latent_dist.sample() * model.vae.config.scaling_factor
    torch.testing.assert_close(found, expected.detach())


def test_captions_are_dropped_at_their_chance(pipeline) -> None:
    model = pipeline("captions")
    batch = {"caption": ["a red two"] * 400}
    torch.manual_seed(0)
    hidden = denoiser_of(model).condition(batch, 0.25)["encoder_hidden_states"]
    empty = denoiser_of(model).condition({"caption": [""]}, 0.0)["encoder_hidden_states"]
    share = torch.isclose(hidden, empty, atol=1e-5).flatten(1).all(1).float().mean()
    assert 0.17 < share < 0.33


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 101}, "k is between 1 and the number of timesteps, 100; found 101"),
        ({"clusters": [0, 40, 200]}, r"starts ascend from 0 and stay below 100; found \[0, 40, 200\]"),
        ({"clusters": "gradient"}, "needs `affinity`, an artifact of denoising-task-affinity"),
        ({"mtl": "pcgrad", "k": 1}, "pcgrad needs at least 2 losses; found k 1"),
        ({"interval": 5}, "interval is one of 0 to 4; found 5"),
    ],
)
def test_bad_options_are_refused(settings, message, pipeline, data) -> None:
    with pytest.raises(gw.ConfigError, match=message):
        ClusteredDenoising(**settings).setup(pipeline("pixels"), data("pixels"))


def test_bad_batches_and_models_are_refused(pipeline, data, train) -> None:
    with pytest.raises(gw.DataError, match="each of the k clusters needs at least one sample: batch 3, k 5"):
        train(ClusteredDenoising(), pipeline("pixels"), data("pixels"), batch_size=3)
    bare = gw.Dataset({"train": gw.TensorSamples(latents=torch.zeros(8, 4, 8, 8))})
    with pytest.raises(gw.DataError, match="UNet2DConditionModel is trained on caption; the samples have latents"):
        train(ClusteredDenoising(), pipeline("captions"), bare, batch_size=8)
    broken = pipeline("pixels")
    broken.unet = torch.nn.Linear(2, 2)
    with pytest.raises(gw.InterfaceError, match="has no denoiser that is known here"):
        train(ClusteredDenoising(), broken, data("pixels"))
