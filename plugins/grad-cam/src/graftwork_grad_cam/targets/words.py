"""Texts and tokens for the targets that read or write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graftwork.errors import InterfaceError
from graftwork.kinds.dataset import Batch

__all__ = ["special_tokens", "tokenize", "tokenizer_of", "with_words"]


def tokenizer_of(model: nn.Module, given: Any = None) -> Any:
    """The tokenizer that is given, or the model's own.

    Raises:
        InterfaceError: if there is none.
    """
    found = given if given is not None else getattr(model, "tokenizer", None)
    if found is None:
        raise InterfaceError(
            f"a text must be cut into tokens, and the {type(model).__name__} carries no tokenizer: "
            "set model.tokenizer, give the target one, or give token ids"
        )
    return found


def tokenize(texts: Sequence[str], model: nn.Module, tokenizer: Any, device: torch.device) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` (N, L), padded to the longest."""
    tokens = tokenizer_of(model, tokenizer)(list(texts), padding=True, return_tensors="pt")
    return {key: torch.as_tensor(tokens[key]).to(device) for key in ("input_ids", "attention_mask") if key in tokens}


def with_words(model: nn.Module, batch: Mapping[str, Any], tokenizer: Any, device: torch.device) -> Batch:
    """The batch with its `text` as tokens too, unless it has `input_ids`."""
    if "input_ids" in batch or "text" not in batch:
        return dict(batch)
    return {**batch, **tokenize(batch["text"], model, tokenizer, device)}


def special_tokens(model: nn.Module) -> set[int]:
    """Ids of the tokens that are no words: padding, beginning, end, separator, by every configuration of the model that names them."""
    found: set[int] = set()
    for module in model.modules():
        for config in (getattr(module, "config", None), getattr(module, "generation_config", None)):
            for name in ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "decoder_start_token_id", "cls_token_id"):
                value = getattr(config, name, None)
                found.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return {int(token) for token in found if isinstance(token, int)}
