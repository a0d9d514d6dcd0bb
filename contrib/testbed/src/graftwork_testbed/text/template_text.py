"""Sentences of the grammar as a data set, labelled by sentiment, formality or topic."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from pydantic import Field

from graftwork import Dataset, DatasetInfo, TensorSamples
from graftwork_testbed.splits import SPLITS, Fraction, Seed
from graftwork_testbed.text.lexicon import FORMALITIES, SENTIMENTS, TOPICS
from graftwork_testbed.text.sampling import COLUMNS, HeldOut, canonical, codes_of, draw_rows, parted, repeated, write

__all__ = ["FACTORS", "MOST", "Count", "sizes_of", "template_text"]

FACTORS: dict[str, tuple[str, ...]] = {"sentiment": SENTIMENTS, "formality": FORMALITIES, "topic": TOPICS}
"""Factor -> its values, in the order of their numbers."""

MOST = 200_000
Count: TypeAlias = Annotated[int, Field(ge=20, le=MOST)]
"""Samples over all splits."""


def template_text(
    label: Literal["sentiment", "formality", "topic"] = "sentiment",
    held_out: HeldOut = "none",
    samples: Count = 8000,
    negation: Annotated[float, Field(ge=0, le=1)] = 0.25,
    val_fraction: Fraction = 0.1,
    test_fraction: Fraction = 0.25,
    seed: Seed = 0,
) -> Dataset:
    """Short judgements written by a grammar, with their sentiment, formality and topic: three factors, each independent of the others.

    Samples: `text`, `label` (the factor that is asked for), `sentiment` (0 negative, 1 positive), `formality` (0 informal, 1 formal),
    `topic` (0 to 7), all long, and `index`. Every combination of the three is equally frequent in every split, to one sample, and no
    sentence occurs twice. Sentences of all values have the same distribution of word counts, so that the words must be read; where a
    judgement is negated ("nowhere near awesome"), more than one of them. `graftwork_testbed.text.grammar` reads the labels back by rule.

    Args:
        label: which factor is the label.
        held_out: what test alone has: "words" is a quarter of the wordings of every slot that shows a factor, and test has no others, so
            that nothing which showed the label in training shows it in testing; "templates" is three of the ten constructions.
        samples: sentences over all splits, 20 to 200,000.
        negation: share of sentences that judge by negating the opposite.
        val_fraction: share that goes to val.
        test_fraction: share that goes to test.
        seed: of the draw, and of what is held out.

    Raises:
        ValueError: if a parameter is out of range.
    """
    if label not in FACTORS:
        raise ValueError(f"label must be one of {', '.join(FACTORS)}; found {label!r}")
    if not 0 <= negation <= 1:
        raise ValueError(f"negation must be 0 to 1; found {negation}")
    sizes = sizes_of(samples, val_fraction, test_fraction, seed)
    rng = np.random.default_rng(seed)
    training, testing = parted(held_out, rng)
    factors = np.concatenate([_factors(size, rng) for size in sizes.values()])
    bounds = np.cumsum([0, *sizes.values()])
    tested = np.arange(samples) >= bounds[-2]
    rows = np.zeros((samples, len(COLUMNS)), dtype=np.int64)
    again = np.ones(samples, dtype=bool)
    while again.any():
        for vocabulary, part in ((training, again & ~tested), (testing, again & tested)):
            rows[part] = canonical(draw_rows(factors[part], vocabulary, negation, rng))
        again = repeated(codes_of(rows))
    texts = write(rows)
    splits = {}
    for name, start, stop in zip(sizes, bounds, bounds[1:], strict=False):
        columns: dict[str, Any] = dict(zip(FACTORS, torch.from_numpy(factors[start:stop].copy()).unbind(1), strict=True))
        splits[name] = TensorSamples(text=texts[start:stop], label=columns[label], **columns, index=torch.arange(start, stop))
    return Dataset(splits, DatasetInfo(classes=FACTORS[label], description="Short judgements of a grammar, by " + label))


def sizes_of(samples: int, val_fraction: float, test_fraction: float, seed: int) -> dict[str, int]:
    """Samples of each split.

    Raises:
        ValueError: if a number is out of range, or a split is left empty.
    """
    if not 20 <= samples <= MOST:
        raise ValueError(f"samples must be 20 to {MOST:,}; found {samples}")
    if not 0 < val_fraction < 1 or not 0 < test_fraction < 1 or val_fraction + test_fraction >= 1:
        raise ValueError(f"val_fraction {val_fraction} and test_fraction {test_fraction} must be positive and leave a share to train")
    if seed < 0:
        raise ValueError(f"the seed must not be negative; found {seed}")
    val, test = round(val_fraction * samples), round(test_fraction * samples)
    sizes = dict(zip(SPLITS, (samples - val - test, val, test), strict=True))
    if empty := [name for name, size in sizes.items() if size < 1]:
        raise ValueError(f"{samples} samples leave {', '.join(empty)} empty at val_fraction {val_fraction}, test_fraction {test_fraction}")
    return sizes


def _factors(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 3) sentiment, formality and topic; every combination equally often, to one, in random order."""
    values = [len(names) for names in FACTORS.values()]
    cells = rng.permutation(int(np.prod(values)))[rng.permutation(count) % int(np.prod(values))]
    return np.stack(np.unravel_index(cells, values), axis=1).astype(np.int64)
