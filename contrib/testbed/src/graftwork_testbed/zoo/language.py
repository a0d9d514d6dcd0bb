"""What the zoo's language models read: help texts and a grammar's sentences in one corpus, with one tokenizer for all of them.

python -m graftwork_testbed.zoo.language    # writes the tokenizer anew
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from graftwork import Dataset, DatasetInfo, GraftworkError, TensorSamples
from graftwork.builtin.from_config import Architecture, transformers_from_config
from graftwork_testbed.splits import Seed
from graftwork_testbed.text.blocks import texts_of
from graftwork_testbed.text.docstrings import docstring_text
from graftwork_testbed.text.pydoc_text import pydoc_text
from graftwork_testbed.text.template_text import template_text

__all__ = ["VOCABULARY", "text_corpus", "text_network", "tokenizer_folder", "write_tokenizer"]

VOCABULARY = 2048
"""Tokens of the tokenizer."""


def text_corpus(sentences: Annotated[int, Field(ge=20, le=200_000)] = 12_000, docstrings: bool = True, seed: Seed = 0) -> Dataset:
    """Paragraphs of CPython's help topics, docstrings of its standard library, and sentences of the grammar, as one corpus of texts.

    Samples: `text` and `index`. Train, val and test hold those of the sources: no topic, and no sentence, is in two of them.

    Args:
        sentences: of the grammar, over all splits.
        docstrings: whether the docstrings are in it.
        seed: of the splits and the sentences.
    """
    sources = [pydoc_text(seed=seed), template_text(samples=sentences, seed=seed)]
    if docstrings:
        sources.insert(1, docstring_text(seed=seed))
    splits = {}
    for split in ("train", "val", "test"):
        texts = [text for source in sources for text in texts_of(source, split)]
        splits[split] = TensorSamples(text=texts, index=list(range(len(texts))))
    return Dataset(splits, DatasetInfo(description="Help texts and sentences of a grammar"))


def tokenizer_folder() -> Path:
    """Where the tokenizer of the zoo's language models lies.

    Raises:
        GraftworkError: if it is not there.
    """
    path = Path(str(files("graftwork_testbed.zoo") / "networks" / "text-tokenizer"))
    if not (path / "tokenizer.json").exists():
        raise GraftworkError(f"the tokenizer is not in {path}: reinstall graftwork-testbed from its wheel")
    return path


def write_tokenizer() -> Path:
    """Train the tokenizer on the corpus's training split and write it to its folder."""
    from graftwork_testbed.text.tokenization import train_byte_pair_tokenizer

    path = Path(__file__).parent / "networks" / "text-tokenizer"
    train_byte_pair_tokenizer(texts_of(text_corpus(), "train"), VOCABULARY, model_max_length=128).save_pretrained(path)
    return path


def text_network(architecture: Architecture, config: dict[str, Any] | None = None, options: dict[str, Any] | None = None) -> nn.Module:
    """An untrained network of transformers that reads text, with the zoo's own tokenizer; else as `transformers-from-config`.

    Args:
        architecture: class of transformers.
        config: parameters of that class's configuration.
        options: further parameters of the family's loader.

    Raises:
        ValueError: if a parameter is unknown or does not fit.
    """
    return transformers_from_config(architecture, config, str(tokenizer_folder()), None, options)


if __name__ == "__main__":
    print(write_tokenizer())
