from __future__ import annotations

import contextlib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork import DataError
from graftwork_testbed.scenes.grammar import BACKGROUND_WORDS, STYLE_WORDS, Description, Thing, describe, parse_caption
from graftwork_testbed.scenes.styles import DEGRADATIONS, STYLES
from graftwork_testbed.scenes.vocabulary import COLOURS, INVERSE, PLURALS, RELATIONS
from graftwork_testbed.texture_crops import TEXTURES

things = st.builds(Thing, st.integers(0, 9), st.sampled_from(list(COLOURS)))
few = st.one_of(things, st.sampled_from([Thing(3, "red"), Thing(8, "orange")]))  # often alike


def side_by_side(named):
    """Like beside like, as parsing finds them."""
    return tuple(Counter(named).elements())


tails = st.sampled_from([None, *BACKGROUND_WORDS]), st.sampled_from([None, *STYLE_WORDS])
listed = st.builds(Description, st.lists(few, min_size=1, max_size=4).map(side_by_side), st.none(), *tails)
rests = st.lists(few, max_size=2).map(side_by_side)
related = st.builds(
    lambda first, second, rest, *more: Description((first, second, *rest), *more), few, few, rests, st.sampled_from(RELATIONS), *tails
)
words = ["a", "an", "two", "four", "red", "orange", "three", "eights", "left of", "above", "and", ", with", ",", "on", "brick", ", sketch"]


@settings(max_examples=120, deadline=None)
@given(st.one_of(listed, related))
def test_parsing_undoes_describing(description):
    assert parse_caption(str(description)) == description


@settings(max_examples=50, deadline=None)
@given(st.lists(few, min_size=1, max_size=4))
def test_a_list_names_every_digit_whatever_their_order(named):
    assert Counter(parse_caption(describe(named)).things) == Counter(named)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.sampled_from(words), max_size=14).map(lambda chosen: " ".join(chosen).replace(" ,", ",")))
def test_any_row_of_words_is_refused_or_says_what_can_be_said_again(text):
    with contextlib.suppress(DataError):
        description = parse_caption(text)
        again = parse_caption(str(description))
        assert Counter(again.things) == Counter(description.things)
        assert (again.relation, again.background, again.style) == (description.relation, description.background, description.style)


@pytest.mark.parametrize(
    ("description", "caption"),
    [
        (Description((Thing(3, "red"),)), "a red three"),
        (Description((Thing(8, "orange"),)), "an orange eight"),
        (Description((Thing(6, "blue"),) * 2), "two blue sixes"),
        (Description((Thing(0, "pink"),) * 4, None, "brick"), "four pink zeros on brick"),
        (Description((Thing(1, "red"), Thing(2, "blue"))), "a red one and a blue two"),
        (
            Description((Thing(1, "red"), Thing(2, "blue"), Thing(2, "blue"), Thing(9, "white"))),
            "a red one, two blue twos and a white nine",
        ),
        (Description((Thing(3, "red"), Thing(7, "blue")), "left of"), "a red three left of a blue seven"),
        (
            Description((Thing(3, "red"), Thing(7, "blue"), Thing(4, "green"), Thing(4, "green")), "above", "grass", "low-resolution"),
            "a red three above a blue seven, with two green fours on grass, low-resolution",
        ),
    ],
)
def test_captions_read_as_english(description, caption):
    assert str(description) == caption
    assert parse_caption(f"  {caption} ") == description


def test_the_words_are_those_of_the_textures_and_styles():
    assert tuple(TEXTURES) == BACKGROUND_WORDS
    assert (*STYLES[1:], *DEGRADATIONS) == STYLE_WORDS
    assert [RELATIONS[number] for number in INVERSE] == ["right of", "left of", "below", "above"]
    assert len(set(PLURALS)) == 10


@pytest.mark.parametrize(
    ("caption", "why"),
    [
        ("a rad three", r'"rad" is no colour \(did you mean "red"\?\); there are red, orange'),
        ("a red thre", r'"thre" is no digit \(did you mean "three"\?\); there are zero, one'),
        ("two red three", r'"three" is no plural of a digit \(did you mean "threes"\?\); there are zeros, ones'),
        ("five red threes", '"five" is no count of digits; there are two, three, four'),
        ("a red threes", '"a" is no count of digits'),
        ("a red three on gras", r'"gras" is no background \(did you mean "grass"\?\); there are brick, grass'),
        ("a red three, skecth", r'"skecth" is neither a style \(did you mean "sketch"\?\) nor the end of a list, which has "and"'),
        ("a red three, a blue four", '"a blue four" is neither a style nor the end of a list, which has "and" before it'),
        ("a red three and a blue four and a green one", '"a red three and a blue four" is not of the form "a COLOUR DIGIT"'),
        ("a orange three", '"a orange three" wants the article "an"'),
        ("an red three", '"an red three" wants the article "a"'),
        ("red three", '"red three" is not of the form "a COLOUR DIGIT"'),
        ("", '"" is not of the form "a COLOUR DIGIT"'),
        ("a red three beside a blue seven", '"a red three beside a blue seven" is not of the form'),
        ("two red threes left of a blue seven", '"two red threes" is not of the form'),
        ("a red three left of a blue seven above a green one", '"a blue seven above a green one" is not of the form'),
        ("four red threes and a blue seven", "it names 5 digits; a scene holds at most 4"),
        ("a red one above a blue two, with three green twos", "it names 5 digits"),
    ],
)
def test_what_is_outside_the_grammar_is_named(caption, why):
    with pytest.raises(DataError, match=f'the caption "{caption}" is outside the grammar: .*({why})'):
        parse_caption(caption)


def test_a_style_that_may_not_end_a_caption_is_refused():
    assert parse_caption("a red three, noir", ["noir"]).style == "noir"
    with pytest.raises(DataError, match='"sketch" is neither a style nor'):
        parse_caption("a red three, sketch", ["noir"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: describe([]), "a caption names 1 to 4 digits; found 0"),
        (lambda: describe([Thing(1, "red")] * 5), "a caption names 1 to 4 digits; found 5"),
        (lambda: describe([Thing(1, "red")], "left of"), '"left of" needs two digits; found one'),
        (
            lambda: describe([Thing(1, "red")] * 2, "left off"),
            r'no relation "left off" \(did you mean "left of"\?\); there are left of, right of',
        ),
        (lambda: describe([Thing(1, "red")], background="gravle"), r'no background "gravle" \(did you mean "gravel"\?\)'),
        (lambda: Thing(10, "red"), "a digit is 0 to 9; found 10"),
        (lambda: Thing(-1, "red"), "a digit is 0 to 9; found -1"),
        (lambda: Thing(1, "yelow"), r'no colour "yelow" \(did you mean "yellow"\?\); there are red'),
    ],
)
def test_what_cannot_be_described_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
