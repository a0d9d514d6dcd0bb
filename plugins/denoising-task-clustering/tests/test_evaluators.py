"""Task affinity, intervals and negative transfer on real pipelines."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork_denoising_task_clustering import (
    ClusteredDenoising,
    CountSketch,
    DenoisingTaskAffinity,
    IntervalClusters,
    NegativeTransferGap,
    cosine_matrix,
    denoiser_of,
    draw,
    frechet_distance,
    gradient_sketches,
    mixed_denoiser,
    noise_levels,
    task_affinity,
)
from graftwork_denoising_task_clustering.affinity_evaluator import differentiable

KINDS = ["pixels", "classes", "captions", "flow"]


class Features(nn.Module):
    """A Backbone that sees mean colours in the quarters of an image."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(()))

    def forward_features(self, x):
        return nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), 2).flatten(1) + self.shift

    def forward_head(self, x, pre_logits: bool = False):
        return x


def batch_of(data, count: int = 8):
    return data["train"].__getitems__(list(range(count)))


# -- affinity ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_affinity_is_symmetric_with_a_diagonal_of_one_and_within_bounds(kind, pipeline, data) -> None:
    found = task_affinity(pipeline(kind), [batch_of(data(kind))], [5, 50, 95], sketch=64)
    assert torch.equal(found, found.T)
    assert found.diagonal().tolist() == [1, 1, 1]
    assert found.abs().max() <= 1


def test_affinity_is_the_cosine_of_gradients_accumulated_over_all_samples(pipeline, data) -> None:
    model, batch = pipeline("pixels"), batch_of(data("pixels"))
    halves = [{key: value[part] for key, value in batch.items()} for part in (slice(0, 4), slice(4, 8))]
    found = task_affinity(model, halves, [10, 90], sketch=None, train=False, seed=3)
    torch.manual_seed(3)
    gradients = []
    for timestep in (10, 90):
        model.unet.zero_grad()
        for part in halves:
            images = 2 * part["image"] - 1
            noise = torch.randn_like(images)
            times = torch.full((4,), timestep)
            predicted = model.unet.eval()(model.scheduler.add_noise(images, noise, times), times).sample
            (predicted - noise).square().mean().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.unet.parameters()]))
    assert found[0, 1].item() == pytest.approx(torch.cosine_similarity(*gradients, dim=0).item(), abs=1e-4)


def test_a_sketch_keeps_cosines_within_its_deviation_and_is_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(50_000, generator=generator)
    vectors = torch.stack([shared + torch.randn(50_000, generator=generator) * spread for spread in (0.1, 0.5, 1.0, 2.0, 8.0)])
    sketch = CountSketch(4096, seed=1)
    parts = torch.stack([sketch([vector[:20_000].view(100, 200), vector[20_000:]]) for vector in vectors])
    assert (cosine_matrix(parts) - cosine_matrix(vectors)).abs().max() < 5 * math.sqrt(2 / 4096)
    torch.testing.assert_close(sketch([vectors[0] + vectors[1]]), sketch([vectors[0]]) + sketch([vectors[1]]), rtol=1e-4, atol=1e-3)
    assert torch.equal(CountSketch(4096, 1)([shared]), sketch([shared]))
    assert not torch.equal(CountSketch(4096, 2)([shared]), sketch([shared]))


def test_unused_and_frozen_parameters_take_no_part() -> None:
    network = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(3, 1), "frozen": nn.Linear(3, 3).requires_grad_(False)})
    rows = gradient_sketches(network, lambda t: [network["used"](network["frozen"](torch.full((1, 3), float(t)))).sum()], [1, 2])
    assert rows.shape == (2, 8)
    assert rows[:, 3].tolist() == [1, 1]
    assert not rows[:, 4:].any()
    assert network["used"].weight.grad is None


