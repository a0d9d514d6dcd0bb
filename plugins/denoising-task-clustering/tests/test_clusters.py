"""Noise levels and groups of timesteps: closed forms, diffusers' own, stratified draws, losses."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from scipy.stats import chisquare

from graftwork import DataError, InterfaceError
from graftwork_denoising_task_clustering import (
    TimestepClusters,
    cluster_losses,
    equal_intervals,
    flow_log_snr,
    intervals_of,
    log_snr,
    noise_levels,
    random_groups,
)


def test_log_snr_of_a_diffusion_and_of_a_flow() -> None:
    torch.testing.assert_close(log_snr(torch.tensor([0.5, 0.9]).double()), torch.tensor([1.0, 9.0]).double().log())
    levels = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)
    torch.testing.assert_close(flow_log_snr(levels), 2 * ((1 - levels) / levels).log())


@pytest.mark.parametrize(("kept", "where", "value"), [([0.9, 0.0], 1, "0.0"), ([1.0, 0.5], 0, "inf"), ([0.9, -0.1], 1, "-0.09")])
def test_a_ratio_that_is_not_positive_and_finite_is_named(kept, where, value) -> None:
    with pytest.raises(ValueError, match=f"positive, finite signal-to-noise ratios; at timestep {where} it is {value}"):
        log_snr(torch.tensor(kept))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_noised_samples_and_targets_are_diffusers_own(kind) -> None:
    scheduler = DDPMScheduler(100, prediction_type=kind)
    levels = noise_levels(scheduler)
    samples, noise = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    timesteps = torch.tensor([0, 10, 60, 99])
    torch.testing.assert_close(levels.noised(samples, noise, timesteps), scheduler.add_noise(samples, noise, timesteps))
    expected = {"epsilon": noise, "sample": samples, "v_prediction": scheduler.get_velocity(samples, noise, timesteps)}[kind]
    torch.testing.assert_close(levels.target(samples, noise, timesteps), expected)


def test_a_flow_runs_straight_from_data_to_noise() -> None:
    levels = noise_levels(FlowMatchEulerDiscreteScheduler(100))
    timesteps = torch.tensor([0, 50, 99]).repeat(200)
    times = levels.spread(timesteps)
    assert ((times * 100).floor() == timesteps).float().mean() > 0.99  # a draw next to the edge may round to it
    assert len(times.unique()) > 500
    samples, noise = torch.randn(2, 1, 2, 2), torch.randn(2, 1, 2, 2)
    torch.testing.assert_close(levels.noised(samples, noise, torch.tensor([0.25, 1.0]))[0], 0.75 * samples[0] + 0.25 * noise[0])
    torch.testing.assert_close(levels.target(samples, noise, torch.tensor([0.25, 1.0])), noise - samples)
    assert levels.log_snr[49] > 0 > levels.log_snr[50]
    assert (levels.timestep_of(0.255), levels.timestep_of(1.0)) == (25, 99)


@pytest.mark.parametrize(("weighting", "gamma"), [("min-snr", None), ("min-snr", 2.0), ("p2", None), ("p2", 0.5)])
@pytest.mark.parametrize("kind", ["v_prediction", "sample", "flow"])
def test_a_weighted_loss_is_the_same_whatever_the_network_predicts(kind, weighting, gamma) -> None:
    """An error of the prediction is turned into the error of the noise that it stands for."""
    flow = kind == "flow"
    levels = noise_levels(FlowMatchEulerDiscreteScheduler(100) if flow else DDPMScheduler(100, prediction_type=kind))
    times = torch.tensor([0.1, 0.5, 0.9]) if flow else torch.tensor([5, 40, 90])
    keep, add = (factor.double() for factor in levels.signal_and_noise(times, times))
    # x_t = keep x_0 + add e stays as it is when e is wrong by 1, so x_0 is wrong by -add / keep
    error = {"v_prediction": keep + add * add / keep, "sample": -add / keep, "flow": 1 + add / keep}[kind]
    ratio = (keep / add).square()
    bound = {"min-snr": ratio.clamp(max=gamma or 5.0) / ratio, "p2": (1 + ratio).pow(-(gamma or 1.0))}[weighting]
    torch.testing.assert_close(levels.weights(times, weighting, gamma).double() * error.square(), bound, rtol=1e-4, atol=1e-6)


def test_min_snr_and_p2_of_noise_prediction_are_the_published_weights() -> None:
    levels = noise_levels(DDPMScheduler(1000))
    times = torch.tensor([0, 200, 999])
    ratio = levels.log_snr[times].exp()
    torch.testing.assert_close(levels.weights(times, "min-snr").double(), ratio.clamp(max=5) / ratio, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(levels.weights(times, "p2").double(), 1 / (1 + ratio), rtol=1e-3, atol=1e-8)
    assert levels.weights(times, "none").tolist() == [1, 1, 1]


def test_zero_terminal_snr_trains_but_has_no_log_snr_intervals() -> None:
    levels = noise_levels(DDIMScheduler(100, rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    assert torch.isfinite(levels.weights(torch.tensor([0, 99]), "min-snr")).all()
    assert intervals_of("uniform", 5, levels).starts == (0, 20, 40, 60, 80)
    with pytest.raises(ValueError, match=r"at timestep 99 it is 0\.0"):
        intervals_of("log-snr", 5, levels)


def test_other_schedulers_are_refused() -> None:
    with pytest.raises(InterfaceError, match="take a DDPM, DDIM or FlowMatch scheduler"):
        noise_levels(EDMEulerScheduler())


def test_gradient_intervals_follow_the_blocks_of_an_affinity_matrix() -> None:
    affinity = torch.block_diag(torch.ones(3, 3), torch.ones(5, 5), torch.ones(2, 2))
    levels = noise_levels(DDPMScheduler(1000))
    assert intervals_of("gradient", 3, levels, affinity).starts == (0, 300, 800)
    with pytest.raises(ValueError, match="needs `affinity`"):
        intervals_of("gradient", 3, levels)


@pytest.mark.parametrize(("batch", "k", "counts"), [(50, 5, (10,) * 5), (7, 3, (2, 2, 3)), (5, 5, (1,) * 5), (13, 5, (2, 3, 2, 3, 3))])
def test_a_stratified_batch_has_its_share_of_every_cluster(batch, k, counts) -> None:
    clusters = TimestepClusters(equal_intervals(100, k).assignment())
    drawn = clusters.draw(batch, torch.Generator().manual_seed(0))
    assert drawn.counts == counts
    assert torch.equal(clusters.assignment[drawn.timesteps], drawn.tasks)
    assert torch.bincount(drawn.tasks).tolist() == list(counts)
    assert torch.equal(drawn.tasks, drawn.tasks.sort().values)


@pytest.mark.parametrize("contiguous", [True, False])
def test_timesteps_are_uniform_within_their_cluster(contiguous) -> None:
    assignment = torch.repeat_interleave(torch.arange(3), torch.tensor([10, 60, 30]))
    if not contiguous:
        assignment = assignment[torch.randperm(100, generator=torch.Generator().manual_seed(3))]
    drawn = TimestepClusters(assignment).draw(30_000, torch.Generator().manual_seed(1))
    seen = torch.bincount(drawn.timesteps, minlength=100)
    for group in range(3):
        assert chisquare(seen[assignment == group].numpy()).pvalue > 1e-3
        assert seen[assignment == group].sum() == 10_000


def test_the_last_timestep_can_be_drawn_and_none_beyond() -> None:
    drawn = TimestepClusters(torch.zeros(1000, dtype=torch.long)).draw(200_000, torch.Generator().manual_seed(0))
    assert (int(drawn.timesteps.min()), int(drawn.timesteps.max())) == (0, 999)


def test_one_cluster_alone_can_be_drawn() -> None:
    drawn = TimestepClusters(equal_intervals(100, 5).assignment()).draw(64, torch.Generator().manual_seed(0), only=3)
    assert set((drawn.timesteps // 20).tolist()) == {3}
    assert drawn.counts == (64,)


def test_a_batch_smaller_than_k_is_refused() -> None:
    with pytest.raises(DataError, match="each of the k clusters needs at least one sample: batch 3, k 5"):
        TimestepClusters(equal_intervals(100, 5).assignment()).draw(3)


def test_cluster_losses_are_means_over_their_own_rows() -> None:
    errors = torch.tensor([1.0, 3.0, 10.0, 4.0, 5.0, 6.0])
    found = cluster_losses(errors, torch.tensor([0, 0, 1, 2, 2, 2]), 3)
    assert found.tolist() == [2, 10, 5]
    assert cluster_losses(errors.bfloat16(), torch.zeros(6, dtype=torch.long), 1).dtype == torch.float32
    with pytest.raises(ValueError, match="differ in shape"):
        cluster_losses(errors, torch.zeros(5, dtype=torch.long), 1)


def test_density_weights_give_every_timestep_its_uniform_share_of_the_loss() -> None:
    """The mean over clusters of weight * mean over the cluster's timesteps is the mean over all timesteps."""
    assignment = torch.repeat_interleave(torch.arange(3), torch.tensor([10, 60, 30]))
    clusters, errors = TimestepClusters(assignment), torch.arange(100.0)
    each = cluster_losses(errors, assignment, 3)
    assert (clusters.density_weights() * each).mean().item() == pytest.approx(errors.mean().item(), rel=1e-6)
    assert each.mean().item() != pytest.approx(errors.mean().item(), rel=1e-3)


def test_random_groups_are_of_equal_size_and_not_contiguous() -> None:
    groups = random_groups(100, 5, torch.Generator().manual_seed(0))
    assert torch.bincount(groups).tolist() == [20] * 5
    assert (groups.diff() != 0).sum() > 50


@pytest.mark.parametrize(
    ("assignment", "message"),
    [(torch.tensor([0, 2, 2]), "group 1 has no timestep; all 3 need one"), (torch.tensor([-1, 0]), "assignment holds the group")],
)
def test_an_assignment_with_a_hole_is_refused(assignment, message) -> None:
    with pytest.raises(ValueError, match=message):
        TimestepClusters(assignment)
