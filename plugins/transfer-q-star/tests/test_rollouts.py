"""Rollouts: the same tokens however they are computed, and the baseline's own distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graftwork_transfer_q_star import PrefixCache, RolloutPolicy, pick_tokens, roll_out

END, PADDING = torch.tensor([0]), 1


def rolled(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None, *, reuse: bool = True, **given: Any) -> tuple:
    prefixes = PrefixCache(model, reuse)
    prefixes.advance(ids, torch.ones_like(ids, dtype=torch.bool) if mask is None else mask)
    rows = torch.arange(len(ids)).repeat_interleave(4)
    first = torch.tensor([2, 5, 9, 11]).repeat(len(ids))
    noise = torch.rand(len(rows), 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = roll_out(prefixes, rows, first, 6, **{"end": END, "padding": PADDING, "policy": RolloutPolicy(), "noise": noise, **given})
    return (*found, prefixes)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral"])
@pytest.mark.parametrize("sample", [False, True])
def test_cached_rollouts_are_those_that_read_everything_again(make_lm, kind: str, sample: bool, prompts) -> None:
    model, policy = make_lm(kind).model, RolloutPolicy(sample)
    ids = torch.cat([prompts, prompts.flip(0)], dim=1)  # longer than mistral's window of 4
    cached, again = (rolled(model, ids, reuse=reuse, policy=policy)[:2] for reuse in (True, False))
    assert all(torch.equal(one, other) for one, other in zip(cached, again, strict=True))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "uncached"])
def test_greedy_rollouts_are_those_of_generate(make_lm, kind: str, prompts) -> None:
    model = make_lm(kind).model
    tokens, lengths, _ = rolled(model, prompts)
    for row, (found, length) in enumerate(zip(tokens, lengths, strict=True)):
        ids = torch.cat([prompts[row // 4], found[:1]])[None]
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)[0, 3:]
        assert found[:length].tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral"])
def test_padding_on_the_left_changes_no_token(make_lm, kind: str, prompts) -> None:
    model = make_lm(kind).model
    padded = torch.cat([torch.full((3, 2), PADDING), prompts], dim=1)
    mask = torch.cat([torch.zeros(3, 2), torch.ones(3, 3)], dim=1).bool()
    for one, other in zip(rolled(model, prompts)[:2], rolled(model, padded, mask)[:2], strict=True):
        assert torch.equal(one, other)


def test_parts_that_fit_the_memory_give_the_same(make_lm, prompts) -> None:
    model, policy = make_lm().model, RolloutPolicy(True)
    whole, parts = (rolled(model, prompts, policy=policy, memory=memory) for memory in (2**31, 1))
    assert torch.equal(whole[0], parts[0])
    assert parts[2].forwards > 2 * whole[2].forwards


def test_nothing_follows_an_end_and_what_has_ended_is_dropped(make_lm, prompts) -> None:
    model = make_lm().model
    some = torch.tensor([0, 3, 8, 12])  # four of fourteen tokens end a text
    tokens, lengths, prefixes = rolled(model, prompts, policy=RolloutPolicy(True), end=some)
    for row, length in zip(tokens, lengths, strict=True):
        assert not torch.isin(row[: length - 1], some).any()
        assert (row[length:] == PADDING).all()
    assert (lengths < 7).any()
    everything = len(tokens) * 6
    assert prefixes.tokens - prompts.numel() < everything
    without = rolled(model, prompts, policy=RolloutPolicy(True), end=some, reuse=False)
    assert torch.equal(without[0], tokens)


def test_only_new_tokens_of_the_prefix_are_read(make_lm, prompts) -> None:
    prefixes = PrefixCache(make_lm().model)
    for length in (2, 3):
        prefixes.advance(prompts[:, :length], torch.ones(3, length, dtype=torch.bool))
    assert prefixes.tokens == prompts.numel()
    changed = prompts.clone()
    changed[0, 0] = 4
    prefixes.advance(torch.cat([changed, prompts[:, :1]], dim=1), torch.ones(3, 4, dtype=torch.bool))
    assert prefixes.tokens == prompts.numel() + 12  # another text is read whole


def test_branches_leave_the_prefixes_as_they_were(make_lm, prompts) -> None:
    prefixes = PrefixCache(make_lm().model)
    with torch.no_grad():
        prefixes.advance(prompts, torch.ones_like(prompts, dtype=torch.bool))
        before = [layer.keys.clone() for layer in prefixes._cache.layers]
        branches = prefixes.branch(torch.tensor([0, 0, 2]), 3)
        for _ in range(3):
            branches.step(torch.tensor([2, 3, 4]))
    assert all(torch.equal(old, layer.keys) for old, layer in zip(before, prefixes._cache.layers, strict=True))


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]])
    count = 40_000
    noise = (torch.arange(count) + 0.5) / count  # a uniform grid: shares are exact to 1 / count
    for policy, expected in (
        (RolloutPolicy(True), logits.softmax(1)),
        (RolloutPolicy(True, temperature=0.5), (2 * logits).softmax(1)),
        (RolloutPolicy(True, top_k=2), torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0]]).softmax(1)),
        (RolloutPolicy(True, top_p=0.7), torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0]]).softmax(1)),
    ):
        drawn = pick_tokens(logits.expand(count, -1), policy, noise)
        shares = torch.bincount(drawn, minlength=4) / count
        torch.testing.assert_close(shares, expected[0], atol=2e-4, rtol=0)


def test_the_greatest_noise_never_draws_an_impossible_token() -> None:
    logits = torch.full((1, 50), -torch.inf)
    logits[0, :3] = torch.tensor([0.1, 0.2, 0.3])
    assert pick_tokens(logits, RolloutPolicy(True), torch.tensor([1.0])).item() == 2
    assert pick_tokens(logits, RolloutPolicy(True), torch.tensor([0.0])).item() == 0


def test_bfloat16_rolls_out(make_lm, prompts) -> None:
    model = make_lm("llama").model.bfloat16()
    tokens, lengths, _ = rolled(model, prompts)
    assert tokens.shape == (12, 7)
    assert lengths.min() >= 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 0.0}, "temperature of rollouts is above 0; found 0.0"),
        ({"top_k": -1}, "top_k of rollouts is at least 0; found -1"),
        ({"top_p": 0.0}, "top_p of rollouts is above 0 and at most 1; found 0.0"),
    ],
)
def test_policies_out_of_range_are_refused(given, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutPolicy(**given)
