"""Responses of a language model, resampled towards a reward: training on them aligns a baseline."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from graftwork import Dataset, DatasetInfo, Split, TensorSamples
from graftwork.interfaces import CausalLM, Reward, device_of
from graftwork.kinds.evaluator import evaluating
from graftwork_transfer_q_star.completion import complete, encode_prompts
from graftwork_transfer_q_star.models import padding_token, transformers_model
from graftwork_transfer_q_star.prompts import prompts_of
from graftwork_transfer_q_star.scoring import score_texts

__all__ = ["RewardTiltedSamples", "tilted_resample"]

Count = Annotated[int, Field(ge=1)]


def tilted_resample(rewards: Tensor, beta: float, kept: int, generator: torch.Generator) -> Tensor:
    """Which of N responses to one prompt to keep, drawn in proportion to exp(reward / beta) with replacement.

    Responses drawn from rho become, as N grows, draws from rho exp(r / beta) / Z: the closed form of RLHF with that beta.

    Args:
        rewards: (..., N), finite.
        beta: above 0.
        kept: how many are drawn.
        generator: draws.

    Returns:
        (..., kept) long.

    Raises:
        ValueError: if beta is not above 0.
    """
    if not beta > 0:
        raise ValueError(f"beta is above 0; found {beta}")
    weights = (rewards.double() / beta).softmax(dim=-1)
    flat = torch.multinomial(weights.reshape(-1, weights.shape[-1]), kept, replacement=True, generator=generator)
    return flat.view(*weights.shape[:-1], kept)


class RewardTiltedSamples(Dataset):
    """A language model's own responses to prompts, resampled by exp(reward / beta): supervised training on them, with
    `causal-language-modelling` and `completion_only`, makes a baseline rho_BL near rho_sft exp(r / beta) / Z (Chakraborty et al.,
    2024, section 2).

    Samples of the split `train`: `input_ids`, `attention_mask` and `completion_mask` (T,) long, padded on the right, the end of text
    included; `text`, `prompt`, `response`, `reward` and `index`. They are drawn when the data set is made.

    Args:
        model: draws the responses, at temperature 1 from all of its vocabulary.
        reward: of responses.
        data: holds the prompts.
        split: of `data`.
        key: sample key of the prompts.
        prompt_tokens: cut each after so many tokens, so that whole texts can serve; none leaves them whole.
        prompts: how many, the first ones of the split.
        samples: responses drawn for each.
        kept: of them, resampled.
        beta: strength: the smaller, the more reward and the farther from the model.
        max_new_tokens: of a response.
        batch_size: responses drawn at once.
        seed: of all draws.

    Raises:
        ValueError: if a parameter is out of range.
        DataError: if the split has too few prompts, or a reward is not finite.
    """

    def __init__(
        self,
        model: CausalLM,
        reward: Reward,
        data: Dataset,
        split: Split = "train",
        key: str = "text",
        prompt_tokens: Count | None = 4,
        prompts: Count = 256,
        samples: Count = 8,
        kept: Count = 4,
        beta: Annotated[float, Field(gt=0)] = 2.0,
        max_new_tokens: Count = 32,
        batch_size: Count = 256,
        seed: Annotated[int, Field(ge=0)] = 0,
    ):
        for name, value in (("prompts", prompts), ("samples", samples), ("kept", kept), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise ValueError(f"{name} is at least 1; found {value}")
        if not beta > 0:
            raise ValueError(f"beta is above 0; found {beta}")
        given = prompts_of(data, split, key, prompts)
        generator = torch.Generator().manual_seed(seed)
        devices = [device_of(model)] if device_of(model).type == "cuda" else []
        with evaluating(model), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            rows = _responses(model, given, prompt_tokens, samples, max_new_tokens, batch_size)
        answers, asked = [row["response"] for row in rows], [row["prompt"] for row in rows]
        rewards = score_texts(reward, answers, asked, batch_size).view(len(given), samples)
        chosen = tilted_resample(rewards, beta, kept, generator) + samples * torch.arange(len(given))[:, None]
        columns = _columns([rows[index] for index in chosen.flatten().tolist()], padding_token(transformers_model(model), model.tokenizer))
        columns |= {"reward": rewards.flatten()[chosen.flatten()].float(), "index": torch.arange(chosen.numel())}
        described = f"Responses of a language model, resampled by exp(reward / {beta:g})"
        super().__init__({"train": TensorSamples(**columns)}, DatasetInfo(description=described))


def _responses(
    model: Any, prompts: list[str], prompt_tokens: int | None, samples: int, length: int, batch_size: int
) -> list[dict[str, Any]]:
    """Prompt by prompt: tokens of prompt and response, and both as text."""
    found: list[dict[str, Any]] = []
    at_once = max(1, batch_size // samples)
    for start in range(0, len(prompts), at_once):
        ids, mask = encode_prompts(model, prompts[start : start + at_once], prompt_tokens)
        ids, mask = ids.repeat_interleave(samples, dim=0), mask.repeat_interleave(samples, dim=0)
        drawn = complete(model, ids, mask, do_sample=True, temperature=1.0, max_new_tokens=length)
        for row, inside, tokens, counted, text in zip(ids.cpu(), mask.cpu().bool(), drawn.tokens, drawn.counted, drawn.texts, strict=True):
            before = row[inside]
            prompt = model.tokenizer.decode(before, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            found.append({"before": before, "after": tokens[counted], "prompt": prompt, "response": text})
    return found


def _columns(rows: list[dict[str, Any]], padding: int) -> dict[str, Any]:
    """Tensors and texts of the kept responses."""
    width = max(len(row["before"]) + len(row["after"]) for row in rows)
    ids = torch.full((len(rows), width), padding)
    mask, learned = torch.zeros_like(ids), torch.zeros_like(ids)
    for index, row in enumerate(rows):
        start, end = len(row["before"]), len(row["before"]) + len(row["after"])
        ids[index, :end] = torch.cat([row["before"], row["after"]])
        mask[index, :end], learned[index, start:end] = 1, 1
    texts = {"prompt": [row["prompt"] for row in rows], "response": [row["response"] for row in rows]}
    whole = [prompt + response for prompt, response in zip(*texts.values(), strict=True)]
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": learned, "text": whole, **texts}