def test_a_zero_gradient_is_named() -> None:
    with pytest.raises(ValueError, match=r"that of row 1 has the norm 0\.0"):
        cosine_matrix(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


def test_measuring_leaves_modes_flags_gradients_and_the_random_stream(pipeline, data) -> None:
    model = pipeline("pixels")
    model.unet.eval().requires_grad_(False)
    state = torch.get_rng_state()
    with differentiable(model.unet, train=True):
        assert model.unet.training
        assert all(parameter.requires_grad for parameter in model.unet.parameters())
    DenoisingTaskAffinity(limit=4, cells=4, sketch=16).evaluate(model, data("pixels"))
    assert not any(module.training for module in model.unet.modules())
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in model.unet.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_affinity_is_averaged_over_checkpoints_in_memory_and_on_disk(pipeline, data, tmp_path) -> None:
    models = [pipeline("pixels", seed=seed) for seed in range(3)]
    models[0].save_pretrained(tmp_path)
    settings = {"limit": 4, "cells": 5, "sketch": 128}
    single = [
        DenoisingTaskAffinity(**settings).evaluate(model, data("pixels")).artifacts["affinity"].tensors["affinity"] for model in models
    ]
    report = DenoisingTaskAffinity(**settings, checkpoints=[models[1]], checkpoint_folders=[str(tmp_path)]).evaluate(
        models[2], data("pixels")
    )
    made = report.artifacts["affinity"]
    torch.testing.assert_close(made.tensors["affinity"], torch.stack(single).mean(0), rtol=1e-6, atol=1e-6)
    assert made.tensors["timesteps"].tolist() == [10, 30, 50, 70, 90]
    assert len(report.tables["checkpoints"].rows) == 3
    assert report.metrics["worst_spearman_timestep"] == max(row[-1] for row in report.tables["checkpoints"].rows)
    with pytest.raises(gw.ConfigError, match="cells divides the schedule's 100 timesteps; found 7"):
        DenoisingTaskAffinity(limit=4, cells=7).evaluate(models[0], data("pixels"))


# -- intervals -----------------------------------------------------------------------------------------------------------------


def test_intervals_are_reported_and_taken_by_the_objective(pipeline, data, train) -> None:
    model = pipeline("captions")
    report = IntervalClusters("log-snr").evaluate(model, gw.Dataset({}))
    assert report.metrics["total_cost"] == pytest.approx(482.77333, abs=1e-3)  # diffusers keeps abar in float32
    assert [report.metrics[f"start-{number}"] for number in range(5)] == [0, 149, 372, 605, 816]
    assert sum(report.metrics[f"cost-{number}"] for number in range(5)) == pytest.approx(report.metrics["total_cost"])
    objective = ClusteredDenoising(k=2, intervals=report.artifacts["intervals"])
    objective.setup(model, data("captions"))
    assert objective.groups.offsets.tolist() == [0, 149, 372, 605, 816]
    assert objective.k == 5


def test_affinity_becomes_intervals_and_training(pipeline, data) -> None:
    model = pipeline("pixels")
    artifact = DenoisingTaskAffinity(limit=8, cells=10, sketch=256).evaluate(model, data("pixels")).artifacts["affinity"]
    report = IntervalClusters("gradient", 3, artifact).evaluate(model, gw.Dataset({}))
    objective = ClusteredDenoising("gradient", 3, affinity=artifact)
    objective.setup(model, data("pixels"))
    assert objective.groups.offsets.tolist() == report.artifacts["intervals"].data["starts"]
    assert all(start % 10 == 0 for start in report.artifacts["intervals"].data["starts"])


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: IntervalClusters("gradient"), "needs `affinity`"), (lambda: IntervalClusters(k=101), "number of timesteps, 100; found 101")],
)
def test_bad_intervals_are_refused(make, message, pipeline) -> None:
    with pytest.raises(gw.ConfigError, match=message):
        make().evaluate(pipeline("pixels"), gw.Dataset({}))


# -- negative transfer ---------------------------------------------------------------------------------------------------------


def test_frechet_distance_is_torchmetrics_and_zero_for_the_same() -> None:
    peer = pytest.importorskip("torchmetrics.image.fid", reason="needs torchmetrics")
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(60, 5, generator=generator).double() @ torch.randn(5, 5, generator=generator).double() for _ in range(2))
    expected = peer._compute_fid(first.mean(0), torch.cov(first.T), second.mean(0), torch.cov(second.T))
    assert frechet_distance(first, second) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, first + 2) == pytest.approx(5 * 4, rel=1e-9)
    with pytest.raises(gw.DataError, match="two sets of at least 2 finite features; found 1 and 60"):
        frechet_distance(first[:1], second)


