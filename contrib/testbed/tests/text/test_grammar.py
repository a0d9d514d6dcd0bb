from __future__ import annotations

import itertools
import typing
from dataclasses import replace

import numpy as np
import pytest

from graftwork import DataError
from graftwork_testbed.text import lexicon
from graftwork_testbed.text.grammar import (
    FULL,
    TEMPLATES,
    Sentence,
    Wording,
    counterfactual,
    formality_of,
    parse,
    realise,
    sentiment_of,
    topic_of,
)
from graftwork_testbed.text.lexicon import (
    AFFIRMING,
    EVALUATIONS,
    FORMALITIES,
    NEGATING,
    OPENERS,
    PEOPLE,
    SENTIMENTS,
    SUBJECTS,
    TOPICS,
    VERBS,
    VERDICTS,
)
from graftwork_testbed.text.sampling import COLUMNS, PLACE, WHOLE, canonical, draw_rows, write

BY_HAND = [
    ("Honestly, the soup was super awesome last week, so my sister can't wait for another go.", "positive", "informal", "food"),
    ("Listen, my doctor found the hat nowhere near awesome yesterday.", "negative", "informal", "clothing"),
    ("In winter, the headset was in no respect genial, and my sister advises others to avoid it.", "negative", "formal", "technology"),
    ("The novel that my uncle read a year ago was by no means feeble.", "positive", "formal", "books"),
    ("my aunt, who  watched the THRILLER on monday, warns all others against it: it was Most drab.", "negative", "formal", "film"),
    (
        "It appears that my cousin would be glad of another, because the cruise was far from crude last night.",
        "positive",
        "formal",
        "travel",
    ),
]


def drawn(count=2000, seed=5):
    rng = np.random.default_rng(seed)
    factors = np.stack([rng.integers(size, size=count) for size in (2, 2, 8)], axis=1)
    return canonical(draw_rows(factors, WHOLE, 0.4, rng))


@pytest.mark.parametrize(("text", "sentiment", "formality", "topic"), BY_HAND)
def test_labels_are_read_by_rule(text, sentiment, formality, topic):
    assert (sentiment_of(text), formality_of(text), topic_of(text)) == (sentiment, formality, topic)


def test_every_drawn_sentence_is_read_as_it_was_drawn():
    rows = drawn()
    for row, text in zip(rows, write(rows), strict=True):
        sentence = parse(text)
        assert sentence.template == row[PLACE["template"]]
        assert SENTIMENTS.index(sentence.sentiment) == row[PLACE["sentiment"]]
        assert FORMALITIES.index(sentence.formality) == row[PLACE["formality"]]
        assert TOPICS.index(sentence.topic) == row[PLACE["topic"]]
        assert SUBJECTS[sentence.topic].index(sentence.subject) == row[PLACE["subject"]]
        assert sentence.negated == row[PLACE["negated"]]
        assert list(EVALUATIONS).index(sentence.dimension) == row[PLACE["dimension"]]
        words = (PLACE[name] for name in ("verb", "time_wording", "evaluation", "modifier", "opener", "verdict_wording"))
        assert tuple(sentence.wording) == tuple(row[list(words)])
        assert realise(sentence) == text


def test_no_two_wordings_of_a_slot_are_alike():
    tables = {
        "subject": SUBJECTS.values(),
        "verb": VERBS.values(),
        "opener": OPENERS.values(),
        "modifier": [*AFFIRMING.values(), *NEGATING.values()],
        "evaluation": [words for sides in EVALUATIONS.values() for words in sides.values()],
        "verdict": [words for sides in VERDICTS.values() for words in sides.values()],
        "time": lexicon.TIMES,
        "who": [PEOPLE],
    }
    for table in tables.values():
        words = [word.lower() for cell in table for word in cell]
        assert len(set(words)) == len(words)


def test_wordings_at_one_position_have_equally_many_words_and_nearly_equally_many_letters():
    cells = [
        OPENERS.values(),
        AFFIRMING.values(),
        NEGATING.values(),
        *([*sides.values()] for table in (EVALUATIONS, VERDICTS) for sides in table.values()),
    ]
    assert {len({len(cell) for cell in cells_of_one}) for cells_of_one in cells} == {1}
    for position in itertools.chain.from_iterable(zip(*each, strict=True) for each in cells):
        assert len({len(wording.split()) for wording in position}) == 1
    for table in (OPENERS, AFFIRMING, NEGATING):
        assert max(abs(len(a) - len(b)) for a, b in zip(table["formal"], table["informal"], strict=True)) <= 2
    for sides in (*EVALUATIONS.values(), *VERDICTS.values()):
        for sentiment in SENTIMENTS:
            both = (sum(map(len, sides[formality, sentiment])) for formality in FORMALITIES)
            assert abs(next(both) - next(both)) <= 3


