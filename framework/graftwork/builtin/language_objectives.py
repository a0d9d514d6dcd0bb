"""Next-token prediction: what causal language models are trained by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from graftwork.errors import DataError
from graftwork.interfaces import CausalLM
from graftwork.kinds.dataset import Batch
from graftwork.kinds.objective import Loss, Objective

__all__ = ["CausalLanguageModelling", "causal_language_modelling_loss", "next_token_logits", "next_token_targets"]


def next_token_logits(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Logits (B, T, V) of a causal language model for a batch's tokens; a transformers output gives its `logits`.

    Raises:
        DataError: if the samples of the batch differ in length.
    """
    if not isinstance(batch["input_ids"], Tensor):
        raise DataError("the samples differ in their number of tokens: pad input_ids and attention_mask to one length")
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return cast(Tensor, getattr(output, "logits", output))


def next_token_targets(input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What each position but the last has to predict, and whether it counts.

    A target counts if neither it nor the token before it is padding: the first token of a text has nothing to be predicted from,
    on whichever side the padding is.

    Args:
        input_ids: (B, T) long.
        attention_mask: (B, T), 1 where there is text.
        completion_mask: (B, T), 1 where a token is to be learned; None where all are.

    Returns:
        Targets (B, T - 1) long and counted (B, T - 1) bool.

    Raises:
        ValueError: if the shapes differ.
    """
    for name, mask in (("attention_mask", attention_mask), ("completion_mask", completion_mask)):
        if mask is not None and mask.shape != input_ids.shape:
            raise ValueError(f"{name} {tuple(mask.shape)} and input_ids {tuple(input_ids.shape)} differ in shape")
    counted = attention_mask[:, 1:].bool() & attention_mask[:, :-1].bool()
    return input_ids[:, 1:], counted if completion_mask is None else counted & completion_mask[:, 1:].bool()


def causal_language_modelling_loss(
    logits: Tensor, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor | None = None
) -> Tensor:
    """Mean over the counted tokens of -log p(token | tokens before it), in nats; at least in float32.

    It is the loss that transformers gives for `labels` that are -100 at padding and, with a completion mask, at the prompt.

    Args:
        logits: (B, T, V), of the token that follows each.
        input_ids: (B, T) long.
        attention_mask: (B, T), 1 where there is text.
        completion_mask: (B, T), 1 where a token is to be learned, as TRL has it; None where all are.

    Returns:
        0-d; 0, without a gradient, where no token counts.

    Raises:
        ValueError: if the shapes differ.
    """
    targets, counted = next_token_targets(input_ids, attention_mask, completion_mask)
    if logits.shape[:2] != input_ids.shape:
        raise ValueError(f"logits {tuple(logits.shape)} are not (B, T, V) for input_ids {tuple(input_ids.shape)}")
    precise = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    summed = functional.cross_entropy(precise.flatten(0, 1), targets.masked_fill(~counted, -100).flatten(), reduction="sum")
    return summed / counted.sum().clamp(min=1)


class CausalLanguageModelling(Objective):
    """Next-token cross-entropy, padding left out (Bengio et al., 2003, https://www.jmlr.org/papers/v3/bengio03a.html).

    Args:
        completion_only: learn only the tokens whose `completion_mask` is 1, as in supervised fine-tuning on prompts with answers.
    """

    needs = CausalLM

    def __init__(self, completion_only: bool = False):
        super().__init__()
        self.completion_only = completion_only
        self.keys = {"train": ("input_ids", "attention_mask", *(("completion_mask",) if completion_only else ()))}

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The loss, and how often the likeliest token is the next one."""
        batch = batches["train"]
        tokens = batch["input_ids"], batch["attention_mask"], batch["completion_mask"] if self.completion_only else None
        logits = next_token_logits(model, batch)
        loss = causal_language_modelling_loss(logits, *tokens)
        targets, counted = next_token_targets(*tokens)
        hits = (logits[:, :-1].argmax(dim=-1) == targets) & counted
        return Loss(loss, {"token-accuracy": hits.sum() / counted.sum().clamp(min=1)})
