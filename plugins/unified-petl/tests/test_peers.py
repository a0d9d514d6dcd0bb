"""Agreement with peft: LoRA by a file that both read, prefixes by copied weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork_unified_petl import Modification, attach, merge, petl_of, save_peft_lora

peft: Any = pytest.importorskip("peft", reason="needs peft to compare with")


def test_peft_loads_our_lora_and_gives_our_logits(tmp_path: Path, make: Callable, measure: Callable, learned: Callable) -> None:
    spec = [Modification("lora", site, composition="scaled", scale=2.0, bottleneck=4) for site in ("query", "value", "ffn-in", "ffn-out")]
    model = learned(attach(make("roberta"), spec, seed=0))
    save_peft_lora(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(make("roberta"), tmp_path).eval()
    assert (measure(theirs, "roberta") - measure(model, "roberta")).abs().max() < 1e-5
    merge(model)
    assert (measure(theirs.merge_and_unload(), "roberta") - measure(model, "roberta")).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_our_prefix_gives_what_pefts_gives(name: str, make: Callable, learned: Callable) -> None:
    model = learned(attach(make(name), [Modification("prefix", "heads", composition="concatenated", bottleneck=3)], seed=0), std=1.0)
    theirs = peft.get_peft_model(make(name), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    (bank,) = petl_of(model).banks.values()
    with torch.no_grad():
        rows = [part.transpose(0, 1).flatten(1) for layer in (0, 1) for part in bank(layer)]  # each (l, h d_h)
        theirs.prompt_encoder["default"].embedding.weight.copy_(torch.cat(rows, dim=1))
        tokens = torch.randint(3, 60, (2, 6))
        mask = torch.ones_like(tokens)
        ours = model(tokens, attention_mask=mask, position_ids=torch.arange(3, 9)[None] if name == "gpt2" else None)
        expected = theirs(tokens, attention_mask=mask)
    if name == "gpt2":  # peft's prefix moves positions on by its length; ours, as the paper's, has none
        assert (ours.logits - expected.logits).abs().max() < 1e-5
        return
    assert ours.logits.shape == expected.logits.shape
    ours = model(tokens, attention_mask=mask, position_ids=torch.arange(3, 9)[None])
    plain = model(tokens, attention_mask=mask)
    assert (ours.logits - plain.logits).abs().max() > 1e-5
    assert (ours.logits - expected.logits).abs().max() < 1e-5
