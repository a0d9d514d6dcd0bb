"""Untrained encoders of captions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from graftwork.builtin.hub import need
from graftwork_testbed.zoo.tokenizers import LENGTH

__all__ = ["caption_encoder", "spread_words"]


def spread_words(model: nn.Module, factor: float = 5.0) -> None:
    """Widen the untrained word embeddings of a CLIP text tower.

    CLIP begins with words as near to one another as places are; captions that differ in one word are then all but the same, and
    stay so while what else they say is learned.

    Args:
        model: a transformers model with a module named `token_embedding`.
        factor: on the embeddings.
    """
    with torch.no_grad():
        next(part for name, part in model.named_modules() if name.endswith("token_embedding")).weight.mul_(factor)  # type: ignore[operator,union-attr]


def caption_encoder(tokenizer: Any, width: int = 128, layers: int = 2, heads: int = 4) -> nn.Module:
    """An untrained `transformers.CLIPTextModel` for a CLIP tokenizer of captions.

    Args:
        tokenizer: whose vocabulary and special tokens it takes.
        width: of the hidden states.
        layers: of the transformer.
        heads: of attention; divides the width.
    """
    library = need("transformers", "transformers")
    config = library.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=LENGTH,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: nn.Module = library.CLIPTextModel(config)
    spread_words(model)
    return model
