"""Sentences of the grammar in bulk: rows of numbers, drawn and written down many at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np

from graftwork_testbed.text.grammar import FULL, SLOT, TEMPLATES
from graftwork_testbed.text.lexicon import (
    AFFIRMING,
    EVALUATIONS,
    FORMALITIES,
    NEGATING,
    OPENERS,
    PEOPLE,
    SENTIMENTS,
    SUBJECTS,
    TIMES,
    TOPICS,
    VERBS,
    VERDICTS,
)

__all__ = ["COLUMNS", "PLACE", "WHOLE", "HeldOut", "Vocabulary", "canonical", "codes_of", "draw_rows", "parted", "repeated", "write"]

HeldOut = Literal["none", "words", "templates"]

COLUMNS: dict[str, int] = {
    "template": len(TEMPLATES),
    "sentiment": 2,
    "formality": 2,
    "topic": len(TOPICS),
    "subject": 12,
    "verb": 4,
    "who": len(PEOPLE),
    "time": len(TIMES),
    "time_wording": 2,
    "dimension": len(EVALUATIONS),
    "evaluation": 4,
    "negated": 2,
    "modifier": max(len(AFFIRMING["formal"]), len(NEGATING["formal"])),
    "opener": len(OPENERS["formal"]),
    "verdict": len(VERDICTS),
    "verdict_wording": 4,
}
"""The columns of a row, and how many values each takes."""

PLACE = {name: place for place, name in enumerate(COLUMNS)}
"""Where in a row each column stands."""

SLOT_COLUMNS = {
    "verb": ("verb",),
    "who": ("who",),
    "time": ("time", "time_wording"),
    "opener": ("opener",),
    "verdict": ("verdict", "verdict_wording"),
}
"""Slots that some template lacks, and their columns, which are 0 there."""


@dataclass(frozen=True)
class Vocabulary:
    """Positions that may be drawn; a wording's position is the same for every topic, sentiment and formality.

    Args:
        template: in TEMPLATES.
        subject: in each topic's SUBJECTS.
        verb: in each topic's VERBS.
        evaluation: in each cell of EVALUATIONS.
        affirming: in AFFIRMING.
        negating: in NEGATING.
        opener: in OPENERS.
        verdict_wording: in each cell of VERDICTS.
    """

    template: tuple[int, ...] = tuple(range(len(TEMPLATES)))
    subject: tuple[int, ...] = tuple(range(12))
    verb: tuple[int, ...] = tuple(range(4))
    evaluation: tuple[int, ...] = tuple(range(4))
    affirming: tuple[int, ...] = tuple(range(6))
    negating: tuple[int, ...] = tuple(range(4))
    opener: tuple[int, ...] = tuple(range(8))
    verdict_wording: tuple[int, ...] = tuple(range(4))


WHOLE = Vocabulary()
WORDS = ("subject", "verb", "evaluation", "affirming", "negating", "opener", "verdict_wording")
"""What shows a factor, and is parted between training and testing by `held_out: words`."""


def parted(held_out: HeldOut, rng: np.random.Generator) -> tuple[Vocabulary, Vocabulary]:
    """What training and what testing may draw from.

    Args:
        held_out: "words" keeps a quarter of the wordings of every slot that shows a factor for testing, which has no others; "templates"
            two of the six full templates and one of the four short ones; "none" nothing.
        rng: of the choice.

    Raises:
        ValueError: if `held_out` is none of the three.
    """
    if held_out == "none":
        return WHOLE, WHOLE
    if held_out == "words":
        kept = {name: _choose(getattr(WHOLE, name), max(1, len(getattr(WHOLE, name)) // 4), rng) for name in WORDS}
    elif held_out == "templates":
        short = tuple(number for number in WHOLE.template if number not in FULL)
        kept = {"template": (*_choose(FULL, 2, rng), *_choose(short, 1, rng))}
    else:
        raise ValueError(f'held_out must be "none", "words" or "templates"; found "{held_out}"')
    rest = {name: tuple(place for place in getattr(WHOLE, name) if place not in places) for name, places in kept.items()}
    return replace(WHOLE, **rest), replace(WHOLE, **kept)


def draw_rows(factors: np.ndarray, vocabulary: Vocabulary, negation: float, rng: np.random.Generator) -> np.ndarray:
    """Sentences with the given factors; every other column is drawn uniformly, and independently of them and of each other.

    Args:
        factors: (N, 3) sentiment, formality, topic.
        vocabulary: what may be drawn.
        negation: probability that a judgement is worded by its opposite and a negation, in [0, 1].
        rng: of the draw.

    Returns:
        (N, 16) int64, with the columns of COLUMNS; those that a row's template lacks are drawn too, until `canonical` makes them 0.
    """
    count = len(factors)
    rows = np.empty((count, len(COLUMNS)), dtype=np.int64)
    rows[:, [PLACE["sentiment"], PLACE["formality"], PLACE["topic"]]] = factors
    for name in ("template", "subject", "verb", "evaluation", "opener", "verdict_wording"):
        rows[:, PLACE[name]] = rng.choice(getattr(vocabulary, name), count)
    for name in ("who", "time", "time_wording", "dimension", "verdict"):
        rows[:, PLACE[name]] = rng.integers(COLUMNS[name], size=count)
    negated = rng.random(count) < negation
    rows[:, PLACE["negated"]] = negated
    rows[:, PLACE["modifier"]] = np.where(negated, rng.choice(vocabulary.negating, count), rng.choice(vocabulary.affirming, count))
    return rows


def canonical(rows: np.ndarray) -> np.ndarray:
    """(N, 16) rows with a 0 in the columns that the template lacks: one row a sentence, and one sentence a row."""
    return rows * _used()[rows[:, PLACE["template"]]]


def codes_of(rows: np.ndarray) -> np.ndarray:
    """(N,) a number for each canonical row: equal where the sentences are."""
    return np.ravel_multi_index(tuple(rows.T), tuple(COLUMNS.values()))


def repeated(codes: np.ndarray) -> np.ndarray:
    """(N,) whether a code stood before."""
    again = np.ones(len(codes), dtype=bool)
    again[np.unique(codes, return_index=True)[1]] = False
    return again


def write(rows: np.ndarray) -> list[str]:
    """The sentences of (N, 16) rows: for each the same as `grammar.realise`, many at a time."""
    column = {name: rows[:, place] for name, place in PLACE.items()}
    sentiment, formality, topic = column["sentiment"], column["formality"], column["topic"]
    table = _tables()
    slots = {
        "subject": table["subject"][topic, column["subject"]],
        "verb": table["verb"][topic, column["verb"]],
        "who": table["who"][column["who"]],
        "time": table["time"][column["time"], column["time_wording"]],
        "opener": table["opener"][formality, column["opener"]],
        "modifier": table["modifier"][column["negated"], formality, column["modifier"]],
        "evaluation": table["evaluation"][column["dimension"], formality, sentiment ^ column["negated"], column["evaluation"]],
        "verdict": table["verdict"][column["verdict"], formality, sentiment, column["verdict_wording"]],
    }
    lists = [words.tolist() for words in slots.values()]
    written = (
        TEMPLATES[template].format(**dict(zip(slots, words, strict=True)))
        for template, *words in zip(column["template"].tolist(), *lists, strict=True)
    )
    return [text[0].upper() + text[1:] for text in written]


@cache
def _tables() -> dict[str, np.ndarray]:
    """Slot -> its wordings, indexed by what they show."""
    longest = COLUMNS["modifier"]
    modifiers = [[(*table[formality], *[""] * longest)[:longest] for formality in FORMALITIES] for table in (AFFIRMING, NEGATING)]
    nested = {
        "subject": [SUBJECTS[topic] for topic in TOPICS],
        "verb": [VERBS[topic] for topic in TOPICS],
        "who": PEOPLE,
        "time": TIMES,
        "opener": [OPENERS[formality] for formality in FORMALITIES],
        "modifier": modifiers,
        "evaluation": [[[sides[f, s] for s in SENTIMENTS] for f in FORMALITIES] for sides in EVALUATIONS.values()],
        "verdict": [[[sides[f, s] for s in SENTIMENTS] for f in FORMALITIES] for sides in VERDICTS.values()],
    }
    return {slot: np.array(words, dtype=object) for slot, words in nested.items()}


@cache
def _used() -> np.ndarray:
    """(templates, columns) 1 where a template uses a column."""
    used = np.ones((len(TEMPLATES), len(COLUMNS)), dtype=np.int64)
    for number, template in enumerate(TEMPLATES):
        for slot in set(SLOT_COLUMNS) - set(SLOT.findall(template)):
            used[number, [PLACE[name] for name in SLOT_COLUMNS[slot]]] = 0
    return used


def _choose(positions: tuple[int, ...], count: int, rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(sorted(rng.choice(positions, count, replace=False).tolist()))
