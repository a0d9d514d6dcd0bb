"""Responses resampled towards a reward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import graftwork as gw
from graftwork_transfer_q_star import FunctionReward, RewardTiltedSamples, tilted_resample

PROMPTS = ["w3 w7 w9 w4", "w5 w2 w2", "w8 w8 w4 w6", "w2 w3 w4"]


def made(lm: Any, reward: Any, **given: Any) -> RewardTiltedSamples:
    data = gw.Dataset({"train": gw.TensorSamples(text=PROMPTS)})
    return RewardTiltedSamples(lm, FunctionReward(reward), data, **{"prompts": 4, "prompt_tokens": 2, "max_new_tokens": 6, **given})


def test_resampling_is_proportional_to_exp_of_reward_over_beta() -> None:
    rewards = torch.tensor([[0.0, 1.0, 2.0]])
    drawn = tilted_resample(rewards, 0.5, 50_000, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn[0], minlength=3) / 50_000
    torch.testing.assert_close(shares, (rewards[0] / 0.5).softmax(0), atol=0.01, rtol=0)


def test_resampled_draws_follow_the_closed_form_of_rlhf() -> None:
    """Draws of a distribution over five texts, resampled: the tilted distribution, as the number of draws grows."""
    base, rewards = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]), torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(base.expand(4000, -1), 64, replacement=True, generator=generator)
    kept = drawn.gather(1, tilted_resample(rewards[drawn], 1.0, 8, generator))
    shares = torch.bincount(kept.flatten(), minlength=5) / kept.numel()
    torch.testing.assert_close(shares, (base.log() + rewards).softmax(0), atol=0.015, rtol=0)


def test_samples_hold_prompt_response_and_which_tokens_to_learn(reference, reward) -> None:
    data = made(reference, reward, samples=5, kept=3)
    assert len(data["train"]) == 12
    for sample in (data["train"][index] for index in range(12)):
        length = int(sample["attention_mask"].sum())
        learned = sample["completion_mask"].bool()
        assert not learned[:2].any()
        assert learned[2:length].all()
        assert not learned[length:].any()
        assert reference.tokenizer.decode(sample["input_ids"][:2]) == sample["prompt"]
        assert reference.tokenizer.decode(sample["input_ids"][:length], skip_special_tokens=True) == sample["text"]
        assert sample["reward"] == pytest.approx(reward([sample["response"]], [sample["prompt"]]).item(), abs=1e-6)
        assert (sample["input_ids"][length:] == 1).all()


def test_a_smaller_beta_earns_more(reference, reward) -> None:
    means = [made(reference, reward, samples=24, kept=24, beta=beta)["train"].columns["reward"].mean() for beta in (0.05, 0.3, 100.0)]
    assert means[0] > means[1] > means[2]


def test_a_seed_gives_the_same_samples_and_the_random_state_stays(reference, reward) -> None:
    reference.train()
    before = torch.get_rng_state()
    first, again, other = (made(reference, reward, seed=seed)["train"].columns["text"] for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(before, torch.get_rng_state())
    assert reference.training


def test_training_on_them_aligns_the_model(reference, reward) -> None:
    data = made(reference, reward, samples=32, kept=16, beta=0.05)
    plan = gw.TrainConfig.model_validate({"steps": 40, "batch_size": 32, "optimizer": {"use": "adamw", "lr": 0.01}, "feeds": {}})
    objective = gw.objective("causal-language-modelling", completion_only=True)
    before = made(reference, reward, samples=32, kept=32, beta=1e6, seed=9)["train"].columns["reward"].mean()
    trained = gw.Engine(reference, objective, data, plan, device="cpu").fit()
    after = made(trained.eval(), reward, samples=32, kept=32, beta=1e6, seed=9)["train"].columns["reward"].mean()
    assert after > before + 0.1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"beta": 0.0}, "beta is above 0; found 0.0"),
        ({"kept": 0}, "kept is at least 1; found 0"),
        ({"samples": 0}, "samples is at least 1"),
    ],
)
def test_parameters_out_of_range_are_refused(reference, reward, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(reference, reward, **given)


def test_too_few_prompts_and_bad_rewards_are_refused(reference, reward) -> None:
    with pytest.raises(gw.DataError, match='split "train" has 4 samples; 5 prompts'):
        made(reference, reward, prompts=5)
    with pytest.raises(gw.DataError, match="not finite"):
        made(reference, lambda samples, _: torch.full((len(samples),), torch.nan))