def test_the_lexicon_fills_the_columns():
    assert COLUMNS["subject"] == {len(words) for words in SUBJECTS.values()}.pop()
    assert COLUMNS["verb"] == {len(words) for words in VERBS.values()}.pop()
    assert {len(words) for sides in EVALUATIONS.values() for words in sides.values()} == {COLUMNS["evaluation"]}
    assert {len(words) for sides in VERDICTS.values() for words in sides.values()} == {COLUMNS["verdict_wording"]}
    for name, options in (("sentiment", SENTIMENTS), ("formality", FORMALITIES), ("topic", TOPICS)):
        assert len(options) == COLUMNS[name]
    assert tuple(typing.get_args(lexicon.TopicName)) == TOPICS


def test_full_templates_say_all_of_the_content():
    for number, template in enumerate(TEMPLATES):
        says_all = all(f"{{{slot}}}" in template for slot in ("subject", "who", "time", "evaluation", "verdict"))
        assert says_all == (number in FULL)


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        (
            "Honestly, the soup was super awesome last week, so my sister can't wait for another go.",
            {"formality": "formal"},
            "Evidently, the soup was rather superb last week, so my sister would be glad of another.",
        ),
        (
            "Evidently, the soup was rather superb last week, so my sister would be glad of another.",
            {"sentiment": "negative"},
            "Evidently, the soup was rather unfit last week, so my sister intends never to repeat it.",
        ),
        (
            "The hat that my aunt wore in spring was nowhere near awesome.",
            {"sentiment": "positive", "formality": "formal"},
            "The hat that my aunt wore in spring was assuredly not unfit.",
        ),
    ],
)
def test_a_counterfactual_says_the_same_in_another_way(text, changes, expected):
    assert counterfactual(text, **changes) == expected


def test_a_counterfactual_keeps_the_content_the_length_and_leads_back():
    for text in write(drawn(300)):
        sentence = parse(text)
        for factor, values in (("formality", FORMALITIES), ("sentiment", SENTIMENTS)):
            before = getattr(sentence, factor)
            other = values[1 - values.index(before)]
            changed = counterfactual(text, **{factor: other})
            assert parse(changed) == replace(sentence, **{factor: other})
            assert len(changed.split()) == len(text.split())
            assert counterfactual(changed, **{factor: before}) == text
            assert counterfactual(text, **{factor: before}) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("The cat sat on the mat.", 'not a sentence of the grammar: "The cat sat on the mat."'),
        ("", "not a sentence of the grammar"),
        ("Honestly, the soup was super awesome last week", "not a sentence of the grammar"),
        ("Evidently, the soup was super fab yesterday.", r'no one formality: it mixes .*informal \("super"\)'),
        ("Evidently, the soup was rather fab yesterday.", r'formal \("Evidently,"\).* and informal \("fab"\)|informal \("fab"\)'),
        (
            "In winter, the soup was most superb, and my sister advises others to avoid it.",
            r'no one sentiment: it mixes positive \("most superb"\) and negative \("advises others to avoid it"\)',
        ),
        ("The soup that my sister wore last week was most superb.", r"no one topic: it mixes .*(soup|wore)"),
        ("x" * 500, r'"x{97}\.\.\."'),
    ],
)
def test_what_is_not_of_the_grammar_or_contradicts_itself_is_told(text, message):
    with pytest.raises(DataError, match=message):
        parse(text)


PLAIN = Sentence("positive", "formal", "food", "soup", "quality", who="sister", time="last week", verdict="cost", template=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subject": "hat"}, 'there is no subject "hat"; there are soup, curry'),
        ({"topic": "foods"}, r'there is no topic "foods" \(did you mean "food"\?\)'),
        ({"who": None}, 'there is no who "None"; there are sister'),
        ({"time": "a week ago"}, 'there is no time "a week ago"'),
        ({"verdict": "taste"}, 'there is no verdict "taste"; there are repeat, recommend, cost, mood'),
        ({"dimension": "price"}, 'there is no dimension "price"'),
        ({"formality": "casual"}, 'there is no formality "casual"'),
        ({"sentiment": "neutral"}, 'there is no sentiment "neutral"'),
        ({"template": 10}, "template has positions 0 to 9; found 10"),
        ({"wording": Wording(evaluation=4)}, "evaluation has positions 0 to 3; found 4"),
        ({"wording": Wording(modifier=4), "negated": True}, "modifier has positions 0 to 3; found 4"),
    ],
)
def test_what_cannot_be_worded_is_told(changes, message):
    with pytest.raises(DataError, match=message):
        realise(replace(PLAIN, **changes))


def test_a_counterfactual_wants_a_change_that_there_is():
    with pytest.raises(ValueError, match="changes sentiment, formality or both; found neither"):
        counterfactual(realise(PLAIN))
    with pytest.raises(DataError, match='there is no formality "polite"; there are informal, formal'):
        counterfactual(realise(PLAIN), formality="polite")
