from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import graftwork as gw
from graftwork_unified_petl import BitFit, Modification, PromptTuning, attach, load_petl, merge, petl_of, save_peft_lora, save_petl

MAM = [
    Modification("prefix", "heads", composition="concatenated", bottleneck=3, reparameterisation=5),
    Modification("adapter", "ffn", composition="scaled", scale="learnable", bottleneck=4),
]


@pytest.mark.parametrize("spec", [MAM, [PromptTuning(3)], [BitFit()], [Modification("lora", "query", layers=(0,))]])
def test_what_was_learned_comes_back_folded(spec: list, tmp_path: Path, make: Callable, measure: Callable, learned: Callable) -> None:
    model = attach(make("bert"), spec, seed=0)
    with torch.no_grad():
        for one in model.parameters():
            one += 0.05 * torch.randn(one.shape) * one.requires_grad
    save_petl(model, tmp_path)
    assert not any(key.startswith("petl.banks.") and "direct" not in key for key in load_file(tmp_path / "petl.safetensors"))
    other = load_petl(make("bert"), tmp_path)
    assert torch.equal(measure(other, "bert"), measure(model, "bert"))
    assert petl_of(model).modifications == tuple(spec)  # the model itself is still as it was


def test_a_model_saved_by_transformers_comes_back_through_graftworks_loader(
    tmp_path: Path, make: Callable, measure: Callable, learned: Callable
) -> None:
    model = learned(attach(make("vit"), MAM, seed=0), std=0.1)
    model.save_pretrained(tmp_path)
    settings = {"do_normalize": False, "do_rescale": True, "rescale_factor": 1 / 255, "size": {"height": 8, "width": 8}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor", **settings}))
    loaded: Any = gw.model("transformers-image-classifier", name=str(tmp_path), mean=[0.0] * 3, std=[1.0] * 3)
    load_petl(loaded, tmp_path)
    assert torch.equal(measure(loaded.model, "vit"), measure(model, "vit"))
    image = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(loaded(image), model(pixel_values=image).logits)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda folder: (folder / "petl.json").unlink(), "holds no modifications: neither petl.json nor a config.json"),
    (lambda folder: (folder / "petl.json").write_text('{"version": 2}'), "is of layout 2; this version reads 1"),
    (lambda folder: (folder / "petl.json").write_text('{"version": 1, "modifications": [{"form": "x", "site": "ffn"}]}'), "form is one of"),
    (lambda folder: (folder / "petl.safetensors").write_bytes(b"broken"), "holds no modifications that can be read"),
])  # fmt: skip
def test_a_damaged_folder_is_refused(spoil: Callable, message: str, tmp_path: Path, make: Callable) -> None:
    save_petl(attach(make("bert"), MAM, seed=0), tmp_path)
    spoil(tmp_path)
    with pytest.raises(gw.DataError, match=message):
        load_petl(make("bert"), tmp_path)


def test_another_architecture_is_refused(tmp_path: Path, make: Callable) -> None:
    save_petl(attach(make("bert"), MAM, seed=0), tmp_path)
    with pytest.raises(gw.DataError, match=r"does not fit this model: .*size mismatch"):
        load_petl(make("bert", hidden_size=32), tmp_path)
    save_petl(attach(make("bert"), [PromptTuning(3)], seed=0), tmp_path)
    with pytest.raises(gw.DataError, match="which GPT2LMHeadModel lacks"):
        load_petl(make("gpt2"), tmp_path)


def test_merged_weights_are_not_saved_as_learned_ones(tmp_path: Path, make: Callable) -> None:
    model = attach(make("bert"), [Modification("lora", "query")], seed=0)
    merge(model)
    with pytest.raises(gw.GraftworkError, match=r"unmerge\(model\) before saving"):
        save_petl(model, tmp_path)


@pytest.mark.parametrize(("name", "spec", "message"), [
    ("bert", MAM, "holds LoRA alone"),
    ("gpt2", [Modification("lora", "query")], "one part of a fused matrix"),
    ("bert", [Modification("lora", "query", composition="scaled", scale="learnable")], "constant scale"),
    ("bert", [Modification("lora", "ffn")], "LoRA at projections"),
    ("bert", [Modification("lora", "query", bottleneck=2), Modification("lora", "value", bottleneck=3)], "with one r and one scale"),
])  # fmt: skip
def test_what_peft_has_no_form_for_is_refused(name: str, spec: list, message: str, tmp_path: Path, make: Callable) -> None:
    with pytest.raises(gw.GraftworkError, match=message):
        save_peft_lora(attach(make(name), spec, seed=0), tmp_path)
