"""Prompts out of a data set."""

from __future__ import annotations

import torch

from graftwork import DataError, Dataset

__all__ = ["prompts_of"]


def prompts_of(data: Dataset, split: str, key: str, limit: int | None = None, seed: int | None = None) -> list[str]:
    """Texts of a split.

    Args:
        data: the data set.
        split: of it.
        key: sample key of the texts.
        limit: so many; all by default.
        seed: draw them at random; by default they are the first.

    Raises:
        DataError: if the split is empty or too small, or holds no such text.
    """
    samples = data[split]
    wanted = len(samples) if limit is None else limit
    if not len(samples) or wanted > len(samples):
        raise DataError(f'split "{split}" has {len(samples)} samples; {wanted or "some"} prompts were asked for')
    if key not in (first := samples[0]):
        raise DataError(f'the samples of split "{split}" have no {key}; they have {", ".join(first)}')
    order = range(len(samples)) if seed is None else torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    texts = [samples[index][key] for index in order[:wanted]]
    for odd in (text for text in texts if not isinstance(text, str) or not text):
        raise DataError(f'{key} of split "{split}" is no text: found {odd!r}')
    return texts
