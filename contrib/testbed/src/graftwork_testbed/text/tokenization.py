"""Tokenizers: by folder or id, the bytes themselves, and byte-pair encodings trained on the spot.

Byte-level byte-pair encoding is that of GPT-2 (Radford et al., 2019, "Language Models are Unsupervised Multitask Learners", section 2.2),
after Sennrich et al., 2016 (https://arxiv.org/abs/1508.07909).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import WithJsonSchema

from graftwork import DataError
from graftwork.builtin.hub import load
from graftwork_testbed.text.extras import need
from graftwork_testbed.text.minilm import minilm_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

__all__ = ["END_OF_TEXT", "PADDING", "TokenizerLike", "byte_tokenizer", "load_tokenizer", "train_byte_pair_tokenizer"]

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"

TokenizerLike: TypeAlias = Annotated[Any, WithJsonSchema({"type": "string"})]
"""A folder or Hugging Face id, "byte", "minilm", "zoo" or "captions"; in Python also a tokenizer of transformers."""


def load_tokenizer(tokenizer: TokenizerLike) -> PreTrainedTokenizerBase:
    """A tokenizer that can pad: one without a padding token pads with its end of text, in a copy.

    Args:
        tokenizer: a folder or Hugging Face id; "byte" for `byte_tokenizer`; "minilm" for that of the sentence encoder; "zoo" for that
            of the zoo's language models; "captions" for that of scenes' captions; or a tokenizer of transformers.

    Raises:
        DataError: if there is none, or it has neither a padding token nor an end of text.
        GraftworkError: if a package is missing.
    """
    if isinstance(tokenizer, str):
        found = _load_by_name(tokenizer)
    elif callable(tokenizer) and hasattr(tokenizer, "pad_token_id"):
        found = tokenizer
    else:
        raise DataError(f"a tokenizer is a folder, a Hugging Face id or a tokenizer of transformers; found {type(tokenizer).__name__}")
    if found.pad_token_id is None:
        if found.eos_token is None:
            raise DataError(f"{type(found).__name__} has neither a padding token nor an end of text to pad with: set its pad_token")
        found = copy.deepcopy(found)
        found.pad_token = found.eos_token
    return found


def _load_by_name(name: str) -> Any:
    if name == "byte":
        return byte_tokenizer()
    from graftwork_testbed.zoo.language import tokenizer_folder  # which reads the data sets that this module serves
    from graftwork_testbed.zoo.tokenizers import clip_tokenizer

    automatic = need("transformers", "text").AutoTokenizer
    if name == "captions":
        return clip_tokenizer()
    known = {"minilm": minilm_folder, "zoo": tokenizer_folder}
    source = str(known[name]()) if name in known else name
    return load(source, lambda place: automatic.from_pretrained(place, trust_remote_code=False), "tokenizer", DataError)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes of UTF-8: 256 tokens, the end of text and the padding, with nothing trained."""
    return train_byte_pair_tokenizer([], vocab_size=256 + 2)


def train_byte_pair_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 4096,
    min_frequency: int = 2,
    special_tokens: Sequence[str] = (),
    model_max_length: int = 1024,
) -> PreTrainedTokenizerFast:
    """Train a byte-level byte-pair encoding in the way of GPT-2: any text is encoded without an unknown token, and decoded exactly.

    The merges depend on how often words occur and on nothing else: neither a seed, nor the order of the texts, nor the number of threads.
    `<|endoftext|>` (id 0) begins and ends a text and stands for what is unknown, `<|pad|>` is id 1. It is saved by `save_pretrained`, as
    JSON, and loaded by `AutoTokenizer.from_pretrained` and `load_tokenizer`.

    Args:
        texts: to learn from.
        vocab_size: most tokens, at least 258 and the special ones: 256 bytes, the end and the padding; fewer where texts have fewer pairs.
        min_frequency: a pair is merged if it occurs as often as this, at least 1.
        special_tokens: more tokens that are never cut, such as control codes; ids from 2 on.
        model_max_length: tokens that the language model takes.

    Raises:
        ValueError: if a number is out of range, a special token is named twice, or `texts` is one string.
        GraftworkError: if tokenizers or transformers is missing.
    """
    special = [END_OF_TEXT, PADDING, *special_tokens]
    if isinstance(texts, str):
        raise ValueError("texts are many strings; found one")
    if len(set(special)) != len(special):
        raise ValueError(f"special_tokens names a token twice, or one that is there already: {list(special_tokens)}")
    if vocab_size < 256 + len(special):
        raise ValueError(f"vocab_size must hold 256 bytes and {len(special)} special tokens; found {vocab_size}")
    for name, value in (("min_frequency", min_frequency), ("model_max_length", model_max_length)):
        if value < 1:
            raise ValueError(f"{name} must be positive; found {value}")
    library, transformers = need("tokenizers", "text"), need("transformers", "text")
    byte_level = library.pre_tokenizers.ByteLevel
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    tokenizer.post_processor = library.processors.ByteLevel(trim_offsets=False)
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=special,
        initial_alphabet=sorted(byte_level.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_batches(texts), trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=PADDING,
        additional_special_tokens=list(special_tokens),
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    remaining = iter(texts)
    return iter(lambda: list(itertools.islice(remaining, 1000)), [])
