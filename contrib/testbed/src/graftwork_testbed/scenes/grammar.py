"""The grammar of captions: from what a scene holds to a sentence, and from any sentence of the grammar back.

caption   = subject [" on " BACKGROUND] [", " STYLE]
subject   = thing " " RELATION " " thing [", with " list] | list
list      = group | group ", " ... " and " group
group     = thing | COUNT " " COLOUR " " PLURAL
thing     = ("a" | "an") " " COLOUR " " DIGIT
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from graftwork import DataError
from graftwork.errors import nearest
from graftwork_testbed.scenes.vocabulary import COLOURS, COUNTS, DIGITS, PLURALS, RELATIONS

__all__ = ["Description", "Thing", "describe", "parse_caption"]

BACKGROUND_WORDS = ("brick", "grass", "gravel", "regolith", "stars", "tissue")
"""Names of the textures."""

STYLE_WORDS = ("sketch", "poster", "night", "watercolour", "blur", "noise", "low-resolution", "grey", "hole")
"""Names of the styles and degradations, but for "photo", which captions do not name."""

NAMES = tuple(COLOURS)
THING = re.compile(r"(an?) (\w+) (\w+)")
GROUP = re.compile(r"(\w+) (\w+) (\w+)")
RELATED = re.compile(rf"(.+?) ({'|'.join(RELATIONS)}) (.+?)(?:, with (.+))?")


@dataclass(frozen=True)
class Thing:
    """One digit as a caption names it.

    Args:
        digit: 0 to 9.
        colour: name of a colour.

    Raises:
        ValueError: if there is no such digit or colour.
    """

    digit: int
    colour: str

    def __post_init__(self) -> None:
        if self.digit not in range(len(DIGITS)):
            raise ValueError(f"a digit is 0 to 9; found {self.digit}")
        if self.colour not in COLOURS:
            raise ValueError(f'no colour "{self.colour}"{nearest(self.colour, NAMES)}; there are {", ".join(NAMES)}')

    def __str__(self) -> str:
        return f"{_article(self.colour)} {self.colour} {DIGITS[self.digit]}"


@dataclass(frozen=True)
class Description:
    """What a caption says of a scene.

    Args:
        things: every digit that is named; the first two stand in `relation` where there is one.
        relation: how the first lies from the second, such as "left of"; None where nothing is said of it.
        background: word of a texture, or None.
        style: name of a style, or None.
    """

    things: tuple[Thing, ...]
    relation: str | None = None
    background: str | None = None
    style: str | None = None

    def __str__(self) -> str:
        return describe(self.things, self.relation, self.background, self.style)


def describe(things: Sequence[Thing], relation: str | None = None, background: str | None = None, style: str | None = None) -> str:
    """The caption of a scene.

    Digits alike in class and colour are counted ("two red threes"). With a relation the first two things are its ends.

    Args:
        things: 1 to 4 digits.
        relation: one of `RELATIONS`; needs two things.
        background: word of a texture.
        style: name of a style.

    Raises:
        ValueError: if there are no things, or more than four, or a relation with fewer than two; or no such relation or background.
    """
    if not 1 <= len(things) < len(COUNTS):
        raise ValueError(f"a caption names 1 to {len(COUNTS) - 1} digits; found {len(things)}")
    for what, word, known in (("relation", relation, RELATIONS), ("background", background, BACKGROUND_WORDS)):
        if word and word not in known:
            raise ValueError(f'no {what} "{word}"{nearest(word, known)}; there are {", ".join(known)}')
    if relation is None:
        text = _listed(things)
    else:
        if len(things) < 2:
            raise ValueError(f'"{relation}" needs two digits; found one')
        text = f"{things[0]} {relation} {things[1]}" + (f", with {_listed(things[2:])}" if len(things) > 2 else "")
    return text + (f" on {background}" if background else "") + (f", {style}" if style else "")


def _article(colour: str) -> str:
    return "an" if colour[0] in "aeiou" else "a"


def _listed(things: Sequence[Thing]) -> str:
    groups = [
        str(thing) if count == 1 else f"{COUNTS[count]} {thing.colour} {PLURALS[thing.digit]}" for thing, count in Counter(things).items()
    ]
    return groups[0] if len(groups) == 1 else f"{', '.join(groups[:-1])} and {groups[-1]}"


def parse_caption(caption: str, styles: Sequence[str] = STYLE_WORDS) -> Description:
    """What a caption of the grammar says; digits that it counts come out one by one.

    Args:
        caption: a sentence of the grammar.
        styles: names of styles that may end it.

    Raises:
        DataError: if the sentence is not of the grammar, saying which part is not and what was expected there.
    """
    text, style, background = caption.strip(), None, None
    head, comma, tail = text.rpartition(", ")
    if comma and tail in styles:
        text, style = head, tail
    elif comma and " and " not in tail and not tail.startswith("with "):
        raise _outside(caption, f'"{tail}" is neither a style{nearest(tail, styles)} nor the end of a list, which has "and" before it')
    head, on, tail = text.rpartition(" on ")
    if on:
        if tail not in BACKGROUND_WORDS:
            raise _outside(caption, f'"{tail}" is no background{nearest(tail, BACKGROUND_WORDS)}; there are {", ".join(BACKGROUND_WORDS)}')
        text, background = head, tail
    related = RELATED.fullmatch(text)
    if related:
        first, relation, second, rest = related.groups()
        things = [_thing(first, caption), _thing(second, caption), *(_groups(rest, caption) if rest else ())]
    else:
        relation, things = None, _groups(text, caption)
    if len(things) >= len(COUNTS):
        raise _outside(caption, f"it names {len(things)} digits; a scene holds at most {len(COUNTS) - 1}")
    return Description(tuple(things), relation, background, style)


def _groups(text: str, caption: str) -> list[Thing]:
    before, joined, last = text.rpartition(" and ")
    parts = [*before.split(", "), last] if joined else [text]
    return [thing for part in parts for thing in _group(part, caption)]


def _group(text: str, caption: str) -> list[Thing]:
    found = GROUP.fullmatch(text)
    if found and (found[1] in COUNTS[2:] or found[3] in PLURALS):
        if found[1] not in COUNTS[2:]:
            raise _outside(caption, f'"{found[1]}" is no count of digits; there are {", ".join(COUNTS[2:])}')
        if found[3] not in PLURALS:
            raise _outside(caption, f'"{found[3]}" is no plural of a digit{nearest(found[3], PLURALS)}; there are {", ".join(PLURALS)}')
        return [Thing(PLURALS.index(found[3]), _colour(found[2], caption))] * COUNTS.index(found[1])
    return [_thing(text, caption)]


def _thing(text: str, caption: str) -> Thing:
    found = THING.fullmatch(text)
    if not found:
        raise _outside(caption, f'"{text}" is not of the form "a COLOUR DIGIT"')
    if found[3] not in DIGITS:
        raise _outside(caption, f'"{found[3]}" is no digit{nearest(found[3], DIGITS)}; there are {", ".join(DIGITS)}')
    thing = Thing(DIGITS.index(found[3]), _colour(found[2], caption))
    if found[1] != _article(thing.colour):
        raise _outside(caption, f'"{text}" wants the article "{_article(thing.colour)}"')
    return thing


def _colour(word: str, caption: str) -> str:
    if word not in NAMES:
        raise _outside(caption, f'"{word}" is no colour{nearest(word, NAMES)}; there are {", ".join(NAMES)}')
    return word


def _outside(caption: str, why: str) -> DataError:
    return DataError(f'the caption "{caption}" is outside the grammar: {why}')
