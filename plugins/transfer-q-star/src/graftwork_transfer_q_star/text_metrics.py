"""Measures of generated text: repetition, diversity, coherence with the prompt, and who wins under a judge."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

__all__ = ["coherence", "diversity", "repetition", "win_rates", "words"]

WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


def words(text: str) -> list[str]:
    """Words and marks of punctuation of a text."""
    return WORD.findall(text)


def repetition(tokens: Sequence[Any], n: int) -> float:
    """rep_n = 1 - distinct n-grams / (n-grams + 1), between 0 and 1; the 1 in the denominator is that of the authors' code.

    Args:
        tokens: words or token ids.
        n: at least 1.

    Raises:
        ValueError: if n is below 1.
    """
    if n < 1:
        raise ValueError(f"n is at least 1; found {n}")
    grams = list(zip(*(tokens[start:] for start in range(n)), strict=False))
    return 1.0 - len(set(grams)) / (len(grams) + 1)


def diversity(tokens: Sequence[Any]) -> float:
    """The product over n = 2, 3, 4 of 1 - rep_n (Su et al., 2022, https://arxiv.org/abs/2202.06417), between 0 and 1.

    A text of fewer than four tokens has no 4-gram, and so none; long texts without repetition come near 1.
    """
    product = 1.0
    for n in (2, 3, 4):
        product *= 1.0 - repetition(tokens, n)
    return product


def coherence(encoder: Any, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
    """Cosine of the embeddings of each prompt and its response (Su et al., 2022).

    Args:
        encoder: a TextEncoder; the authors have SimCSE.
        prompts: B.
        responses: B.

    Returns:
        (B,), between -1 and 1.
    """
    with torch.no_grad():
        return cosine_similarity(encoder.encode(list(prompts)).float(), encoder.encode(list(responses)).float())


def win_rates(scores: Tensor, others: Tensor, tolerance: float = 0.0) -> tuple[float, float]:
    """How often the first of two decoders wins, and how often neither does, prompt by prompt.

    Args:
        scores: (B,), a judge's of the first.
        others: (B,), of the second.
        tolerance: differences up to this are ties.

    Returns:
        Shares of wins and of ties.

    Raises:
        ValueError: if the shapes differ or there is nothing to compare.
    """
    if scores.shape != others.shape or not scores.numel():
        raise ValueError(f"scores {tuple(scores.shape)} and others {tuple(others.shape)} are not as many, or none")
    difference = scores - others
    return (difference > tolerance).double().mean().item(), (difference.abs() <= tolerance).double().mean().item()
