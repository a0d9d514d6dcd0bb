"""Pairs of sentences whose similarity is known: how much of their content they share, however differently they are worded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from graftwork import Dataset, DatasetInfo, TensorSamples
from graftwork_testbed.splits import Fraction, Seed
from graftwork_testbed.text.grammar import FULL
from graftwork_testbed.text.sampling import COLUMNS, PLACE, WHOLE, canonical, codes_of, draw_rows, repeated, write
from graftwork_testbed.text.template_text import Count, sizes_of

__all__ = ["CONTENT", "paraphrase_pairs"]

CONTENT = ("subject", "who", "time", "evaluation", "verdict")
"""The slots whose content two sentences may share."""

NEGATION = 0.25
SUBJECTS = COLUMNS["topic"] * COLUMNS["subject"]


def paraphrase_pairs(samples: Count = 4000, val_fraction: Fraction = 0.1, test_fraction: Fraction = 0.25, seed: Seed = 0) -> Dataset:
    """Pairs of sentences with a graded similarity from 0 to 5, as in semantic textual similarity (Cer et al., 2017, arXiv 1708.00055).

    Samples: `text`, `text_pair`, `target` (float32: the number of content slots that the two share, of subject, who, time, evaluation and
    verdict: five times the share), and `index`. An evaluation is shared if both judge the same dimension with the same sentiment, a verdict
    if it is of the same kind and sentiment. All six targets are equally frequent in every split, to one pair; which slots are shared is
    drawn. The two sentences are of different templates, in formalities drawn one by one, and word what they share differently wherever the
    grammar has another wording (all but subject and who). No sentence is in two pairs.

    Args:
        samples: pairs over all splits, 20 to 200,000.
        val_fraction: share that goes to val.
        test_fraction: share that goes to test.
        seed: of the draw.

    Raises:
        ValueError: if a parameter is out of range.
    """
    sizes = sizes_of(samples, val_fraction, test_fraction, seed)
    rng = np.random.default_rng(seed)
    targets = np.concatenate([rng.permutation(size) % (len(CONTENT) + 1) for size in sizes.values()])
    first = np.zeros((samples, len(COLUMNS)), dtype=np.int64)
    second = first.copy()
    again = np.ones(samples, dtype=bool)
    while again.any():
        first[again], second[again] = _draw(targets[again], rng)
        again = repeated(np.concatenate([codes_of(first), codes_of(second)])).reshape(2, samples).any(0)
    texts, pairs, bounds = write(first), write(second), np.cumsum([0, *sizes.values()])
    splits = {}
    for name, start, stop in zip(sizes, bounds, bounds[1:], strict=False):
        columns: dict[str, Any] = {"text": texts[start:stop], "text_pair": pairs[start:stop]}
        target = torch.from_numpy(targets[start:stop].astype(np.float32))
        splits[name] = TensorSamples(**columns, target=target, index=torch.arange(start, stop))
    return Dataset(splits, DatasetInfo(description="Pairs of sentences with their similarity, 0 to 5"))


def _draw(targets: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two sentences (N, 16) each that share `targets` (N,) of their five slots."""
    count = len(targets)
    shared = dict(zip(CONTENT, (rng.random((count, len(CONTENT))).argsort(1).argsort(1) < targets[:, None]).T, strict=True))
    first, second = (_full_sentences(count, rng) for _ in range(2))

    def other(name: str, values: int) -> np.ndarray:
        return (first[:, PLACE[name]] + rng.integers(1, values, size=count)) % values

    def settle(name: str, same: np.ndarray, where: np.ndarray | slice = slice(None)) -> None:
        second[where, PLACE[name]] = np.where(same, first[:, PLACE[name]], other(name, COLUMNS[name]))[where]

    second[:, PLACE["template"]] = other("template", len(FULL))
    subjects = first[:, PLACE["topic"]] * COLUMNS["subject"] + first[:, PLACE["subject"]]
    subjects = (subjects + np.where(shared["subject"], 0, rng.integers(1, SUBJECTS, size=count))) % SUBJECTS
    second[:, PLACE["topic"]], second[:, PLACE["subject"]] = np.divmod(subjects, COLUMNS["subject"])
    settle("who", shared["who"])
    settle("time", shared["time"])
    agree = shared["evaluation"] | shared["verdict"] | (first[:, PLACE["sentiment"]] == second[:, PLACE["sentiment"]])
    settle("sentiment", agree)
    settle("dimension", shared["evaluation"], agree)  # where the sentiments differ, an equal dimension or kind is not shared content
    settle("verdict", shared["verdict"], agree)
    for name in ("time_wording", "evaluation", "verdict_wording", "verb", "opener"):
        second[:, PLACE[name]] = other(name, COLUMNS[name])
    return canonical(first), canonical(second)


def _full_sentences(count: int, rng: np.random.Generator) -> np.ndarray:
    factors = np.stack([rng.integers(COLUMNS[name], size=count) for name in ("sentiment", "formality", "topic")], axis=1)
    return draw_rows(factors, replace(WHOLE, template=FULL), NEGATION, rng)
