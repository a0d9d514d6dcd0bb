"""Prefixes in whole models: the gate identity, masks, caches, grouped queries, relative positions, every kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from graftwork import InterfaceError
from graftwork_unified_petl import Modification, attach, fold, petl_of
from graftwork_unified_petl.routing import AttentionCall

FIELDS = {"form": "prefix", "site": "heads", "bottleneck": 3}
CONCATENATED, GATED = (Modification(**FIELDS, composition=one) for one in ("concatenated", "gated"))


def exact(name: str, kernel: str) -> float:
    """How near two ways of the same sum come in float64: some families' own eager attention takes its softmax in float32."""
    return 1e-5 if kernel == "eager" and name in ("llama", "vit", "clip") else 1e-10


def prefixed(make: Callable, learned: Callable, name: str, modification: Modification = CONCATENATED, **settings: Any) -> Any:
    dtype = settings.pop("dtype", torch.float64)
    return learned(attach(make(name, **settings).to(dtype), [modification], seed=0), std=1.0)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_the_gated_sum_of_two_attentions_is_one_over_prefix_and_keys(
    every_model: str, kernel: str, make: Callable, run: Callable, learned: Callable
) -> None:
    one, two = (run(prefixed(make, learned, every_model, how, attention=kernel), every_model) for how in (CONCATENATED, GATED))
    assert (one - two).abs().max() < exact(every_model, kernel)
    assert (one - run(make(every_model, kernel).double(), every_model)).abs().max() > 1e-4