@pytest.mark.parametrize("kind", KINDS)
def test_inside_its_interval_the_dedicated_network_answers_and_outside_the_shared(kind, pipeline, data) -> None:
    shared, other = pipeline(kind), pipeline(kind, seed=1)
    denoiser_of(other).network.eval()  # else a DiT drops labels
    denoiser, levels = denoiser_of(shared), noise_levels(shared.scheduler)
    batch, how = batch_of(data(kind), 3), {"steps": 4, "guidance_scale": 1.0, "seed": 0}
    plain = draw(denoiser, batch, **how)
    with mixed_denoiser(denoiser.network, {(0, levels.count): denoiser_of(other).network}, levels):
        everywhere = draw(denoiser, batch, **how)
    with mixed_denoiser(denoiser.network, {(0, levels.count // 2): denoiser_of(other).network}, levels):
        half = draw(denoiser, batch, **how)
    assert torch.equal(plain, draw(denoiser, batch, **how))  # nothing is left of it
    setattr(shared, denoiser.network_name, denoiser_of(other).network)
    assert torch.equal(everywhere, draw(denoiser_of(shared), batch, **how))
    assert all(not torch.equal(one, two) for one, two in ((plain, everywhere), (plain, half), (everywhere, half)))


def test_pictures_depend_on_their_seeds_and_not_on_the_batch(pipeline, data) -> None:
    denoiser, batch = denoiser_of(pipeline("captions")), batch_of(data("captions"), 4)
    how = {"steps": 2, "guidance_scale": 2.0}
    together = draw(denoiser, batch, seed=5, **how)
    later = draw(denoiser, {key: value[2:] for key, value in batch.items()}, seed=7, **how)
    torch.testing.assert_close(together[2:], later, rtol=1e-3, atol=1e-3)
    assert together.shape == (4, 3, 16, 16)
    assert 0 <= together.min() <= together.max() <= 1


def test_the_gap_is_the_mixed_distance_less_the_shared_one(pipeline, data) -> None:
    shared, better = pipeline("pixels"), pipeline("pixels", seed=2)
    evaluator = NegativeTransferGap(Features(), {0: better, 1: shared}, k=2, samples=12, steps=4, batch_size=5)
    report = evaluator.evaluate(shared, data("pixels"))
    assert report.metrics["gap-1"] == 0  # the shared model stands in for itself
    assert report.metrics["gap-0"] == pytest.approx(report.metrics["fid-0"] - report.metrics["fid"])
    assert report.metrics["gap-0"] != 0
    assert [row[:3] for row in report.tables["gaps"].rows] == [[0, 0, 49], [1, 50, 99]]
    assert NegativeTransferGap(Features(), samples=12, steps=4, batch_size=5).evaluate(shared, data("pixels")).metrics == {
        "fid": pytest.approx(report.metrics["fid"])
    }


def test_pictures_may_come_from_another_dataset(pipeline, data) -> None:
    images = gw.Dataset({"test": gw.TensorSamples(image=torch.rand(12, 3, 16, 16))})
    settings = {"samples": 12, "steps": 2, "k": 1}
    found = NegativeTransferGap(Features(), images=images, **settings).evaluate(pipeline("captions"), data("captions"))
    assert math.isfinite(found.metrics["fid"])
    with pytest.raises(gw.DataError, match='split "test" has no `image` to compare with: give the pictures as `images`'):
        NegativeTransferGap(Features(), **settings).evaluate(pipeline("captions"), data("captions"))


def test_dedicated_models_of_another_kind_or_place_are_refused(pipeline, data) -> None:
    with pytest.raises(gw.ConfigError, match=r"dedicated names intervals from 0 to 1; found \[2\]"):
        NegativeTransferGap(Features(), {2: pipeline("pixels")}, k=2)
    evaluator = NegativeTransferGap(Features(), {0: pipeline("captions")}, k=2, samples=4, steps=2)
    with pytest.raises(gw.InterfaceError, match="dedicated 0 is a StableDiffusionPipeline, which cannot stand in for DDPMPipeline"):
        evaluator.evaluate(pipeline("pixels"), data("pixels"))
