"""Prompts to responses: one batch of texts through `generate`, guided or not, with what it took."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graftwork_transfer_q_star.models import ends_of_call, next_token_logits, padding_token, transformers_model

__all__ = ["DECODING", "Completion", "complete", "encode_prompts"]

DECODING: Mapping[str, Any] = {"max_new_tokens": 128, "do_sample": False, "top_k": 0, "top_p": 1.0}
"""Settings of `generate` where the caller says nothing: the authors' length, greedy, no other truncation than the candidates."""

TEMPERATURE = 0.7
"""Of sampling in the authors' code."""


@dataclass(frozen=True)
class Completion:
    """Responses to one batch of prompts.

    Args:
        texts: responses without the prompts and special tokens.
        tokens: (B, T) long, the responses, ended rows padded.
        counted: (B, T) bool, tokens that were chosen: the end of a text, but not what pads behind it.
        divergence: (B,) KL from the distribution decoded from to the reference's, summed over the counted tokens, in nats.
        seconds: that `generate` took.
    """

    texts: list[str]
    tokens: Tensor
    counted: Tensor
    divergence: Tensor
    seconds: float


def encode_prompts(model: Any, prompts: Sequence[str], prompt_tokens: int | None = None) -> tuple[Tensor, Tensor]:
    """Prompts to tokens and mask, both (B, L) long, padded on the left, on the model's device.

    Args:
        model: a CausalLM.
        prompts: at least one, none of them empty.
        prompt_tokens: cut each after so many tokens.

    Raises:
        ValueError: if there is no prompt or one has no token.
    """
    rows = model.tokenizer(list(prompts), verbose=False)["input_ids"] if prompts else []
    rows = [row[:prompt_tokens] for row in rows]
    if not rows or not all(rows):
        raise ValueError(f"a prompt has at least one token; found {'one that is empty' if rows else 'no prompt'}")
    inner, width = transformers_model(model), max(map(len, rows))
    ids = torch.full((len(rows), width), padding_token(inner, model.tokenizer))
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return ids.to(inner.device), mask.to(inner.device)


@torch.no_grad()
def complete(
    model: Any, input_ids: Tensor, attention_mask: Tensor, divergence: bool = False, reference: Any = None, **settings: Any
) -> Completion:
    """Continue prompts by the model's `generate`, whatever is attached to it.

    Args:
        model: a CausalLM.
        input_ids: (B, L) long, padded on the left.
        attention_mask: (B, L).
        divergence: measure the KL; it holds the scores of all steps, (B, T, V) twice.
        reference: whose distribution the KL is to, of the same tokenizer; by default the model itself, as it is without what is attached.
        settings: of `generate`; `DECODING` where nothing is said, and temperature 0.7 where `do_sample` is set.
    """
    chosen = {**DECODING, **settings}
    if chosen["do_sample"]:
        chosen.setdefault("temperature", TEMPERATURE)
    else:
        chosen = {key: value for key, value in chosen.items() if key not in ("top_k", "top_p", "temperature")}
    inner = transformers_model(model)
    chosen.setdefault("pad_token_id", padding_token(inner, model.tokenizer))
    measured = {"output_scores": True, "output_logits": True} if divergence else {}
    start = time.perf_counter()
    output = inner.generate(
        input_ids=input_ids, attention_mask=attention_mask, **chosen, **{**measured, "return_dict_in_generate": divergence}
    )
    tokens = (output.sequences if divergence else output)[:, input_ids.shape[1] :].cpu()  # waits for the device
    seconds = time.perf_counter() - start
    ends = ends_of_call(inner, model.tokenizer, chosen)
    ended = torch.isin(tokens, torch.tensor(ends, dtype=torch.long)).long()
    counted = (ended.cumsum(dim=1) - ended) == 0
    found = torch.zeros(len(tokens))
    if divergence:
        found = _divergence(output, attention_mask, counted, None if reference is None else transformers_model(reference))
    return Completion(_responses(model.tokenizer, input_ids, attention_mask, tokens, counted), tokens, counted, found, seconds)


def _responses(tokenizer: Any, input_ids: Tensor, attention_mask: Tensor, tokens: Tensor, counted: Tensor) -> list[str]:
    """What stands behind the prompts, with the space between: some tokenizers swallow it where a response is decoded alone."""
    before = [row[inside].tolist() for row, inside in zip(input_ids.cpu(), attention_mask.cpu().bool(), strict=True)]
    after = [row[inside].tolist() for row, inside in zip(tokens, counted, strict=True)]
    plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    whole = tokenizer.batch_decode([first + second for first, second in zip(before, after, strict=True)], **plain)
    return [text.removeprefix(prompt) for text, prompt in zip(whole, tokenizer.batch_decode(before, **plain), strict=True)]


def _divergence(output: Any, attention_mask: Tensor, counted: Tensor, reference: Any) -> Tensor:
    """KL (B,) of the distributions that a generation was drawn from, summed over its counted tokens."""
    steps, found = counted.shape[1], torch.zeros(len(counted))
    others = output.logits
    if reference is not None:
        mask = torch.cat([attention_mask, attention_mask.new_ones(len(counted), steps)], dim=1)
        where = reference.device
        others = next_token_logits(reference, output.sequences.to(where), mask.to(where), steps).unbind(dim=1)
    for step, (scores, other) in enumerate(zip(output.scores, others, strict=True)):
        policy, own = scores.float().log_softmax(dim=-1), other.float().log_softmax(dim=-1).to(scores.device)
        found += torch.where(policy.isfinite(), policy.exp() * (policy - own), 0.0).sum(dim=-1).cpu() * counted[:, step]
    return found
