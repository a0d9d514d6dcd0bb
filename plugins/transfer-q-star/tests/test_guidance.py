"""The guidances on a CausalLM: what is attached, what is left behind, and how the three relate."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

import graftwork as gw
from graftwork.builtin.sequence_classifiers import TransformersReward
from graftwork_transfer_q_star import ControlledDecoding, FunctionReward, RewardGuidedSearch, TransferQStar, guided_generate

GIVEN = {"top_k": 4, "alpha": 0.4}


def decode(guidance: Any, lm: Any, ids: torch.Tensor, **given: Any) -> torch.Tensor:
    with guidance.attach(lm):
        return lm.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **{"max_new_tokens": 6, "do_sample": False, **given})


def plain(lm: Any, ids: torch.Tensor) -> torch.Tensor:
    return lm.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)


def test_without_a_horizon_it_is_reward_guided_search(reference, baseline, reward, prompts) -> None:
    transfer = TransferQStar(FunctionReward(reward), baseline, horizon=0, **GIVEN)
    search = RewardGuidedSearch(FunctionReward(reward), **GIVEN)
    found = [decode(one, reference, prompts, output_scores=True, return_dict_in_generate=True) for one in (transfer, search)]
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert all(torch.equal(*pair) for pair in zip(found[0].scores, found[1].scores, strict=True))
    assert search.calls.lm_forwards == 0


def test_with_the_reference_as_its_baseline_it_is_controlled_decoding(reference, reward, prompts) -> None:
    several = {"horizon": 3, "rollouts": 2, "seed": 4}
    transfer = TransferQStar(FunctionReward(reward), reference, **several, **GIVEN)
    controlled = ControlledDecoding(FunctionReward(reward), **several, **GIVEN)
    alone = TransferQStar(
        FunctionReward(reward), None, **several, **GIVEN
    )  # what the authors' code does, on whichever model it is attached to
    found = [decode(one, reference, prompts, output_scores=True, return_dict_in_generate=True) for one in (transfer, controlled, alone)]
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0].scores, other.scores, strict=True))


def test_the_three_decode_differently(reference, baseline, reward, prompts) -> None:
    ways = (
        TransferQStar(FunctionReward(reward), baseline, horizon=3, **GIVEN),
        ControlledDecoding(FunctionReward(reward), horizon=3, **GIVEN),
        RewardGuidedSearch(FunctionReward(reward), **GIVEN),
    )
    found = [decode(one, reference, prompts, output_scores=True, return_dict_in_generate=True).scores[0] for one in ways]
    assert not any(torch.equal(found[first], found[second]) for first, second in ((0, 1), (0, 2), (1, 2)))


def test_it_leaves_no_trace(reference, baseline, reward_model, prompts) -> None:
    for one in (reference, baseline, reward_model):
        one.train()
    reference.model.transformer.h[0].eval()

    def state() -> tuple:
        modules = [module for one in (reference, baseline, reward_model) for module in one.modules()]
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules]
        generation = [copy.deepcopy(one.model.generation_config.to_dict()) for one in (reference, baseline)]
        return [module.training for module in modules], hooks, generation, set(vars(reference.model)), set(vars(baseline.model))

    reference.eval()
    before_tokens = plain(reference, prompts)
    reference.train()
    before, random = state(), torch.get_rng_state()
    guidance = TransferQStar(reward_model, baseline, horizon=3, rollouts=2, seed=0, **GIVEN)
    with guidance.attach(reference):
        assert "generate" in vars(reference.model)
        during = reference.generate(input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=6, do_sample=False)
    assert state() == before
    assert torch.equal(random, torch.get_rng_state())
    assert torch.is_grad_enabled()
    reference.eval()
    assert torch.equal(plain(reference, prompts), before_tokens)
    assert not torch.equal(during, before_tokens)


def test_it_is_detached_after_an_error_too(reference, baseline, prompts) -> None:
    broken = TransferQStar(FunctionReward(lambda samples, _: torch.full((len(samples),), torch.nan)), baseline, horizon=2, **GIVEN)
    with pytest.raises(gw.DataError, match="not finite"):
        decode(broken, reference, prompts)
    assert "generate" not in vars(reference.model)


def test_two_calls_under_one_attachment_do_not_know_of_each_other(reference, baseline, reward, prompts) -> None:
    guidance = TransferQStar(FunctionReward(reward), baseline, horizon=3, **GIVEN)
    alone = decode(guidance, reference, prompts[:1])
    with guidance.attach(reference):
        reference.generate(input_ids=prompts[1:], attention_mask=torch.ones_like(prompts[1:]), max_new_tokens=3, do_sample=False)
        again = reference.generate(input_ids=prompts[:1], attention_mask=torch.ones_like(prompts[:1]), max_new_tokens=6, do_sample=False)
    assert torch.equal(alone, again)


def test_streaming_stopping_criteria_and_other_processors_still_work(reference, baseline, reward, prompts) -> None:
    class Third(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 6)

    guidance = TransferQStar(FunctionReward(reward), baseline, horizon=3, **GIVEN)
    found = decode(guidance, reference, prompts[:1], eos_token_id=None)
    streamer = TextIteratorStreamer(reference.tokenizer, skip_prompt=True)
    stopped = decode(
        guidance, reference, prompts[:1], stopping_criteria=StoppingCriteriaList([Third()]), eos_token_id=None, streamer=streamer
    )
    assert stopped.tolist() == found[:, :6].tolist()
    assert "".join(streamer).split() == reference.tokenizer.decode(stopped[0, 3:]).split()
    first = found[0, 3].item()
    other = decode(guidance, reference, prompts[:1], bad_words_ids=[[first]], eos_token_id=None)
    assert first not in other[0, 3:].tolist()


def test_an_end_given_to_generate_ends_candidates_and_rollouts(reference, baseline, prompts) -> None:
    seen: list[str] = []

    def function(samples: Any, _: Any) -> torch.Tensor:
        seen.extend(samples)
        return torch.zeros(len(samples))

    decode(TransferQStar(FunctionReward(function), baseline, horizon=6, **GIVEN), reference, prompts, eos_token_id=[0, 5])
    assert not [text for text in seen if "w5" in text.split()[:-1]]
    assert [text for text in seen if text.split()[-1:] == ["w5"]]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [0]),
        ({"eos_token_id": None}, []),
        ({"eos_token_id": 5}, [5]),
        ({"generation_config": GenerationConfig(eos_token_id=[3, 4], pad_token_id=1)}, [3, 4]),
        ({"generation_config": GenerationConfig(pad_token_id=1)}, [0]),
    ],
)
def test_a_text_ends_where_generate_ends_it(reference, given: dict, expected: list) -> None:
    """The tokens that the processor is told, and what `generate` does when each of them is forced."""
    told: list = []

    def make(mask: Any, ends: list[int]) -> Any:
        told.append(ends)
        return lambda ids, scores: scores.index_fill(1, torch.tensor([(expected or [0])[-1]]), 50.0)

    with guided_generate(reference.model, reference.tokenizer, make):
        found = reference.generate(torch.tensor([[7, 8]]), attention_mask=torch.ones(1, 2).long(), max_new_tokens=3, **given)
    assert told == [expected]
    assert found.shape[1] == (3 if expected else 5)


def test_a_seed_gives_the_same_draws_and_torchs_own_is_the_default(reference, baseline, reward, prompts) -> None:
    def scores(seed: int | None) -> torch.Tensor:
        guidance = TransferQStar(FunctionReward(reward), baseline, horizon=4, rollouts=2, seed=seed, **GIVEN)
        return decode(guidance, reference, prompts, output_scores=True, return_dict_in_generate=True).scores[0]

    assert torch.equal(scores(3), scores(3))
    assert not torch.equal(scores(3), scores(4))
    torch.manual_seed(3)
    torch.rand(5)
    assert torch.equal(scores(None), scores(3))


def test_from_folders_through_the_registry(saved, prompts) -> None:
    """The whole way: models on disk, the loaders, the component by name, and responses with their metrics."""
    lm = gw.model("transformers-causal-lm", name=saved["reference"])
    guidance = gw.guidance(
        "transfer-q-star",
        baseline={"use": "transformers-causal-lm", "name": saved["baseline"]},
        reward={"use": "transformers-reward", "name": saved["reward"]},
        horizon=3,
        **GIVEN,
    )
    samples = guidance.sample(lm, {"prompt": ["w3 w7", "w5 w2 w9 w11"], "max_new_tokens": 5})
    assert len(samples.texts) == len(samples.prompts) == 2
    assert samples.metrics["tokens"] <= 10
    reward = TransformersReward(saved["reward"]).eval()
    with torch.no_grad():
        expected = reward.score(samples.texts, samples.prompts).mean().item()
    assert samples.metrics["reward"] == pytest.approx(expected, abs=1e-5)
    assert samples.metrics["rewards"] == pytest.approx(4.0)


def test_a_pipeline_samples(saved, tmp_path) -> None:
    pipeline = gw.Pipeline.from_dict(
        {
            "stages": {
                "aligned": {
                    "model": {"use": "transformers-causal-lm", "name": saved["reference"]},
                    "sample": {
                        "guidance": {
                            "use": "controlled-decoding",
                            "reward": {"use": "transformers-reward", "name": saved["reward"]},
                            "top_k": 3,
                            "horizon": 2,
                        },
                        "inputs": {"prompt": ["w3 w4"], "max_new_tokens": 4, "do_sample": True},
                    },
                }
            }
        }
    )
    result = pipeline.run(tmp_path / "run", device="cpu")
    assert "aligned/reward" in result.metrics
    assert (tmp_path / "run" / "stages" / "aligned" / "samples" / "samples.json").exists()


def test_two_guidances_do_not_stack(reference, reward) -> None:
    search = RewardGuidedSearch(FunctionReward(reward), **GIVEN)
    with search.attach(reference), pytest.raises(gw.InterfaceError, match="is guided already, and this guidance does not stack"):
        search.attach(reference).__enter__()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 2}, "num_beams is 1 under guidance"),
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens does not go with guidance"),
    ],
)
def test_ways_to_decode_that_do_not_fit_are_refused(reference, reward, prompts, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(RewardGuidedSearch(FunctionReward(reward), **GIVEN), reference, prompts, **given)


def test_another_tokenizer_is_refused_with_both_sizes(reference, small_vocabulary, reward) -> None:
    guidance = TransferQStar(FunctionReward(reward), small_vocabulary(9, 0), **GIVEN)
    with pytest.raises(gw.InterfaceError, match="baseline and reference must share a tokenizer; got sizes 9, 14"):
        guidance.attach(reference).__enter__()


def test_more_candidates_than_tokens_are_refused_when_it_is_attached(reference, reward) -> None:
    with pytest.raises(ValueError, match="top_k is at most the vocabulary of 14 tokens; found 15"):
        RewardGuidedSearch(FunctionReward(reward), top_k=15).attach(reference).__enter__()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "indirect", "beta": 2.0}, "mode indirect needs baseline_reward"),
        ({"mode": "indirect", "baseline_reward": FunctionReward(len)}, "mode indirect needs beta"),
        ({"baseline_reward": FunctionReward(len)}, "baseline_reward goes with mode indirect; found mode direct"),
        ({"mode": "indirect", "beta": 2.0, "baseline_reward": FunctionReward(len), "rollouts": 1}, "rollouts is at least 2"),
        ({"alpha": -1.0}, "alpha is above 0; found -1.0"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(baseline, reward, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransferQStar(FunctionReward(reward), baseline, **given)


def test_the_registry_names_what_is_wrong(saved) -> None:
    with pytest.raises(gw.ConfigError, match="alpha: input should be greater than 0; found 0"):
        gw.guidance("reward-guided-search", reward={"use": "transformers-reward", "name": saved["reward"]}, alpha=0)


def test_what_is_no_language_model_is_refused(reward) -> None:
    with pytest.raises(gw.InterfaceError, match="needs a model that offers CausalLM"):
        RewardGuidedSearch(FunctionReward(reward)).attach(torch.nn.Linear(2, 2)).__enter__()
    with pytest.raises(gw.InterfaceError, match="needs a model that offers CausalLM"):
        TransferQStar(FunctionReward(reward), torch.nn.Linear(2, 2))


def test_a_prompt_without_tokens_is_refused(reference, reward) -> None:
    with pytest.raises(ValueError, match="a prompt has at least one token; found one that is empty"):
        RewardGuidedSearch(FunctionReward(reward), **GIVEN).sample(reference, {"prompt": ["w3", ""]})
    with pytest.raises(ValueError, match="found no prompt"):
        RewardGuidedSearch(FunctionReward(reward), **GIVEN).sample(reference, {})
