from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from graftwork_testbed.text.grammar import FULL, SLOT, TEMPLATES, parse
from graftwork_testbed.text.lexicon import AFFIRMING, FORMALITIES, NEGATING, SENTIMENTS, SUBJECTS, TOPICS
from graftwork_testbed.text.sampling import COLUMNS, repeated
from graftwork_testbed.text.template_text import FACTORS, template_text

DATA = template_text(samples=3000)
FREE = {"verb": 4, "who": 12, "time": 24, "opener": 8, "verdict": 16}


def sentences(data, split):
    return [parse(text) for text in data[split].columns["text"]]


def test_labels_are_what_the_rules_read():
    for samples in DATA.values():
        columns = samples.columns
        for text, sentiment, formality, topic in zip(*(columns[key] for key in ("text", *FACTORS)), strict=True):
            sentence = parse(text)
            assert (sentence.sentiment, sentence.formality, sentence.topic) == (
                SENTIMENTS[sentiment],
                FORMALITIES[formality],
                TOPICS[topic],
            )


@pytest.mark.parametrize("label", list(FACTORS))
def test_the_label_is_the_factor_that_is_asked_for(label):
    data = template_text(label, samples=200)
    assert data.info.classes == FACTORS[label]
    assert data["train"].columns["label"].equal(data["train"].columns[label])
    sample = data["val"][0]
    assert set(sample) == {"text", "label", "sentiment", "formality", "topic", "index"}
    assert sample["label"].dtype == torch.long


def test_every_combination_of_factors_is_equally_frequent_in_every_split():
    for samples in DATA.values():
        cells = (samples.columns["sentiment"] * 2 + samples.columns["formality"]) * 8 + samples.columns["topic"]
        counts = torch.bincount(cells, minlength=32)
        assert counts.max() - counts.min() <= 1
        assert len(cells.unique_consecutive()) > 0.9 * len(cells)  # in random order, not cell by cell


def test_no_sentence_occurs_twice():
    texts = [text for samples in DATA.values() for text in samples.columns["text"]]
    assert len(set(texts)) == len(texts) == 3000
    assert torch.cat([samples.columns["index"] for samples in DATA.values()]).equal(torch.arange(3000))


def test_repeats_are_found():
    assert repeated(np.array([3, 5, 3, 4, 5, 3])).tolist() == [False, False, True, False, True, True]


def test_small_parts_of_the_grammar_are_drawn_without_repeats_too():
    data = template_text(held_out="words", samples=20_000, negation=0.0)
    texts = [text for samples in data.values() for text in samples.columns["text"]]
    assert len(set(texts)) == 20_000


def test_there_are_sixteen_billion_sentences():
    choices = len(AFFIRMING["formal"]) + len(NEGATING["formal"])
    base = 2 * 2 * 8 * 12 * 4 * 4 * choices  # factors, subject, dimension, evaluation, modifier
    found = sum(base * math.prod(FREE[slot] for slot in SLOT.findall(template) if slot in FREE) for template in TEMPLATES)
    assert found == 16_367_616_000
    assert FREE["time"] == COLUMNS["time"] * COLUMNS["time_wording"]
    assert FREE["verdict"] == COLUMNS["verdict"] * COLUMNS["verdict_wording"]


def shown(sentence):
    """(slot, position) of every wording that shows a factor."""
    subject = ("subject", SUBJECTS[sentence.topic].index(sentence.subject))
    modifier = "negating" if sentence.negated else "affirming"
    slots = SLOT.findall(TEMPLATES[sentence.template])
    wording = sentence.wording
    parts = {"verb": wording.verb, "evaluation": wording.evaluation, "opener": wording.opener, "verdict": wording.verdict}
    return {subject, (modifier, wording.modifier), *((slot, parts[slot]) for slot in parts if slot in slots)}


def test_held_out_words_are_in_test_alone():
    data = template_text(held_out="words", samples=1500, seed=3)
    train, val, test = (set().union(*map(shown, sentences(data, split))) for split in ("train", "val", "test"))
    assert not test & (train | val)
    kinds = {kind: sum(each == kind for each, _ in test) for kind, _ in test}
    assert kinds == {"subject": 3, "verb": 1, "evaluation": 1, "affirming": 1, "negating": 1, "opener": 2, "verdict": 1}
    assert {sentence.template for sentence in sentences(data, "test")} == set(range(10))


def test_held_out_templates_are_in_test_alone():
    data = template_text(held_out="templates", samples=1500, seed=3)
    train, val, test = ({sentence.template for sentence in sentences(data, split)} for split in ("train", "val", "test"))
    assert not test & (train | val)
    assert (len(test & set(FULL)), len(test - set(FULL))) == (2, 1)
    assert train == val == set(range(10)) - test


@pytest.mark.parametrize("negation", [0.0, 0.25, 1.0])
def test_negation_is_as_frequent_as_asked_and_independent_of_the_factors(negation):
    data = template_text(samples=3000, negation=negation)
    found = sentences(data, "train")
    for sentiment, formality in itertools.product(SENTIMENTS, FORMALITIES):
        cell = [sentence.negated for sentence in found if (sentence.sentiment, sentence.formality) == (sentiment, formality)]
        assert abs(sum(cell) / len(cell) - negation) <= 4 * math.sqrt(negation * (1 - negation) / len(cell))


def test_the_seed_alone_decides():
    assert template_text(samples=200, seed=1).fingerprint() == template_text(samples=200, seed=1).fingerprint()
    assert template_text(samples=200, seed=1).fingerprint() != template_text(samples=200, seed=2).fingerprint()


def test_the_global_generators_are_left_alone():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - the state that must not change
    template_text(samples=200)
    assert torch.get_rng_state().equal(before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"label": "mood"}, "label must be one of sentiment, formality, topic; found 'mood'"),
        ({"held_out": "all"}, 'held_out must be "none", "words" or "templates"; found "all"'),
        ({"samples": 19}, "samples must be 20 to 200,000; found 19"),
        ({"negation": 1.5}, "negation must be 0 to 1; found 1.5"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave a share to train"),
        ({"samples": 20, "val_fraction": 0.01}, "20 samples leave val empty"),
        ({"seed": -1}, "must not be negative; found -1"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        template_text(**parameters)
