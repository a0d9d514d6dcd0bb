"""The logits processor in `generate`: what is decoded, held against a loop that shares nothing with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graftwork import DataError
from graftwork_transfer_q_star import CallCount, PrefixCache, RolloutPolicy, TransferQProcessor, TransferSettings, enumerate_model, roll_out
from graftwork_transfer_q_star.tabular import sequences


def decode(lm: Any, ids: torch.Tensor, processor: Any, mask: torch.Tensor | None = None, **given: Any) -> torch.Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    settings = {"max_new_tokens": 6, "do_sample": False, **given}
    return lm.model.generate(input_ids=ids, attention_mask=mask, logits_processor=[processor], **settings)


def settings(**given: Any) -> TransferSettings:
    return TransferSettings(**{"top_k": 4, "horizon": 3, "alpha": 0.4, **given})


def plain_loop(reference: Any, baseline: Any, reward: Any, row: torch.Tensor, alpha: float, steps: int, top_k: int, horizon: int) -> list:
    """Batch 1, nothing cached, rollouts by `generate`: the authors' loop, with the reference's own scores and ends of text."""
    text, tokenizer = row.clone(), reference.tokenizer
    for _ in range(steps):
        with torch.no_grad():
            log_probs = reference.model(text[None]).logits[0, -1].log_softmax(-1)
        best = (-float("inf"), -1)
        for token in log_probs.topk(top_k).indices.tolist():
            grown = torch.cat([text, torch.tensor([token])])
            if token != 0 and horizon:
                grown = baseline.model.generate(
                    grown[None], attention_mask=torch.ones_like(grown[None]), max_new_tokens=horizon, do_sample=False
                )[0]
            response = tokenizer.decode(grown[len(row) :], skip_special_tokens=True)
            value = reward([response], [tokenizer.decode(row)])[0].item()
            best = max(best, (log_probs[token].item() + value / alpha, token))
        text = torch.cat([text, torch.tensor([best[1]])])
        if best[1] == 0:
            break
    return text[len(row) :].tolist()


@pytest.mark.parametrize("horizon", [0, 5])
def test_greedy_decoding_is_that_of_a_loop_without_caches_and_batches(reference, baseline, reward, prompts, horizon: int) -> None:
    processor = TransferQProcessor(reward, baseline, settings(horizon=horizon))
    found = decode(reference, prompts, processor)[:, 3:]
    for row, tokens in zip(prompts, found.tolist(), strict=True):
        expected = plain_loop(reference, baseline, reward, row, 0.4, 6, 4, horizon)
        assert tokens[: len(expected)] == expected
        assert set(tokens[len(expected) :]) <= {1}


def test_prompts_of_different_length_decode_together_as_alone(reference, baseline, reward) -> None:
    rows = [[3, 7, 9, 4, 4], [5], [8, 8, 4]]
    together = torch.tensor([[1] * (5 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (5 - len(row)) + [1] * len(row) for row in rows])
    found = decode(reference, together, TransferQProcessor(reward, baseline, settings(), attention_mask=mask), mask)[:, 5:]
    for row, tokens in zip(rows, found.tolist(), strict=True):
        alone = decode(reference, torch.tensor([row]), TransferQProcessor(reward, baseline, settings()))[0, len(row) :].tolist()
        assert tokens[: len(alone)] == alone
        assert set(tokens[len(alone) :]) <= {1}


def test_padding_is_told_by_its_token_where_no_mask_is_given(reference, baseline, reward) -> None:
    ids, mask = torch.tensor([[1, 1, 5, 3]]), torch.tensor([[0, 0, 1, 1]])
    with_mask, without = (TransferQProcessor(reward, baseline, settings(), attention_mask=one) for one in (mask, None))
    assert torch.equal(decode(reference, ids, with_mask, mask), decode(reference, ids, without, mask))


@pytest.mark.parametrize("sample", [False, True])
def test_a_constant_reward_decodes_as_plain_generate_with_the_same_seed(reference, baseline, prompts, sample: bool) -> None:
    processor = TransferQProcessor(lambda samples, _: torch.full((len(samples),), 17.0), baseline, settings())
    given = {"do_sample": sample, "max_new_tokens": 12, **({"temperature": 0.7} if sample else {})}
    torch.manual_seed(5)
    guided = decode(reference, prompts, processor, **{**given, **({"top_k": 0} if sample else {})})
    torch.manual_seed(5)
    ids = {"input_ids": prompts, "attention_mask": torch.ones_like(prompts)}
    plain = reference.model.generate(**ids, **{**given, **({"top_k": 4} if sample else {})})
    assert torch.equal(guided, plain)


def test_great_and_small_alpha(reference, baseline, reward, prompts) -> None:
    scores = reference.model(prompts).logits[:, -1].detach()
    weak = TransferQProcessor(reward, baseline, settings(alpha=1e12))(prompts, scores)
    expected, candidates = scores.log_softmax(-1).topk(4)
    torch.testing.assert_close(weak.gather(1, candidates), expected, atol=1e-6, rtol=0)
    assert (weak.isfinite().sum(1) == 4).all()
    one = TransferQProcessor(reward, baseline, settings(alpha=1.0))(prompts, scores)
    values = one.gather(1, candidates) - expected
    strong = TransferQProcessor(reward, baseline, settings(alpha=1e-6))(prompts, scores)
    assert torch.equal(strong.argmax(1), candidates.gather(1, values.argmax(1, keepdim=True))[:, 0])


def test_all_tokens_as_candidates_give_the_exact_tilt(reference, baseline, reward, prompts) -> None:
    scores = reference.model(prompts).logits[:, -1].detach()
    assert TransferQProcessor(reward, baseline, settings(top_k=14))(prompts, scores).isfinite().all()


def test_the_baseline_rolls_out_and_not_the_reference(reference, baseline, reward, prompts) -> None:
    scores = reference.model(prompts).logits[:, -1].detach()
    found = [TransferQProcessor(reward, one, settings())(prompts, scores) for one in (reference, baseline)]
    assert not torch.equal(*found)


def test_equal_rewards_make_indirect_decoding_direct(reference, baseline, reward, prompts) -> None:
    several = {"rollouts": 4}
    direct = TransferQProcessor(reward, baseline, settings(**several))
    indirect = TransferQProcessor(reward, baseline, settings(mode="indirect", beta=2.0, **several), baseline_reward=reward)
    assert torch.equal(decode(reference, prompts, direct), decode(reference, prompts, indirect))


@pytest.mark.parametrize("normalize", ["self", "none"])
def test_indirect_values_are_those_of_the_rollouts_that_were_scored(reference, baseline, reward, other_reward, prompts, normalize) -> None:
    """The rollouts are caught on their way to the two rewards, and weighed by hand."""
    seen: dict[str, list] = {"r": [], "r_BL": []}

    def catch(name: str, function: Any) -> Any:
        def scored(samples: Any, prompts: Any) -> torch.Tensor:
            found = function(samples, prompts)
            seen[name] += list(zip(samples, found.tolist(), strict=True))
            return found

        return scored

    chosen = settings(mode="indirect", beta=0.8, normalize=normalize, rollouts=3, top_k=3)
    row, scores = prompts[:1], reference.model(prompts[:1]).logits[:, -1].detach()
    processor = TransferQProcessor(catch("r", reward), baseline, chosen, baseline_reward=catch("r_BL", other_reward))
    found = processor(row, scores)
    log_probs, candidates = scores[0].log_softmax(-1).topk(3)
    again = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, 3, 3, generator=again)[0].flatten(0, 1)
    prefixes = PrefixCache(baseline.model)
    prefixes.advance(row, torch.ones_like(row, dtype=torch.bool))
    first = candidates.repeat_interleave(3)
    tokens, lengths = roll_out(
        prefixes, torch.zeros(9, dtype=torch.long), first, 3, end=torch.tensor([0]), padding=1, policy=chosen.picks, noise=noise
    )
    texts = [reference.tokenizer.decode(line[:length], skip_special_tokens=True) for line, length in zip(tokens, lengths, strict=True)]
    tables = [{text.strip(): value for text, value in pairs} for pairs in seen.values()]
    r, r_bl = (torch.tensor([table[text.strip()] for text in texts]).view(3, 3) for table in tables)
    weights = ((r - r_bl) / 0.8).exp()
    values = (weights * r).sum(1) / weights.sum(1) if normalize == "self" else (weights * r).mean(1)
    expected = log_probs + (values - values.max()) / 0.4
    torch.testing.assert_close(found[0, candidates], expected, atol=1e-5, rtol=1e-5)
    assert (values - r.mean(1)).abs().max() > 1e-3


def test_a_candidate_that_ends_the_text_is_scored_as_it_is(reference, baseline, prompts) -> None:
    seen: list[str] = []

    def reward(samples: Any, _: Any) -> torch.Tensor:
        seen.extend(samples)
        return torch.tensor([float(len(text.split())) for text in samples])

    scores = torch.full((1, 14), -10.0)
    scores[0, [0, 5]] = 0.0
    calls = CallCount()
    found = TransferQProcessor(reward, baseline, settings(top_k=2), calls=calls)(prompts[:1], scores)
    assert "" in seen
    assert len(seen) == 2
    longest = max(len(text.split()) for text in seen)
    assert found[0, 0] - found[0, 5] == pytest.approx(-longest / 0.4, abs=1e-4)
    assert calls.rollout_tokens <= 3


def test_rows_that_have_ended_stay_so_and_cost_nothing(reference, baseline, reward, prompts) -> None:
    calls = CallCount()
    processor = TransferQProcessor(reward, baseline, settings(), calls=calls)
    scores = reference.model(prompts).logits[:, -1].detach()
    processor(prompts, scores)
    before = calls.tokens, calls.rewards
    grown = torch.cat([prompts, torch.tensor([[0], [3], [0]])], dim=1)
    found = processor(grown, scores)
    assert calls.tokens - before[0] == 1
    assert calls.rewards - before[1] == 4
    torch.testing.assert_close(found[[0, 2]], scores[[0, 2]].log_softmax(-1))


def test_the_mean_of_sampled_values_is_the_enumerated_expectation(small_vocabulary, reward) -> None:
    """2000 draws of TQ for every token, against all texts of the baseline's tree: within three standard errors."""
    words, horizon, draws = 6, 2, 2000
    baseline = small_vocabulary(words, 1)
    row = torch.tensor([[3, 4]])
    caught: list[torch.Tensor] = []
    exact = enumerate_model(baseline.model, [3, 4], range(words), 1 + horizon, end=0)
    texts = sequences(words, 1 + horizon).tolist()
    kept = [text[: text.index(0)] if 0 in text else text for text in texts]
    rewards = reward([baseline.tokenizer.decode(text, skip_special_tokens=True) for text in kept], ["w3 w4"] * len(kept)).double()
    expected = exact.q_values(rewards)[0][0]
    chosen = TransferSettings(top_k=words, horizon=horizon, rollouts=draws, alpha=1.0)
    processor = TransferQProcessor(reward, baseline, chosen)
    estimate = processor._estimate
    processor._estimate = lambda found: caught.append(found[0][0]) or estimate(found)  # type: ignore[method-assign]
    processor(row, torch.arange(words).float()[None])
    order = torch.arange(words - 1, -1, -1)  # candidates by score
    drawn = caught[0][torch.argsort(order)].double()
    error = drawn.std(dim=1) / draws**0.5
    assert ((drawn.mean(1) - expected).abs() <= 3 * error + 1e-6).all()
    spread = [drawn[1:].view(words - 1, -1, size).mean(2).sub(expected[1:, None]).square().mean(1).sqrt() for size in (5, 125)]
    ratio = (spread[0] / spread[1]).mean()
    assert 3.8 < ratio < 6.5  # sqrt(125 / 5) = 5, from 400 and 16 means


