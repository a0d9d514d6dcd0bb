"""CPython's help topics as a data set: reference prose by area of the language."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from graftwork import DataError, Dataset, DatasetInfo
from graftwork_testbed.splits import Fraction, Seed
from graftwork_testbed.text.blocks import IGNORED, BlockSize, encode, pack
from graftwork_testbed.text.documents import Document, document_dataset
from graftwork_testbed.text.passages import cut, fill
from graftwork_testbed.text.pydoc_topics import AREAS, OTHER, Area, Topic, load_topics
from graftwork_testbed.text.tokenization import TokenizerLike, load_tokenizer

__all__ = ["MaxWords", "pydoc_text", "units_of"]

Unit: TypeAlias = Literal["paragraph", "passage", "topic"]
MaxWords: TypeAlias = Annotated[int, Field(ge=8, le=100_000)]
"""Words in a sample."""

PASSAGE = 100
"""Words in a passage: about as many as 128 to 200 tokens hold."""


def pydoc_text(
    unit: Unit = "paragraph",
    max_words: MaxWords | None = None,
    areas: list[Area] | None = None,
    tokenizer: TokenizerLike | None = None,
    block_size: BlockSize | None = None,
    val_fraction: Fraction = 0.15,
    test_fraction: Fraction = 0.25,
    seed: Seed = 0,
) -> Dataset:
    """The prose of CPython's help topics, to be classified by area of the language or modelled as language; nothing is fetched.

    Samples: `text`, `label` (the area), `topic` (its name, such as "with") and `index`. Topics are split whole: no topic, and no paragraph,
    is in two splits, and every area has topics in each. Headings, grammar rules, code and tables are left out; what two topics both say is
    in the shorter one only (see `load_topics`).

    With a tokenizer and a block size a sample is a block of contiguous tokens of one topic instead of a unit, and holds `input_ids`,
    `attention_mask` and `labels`, (block_size,) long, besides: a topic's paragraphs joined by line ends and closed by an end of text, the
    last block padded (`labels` -100 there); `text` is the block decoded. For blocks that run on over topics wrap this in `text-blocks`.

    Args:
        unit: a sample is a paragraph; a passage of consecutive paragraphs, filled up to `max_words`; or a whole topic.
        max_words: most words of a sample. Paragraphs longer than this are cut at ends of sentences, topics after it. By default passages
            have 100, and the others no limit.
        areas: which to keep, in the order of their labels; by default all eight, and "other" last if this Python has topics unknown here.
        tokenizer: for blocks: a folder or Hugging Face id, "byte", "minilm"; in Python also a tokenizer of transformers.
        block_size: tokens in a block; goes with the tokenizer.
        val_fraction: share of each area's topics that goes to val.
        test_fraction: share that goes to test.
        seed: of the split.

    Raises:
        ValueError: if a parameter is out of range, an area is named twice, or one of tokenizer and block_size is given without the other.
        DataError: if this Python ships no help topics, a split is left empty, or has fewer tokens than a block.
    """
    if (tokenizer is None) != (block_size is None):
        raise ValueError("tokenizer and block_size go together; for padded tokens of each unit wrap this in tokenized")
    topics = load_topics()
    known = [*AREAS, *([OTHER] if any(topic.area == OTHER for topic in topics) else [])]
    chosen: list[str] = _chosen(areas, known)
    kept = [topic for topic in topics if topic.area in chosen]
    labels = [chosen.index(topic.area) for topic in kept]
    info = DatasetInfo(classes=tuple(chosen), description="Prose of CPython's help topics, by area of the language")
    if tokenizer is None or block_size is None:
        documents = [Document(topic.name, label, units_of(topic, unit, max_words)) for topic, label in zip(kept, labels, strict=True)]
        return document_dataset(documents, "topic", val_fraction, test_fraction, seed, info)
    data = document_dataset(_blocks(kept, labels, load_tokenizer(tokenizer), block_size), "topic", val_fraction, test_fraction, seed, info)
    for name, samples in data.items():
        columns: Any = samples
        if (found := int(columns.columns["attention_mask"].sum())) < block_size:
            raise DataError(f'split "{name}" has {found} tokens, fewer than one block of {block_size}: take a smaller block_size')
    return data


def units_of(topic: Topic, unit: Unit, max_words: int | None = None) -> list[str]:
    """A topic's paragraphs, passages or whole text, as samples.

    Raises:
        ValueError: if there is no such unit, or `max_words` is below 8.
    """
    if max_words is not None and max_words < 8:
        raise ValueError(f"max_words must be at least 8; found {max_words}")
    if unit == "paragraph":
        return [piece for paragraph in topic.paragraphs for piece in (cut(paragraph, max_words) if max_words else [paragraph])]
    if unit == "passage":
        return fill(topic.paragraphs, max_words or PASSAGE)
    if unit == "topic":
        whole = "\n".join(topic.paragraphs)
        return [whole if max_words is None or len(whole.split()) <= max_words else fill(topic.paragraphs, max_words)[0]]
    raise ValueError(f'unit must be "paragraph", "passage" or "topic"; found "{unit}"')


def _blocks(topics: list[Topic], labels: list[int], tokenizer: Any, block_size: int) -> list[Document]:
    documents = []
    for topic, label, ids in zip(topics, labels, encode(["\n".join(topic.paragraphs) for topic in topics], tokenizer), strict=True):
        blocks, mask = pack([ids], block_size, tokenizer, remainder="pad")
        columns = {"input_ids": blocks, "attention_mask": mask, "labels": blocks.masked_fill(mask == 0, IGNORED)}
        texts = tokenizer.batch_decode(
            [block[keep == 1].tolist() for block, keep in zip(blocks, mask, strict=True)], skip_special_tokens=True
        )
        documents.append(Document(topic.name, label, texts, columns))
    return documents


def _chosen(areas: list[Area] | None, known: list[str]) -> list[str]:
    if areas is None:
        return known
    if strangers := [area for area in areas if area not in AREAS]:
        raise ValueError(f"areas {strangers} are not known; there are {', '.join(AREAS)}")
    if not areas or len(set(areas)) != len(areas):
        raise ValueError(f"areas must name one or more, each once; found {list(areas)}")
    return list(areas)
