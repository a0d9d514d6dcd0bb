"""Sub-optimality and its bounds, exact."""

from __future__ import annotations

import pytest
import torch

import graftwork as gw
from graftwork_transfer_q_star import QStarGap
from graftwork_transfer_q_star.gap import METHODS, analyse
from graftwork_transfer_q_star.tabular import optimum, random_model

DATA = gw.Dataset({})


def problems(count: int = 8, end: int | None = None):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        reference = random_model(4, 4, generator, end=end)
        rewards = torch.rand(2, 256, generator=generator, dtype=torch.float64)
        yield reference, rewards[0], rewards[1]


@pytest.mark.parametrize("end", [None, 1])
def test_both_bounds_that_can_be_proved_hold_for_the_values_of_q_star(end: int | None) -> None:
    for problem in problems(end=end):
        for one in analyse(*problem, alphas=(0.05, 0.5, 2.0, 10.0), beta=0.7):
            assert one.divergence <= one.divergence_bound + 1e-12
            if one.method in ("transfer", "indirect"):
                assert one.gap <= one.proved + 1e-12


def test_indirect_transfer_decodes_as_direct_transfer_does() -> None:
    for problem in problems(5):
        found = {(one.method, one.alpha): one for one in analyse(*problem, alphas=(0.2, 1.0), beta=0.7)}
        for alpha in (0.2, 1.0):
            assert found["indirect", alpha].value == pytest.approx(found["transfer", alpha].value, abs=1e-12)
            assert abs(found["uncorrected", alpha].value - found["transfer", alpha].value) > 1e-6


def test_numbers_are_those_of_the_policies() -> None:
    reference, rewards, other = next(problems(1))
    found = next(one for one in analyse(reference, rewards, other, (0.5,), 0.7) if one.method == "controlled")
    best, policy = optimum(reference, rewards, 0.7), reference.tilted(reference.q_values(rewards), 0.5)
    texts = policy.trajectories()[0].exp()
    assert found.best == pytest.approx((best.trajectories()[0].exp() * rewards).sum().item())
    assert found.value == pytest.approx((texts * rewards).sum().item())
    kl = (texts * (policy.trajectories()[0] - reference.trajectories()[0])).sum().item()
    assert found.divergence == pytest.approx(kl)
    assert found.divergence_bound == pytest.approx((1 / 0.7 + 4 / 0.5) * rewards.max().item())
    best_kl = (best.trajectories()[0].exp() * (best.trajectories()[0] - reference.trajectories()[0])).sum().item()
    assert found.recalled == pytest.approx(0.7 * best_kl - 0.5 * kl)


def test_the_report_has_every_method_and_alpha_and_both_sides_of_each_bound() -> None:
    report = QStarGap(problems=4, alphas=[0.2, 2.0]).evaluate(None, DATA)
    names = ["gap", "recalled-bound", "recalled-broken", "proved-bound", "proved-broken", "divergence", "divergence-bound"]
    for method in METHODS:
        for alpha in ("0.2", "2"):
            assert {f"{method}/{name}@{alpha}" for name in names} <= set(report.metrics)
    assert report.metrics["transfer/proved-broken@2"] == 0
    assert len(report.tables["gaps"].rows) == 8
    assert len(report.figures["gaps"].figure.axes) == 2


def test_it_is_deterministic_and_follows_the_runs_seed() -> None:
    class Run:
        seed = 5

    first, again, other = (QStarGap(problems=2).evaluate(None, DATA, run).metrics for run in (None, None, Run()))
    assert first == again
    assert first != other


def test_a_language_model_is_analysed_after_a_prompt(reference, reward_model) -> None:
    evaluator = QStarGap(vocabulary=3, horizon=3, prompt="w3 w7", reward=reward_model, baseline_reward=reward_model, alphas=[0.5])
    reference.train()
    report = evaluator.evaluate(reference, DATA)
    assert reference.training
    assert report.metrics["indirect/gap@0.5"] == pytest.approx(report.metrics["uncorrected/gap@0.5"], abs=1e-9)  # equal rewards: no weights
    assert report.metrics["transfer/proved-broken@0.5"] == 0
    assert report.metrics["transfer/divergence@0.5"] > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"vocabulary": 1}, "vocabulary is at least 2"),
        ({"vocabulary": 30, "horizon": 8}, "V\\^T at most 1048576; found 30 and 8"),
        ({"alphas": [0.5, 0.0]}, "alphas and beta are above 0"),
        ({"problems": 0}, "problems is at least 1"),
        ({"prompt": "w3"}, "prompt and reward go together"),
    ],
)
def test_parameters_out_of_range_are_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QStarGap(**given)
