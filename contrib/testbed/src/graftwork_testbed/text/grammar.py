"""A grammar of short judgements whose sentiment, formality and topic are known by construction, and can be read back by rule.

"Honestly, the soup was super awesome last week, so my sister can't wait for another go." A sentence has content (subject, who, when, which
dimension is judged, the verdict), three factors (sentiment, formality, topic), and a form: one of ten templates, the wording of each slot,
and whether the judgement is negated ("by no means feeble" is positive): 16 billion sentences in all. `realise` writes one, `parse` reads
one, and each is the inverse of the other. The grammar and its words are ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple, TypeVar

from graftwork import DataError
from graftwork.errors import nearest
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
    Formality,
    Sentiment,
    TopicName,
)

__all__ = [
    "FULL",
    "TEMPLATES",
    "Sentence",
    "Wording",
    "counterfactual",
    "formality_of",
    "parse",
    "realise",
    "sentiment_of",
    "topic_of",
]

TEMPLATES = (
    "{opener} the {subject} was {modifier} {evaluation} {time}, so my {who} {verdict}.",
    "{opener} my {who} {verdict}, because the {subject} was {modifier} {evaluation} {time}.",
    "{time}, my {who} {verb} the {subject} and {verdict}: it was {modifier} {evaluation}.",
    "{opener} my {who} {verb} the {subject} {time}, found it {modifier} {evaluation} and {verdict}.",
    "{time}, the {subject} was {modifier} {evaluation}, and my {who} {verdict}.",
    "my {who}, who {verb} the {subject} {time}, {verdict}: it was {modifier} {evaluation}.",
    "{opener} my {who} found the {subject} {modifier} {evaluation} {time}.",
    "the {subject} that my {who} {verb} {time} was {modifier} {evaluation}.",
    "{opener} the {subject} was {modifier} {evaluation} {time}.",
    "{opener} my {who} said that the {subject} was {modifier} {evaluation}.",
)
"""The constructions. The first letter of a sentence is a capital."""

FULL = (0, 1, 2, 3, 4, 5)
"""The templates that hold all of the content: subject, who, time, evaluation and verdict."""

SLOT = re.compile(r"\{(\w+)\}")
Value = TypeVar("Value")


class Wording(NamedTuple):
    """Which wording of each slot, by its position in the lexicon; 0 where the template lacks the slot."""

    verb: int = 0
    time: int = 0
    evaluation: int = 0
    modifier: int = 0
    opener: int = 0
    verdict: int = 0


FIRST = Wording()


@dataclass(frozen=True)
class Sentence:
    """What a sentence says, and how.

    Args:
        sentiment: of the whole sentence, after negation.
        formality: of every word that shows it.
        topic: that of the subject and the verb.
        subject: one of the topic's.
        dimension: what is judged: quality, enjoyment, impression or workmanship.
        who: one of PEOPLE; None where the template does not say.
        time: the first wording of one of TIMES, or None.
        verdict: repeat, recommend, cost or mood, or None.
        template: position in TEMPLATES.
        negated: whether the evaluation is worded by its opposite and a negation.
        wording: of each slot.
    """

    sentiment: Sentiment
    formality: Formality
    topic: TopicName
    subject: str
    dimension: str
    who: str | None = None
    time: str | None = None
    verdict: str | None = None
    template: int = 8
    negated: bool = False
    wording: Wording = FIRST


def realise(sentence: Sentence) -> str:
    """Write a sentence.

    Raises:
        DataError: if a value is not in the lexicon, or the template needs one that is not given.
    """
    template = _at("template", TEMPLATES, sentence.template)
    slots = {slot: _word(sentence, slot) for slot in SLOT.findall(template)}
    text = template.format(**slots)
    return text[0].upper() + text[1:]


def parse(text: str) -> Sentence:
    """Read a sentence: `parse(realise(sentence)) == sentence`, whatever the case of the letters and the spaces.

    Raises:
        DataError: if the text is not of the grammar, or its words differ in sentiment, formality or topic; it says which do.
    """
    shown = " ".join(text.split())
    match, template = next(
        ((match, number) for number, pattern in enumerate(_patterns()) if (match := pattern.fullmatch(shown))), (None, -1)
    )
    if match is None:
        raise DataError(f'not a sentence of the grammar: "{_short(shown)}"')
    words = {slot: word.lower() for slot, word in match.groupdict().items()}
    found = {slot: _readings()[slot][word] for slot, word in words.items()}
    negated = found["modifier"]["negated"]
    evaluation = found["evaluation"]
    meant = SENTIMENTS[SENTIMENTS.index(evaluation["sentiment"]) ^ negated]
    judged = {f"{words['modifier']} {words['evaluation']}": meant} | _values(found, words, "sentiment", ("verdict",))
    return Sentence(
        sentiment=_agreed(judged, "sentiment", shown),
        formality=_agreed(_values(found, words, "formality", found), "formality", shown),
        topic=_agreed(_values(found, words, "topic", found), "topic", shown),
        subject=words["subject"],
        dimension=evaluation["dimension"],
        who=words.get("who"),
        time=found["time"]["time"] if "time" in found else None,
        verdict=found["verdict"]["verdict"] if "verdict" in found else None,
        template=template,
        negated=negated,
        wording=Wording(**{slot: found[slot]["position"] for slot in Wording._fields if slot in found}),
    )


def sentiment_of(text: str) -> Sentiment:
    """The true sentiment of a sentence; DataError if the text is not of the grammar or contradicts itself."""
    return parse(text).sentiment


def formality_of(text: str) -> Formality:
    """The true formality of a sentence; DataError if the text is not of the grammar or mixes the two."""
    return parse(text).formality


def topic_of(text: str) -> TopicName:
    """The true topic of a sentence; DataError if the text is not of the grammar or mixes two."""
    return parse(text).topic


def counterfactual(text: str, *, sentiment: Sentiment | None = None, formality: Formality | None = None) -> str:
    """The same content in another style, or with the other judgement: the truth for style transfer. The template stays.

    Args:
        text: a sentence of the grammar.
        sentiment: what it is to be, where it is to change.
        formality: what it is to be, where it is to change.

    Raises:
        ValueError: if neither is given.
        DataError: if the text is not of the grammar, or there is no such sentiment or formality.
    """
    if sentiment is None and formality is None:
        raise ValueError("a counterfactual changes sentiment, formality or both; found neither")
    sentence = parse(text)
    return realise(replace(sentence, sentiment=sentiment or sentence.sentiment, formality=formality or sentence.formality))


def _word(sentence: Sentence, slot: str) -> str:
    """How a sentence words one slot."""
    formality = _known("formality", sentence.formality, FORMALITIES)
    polarity = SENTIMENTS.index(_known("sentiment", sentence.sentiment, SENTIMENTS))
    topic = _known("topic", sentence.topic, TOPICS)
    position = getattr(sentence.wording, slot, 0)
    if slot == "subject":
        return _known("subject", sentence.subject, SUBJECTS[topic])
    if slot == "who":
        return _known("who", sentence.who, PEOPLE)
    if slot == "time":
        first = [wordings[0] for wordings in TIMES]
        return _at(slot, TIMES[first.index(_known("time", sentence.time, first))], position)
    if slot == "evaluation":
        sides = EVALUATIONS[_known("dimension", sentence.dimension, EVALUATIONS)]
        return _at(slot, sides[formality, SENTIMENTS[polarity ^ sentence.negated]], position)
    if slot == "verdict":
        return _at(slot, VERDICTS[_known("verdict", sentence.verdict, VERDICTS)][formality, sentence.sentiment], position)
    if slot == "modifier":
        return _at(slot, (NEGATING if sentence.negated else AFFIRMING)[formality], position)
    return _at(slot, VERBS[topic] if slot == "verb" else OPENERS[formality], position)


def _known(name: str, value: Any, options: Any) -> Any:
    if value is None or value not in options:
        raise DataError(f'there is no {name} "{value}"{nearest(str(value), options)}; there are {", ".join(options)}')
    return value


def _at(name: str, options: Sequence[str], position: int) -> str:
    if not 0 <= position < len(options):
        raise DataError(f"{name} has positions 0 to {len(options) - 1}; found {position}")
    return options[position]


@cache
def _readings() -> dict[str, dict[str, dict[str, Any]]]:
    """Slot -> wording in lower case -> what it shows."""
    modifiers = ((False, AFFIRMING), (True, NEGATING))
    tables: dict[str, list[tuple[Sequence[str], dict[str, Any]]]] = {
        "subject": [(words, {"topic": topic}) for topic, words in SUBJECTS.items()],
        "verb": [(words, {"topic": topic}) for topic, words in VERBS.items()],
        "who": [(PEOPLE, {})],
        "time": [(wordings, {"time": wordings[0]}) for wordings in TIMES],
        "opener": [(words, {"formality": formality}) for formality, words in OPENERS.items()],
        "modifier": [(words, {"formality": f, "negated": negated}) for negated, table in modifiers for f, words in table.items()],
        "evaluation": _judgements("dimension", EVALUATIONS),
        "verdict": _judgements("verdict", VERDICTS),
    }
    return {
        slot: {word.lower(): {**shown, "position": position} for words, shown in table for position, word in enumerate(words)}
        for slot, table in tables.items()
    }


def _judgements(name: str, table: dict[str, Any]) -> list[tuple[Sequence[str], dict[str, Any]]]:
    return [
        (words, {name: concept, "formality": formality, "sentiment": sentiment})
        for concept, sides in table.items()
        for (formality, sentiment), words in sides.items()
    ]


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    """A template each, with any wording of any value in each slot."""
    options = {slot: "|".join(map(re.escape, sorted(words, key=len, reverse=True))) for slot, words in _readings().items()}

    def pattern(template: str) -> re.Pattern[str]:
        pieces = SLOT.split(template)  # text and slots by turns
        return re.compile(
            "".join(f"(?P<{piece}>{options[piece]})" if turn % 2 else re.escape(piece) for turn, piece in enumerate(pieces)), re.IGNORECASE
        )

    return tuple(map(pattern, TEMPLATES))


def _values(found: dict[str, dict[str, Any]], words: dict[str, str], factor: str, slots: Any) -> dict[str, Any]:
    """Word -> the value of a factor that it shows, over those slots that show one."""
    return {words[slot]: found[slot][factor] for slot in slots if slot in found and factor in found[slot]}


def _agreed(shown: dict[str, Any], factor: str, text: str) -> Any:
    values = list(dict.fromkeys(shown.values()))
    if len(values) > 1:
        parts = " and ".join(f'{value} ("{next(word for word, its in shown.items() if its == value)}")' for value in values)
        raise DataError(f'"{_short(text)}" has no one {factor}: it mixes {parts}')
    return values[0]


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."
