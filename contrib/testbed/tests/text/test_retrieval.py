from __future__ import annotations

import math
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from graftwork import DataError, GraftworkError
from graftwork_testbed.text.pydoc_topics import load_topics
from graftwork_testbed.text.retrieval import bm25_scores, query_passage

PASSAGES = ["The cat sat on the mat.", "A dog, a cat and a bird!", "Nothing of the kind", "the the the mat mat under_score", "dog"]
TOPICS = {topic.name: topic for topic in load_topics()}
TITLES, SENTENCES = query_passage(), query_passage("first-sentence")


def by_hand(query, passages, k1, b):
    documents = [[word.strip(".,!").lower() for word in passage.split()] for passage in passages]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        counts, score = Counter(document), 0.0
        for word in query.lower().split():
            n = sum(word in other for other in documents)
            f, length = counts[word], k1 * (1 - b + b * len(document) / mean)
            score += math.log(1 + (len(documents) - n + 0.5) / (n + 0.5)) * f / (f + length)
        scores.append(score)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (2.0, 0.0), (0.5, 1.0)])
@pytest.mark.parametrize("query", ["cat", "the mat", "dog dog bird", "THE CAT zebra", "under_score"])
def test_scores_are_those_of_the_formula(query, k1, b):
    scores = bm25_scores([query], PASSAGES, k1, b)
    np.testing.assert_allclose(scores[0], by_hand(query, PASSAGES, k1, b), rtol=1e-5, atol=1e-7)


def test_a_query_without_a_known_word_scores_nothing():
    assert bm25_scores(["zebra", "", "cat"], PASSAGES)[:2].sum() == 0


@pytest.mark.parametrize("data", [TITLES, SENTENCES], ids=["title", "first-sentence"])
def test_passages_are_of_the_querys_topic_and_negatives_of_others_in_the_split(data):
    for samples in data.values():
        owner = dict(zip(samples.columns["passage"], samples.columns["topic"], strict=True))
        for topic, passage, negatives in zip(*(samples.columns[key] for key in ("topic", "passage", "negatives")), strict=True):
            assert len(set(negatives)) == len(negatives) == 4
            assert owner[passage] == topic
            assert topic not in {owner[negative] for negative in negatives}


def test_negatives_are_the_passages_of_other_topics_with_the_highest_scores_in_order():
    columns = TITLES["val"].columns
    by_query, by_passage = (bm25_scores(columns[key], columns["passage"]) for key in ("query", "passage"))
    position = {passage: place for place, passage in enumerate(columns["passage"])}
    for row, (topic, negatives) in enumerate(zip(columns["topic"], columns["negatives"], strict=True)):
        scores = list(zip(by_query[row].tolist(), by_passage[row].tolist(), strict=True))
        others = [score for score, owner in zip(scores, columns["topic"], strict=True) if owner != topic]
        assert [scores[position[negative]] for negative in negatives] == sorted(others, reverse=True)[:4]


def test_titles_and_first_sentences_are_the_topics_own():
    for topic, query in zip(TITLES["test"].columns["topic"], TITLES["test"].columns["query"], strict=True):
        assert query == TOPICS[topic].title
    for topic, query, passage in zip(*(SENTENCES["test"].columns[key] for key in ("topic", "query", "passage")), strict=True):
        assert TOPICS[topic].paragraphs[0].startswith(query)
        assert query not in passage


@pytest.mark.parametrize("data", [TITLES, SENTENCES], ids=["title", "first-sentence"])
def test_no_topic_and_no_passage_is_in_two_splits(data):
    for key in ("topic", "passage"):
        found = [set(samples.columns[key]) for samples in data.values()]
        assert sum(map(len, found)) == len(set.union(*found))
    rows = torch.cat([samples.columns["index"] for samples in data.values()])
    assert rows.sort().values.equal(torch.arange(len(rows)))


def test_passages_are_within_the_limit_and_the_seed_decides():
    short = query_passage(max_words=60, negatives=1, seed=4)
    assert max(len(passage.split()) for samples in short.values() for passage in samples.columns["passage"]) <= 60
    assert short.fingerprint() == query_passage(max_words=60, negatives=1, seed=4).fingerprint()
    assert set(TITLES["test"].columns["topic"]) != set(query_passage(seed=1)["test"].columns["topic"])


def test_a_batch_keeps_its_lists_of_negatives():
    batch = TITLES.collate([TITLES["train"][0], TITLES["train"][1]])
    assert [len(negatives) for negatives in batch["negatives"]] == [4, 4]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"query": "label"}, 'query must be "title" or "first-sentence"; found "label"'),
        ({"negatives": 0}, "negatives must be 1 to 64; found 0"),
        ({"max_words": 2}, "max_words must be at least 8; found 2"),
        ({"seed": -1}, "must not be negative; found -1"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        query_passage(**parameters)


def test_bad_scores_are_named():
    with pytest.raises(ValueError, match=r"k1 must be positive and b 0 to 1; found k1 0, b 0\.75"):
        bm25_scores(["a"], ["a"], k1=0)
    with pytest.raises(ValueError, match=r"found k1 1\.2, b 2"):
        bm25_scores(["a"], ["a"], b=2)
    with pytest.raises(ValueError, match="there is no word in the 1 passages"):
        bm25_scores(["a"], ["..."])


def test_too_few_passages_for_the_negatives_are_told(monkeypatch):
    few = {name: f"The statement {name} has words of its own." for name in ("assert", "break", "continue", "del", "pass")}
    monkeypatch.setattr("pydoc_data.topics.topics", few)
    with pytest.raises(
        DataError, match='split "train" has only 2 passages of other topics for one of its queries; 4 negatives were asked for'
    ):
        query_passage()


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(GraftworkError, match=r'bm25s cannot be imported .*pip install "graftwork-testbed\[text\]"'):
        bm25_scores(["a"], ["a"])
