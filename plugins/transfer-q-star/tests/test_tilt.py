"""The arithmetic: values of candidates and the tilt."""

from __future__ import annotations

import pytest
import torch

from graftwork_transfer_q_star import direct_values, indirect_values, tilt, transfer_log_weights


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def everything(rows: int, vocabulary: int) -> torch.Tensor:
    return torch.arange(vocabulary).expand(rows, -1)


@pytest.mark.parametrize("alpha", [0.05, 0.7, 5.0])
def test_no_distribution_beats_the_tilt_and_its_value_is_the_log_partition(alpha: float) -> None:
    log_probs, values = draw(6, 5).log_softmax(-1), draw(6, 5, seed=1)
    policy = tilt(log_probs, everything(6, 5), values, alpha).softmax(-1)

    def objective(distribution: torch.Tensor) -> torch.Tensor:
        kl = torch.where(distribution > 0, distribution * (distribution.log() - log_probs), 0.0).sum(-1)
        return (distribution * values).sum(-1) - alpha * kl

    best = objective(policy)
    torch.testing.assert_close(best, alpha * (log_probs + values / alpha).logsumexp(-1))
    rivals = draw(4000, 6, 5, seed=2).mul(2).softmax(-1)
    assert (objective(rivals) < best).all()
    near = (policy * (1 + 1e-3 * draw(6, 5, seed=3))).clamp(min=0)
    assert (objective(near / near.sum(-1, keepdim=True)) <= best).all()


def test_what_is_no_candidate_is_impossible() -> None:
    log_probs = draw(2, 6).log_softmax(-1)
    candidates = log_probs.topk(3).indices
    tilted = tilt(log_probs, candidates, draw(2, 3), 1.0)
    assert (tilted.isfinite().sum(1) == 3).all()
    assert tilted.gather(1, candidates).isfinite().all()


def test_a_great_alpha_leaves_the_reference_and_a_small_one_takes_the_best_value() -> None:
    log_probs, values = draw(4, 7).float().log_softmax(-1), draw(4, 7, seed=1).float()
    candidates = everything(4, 7)
    torch.testing.assert_close(tilt(log_probs, candidates, values, 1e12), log_probs, atol=1e-6, rtol=0)
    for alpha in (1e-6, 1e-30):
        tilted = tilt(log_probs, candidates, values, alpha)
        assert torch.equal(tilted.argmax(1), values.argmax(1))
        assert not tilted.isnan().any()


def test_a_constant_added_to_the_values_changes_nothing() -> None:
    log_probs, values = draw(3, 4).log_softmax(-1), draw(3, 4, seed=1)
    torch.testing.assert_close(
        tilt(log_probs, everything(3, 4), values + 1000, 0.5), tilt(log_probs, everything(3, 4), values, 0.5), atol=1e-9, rtol=0
    )


def test_candidates_that_are_ruled_out_stay_so_and_do_not_spoil_the_row() -> None:
    log_probs = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    tilted = tilt(log_probs, everything(1, 3), torch.tensor([[1.0, 3.0, -torch.inf]]), 2.0)
    torch.testing.assert_close(tilted.softmax(1), torch.tensor([[0.0, 1.0, -torch.inf]]).double().softmax(1))


def test_direct_values_are_the_mean_or_the_exact_expectation() -> None:
    rewards, weights = draw(2, 3, 4), draw(2, 3, 4, seed=1).log_softmax(-1)
    torch.testing.assert_close(direct_values(rewards), rewards.mean(-1))
    torch.testing.assert_close(direct_values(rewards, weights), (rewards * weights.exp()).sum(-1))


def test_indirect_weights_are_the_ratio_of_the_two_optima() -> None:
    """rho_r / rho_BL of a small world, up to one constant."""
    log_reference, rewards, other, beta = draw(9).log_softmax(0), draw(9, seed=1), draw(9, seed=2), 0.6
    ratio = (log_reference + rewards / beta).log_softmax(0) - (log_reference + other / beta).log_softmax(0)
    difference = ratio - transfer_log_weights(rewards, other, beta)
    torch.testing.assert_close(difference, difference[0].expand(9))


def test_self_normalised_values_by_hand() -> None:
    rewards, other = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.5, 0.0]])
    weights = torch.tensor([0.5 / 2.0, 3.0 / 2.0]).exp()
    torch.testing.assert_close(indirect_values(rewards, other, 2.0), ((weights * rewards[0]).sum() / weights.sum())[None])
    torch.testing.assert_close(indirect_values(rewards, other, 2.0, "none"), (weights * rewards[0]).mean()[None])


def test_one_rollout_without_normalisation_is_the_authors_code() -> None:
    rewards, other = draw(5, 1), draw(5, 1, seed=1)
    torch.testing.assert_close(indirect_values(rewards, other, 2.0, "none"), ((rewards - other) * 0.5).exp()[:, 0] * rewards[:, 0])


def test_equal_rewards_make_the_indirect_value_direct() -> None:
    rewards = draw(4, 6)
    torch.testing.assert_close(indirect_values(rewards, rewards, 0.3), direct_values(rewards))


def test_great_weights_overflow_neither_in_half_precision_nor_in_single() -> None:
    rewards, other = torch.tensor([[400.0, -300.0, 5.0]]), torch.tensor([[-400.0, 300.0, 5.0]])
    assert indirect_values(rewards.half(), other.half(), 0.1).item() == 400.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tilt(draw(1, 3), everything(1, 3), draw(1, 3), 0.0), "alpha is above 0; found 0.0"),
        (lambda: tilt(draw(1, 3), everything(1, 3), draw(1, 3), -1.0), "alpha is above 0; found -1.0"),
        (lambda: tilt(draw(2, 3), everything(2, 3), draw(2, 2), 1.0), r"do not fit: found \(2, 3\), \(2, 3\), \(2, 2\)"),
        (lambda: indirect_values(draw(2, 1), draw(2, 1), 1.0), "at least 2 rollouts, as the weight of one cancels; found 1"),
        (lambda: indirect_values(draw(2, 3), draw(2, 2), 1.0), r"rewards \(2, 3\) and baseline_rewards \(2, 2\) differ in shape"),
        (lambda: indirect_values(draw(2, 3), draw(2, 3), 0.0), "beta is above 0; found 0.0"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