def test_several_returned_sequences_share_the_prompt_mask(reference, baseline, reward) -> None:
    ids, mask = torch.tensor([[1, 5, 3], [4, 4, 2]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    processor = TransferQProcessor(reward, baseline, settings(), attention_mask=mask)
    found = decode(reference, ids, processor, mask, do_sample=True, num_return_sequences=2)
    assert found.shape[0] == 4


def test_sampling_follows_the_tilted_distribution(reference, baseline, reward, prompts) -> None:
    many = prompts[:1].repeat(1000, 1)
    scores = reference.model(prompts[:1]).logits[:, -1].detach()
    policy = (TransferQProcessor(reward, baseline, settings())(prompts[:1], scores) / 0.7).softmax(-1)[0]
    torch.manual_seed(0)
    found = decode(
        reference, many, TransferQProcessor(reward, baseline, settings()), do_sample=True, temperature=0.7, top_k=0, max_new_tokens=1
    )
    shares = torch.bincount(found[:, 3], minlength=14) / 1000
    torch.testing.assert_close(shares, policy, atol=0.05, rtol=0)  # three standard errors at most


def test_calls_are_counted(reference, baseline, reward, prompts) -> None:
    calls = CallCount()
    found = decode(reference, prompts, TransferQProcessor(reward, baseline, settings(), calls=calls), eos_token_id=None, max_new_tokens=4)
    assert found.shape == (3, 7)
    assert calls.tokens == 12
    processor = TransferQProcessor(reward, baseline, settings(), calls=(calls := CallCount()), end=[])
    scores = reference.model(prompts).logits[:, -1].detach()
    processor(prompts, scores)
    assert (calls.tokens, calls.lm_forwards, calls.rollout_tokens, calls.rewards) == (3, 1 + 3, 3 * 4 * 3, 12)
    assert calls.lm_tokens == 9 + 36
    assert calls.per_token()["rewards"] == 4.0


def test_draws_that_came_out_alike_are_scored_once(reference, baseline, reward, prompts) -> None:
    calls = CallCount()
    chosen = settings(rollouts=40, horizon=1)
    TransferQProcessor(reward, baseline, chosen, calls=calls)(prompts[:1], reference.model(prompts[:1]).logits[:, -1].detach())
    assert calls.rewards <= 4 * 14 < 160


def test_rollouts_stop_at_the_end_of_the_context(reference, baseline, reward) -> None:
    ids = torch.randint(2, 14, (1, 40), generator=torch.Generator().manual_seed(0))
    processor = TransferQProcessor(reward, baseline, settings(horizon=7))
    assert decode(reference, ids, processor, max_new_tokens=8, eos_token_id=None).shape == (1, 48)


def test_tokens_that_the_baseline_has_no_embedding_for_are_no_candidates(reference, small_vocabulary, reward, prompts) -> None:
    narrow = small_vocabulary(13, 1)
    scores = torch.zeros(1, 14)
    scores[0, 13] = 9.0
    found = TransferQProcessor(reward, narrow, settings())(torch.tensor([[3, 7]]), scores)
    assert found[0, 13] == -torch.inf
    assert found.isfinite().sum() == 4


def test_what_earlier_processors_rule_out_stays_ruled_out(reference, baseline, reward, prompts) -> None:
    scores = torch.full((3, 14), -torch.inf)
    scores[:, [4, 6]] = torch.tensor([0.3, 0.1])
    found = TransferQProcessor(reward, baseline, settings())(prompts, scores)
    assert (found.isfinite().sum(1) == 2).all()
    assert not found.isnan().any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 0.0}, "alpha is above 0; found 0.0"),
        ({"top_k": 0}, "top_k is at least 1; found 0"),
        ({"horizon": -1}, "horizon is at least 0; found -1"),
        ({"rollouts": 0}, "rollouts is at least 1; found 0"),
        ({"memory": 0}, "memory is above 0; found 0"),
        ({"mode": "other"}, 'mode is one of direct, indirect; found "other"'),
        ({"normalize": "other"}, 'normalize is one of self, none; found "other"'),
        ({"beta": 1.0}, "beta goes with mode indirect; found 1.0"),
        ({"mode": "indirect"}, "mode indirect needs beta"),
        ({"mode": "indirect", "beta": -1.0}, "beta is above 0; found -1.0"),
        ({"mode": "indirect", "beta": 1.0, "rollouts": 1}, "at least 2 with normalize"),
        ({"mode": "indirect", "beta": 1.0, "horizon": 0}, "horizon is at least 1; found 0"),
        ({"rollouts": 3, "policy": RolloutPolicy()}, "3 greedy rollouts would be copies of one"),
    ],
)
def test_settings_out_of_range_are_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransferSettings(**given)


