"""Rewards of responses: by ids and by text, in buckets of like length."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graftwork import DataError
from graftwork_transfer_q_star import FunctionReward, RewardScorer

ROWS = [[1, 1, 3, 4, 5], [2, 6, 7, 8, 0], [1, 9, 9, 0, 1], [4, 5, 6, 7, 8]]
SEQUENCES = torch.tensor(ROWS)
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
TEXTS = ["w3 w4 w5", "w2 w6 w7 w8", "w9 w9", "w4 w5 w6 w7 w8"]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_ids_and_texts_give_the_same_rewards(tokenizer, reward_model, batch_size: int) -> None:
    by_ids = RewardScorer(reward_model, tokenizer, batch_size)
    assert by_ids.uses_ids
    with torch.no_grad():
        found, expected = by_ids(SEQUENCES, MASK, []), reward_model.score(TEXTS)
        by_text = RewardScorer(FunctionReward(lambda samples, prompts: reward_model.score(samples, prompts)), tokenizer, batch_size)
        assert not by_text.uses_ids
        again = by_text(SEQUENCES, MASK, ["w3", "w2 w6", "", "w4"])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(again, expected)
    assert by_ids.calls == by_text.calls == -(-4 // batch_size)
    assert by_ids.scored == 4


def test_a_reward_of_another_vocabulary_reads_text(tokenizer, reward_model) -> None:
    other = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>", pad_token="<pad>")
    other.add_tokens(["w99"])
    assert RewardScorer(reward_model, other).uses_ids is False


def test_prompt_and_response_come_apart_and_special_tokens_are_left_out(tokenizer) -> None:
    seen: list[tuple] = []

    def function(samples: Any, prompts: Any) -> torch.Tensor:
        seen.extend(zip(prompts, samples, strict=True))
        return torch.zeros(len(samples))

    RewardScorer(function, tokenizer)(SEQUENCES[1:2], MASK[1:2], ["w2 w6"])
    RewardScorer(function, tokenizer, keep_special_tokens=True)(SEQUENCES[1:2], MASK[1:2], ["w2 w6"])
    assert seen == [("w2 w6", " w7 w8"), ("w2 w6", " w7 w8 </s>")]


def test_texts_of_like_length_are_scored_together(tokenizer) -> None:
    batches: list[list[int]] = []

    def function(samples: Any, prompts: Any) -> torch.Tensor:
        batches.append([len(sample.split()) for sample in samples])
        return torch.tensor([float(len(sample.split())) for sample in samples])

    found = RewardScorer(function, tokenizer, batch_size=2)(SEQUENCES, MASK, [""] * 4)
    assert found.tolist() == [3.0, 4.0, 2.0, 5.0]
    assert batches == [[2, 3], [4, 5]]


def test_half_precision_rewards_are_raised_to_single(tokenizer) -> None:
    found = RewardScorer(lambda samples, _: torch.ones(len(samples), dtype=torch.float16), tokenizer)(SEQUENCES, MASK, [""] * 4)
    assert found.dtype == torch.float32


def test_nothing_to_score_asks_nobody(tokenizer) -> None:
    scorer = RewardScorer(lambda samples, _: torch.zeros(0), tokenizer)
    assert scorer(SEQUENCES[:0], MASK[:0], []).shape == (0,)
    assert scorer.calls == 0


@pytest.mark.parametrize("by_ids", [True, False])
def test_what_the_reward_would_cut_is_refused(tokenizer, reward_model, by_ids: bool) -> None:
    reward_model.max_length = 4
    scorer = RewardScorer(reward_model, tokenizer)
    scorer.uses_ids = by_ids
    with pytest.raises(DataError, match="TransformersReward takes 4 tokens; prompt, response and rollout have 5"):
        scorer(SEQUENCES, MASK, ["w3", "w2", "", "w4"])
