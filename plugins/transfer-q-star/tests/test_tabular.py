"""Exact values of a small world: what no approximation can hide behind."""

from __future__ import annotations

import itertools

import pytest
import torch

from graftwork_transfer_q_star import TabularModel, enumerate_model, indirect_values
from graftwork_transfer_q_star.tabular import optimum, random_model, sequences, transfer_values

VOCABULARY, HORIZON = 4, 4


def problem(seed: int = 0, end: int | None = None) -> tuple[TabularModel, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reference = random_model(VOCABULARY, HORIZON, generator, end=end)
    rewards = torch.rand(2, VOCABULARY**HORIZON, generator=generator, dtype=torch.float64)
    return reference, rewards[0], rewards[1]


def by_hand(model: TabularModel, rewards: torch.Tensor, depth: int) -> torch.Tensor:
    """Q(s, z) at a depth as a sum over texts, one text after another."""
    found = torch.zeros(VOCABULARY**depth, VOCABULARY, dtype=torch.float64)
    for number, text in enumerate(itertools.product(range(VOCABULARY), repeat=HORIZON)):
        state, probability = 0, 1.0
        for place, token in enumerate(text):
            if place == depth:
                start = (state, token)
            elif place > depth:
                probability *= model.log_probs[place][state, token].exp().item()
            state = state * VOCABULARY + token
        found[start] += probability * rewards[number]
    return found


@pytest.mark.parametrize("depth", range(HORIZON))
def test_q_values_are_sums_over_texts(depth: int) -> None:
    reference, rewards, _ = problem()
    torch.testing.assert_close(reference.q_values(rewards)[depth], by_hand(reference, rewards, depth))


def test_the_optimum_is_the_closed_form_of_rlhf() -> None:
    reference, rewards, _ = problem()
    best = optimum(reference, rewards, 0.7)
    torch.testing.assert_close(best.trajectories()[0], (reference.trajectories()[0] + rewards / 0.7).log_softmax(0))
    torch.testing.assert_close(best.value(rewards), (best.trajectories()[0].exp() * rewards).sum())


@pytest.mark.parametrize("end", [None, 2])
@pytest.mark.parametrize("seed", range(5))
def test_direct_transfer_from_the_optimum_is_q_star(seed: int, end: int | None) -> None:
    reference, rewards, _ = problem(seed, end)
    best = optimum(reference, rewards, 0.7)
    for found, expected in zip(transfer_values(best, rewards), best.q_values(rewards), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("end", [None, 2])
@pytest.mark.parametrize("beta", [0.2, 0.7, 3.0])
@pytest.mark.parametrize("seed", range(5))
def test_indirect_transfer_from_any_baseline_reward_is_q_star(seed: int, beta: float, end: int | None) -> None:
    reference, rewards, other = problem(seed, end)
    expected = optimum(reference, rewards, beta).q_values(rewards)
    baseline = optimum(reference, other, beta)
    for depth, (found, exact) in enumerate(zip(transfer_values(baseline, rewards, other, beta), expected, strict=True)):
        torch.testing.assert_close(found, exact, atol=1e-12, rtol=0)
        uncorrected = transfer_values(baseline, rewards)[depth]
        assert depth == HORIZON - 1 or (uncorrected - exact).abs().max() > 1e-3  # the weights have something to correct


def test_weights_without_normalisation_miss_q_star() -> None:
    reference, rewards, other = problem()
    expected = optimum(reference, rewards, 0.7).q_values(rewards)
    baseline = optimum(reference, other, 0.7)
    assert (transfer_values(baseline, rewards, other, 0.7, "none")[0] - expected[0]).abs().max() > 0.01


def test_the_sum_of_token_divergences_is_the_divergence_of_texts() -> None:
    reference, rewards, _ = problem()
    best = optimum(reference, rewards, 0.3)
    mine, theirs = best.trajectories()[0], reference.trajectories()[0]
    torch.testing.assert_close(best.token_divergence(reference), (mine.exp() * (mine - theirs)).sum())


def test_an_ended_text_goes_on_with_nothing_else() -> None:
    reference, _, _ = problem(end=2)
    probabilities = reference.trajectories()[0].exp()
    ended = [2 in text[:-1] and any(token != 2 for token in text[text.index(2) :]) for text in sequences(4, 4).tolist()]
    assert probabilities[torch.tensor(ended)].sum() == 0
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_a_language_model_is_enumerated_as_it_is(small_vocabulary) -> None:
    lm = small_vocabulary(5, 4)
    model = lm.model.double()
    found = enumerate_model(model, [3, 2], range(5), 3)
    text = [4, 1, 2]
    with torch.no_grad():
        logits = model(torch.tensor([[3, 2, *text]])).logits[0, 1:4].log_softmax(-1)
    expected = sum(logits[place, token] for place, token in enumerate(text))
    torch.testing.assert_close(found.trajectories()[0][4 * 25 + 1 * 5 + 2], expected)


def test_self_normalised_estimates_from_draws_approach_q_star() -> None:
    """The estimator on draws of rho_BL, not on all continuations: its error falls as 1 / sqrt(M)."""
    reference, rewards, other = problem()
    beta = 0.7
    baseline, exact = optimum(reference, other, beta), optimum(reference, rewards, beta).q_values(rewards)[0][0, 1]
    weights = baseline.trajectories(1)[1].exp()
    generator = torch.Generator().manual_seed(0)
    errors = {}
    for count in (50, 800):
        drawn = torch.multinomial(weights.expand(400, -1), count, replacement=True, generator=generator) + 64
        errors[count] = (indirect_values(rewards[drawn], other[drawn], beta) - exact).square().mean().sqrt()
    assert errors[800] < 0.02
    assert 3.3 < errors[50] / errors[800] < 4.8  # sqrt(16) = 4