def test_defaults_follow_the_mode() -> None:
    direct, indirect = TransferSettings(), TransferSettings(mode="indirect", beta=2.0)
    assert (direct.horizon, direct.rollouts, direct.picks.sample, direct.top_k, direct.alpha) == (20, 1, False, 10, 1.0)
    assert (indirect.horizon, indirect.rollouts, indirect.picks.sample) == (5, 4, True)
    assert TransferSettings(mode="indirect", beta=2.0, normalize="none").rollouts == 1


def test_parts_that_are_missing_are_named(baseline, reward) -> None:
    with pytest.raises(ValueError, match="mode indirect needs baseline_reward"):
        TransferQProcessor(reward, baseline, TransferSettings(mode="indirect", beta=1.0))
    with pytest.raises(ValueError, match="mode direct takes no baseline_reward"):
        TransferQProcessor(reward, baseline, baseline_reward=reward)
    with pytest.raises(ValueError, match="need a baseline; without one set horizon to 0"):
        TransferQProcessor(reward)
    with pytest.raises(ValueError, match="give the tokenizer"):
        TransferQProcessor(reward, baseline.model)


def test_a_vocabulary_smaller_than_top_k_is_refused(baseline, reward, prompts) -> None:
    with pytest.raises(ValueError, match="top_k is at most the vocabulary of 14 tokens; found 15"):
        TransferQProcessor(reward, baseline, settings(top_k=15))(prompts, torch.zeros(3, 14))


