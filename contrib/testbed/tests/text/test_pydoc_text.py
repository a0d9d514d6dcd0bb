from __future__ import annotations

import sys
import typing
from itertools import pairwise
from pydoc_data.topics import topics as SHIPPED

import pytest
import torch

from graftwork import DataError
from graftwork_testbed.text.pydoc_text import pydoc_text, units_of
from graftwork_testbed.text.pydoc_topics import AREAS, DESCRIPTIONS, Area, load_topics
from graftwork_testbed.text.tokenization import byte_tokenizer

TOPICS = {topic.name: topic for topic in load_topics()}


def flat(text):
    return "".join(text.split())


def made_up(count, area="simple statements", words="The words of topic {n} number {k} are these."):
    return {name: "\n\n".join(words.format(n=name, k=k) for k in range(3)) for name in AREAS[area][:count]}


@pytest.fixture
def topics(monkeypatch):
    def replace(found):
        monkeypatch.setattr("pydoc_data.topics.topics", found)

    return replace


def test_the_table_knows_every_topic_of_this_python():
    assert list(AREAS) == list(typing.get_args(Area)) == list(DESCRIPTIONS)
    names = [name for names in AREAS.values() for name in names]
    assert len(set(names)) == len(names)
    if sys.version_info < (3, 15):
        assert set(SHIPPED) <= set(names)
        assert pydoc_text().info.classes == tuple(AREAS)


def test_every_paragraph_is_word_for_word_in_its_topic():
    for topic in TOPICS.values():
        whole = flat(SHIPPED[topic.name])
        assert all(flat(paragraph) in whole for paragraph in topic.paragraphs)
    assert TOPICS["assert"].title == 'The "assert" statement'


def test_no_paragraph_is_in_two_topics_and_the_shorter_topic_keeps_it():
    paragraphs = [paragraph for topic in TOPICS.values() for paragraph in topic.paragraphs]
    assert len(set(paragraphs)) == len(paragraphs)
    shared = TOPICS["while"].paragraphs[0]  # "compound" says it too
    assert flat(shared) in flat(SHIPPED["compound"])
    assert shared not in TOPICS["compound"].paragraphs


def test_a_footnote_numbered_anew_is_the_same_paragraph(topics):
    said = "The pattern fails if the value is no sequence [{}]."
    topics({"short": said.format(1), "long": f"{said.format(7)}\n\nAnd here the longer topic says something more."})
    found = {topic.name: topic.paragraphs for topic in load_topics()}
    assert found == {"short": (said.format(1),), "long": ("And here the longer topic says something more.",)}


@pytest.mark.parametrize("unit", ["paragraph", "passage", "topic"])
def test_no_topic_and_no_text_is_in_two_splits_and_every_area_is_in_each(unit):
    data = pydoc_text(unit)
    columns = [samples.columns for samples in data.values()]
    for key in ("topic", "text"):
        found = [set(column[key]) for column in columns]
        assert sum(map(len, found)) == len(set.union(*found))
    assert all(set(column["label"].tolist()) == set(range(8)) for column in columns)
    assert sorted(torch.cat([column["index"] for column in columns]).tolist()) == list(range(sum(map(len, data.values()))))


def test_labels_are_the_areas_of_the_topics():
    data = pydoc_text(areas=["strings", "execution", "built-in types"])
    assert data.info.classes == ("strings", "execution", "built-in types")
    sample = data["test"][0]
    assert sample["topic"] in AREAS[data.info.classes[sample["label"]]]
    assert sample["text"] in TOPICS[sample["topic"]].paragraphs


def test_paragraphs_and_passages_keep_every_word_in_order_within_the_limit():
    topic = TOPICS["types"]
    words = " ".join(topic.paragraphs).split()
    for unit, most in (("paragraph", 20), ("passage", 20), ("passage", 60)):
        pieces = units_of(topic, unit, most)
        assert " ".join(pieces).split() == words
        assert max(len(piece.split()) for piece in pieces) <= most
    passages = units_of(topic, "passage")
    assert max(len(piece.split()) for piece in passages) <= 100
    lengths = [len(piece.split()) for piece in passages]
    assert min(a + b for a, b in pairwise(lengths)) > 20  # no two in a row are scraps


