"""Tiny models of the real classes, their inputs, and what several tests ask of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from graftwork_unified_petl import petl_of

SIZES = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TEXT = {**SIZES, "max_position_embeddings": 40}
VISION = {key: SIZES[key] for key in SIZES if key != "vocab_size"} | {"image_size": 8, "patch_size": 4}
BART = {
    "vocab_size": 60,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 40,
    "dropout": 0.0,
    "pad_token_id": 1,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", {**TEXT, **NO_DROPOUT, "num_labels": 3}),
    "roberta": ("RobertaForSequenceClassification", {**TEXT, **NO_DROPOUT, "num_labels": 3}),
    "distilbert": ("DistilBertForSequenceClassification", {"vocab_size": 60, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24}),
    "bart": ("BartForConditionalGeneration", BART),
    "t5": ("T5ForConditionalGeneration", {"vocab_size": 60, "d_model": 16, "d_kv": 5, "d_ff": 24, "num_layers": 2, "num_heads": 4}),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 24, "n_positions": 40}),
    "llama": ("LlamaForCausalLM", {**TEXT, "num_key_value_heads": 2}),
    "vit": ("ViTForImageClassification", {**VISION, **NO_DROPOUT, "num_labels": 3}),
    "clip": ("CLIPModel", {"text_config": {**TEXT, "eos_token_id": 2, "bos_token_id": 0}, "vision_config": VISION, "projection_dim": 16}),
}
TOKENS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}


def tiny(name: str, attention: str = "sdpa", **changes: Any) -> Any:
    """A model of a real class with random weights, not those of an initialisation so small that little happens in it."""
    head, settings = MODELS[name]
    config = getattr(transformers, head).config_class
    tokens = {} if name in ("vit", "clip") else TOKENS
    if name in ("bart", "t5"):
        tokens = {**tokens, "decoder_start_token_id": 2}
    model = getattr(transformers, head)(config(**{**tokens, **settings, **changes}))
    model.set_attn_implementation(attention)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, one in model.named_parameters():
            if "norm" not in key.lower() and "ln_" not in key:
                one.normal_(std=0.3, generator=generator)
    return model.eval()


def example(name: str, rows: int = 2, length: int = 7) -> dict[str, Tensor]:
    """A batch, its second text padded on the right."""
    generator = torch.Generator().manual_seed(2)
    tokens = {"input_ids": torch.randint(3, 60, (rows, length), generator=generator), "attention_mask": torch.ones(rows, length).long()}
    tokens["attention_mask"][1, length - 2 :] = 0
    image = {"pixel_values": torch.rand(rows, 3, 8, 8, generator=generator)}
    if name in ("bart", "t5"):
        return {**tokens, "decoder_input_ids": torch.randint(3, 60, (rows, 5), generator=generator)}
    return {"vit": image, "clip": {**tokens, **image}}.get(name, tokens)


def logits(model: Any, name: str, **changes: Any) -> Tensor:
    """What a model gives for the example, with gradients where they are on."""
    inputs = {key: one.to(model.dtype) if one.is_floating_point() else one for key, one in example(name).items()}
    output = model(**{**inputs, **changes})
    return output.logits_per_image if name == "clip" else output.logits


def disturbed(model: nn.Module, seed: int = 5, std: float = 0.3) -> nn.Module:
    """The model with something learned: its new parameters are no longer those of the start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in petl_of(model).parameters():
            one += std * torch.randn(one.shape, generator=generator, dtype=one.dtype)
    return model


@pytest.fixture
def make() -> Callable[..., Any]:
    return tiny


@pytest.fixture
def run() -> Callable[..., Tensor]:
    return logits


@pytest.fixture
def measure() -> Callable[..., Tensor]:
    """As `run` without gradients: with them, torch chooses its attention kernel by what is trained, and the last bits differ."""
    return torch.no_grad()(logits)


@pytest.fixture
def batch() -> Callable[..., dict[str, Tensor]]:
    return example


@pytest.fixture
def learned() -> Callable[..., nn.Module]:
    return disturbed


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()


def pytest_generate_tests(metafunc: Any) -> None:
    if "every_model" in metafunc.fixturenames:
        metafunc.parametrize("every_model", list(MODELS))