def test_a_prompt_without_room_for_rollouts_is_refused(baseline, reward) -> None:
    ids = torch.full((1, 45), 3)
    with pytest.raises(DataError, match="a prompt has 45 tokens; the baseline takes 48, of which a candidate and its rollout need 4"):
        TransferQProcessor(reward, baseline, settings())(ids, torch.zeros(1, 14))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda samples, _: torch.zeros(len(samples), 2), r"gave shape \(12, 2\) for 12 texts; expected a tensor of shape \(12,\)"),
        (lambda samples, _: torch.full((len(samples),), torch.nan), "gave 12 of 12 rewards that are not finite"),
        (lambda samples, _: [0.0] * len(samples), "gave a list for 12 texts"),
    ],
)
def test_rewards_that_are_none_are_refused(reference, baseline, prompts, function, message: str) -> None:
    scores = reference.model(prompts).logits[:, -1].detach()
    with pytest.raises(DataError, match=message):
        TransferQProcessor(function, baseline, settings(), end=[])(prompts, scores)


def test_weights_beyond_float32_are_refused_with_a_remedy(baseline, prompts) -> None:
    processor = TransferQProcessor(
        lambda samples, _: torch.full((len(samples),), 500.0),
        baseline,
        settings(mode="indirect", beta=1.0, normalize="none"),
        baseline_reward=lambda samples, _: torch.zeros(len(samples)),
    )
    with pytest.raises(DataError, match="give a greater beta"):
        processor(prompts, torch.zeros(3, 14))


@pytest.mark.gpu
def test_on_a_gpu_the_same_tokens_are_decoded(reference, baseline, reward, prompts) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    here = decode(reference, prompts, TransferQProcessor(reward, baseline, settings()))
    reference.cuda(), baseline.cuda()
    assert torch.equal(here, decode(reference, prompts.cuda(), TransferQProcessor(reward, baseline, settings())).cpu())