def test_every_kernel_honours_the_prefix_alike(every_model: str, make: Callable, run: Callable, learned: Callable) -> None:
    for how in (CONCATENATED, Modification(**FIELDS, composition="gated", layernorm="in")):
        eager, fused = (run(prefixed(make, learned, every_model, how, attention=kernel), every_model) for kernel in ("eager", "sdpa"))
        assert (eager - fused).abs().max() < exact(every_model, "eager")


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "bart", "t5"])
def test_a_text_has_the_same_logits_padded_and_alone(name: str, make: Callable, run: Callable, batch: Callable, learned: Callable) -> None:
    model, padded = prefixed(make, learned, name), batch(name)
    alone = {key: one[1:, :5] for key, one in padded.items()}
    count = 1 if name == "bert" else 5
    found, expected = run(model, name)[1, :count], model(**alone).logits[0, :count]
    torch.testing.assert_close(found, expected if name != "bert" else model(**alone).logits[0, :1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("mask", [None, "full"])
def test_causality_without_a_mask_leaves_the_prefix_to_all_queries(mask: str | None, make: Callable, learned: Callable) -> None:
    model, tokens = prefixed(make, learned, "gpt2"), torch.randint(3, 60, (2, 6))
    given = {} if mask is None else {"attention_mask": torch.ones_like(tokens)}
    whole = model(tokens, **given).logits
    torch.testing.assert_close(whole[:, :4], model(tokens[:, :4]).logits, rtol=0, atol=1e-10)
    changed = tokens.clone()
    changed[:, 4:] = 3
    torch.testing.assert_close(whole[:, :4], model(changed, **given).logits[:, :4], rtol=0, atol=1e-10)


def test_t5_gives_its_relative_bias_to_the_keys_and_none_to_the_prefix(make: Callable, learned: Callable) -> None:
    model = prefixed(make, learned, "t5")
    attention, x = model.encoder.block[0].layer[0].SelfAttention, torch.randn(1, 4, 16, dtype=torch.float64)
    bank = petl_of(model).banks["0-0"]  # that of the encoder
    key, value = bank(0)
    heads = [one(x).unflatten(-1, (4, 5)).transpose(1, 2) for one in (attention.q, attention.k, attention.v)]
    logits = torch.cat([heads[0] @ key.mT, heads[0] @ heads[1].mT + attention.compute_bias(4, 4)], dim=-1)
    expected = logits.softmax(-1) @ torch.cat([value[None], heads[2]], dim=2)
    torch.testing.assert_close(attention(x)[0], attention.o(expected.transpose(1, 2).flatten(2)), rtol=0, atol=1e-10)


def test_grouped_queries_share_the_prefix_of_their_key_head(make: Callable) -> None:
    model = attach(make("llama"), [CONCATENATED], seed=0)
    (bank,) = petl_of(model).banks.values()
    assert [tuple(part.shape) for part in bank(0)] == [(2, 3, 4)] * 2


@pytest.mark.parametrize("name", ["bart", "t5", "gpt2", "llama"])
@pytest.mark.parametrize("how", [CONCATENATED, GATED, Modification("multi-head", "heads", bottleneck=3, layernorm="in")])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache_is_full_recomputation(
    name: str, how: Modification, beams: int, make: Callable, batch: Callable, learned: Callable
) -> None:
    model, inputs = prefixed(make, learned, name, how), batch(name)
    given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"] if name in ("bart", "t5") else None}
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": beams, "do_sample": False}
    if given["attention_mask"] is None:
        given["attention_mask"] = inputs["attention_mask"].flip(1)  # decoders are padded on the left
    cached, anew = (model.generate(**given, **settings, use_cache=use) for use in (True, False))
    assert torch.equal(cached, anew)


def test_the_cache_tells_of_tokens_alone_and_each_step_sees_the_prefix_once(make: Callable, learned: Callable) -> None:
    model, tokens = prefixed(make, learned, "llama"), torch.randint(3, 60, (2, 6))
    first = model(tokens[:, :4], use_cache=True)
    assert first.past_key_values.get_seq_length() == 4
    second = model(tokens[:, 4:5], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(second.logits[:, 0], model(tokens[:, :5]).logits[:, 4], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "held"), [("gpt2", True), ("llama", True), ("bart", True), ("t5", False)])
def test_a_growing_cache_begins_with_the_prefix_but_t5s_which_counts_positions_by_its_keys(
    name: str, held: bool, make: Callable, batch: Callable, learned: Callable
) -> None:
    model = prefixed(make, learned, name)
    cache = model(**batch(name), use_cache=True).past_key_values
    parts = [cache.self_attention_cache, cache.cross_attention_cache] if name in ("bart", "t5") else [cache]
    banks = list(petl_of(model).banks.values())[-len(parts) :]  # those of the encoder are the first
    for part, bank in zip(parts, banks, strict=True):
        for number, layer in enumerate(part.layers):
            assert layer.keys.shape[2] - layer.get_seq_length() == (3 if held else 0)
            assert not held or all(
                torch.equal(states[:, :, :3], own.expand(2, -1, -1, -1))
                for states, own in zip((layer.keys, layer.values), bank(number), strict=True)
            )


def test_a_cropped_cache_keeps_its_prefix_and_an_emptied_one_gets_the_present_one(make: Callable, learned: Callable) -> None:
    model, tokens = prefixed(make, learned, "gpt2"), torch.randint(3, 60, (2, 6))
    cache = model(tokens, use_cache=True).past_key_values
    cache.crop(-2)
    assert cache.get_seq_length() == 4
    torch.testing.assert_close(model(tokens[:, 4:], past_key_values=cache).logits, model(tokens).logits[:, 4:], rtol=0, atol=1e-10)
    cache.reset()
    learned(model, seed=6)
    torch.testing.assert_close(model(tokens, past_key_values=cache).logits, model(tokens).logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("how", [[CONCATENATED], [CONCATENATED, GATED], [GATED]])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_any_cache_and_any_grafts_give_the_tokens_of_full_recomputation(
    kind: str, how: list[Modification], make: Callable, learned: Callable
) -> None:
    model, tokens = learned(attach(make("llama").double(), how, seed=0), std=1.0), torch.randint(3, 60, (2, 6))
    settings = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    cached = model.generate(tokens, **settings, cache_implementation=kind, disable_compile=True)
    assert torch.equal(cached, model.generate(tokens, **settings, use_cache=False))


def test_a_folded_prefix_gives_the_same_bit_for_bit(make: Callable, measure: Callable) -> None:
    spec = [Modification(**FIELDS, composition="concatenated", reparameterisation=6, dropout=0.5)]
    model = attach(make("roberta"), spec, seed=0)
    before, networks = measure(model, "roberta"), petl_of(model).count()
    fold(model)
    assert torch.equal(measure(model, "roberta"), before)  # and dropout is off in eval
    assert petl_of(model).count() == 2 * 2 * 3 * 16 < networks
    assert petl_of(model).modifications[0].reparameterisation is None


def test_the_layernorm_of_a_prefix_is_before_the_frozen_query(make: Callable, learned: Callable) -> None:
    model = prefixed(make, learned, "vit", Modification(**FIELDS, layernorm="in"))
    layer, x = model.vit.layers[0], torch.randn(2, 5, 16, dtype=torch.float64)
    graft, (bank,) = petl_of(model).grafts[0], petl_of(model).banks.values()
    key, value = bank(0)
    query = layer.attention.q_proj(graft.norm(x)).unflatten(-1, (4, 4)).transpose(1, 2)
    change = ((query @ key.mT / 2).softmax(-1) @ value).transpose(1, 2).flatten(2)
    found = layer.attention(x)[0]
    graft.scale = 0.0
    expected = layer.attention(x)[0] + torch.nn.functional.linear(change, layer.attention.o_proj.weight)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_a_mask_that_cannot_grow_is_refused_with_what_to_do(make: Callable) -> None:
    x, blocks = torch.zeros(1, 4, 3, 4), object()
    call = AttentionCall(make("bert").bert.encoder.layer[0].attention.self, "flex_attention", x, x, x, blocks, None, 0.5, 0.0, {})
    with pytest.raises(InterfaceError, match=r'mask of type object .*"flex_attention"\): call model.set_attn_implementation\("sdpa"\)'):
        call.extended(x[0], x[0])


def test_a_flash_mask_of_the_keys_grows_by_ones(make: Callable) -> None:
    x, seen = torch.zeros(2, 4, 3, 4), torch.tensor([[1, 1, 1], [0, 1, 1]])
    call = AttentionCall(make("bert").bert.encoder.layer[0].attention.self, "flash_attention_2", x, x, x, seen, None, 0.5, 0.0, {})
    assert call.extended(x[0, :, :2], x[0, :, :2]).mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 1, 1]]


def test_half_precision_is_near_full(make: Callable, run: Callable, learned: Callable) -> None:
    full, half = (run(prefixed(make, learned, "vit", GATED, dtype=one), "vit") for one in (torch.float32, torch.bfloat16))
    assert (full - half).abs().max() < 0.05 * full.abs().max()


def test_attention_dropout_falls_on_the_prefix_too_while_training_alone(make: Callable, run: Callable, learned: Callable) -> None:
    model = prefixed(make, learned, "bert", attention_probs_dropout_prob=0.5)
    assert torch.equal(run(model, "bert"), run(model, "bert"))
    model.train()
    assert not torch.equal(run(model, "bert"), run(model, "bert"))


def test_gradients_reach_the_prefix_through_the_gate_as_through_one_attention(make: Callable, run: Callable, learned: Callable) -> None:
    def gradients(how: Modification) -> list[Tensor]:
        model = prefixed(make, learned, "gpt2", how)
        run(model, "gpt2").square().sum().backward()
        return [one.grad for one in petl_of(model).parameters()]

    for one, other in zip(gradients(CONCATENATED), gradients(GATED), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
