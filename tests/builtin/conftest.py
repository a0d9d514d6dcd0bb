"""Tokenizers of whole words, made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

SPECIALS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
WORDS = ("a", "red", "blue", "three", "seven", "left", "of")

SaveTokenizer = Callable[..., str]


def save(folder: Path, specials: Sequence[str] = SPECIALS, words: Sequence[str] = WORDS, frame: str = "[BOS] $A [EOS]") -> str:
    """A tokenizer whose ids are positions in specials, then words; it puts each text in a frame."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    place = {word: i for i, word in enumerate([*specials, *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(place, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    marks = [(mark, place[mark]) for mark in ("[BOS]", "[EOS]")]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(frame, special_tokens=marks)
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def save_tokenizer() -> SaveTokenizer:
    """save_tokenizer(folder, specials=..., words=..., frame=...): write one; gives the folder as a string."""
    return save


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tokenizer: [PAD] 0, [UNK] 1, [BOS] 2, [EOS] 3, and seven words from 4 on."""
    return save(tmp_path_factory.mktemp("words"))
