from __future__ import annotations

import math

import pytest
import torch

from graftwork_testbed.text.grammar import FULL, parse
from graftwork_testbed.text.paraphrases import CONTENT, paraphrase_pairs

DATA = paraphrase_pairs(3000)
PAIRS = [
    (parse(first), parse(second), int(target))
    for samples in DATA.values()
    for first, second, target in zip(*(samples.columns[key] for key in ("text", "text_pair", "target")), strict=True)
]


def content(sentence):
    return {
        "subject": sentence.subject,
        "who": sentence.who,
        "time": sentence.time,
        "evaluation": (sentence.dimension, sentence.sentiment),
        "verdict": (sentence.verdict, sentence.sentiment),
    }


def shared(first, second):
    one, other = content(first), content(second)
    return {slot for slot in CONTENT if one[slot] == other[slot]}


def test_the_target_counts_the_content_that_is_shared():
    assert all(len(shared(first, second)) == target for first, second, target in PAIRS)


def test_all_targets_are_equally_frequent_in_every_split():
    for samples in DATA.values():
        counts = torch.bincount(samples.columns["target"].long(), minlength=6)
        assert counts.max() - counts.min() <= 1
        assert samples.columns["target"].dtype == torch.float32


@pytest.mark.parametrize("target", [1, 2, 3, 4])
def test_which_content_is_shared_is_drawn_evenly(target):
    chosen = [shared(first, second) for first, second, its in PAIRS if its == target]
    for slot in CONTENT:
        share, expected = sum(slot in slots for slots in chosen) / len(chosen), target / 5
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(chosen))


def test_the_two_sentences_are_built_and_worded_differently():
    for first, second, _ in PAIRS:
        assert first.template != second.template
        assert {first.template, second.template} <= set(FULL)
        assert first.wording.time != second.wording.time or first.time != second.time
        assert first.wording.evaluation != second.wording.evaluation
        assert first.wording.verdict != second.wording.verdict


def test_formality_says_nothing_of_the_similarity():
    alike = [(first.formality == second.formality, target) for first, second, target in PAIRS]
    for target in range(6):
        agree = [same for same, its in alike if its == target]
        assert abs(sum(agree) / len(agree) - 0.5) < 4 * math.sqrt(0.25 / len(agree))


def test_no_sentence_is_in_two_pairs():
    texts = [text for samples in DATA.values() for key in ("text", "text_pair") for text in samples.columns[key]]
    assert len(set(texts)) == len(texts) == 6000
    assert torch.cat([samples.columns["index"] for samples in DATA.values()]).equal(torch.arange(3000))


def test_the_seed_alone_decides():
    assert paraphrase_pairs(100, seed=1).fingerprint() == paraphrase_pairs(100, seed=1).fingerprint()
    assert paraphrase_pairs(100, seed=1).fingerprint() != paraphrase_pairs(100, seed=2).fingerprint()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"samples": 5}, "samples must be 20 to 200,000; found 5"), ({"seed": -2}, "found -2"), ({"val_fraction": 0.9}, "leave a share")],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        paraphrase_pairs(**parameters)
