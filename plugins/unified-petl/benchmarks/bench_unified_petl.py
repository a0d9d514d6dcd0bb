"""Against peft: a LoRA training step and generation after a prefix; and the overhead over the frozen backbone.

In one process on the same inputs; results are held equal before the race.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from graftwork.testing import Race, race
from graftwork_unified_petl import Modification, attach, petl_of

MINILM = {"vocab_size": 1000, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def told(capsys: Any, what: str, found: Race) -> float:
    with capsys.disabled():
        print(f"\n{what}: {found}")
    return found.ratio


def encoder() -> Any:
    torch.manual_seed(0)
    return BertModel(BertConfig(**MINILM, **NO_DROPOUT), add_pooling_layer=False).eval()


def decoder() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=1000, n_embd=384, n_layer=6, n_head=12, n_positions=256, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    return GPT2LMHeadModel(config).eval()


def step(model: Any, tokens: torch.Tensor) -> None:
    model(tokens).last_hidden_state.square().mean().backward()
    model.zero_grad()


@pytest.mark.bench
def test_a_lora_step_is_not_slower_than_pefts(capsys: Any) -> None:
    peft: Any = pytest.importorskip("peft", reason="needs peft to race against")
    tokens = torch.randint(1000, (32, 64))
    spec = [Modification("lora", one, composition="scaled", scale=2.0, init="lora") for one in ("query", "value")]
    ours = attach(encoder(), spec, seed=0)
    config = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=["query", "value"])
    theirs = peft.get_peft_model(encoder(), config)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).last_hidden_state, theirs(tokens).last_hidden_state)
    assert told(capsys, "LoRA step", race(lambda: step(ours, tokens), lambda: step(theirs, tokens), 7)) <= 1.05


@pytest.mark.bench
def test_generation_after_a_prefix_is_not_slower_than_pefts(capsys: Any) -> None:
    peft: Any = pytest.importorskip("peft", reason="needs peft to race against")
    spec = [Modification("prefix", "heads", composition="concatenated", bottleneck=16)]
    ours = attach(decoder(), spec, seed=0)
    theirs = peft.get_peft_model(decoder(), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=16)).eval()
    (bank,) = petl_of(ours).banks.values()
    tokens = torch.randint(1, 1000, (4, 16))
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        rows = [part.transpose(0, 1).flatten(1) for layer in range(6) for part in bank(layer)]
        theirs.prompt_encoder["default"].embedding.weight.copy_(torch.cat(rows, dim=1))
        moved = ours(tokens, attention_mask=mask, position_ids=torch.arange(16, 32)[None]).logits
        torch.testing.assert_close(moved, theirs(tokens, attention_mask=mask).logits, rtol=1e-4, atol=1e-4)
    settings = {"attention_mask": mask, "max_new_tokens": 32, "min_new_tokens": 32, "do_sample": False}
    pair = (lambda: ours.generate(input_ids=tokens, **settings), lambda: theirs.generate(input_ids=tokens, **settings))
    assert told(capsys, "prefix generation", race(*pair, 5)) <= 1.05


@pytest.mark.bench
def test_mix_and_match_costs_little_more_than_the_frozen_forward(capsys: Any) -> None:
    tokens, mask = torch.randint(1000, (32, 128)), torch.ones(32, 128).long()
    spec = [
        Modification("prefix", "heads", composition="concatenated", bottleneck=16),
        Modification("adapter", "ffn", composition="scaled", scale=4.0, init="lora", bottleneck=64),
    ]
    ours, frozen = attach(encoder(), spec, seed=0), encoder().requires_grad_(False)
    with torch.no_grad():
        pair = (lambda: ours(tokens, attention_mask=mask), lambda: frozen(tokens, attention_mask=mask))
        ratio = told(capsys, "MAM forward against the frozen one", race(*pair, 7))
    assert ratio <= 1.1
