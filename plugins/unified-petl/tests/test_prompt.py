from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import pad

from graftwork import InterfaceError
from graftwork_unified_petl import PromptTuning, attach, detach, petl_of


@pytest.mark.parametrize("name", ["bert", "roberta", "bart", "t5", "gpt2", "llama", "vit"])
def test_a_prompt_changes_the_output_and_not_its_shape(name: str, make: Callable, measure: Callable, learned: Callable) -> None:
    model = make(name)
    before = measure(model, name)
    learned(attach(model, [PromptTuning(3)], seed=0), std=1.0)
    found = measure(model, name)
    assert found.shape == before.shape
    assert (found - before).abs().max() > 1e-4
    assert torch.equal(measure(detach(model), name), before)


def test_barts_prompt_has_no_position_and_its_decoder_sees_it(
    make: Callable, measure: Callable, batch: Callable, learned: Callable
) -> None:
    model, inputs = make("bart").double(), batch("bart")
    encoder = model.model.encoder
    learned(attach(model, [PromptTuning(3)], seed=0), std=1.0)
    prompt, found = petl_of(model).grafts[0].prompt.clone(), measure(model, "bart")
    detach(model)
    with torch.no_grad():
        embedded = encoder.embed_tokens(inputs["input_ids"]) + encoder.embed_positions(inputs["input_ids"])
        hidden = encoder.layernorm_embedding(torch.cat([prompt.expand(2, -1, -1), embedded], dim=1))
        mask = pad(inputs["attention_mask"], (3, 0), value=1)
        additive = (1 - mask[:, None, None].double()) * torch.finfo(torch.float64).min
        for layer in encoder.layers:
            hidden = layer(hidden, additive.expand(-1, -1, hidden.shape[1], -1))
        given = {"encoder_outputs": (hidden,), "attention_mask": mask, "decoder_input_ids": inputs["decoder_input_ids"]}
        torch.testing.assert_close(found, model(**given).logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["bart", "t5", "gpt2", "llama"])
def test_generation_after_a_prompt_is_full_recomputation(name: str, make: Callable, batch: Callable, learned: Callable) -> None:
    model, inputs = learned(attach(make(name).double(), [PromptTuning(3)], seed=0), std=1.0), batch(name)
    mask = inputs["attention_mask"] if name in ("bart", "t5") else inputs["attention_mask"].flip(1)
    settings = {"attention_mask": mask, "max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    cached, anew = (model.generate(inputs["input_ids"], use_cache=use, **settings) for use in (True, False))
    assert torch.equal(cached, anew)


def test_a_text_has_the_same_logits_padded_and_alone_after_a_prompt(make: Callable, measure: Callable, batch: Callable) -> None:
    model, padded = attach(make("bert").double(), [PromptTuning(3)], seed=0), batch("bert")
    with torch.no_grad():
        alone = model(**{key: one[1:, :5] for key, one in padded.items()}).logits
    torch.testing.assert_close(measure(model, "bert")[1:], alone, rtol=0, atol=1e-10)


def test_a_model_whose_embeddings_are_unknown_is_refused(make: Callable, measure: Callable) -> None:
    model = make("clip")
    before = measure(model, "clip")
    with pytest.raises(InterfaceError, match="prompt tuning knows no way into CLIPTextModel"):
        attach(model, [PromptTuning(3)])
    assert torch.equal(measure(model, "clip"), before)
