"""What is asked of a causal language model: the model of transformers inside, its ends of text, its context."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor

from graftwork import InterfaceError
from graftwork_transfer_q_star.scoring import same_vocabulary

__all__ = [
    "check_shared_tokenizer",
    "context_length",
    "end_tokens",
    "ends_of_call",
    "next_token_logits",
    "padding_token",
    "transformers_model",
]


def transformers_model(model: Any) -> Any:
    """The model of transformers that a CausalLM wraps, or that it is.

    Raises:
        InterfaceError: if there is none.
    """
    for candidate in (model, getattr(model, "model", None)):
        if candidate is not None and hasattr(candidate, "generation_config") and hasattr(candidate, "generate"):
            return candidate
    raise InterfaceError(f"{type(model).__name__} is no causal language model of transformers, and holds none as `model`")


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a text: those of a model's generation config, else of its tokenizer; none where neither has one."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = tokenizer.eos_token_id if found is None else found
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def ends_of_call(model: Any, tokenizer: Any, kwargs: dict[str, Any]) -> list[int]:
    """Tokens that end a text in one call of `generate`: its argument, where None says that nothing does, else those of its config."""
    end = kwargs.get("eos_token_id", getattr(kwargs.get("generation_config"), "eos_token_id", None))
    if end is None:
        return [] if "eos_token_id" in kwargs else end_tokens(model, tokenizer)
    return [end] if isinstance(end, int) else [int(one) for one in end]


def padding_token(model: Any, tokenizer: Any) -> int:
    """What pads: the tokenizer's padding token, else the model's, else an end of text, else 0."""
    choices = (tokenizer.pad_token_id, getattr(getattr(model, "generation_config", None), "pad_token_id", None))
    return next((one for one in (*choices, *end_tokens(model, tokenizer)) if one is not None), 0)


def context_length(model: Any) -> int | None:
    """The most tokens that a model has positions for; None where there is no such limit."""
    config = getattr(model, "config", None)
    found = getattr(getattr(config, "text_config", config), "max_position_embeddings", None)
    return None if found is None else int(found)


def check_shared_tokenizer(baseline: Any, reference: Any) -> None:
    """Raise unless two language models read tokens alike.

    Raises:
        InterfaceError: if their vocabularies differ, with both sizes.
    """
    first, second = baseline.tokenizer, reference.tokenizer
    if not same_vocabulary(first, second):
        sizes = len(first.get_vocab()), len(second.get_vocab())
        raise InterfaceError(
            f"baseline and reference must share a tokenizer; got sizes {sizes[0]}, {sizes[1]}"
            + (" with other tokens" if sizes[0] == sizes[1] else "")
        )


def next_token_logits(model: Any, input_ids: Tensor, attention_mask: Tensor, steps: int) -> Tensor:
    """Logits of the last tokens of texts that are written already.

    Args:
        model: of transformers.
        input_ids: (B, L) long.
        attention_mask: (B, L), 0 at the padding on the left.
        steps: T, how many of the last tokens.

    Returns:
        (B, T, V), at least in float32.
    """
    given: dict[str, Any] = {"attention_mask": attention_mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        given["position_ids"] = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    logits = cast(Tensor, model(input_ids=input_ids, **given).logits)[:, -steps - 1 : -1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
