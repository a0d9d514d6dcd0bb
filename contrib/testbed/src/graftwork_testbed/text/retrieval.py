"""Questions and the passages that answer them, with hard negatives, from CPython's help topics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from graftwork import DataError, Dataset, DatasetInfo, TensorSamples
from graftwork_testbed.splits import Fraction, Seed
from graftwork_testbed.text.documents import grouped_split
from graftwork_testbed.text.extras import need
from graftwork_testbed.text.passages import fill, first_sentence
from graftwork_testbed.text.pydoc_text import MaxWords
from graftwork_testbed.text.pydoc_topics import AREAS, OTHER, load_topics

__all__ = ["bm25_scores", "query_passage"]

WORD = re.compile(r"\w+")


def bm25_scores(queries: Sequence[str], passages: Sequence[str], k1: float = 1.2, b: float = 0.75) -> np.ndarray:
    """How well passages match queries by BM25 (Robertson and Zaragoza, 2009, "The Probabilistic Relevance Framework: BM25 and Beyond").

    A word w of the query that n of N passages hold, f times in this one of l words, counts ln(1 + (N - n + 1/2) / (n + 1/2)) times
    f / (f + k1 (1 - b + b l / mean l)): Lucene's form, whose weights are not negative. Words are runs of letters, digits and underscores in
    lower case; none is left out. A word that a query repeats counts as often.

    Args:
        queries: Q texts.
        passages: N texts.
        k1: how soon more occurrences of a word stop counting, positive.
        b: how far long passages are discounted, in [0, 1].

    Returns:
        (Q, N) float32, not negative.

    Raises:
        ValueError: if k1 or b is out of range, or there is no passage with a word in it.
        GraftworkError: if bm25s is not installed.
    """
    if k1 <= 0 or not 0 <= b <= 1:
        raise ValueError(f"k1 must be positive and b 0 to 1; found k1 {k1}, b {b}")
    corpus = [WORD.findall(text.lower()) for text in passages]
    if not any(corpus):
        raise ValueError(f"there is no word in the {len(passages)} passages")
    index = need("bm25s", "text").BM25(method="lucene", k1=k1, b=b)
    index.index(corpus, show_progress=False)
    known = set(index.vocab_dict)
    scores = np.zeros((len(queries), len(passages)), dtype=np.float32)
    for row, query in enumerate(queries):
        if words := [word for word in WORD.findall(query.lower()) if word in known]:
            scores[row] = index.get_scores(words)
    return scores


def query_passage(
    query: Literal["title", "first-sentence"] = "title",
    negatives: Annotated[int, Field(ge=1, le=64)] = 4,
    max_words: MaxWords = 100,
    val_fraction: Fraction = 0.15,
    test_fraction: Fraction = 0.25,
    seed: Seed = 0,
) -> Dataset:
    """Retrieval from CPython's help topics: a query, a passage of its topic, and passages of other topics that BM25 takes for it.

    Samples: `query`, `passage`, `negatives` (a list of texts, the hardest first), `topic` and `index`; a topic with several passages gives
    as many samples with one query. Topics are split whole, and negatives are of the same split, so that no text is in two. A split's
    passages are its collection: those whose `topic` is the query's are relevant.

    Args:
        query: the topic's title ("The power operator"), or its first sentence, which is then in no passage.
        negatives: how many, by BM25 of the query with k1 1.2 and b 0.75; of passages that it scores alike (it may share no word with any)
            those first that BM25 of the sample's own passage scores higher.
        max_words: most words of a passage, which is filled up with consecutive paragraphs.
        val_fraction: share of each area's topics that goes to val.
        test_fraction: share that goes to test.
        seed: of the split.

    Raises:
        ValueError: if a parameter is out of range.
        DataError: if this Python ships no help topics, or a split has fewer passages of other topics than negatives are asked for.
        GraftworkError: if bm25s is not installed.
    """
    if query not in ("title", "first-sentence"):
        raise ValueError(f'query must be "title" or "first-sentence"; found "{query}"')
    if not 1 <= negatives <= 64:
        raise ValueError(f"negatives must be 1 to 64; found {negatives}")
    if max_words < 8:
        raise ValueError(f"max_words must be at least 8; found {max_words}")
    found = []
    for topic in load_topics():
        sentence, rest = first_sentence(topic.paragraphs)
        asked, paragraphs = (topic.title, topic.paragraphs) if query == "title" else (sentence, rest)
        if passages := fill(paragraphs, max_words):
            found.append((topic, asked, passages))
    areas = [*AREAS, OTHER]
    sizes = [len(passages) for _, _, passages in found]
    starts = np.cumsum([0, *sizes])
    splits = {}
    for name, chosen in grouped_split([areas.index(topic.area) for topic, _, _ in found], sizes, val_fraction, test_fraction, seed).items():
        counts = [sizes[group] for group in chosen]
        columns: dict[str, Any] = {
            "query": [found[group][1] for group in chosen for _ in found[group][2]],
            "passage": [passage for group in chosen for passage in found[group][2]],
            "topic": [found[group][0].name for group in chosen for _ in found[group][2]],
        }
        columns["negatives"] = _hard_negatives([found[group][1] for group in chosen], columns["passage"], counts, negatives, name)
        index = torch.cat([torch.arange(starts[group], starts[group + 1]) for group in chosen])
        splits[name] = TensorSamples(**columns, index=index)
    return Dataset(splits, DatasetInfo(description="Titles and passages of CPython's help topics, with hard negatives"))


def _hard_negatives(queries: list[str], passages: list[str], counts: list[int], wanted: int, split: str) -> list[list[str]]:
    """For each passage the `wanted` ones of other topics that its query scores highest; of equals, those that the passage itself does."""
    if (fewest := len(passages) - max(counts)) < wanted:
        raise DataError(
            f'split "{split}" has only {fewest} passages of other topics for one of its queries; {wanted} negatives were asked for'
        )
    owner = np.repeat(np.arange(len(queries)), counts)
    scores, likeness = bm25_scores(queries, passages)[owner], bm25_scores(passages, passages)
    scores[owner[:, None] == owner] = -1
    order = np.lexsort((-likeness, -scores), axis=1)[:, :wanted]
    return [[passages[place] for place in places] for places in order.tolist()]