def test_a_topic_is_whole_unless_it_is_cut():
    assert units_of(TOPICS["with"], "topic") == ["\n".join(TOPICS["with"].paragraphs)]
    (cut,) = units_of(TOPICS["with"], "topic", 30)
    assert len(cut.split()) <= 30
    assert " ".join(TOPICS["with"].paragraphs).startswith(cut)


def test_blocks_are_a_topics_tokens_without_a_gap():
    tokenizer = byte_tokenizer()
    data = pydoc_text(areas=["strings", "lexical elements"], tokenizer=tokenizer, block_size=200)
    columns = data["test"].columns
    for name in sorted(set(columns["topic"])):
        rows = torch.tensor([topic == name for topic in columns["topic"]])
        ids, mask = columns["input_ids"][rows], columns["attention_mask"][rows]
        expected = [*tokenizer("\n".join(TOPICS[name].paragraphs))["input_ids"], tokenizer.eos_token_id]
        assert ids[mask == 1].tolist() == expected
        assert mask[:-1].all()
        assert columns["labels"][rows].equal(torch.where(mask == 1, ids, -100))
    kept = columns["input_ids"][0][columns["attention_mask"][0] == 1]
    assert columns["text"][0] == tokenizer.decode(kept, skip_special_tokens=True)
    assert (columns["input_ids"][columns["attention_mask"] == 0] == tokenizer.pad_token_id).all()


def test_topics_unknown_here_are_in_an_area_of_their_own(topics):
    topics({**made_up(4), **{f"future-{n}": f"What is said of future {n} is new to the table." for n in range(3)}})
    data = pydoc_text()
    assert data.info.classes == (*AREAS, "other")
    labels = {
        name: label for samples in data.values() for name, label in zip(samples.columns["topic"], samples.columns["label"], strict=True)
    }
    assert labels["future-1"] == 8
    assert labels["assert"] == 0
    assert "other" not in pydoc_text(areas=["simple statements"]).info.classes


def test_the_seed_alone_decides():
    assert pydoc_text(seed=1).fingerprint() == pydoc_text(seed=1).fingerprint() != pydoc_text(seed=2).fingerprint()


@pytest.mark.parametrize(
    ("parameters", "kind", "message"),
    [
        ({"unit": "line"}, ValueError, 'unit must be "paragraph", "passage" or "topic"; found "line"'),
        ({"max_words": 3}, ValueError, "max_words must be at least 8; found 3"),
        ({"areas": []}, ValueError, r"one or more, each once; found \[\]"),
        ({"areas": ["strings", "strings"]}, ValueError, "each once"),
        ({"areas": ["networks"]}, ValueError, r"areas \['networks'\] are not known; there are simple statements, "),
        ({"tokenizer": "byte"}, ValueError, "tokenizer and block_size go together"),
        ({"block_size": 64}, ValueError, "tokenizer and block_size go together"),
        ({"areas": ["strings"], "tokenizer": "byte", "block_size": 1}, ValueError, "block_size must be at least 2 tokens; found 1"),
        (
            {"areas": ["strings"], "tokenizer": "byte", "block_size": 60_000},
            DataError,
            r'split "train" has \d+ tokens, fewer than one block of 60000',
        ),
        ({"val_fraction": 0.8, "test_fraction": 0.2}, ValueError, "leave a share to train"),
        ({"seed": -1}, ValueError, "must not be negative; found -1"),
    ],
)
def test_bad_parameters_are_named(parameters, kind, message):
    with pytest.raises(kind, match=message):
        pydoc_text(**parameters)


def test_a_python_without_enough_topics_is_told(topics, monkeypatch):
    topics(made_up(2))
    with pytest.raises(DataError, match="2 documents of 1 classes leave val empty"):
        pydoc_text()
    topics({"assert": "Short."})
    with pytest.raises(DataError, match="none of the 1 help topics of this Python has a paragraph of 5 words"):
        pydoc_text()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match="this Python ships no help topics"):
        pydoc_text()
