"""Texts to tokens, as the models of transformers take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graftwork.builtin.hub import load, need

__all__ = ["load_tokenizer", "longest", "tokenize"]


def load_tokenizer(name: str) -> Any:
    """A tokenizer by Hugging Face id or folder; one without a padding token pads with its end-of-text token.

    Raises:
        GraftworkError: if it cannot be loaded.
    """
    library = need("transformers", "transformers")
    tokenizer = load(name, lambda source: library.AutoTokenizer.from_pretrained(source, trust_remote_code=False), "tokenizer")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def longest(model: nn.Module, tokenizer: Any) -> int:
    """The most tokens that both a model and its tokenizer take."""
    config: Any = model.config
    most = int(getattr(getattr(config, "text_config", config), "max_position_embeddings", tokenizer.model_max_length))
    shifted = [module for name, module in model.named_modules() if name.endswith("position_embeddings") and hasattr(module, "padding_idx")]
    if shifted and shifted[0].padding_idx is not None:
        most -= int(shifted[0].padding_idx) + 1  # RoBERTa and its kin count positions from there
    return int(min(most, tokenizer.model_max_length))


def tokenize(
    tokenizer: Any, texts: Sequence[str], max_length: int, device: torch.device, pad_to_max: bool = False
) -> tuple[Tensor, Tensor]:
    """Texts to `input_ids` and `attention_mask`, both (B, T) long, cut after `max_length` tokens.

    Args:
        tokenizer: of transformers.
        texts: at least one.
        max_length: tokens, at most.
        device: where to.
        pad_to_max: pad each text to `max_length` instead of to the longest of the batch.
    """
    padding = "max_length" if pad_to_max else True
    found = tokenizer(list(texts), padding=padding, truncation=True, max_length=max_length, return_attention_mask=True, return_tensors="pt")
    return found["input_ids"].to(device), found["attention_mask"].to(device)
