"""Tokenizers of scene captions, in the formats of CLIP and T5: a token a word of the grammar, smaller pieces for any other word."""

from __future__ import annotations

import itertools
import string
from typing import Any

from graftwork.builtin.hub import need
from graftwork_testbed.scenes.grammar import BACKGROUND_WORDS, Thing, describe
from graftwork_testbed.scenes.styles import DEGRADATIONS, STYLES
from graftwork_testbed.scenes.vocabulary import COLOURS, RELATIONS

__all__ = ["LENGTH", "caption_corpus", "clip_tokenizer", "t5_tokenizer"]

LENGTH = 24
"""Tokens of a caption at most, start and end included; the longest of the grammar without a background has 22."""


def caption_corpus() -> list[str]:
    """Captions in which every word of the grammar occurs, many times, in a fixed order."""
    things = [Thing(digit, colour) for digit, colour in itertools.product(range(10), COLOURS)]
    pairs = [describe([thing, things[(7 * n + 3) % 80]], RELATIONS[n % 4]) for n, thing in enumerate(things)]
    counted = [describe([thing] * count) for count in (2, 3, 4) for thing in things]
    lists = [describe([thing, things[(n + 9) % 80], things[(n + 23) % 80]]) for n, thing in enumerate(things)]
    more = [describe([thing, things[(n + 5) % 80], things[(n + 31) % 80]], RELATIONS[n % 4]) for n, thing in enumerate(things)]
    placed = [describe([thing], background=word) for word in BACKGROUND_WORDS for thing in things[::9]]
    styled = [describe([thing], style=style) for style in (*STYLES, *DEGRADATIONS) for thing in things[::9]]
    return [*map(str, things), *pairs, *counted, *lists, *more, *placed, *styled]


def clip_tokenizer() -> Any:
    """A `transformers.CLIPTokenizer` (byte-pair) whose merges make each word of the grammar one token.

    Raises:
        GraftworkError: if transformers is not installed.
    """
    empty = need("transformers", "transformers").CLIPTokenizer()
    tokenizer = empty.train_new_from_iterator(caption_corpus(), vocab_size=1000, show_progress=False)
    tokenizer.model_max_length = LENGTH
    return tokenizer


def t5_tokenizer() -> Any:
    """A `transformers.T5Tokenizer` (unigram) with a piece for each word of the grammar and one for each printable character.

    Raises:
        GraftworkError: if transformers is not installed.
    """
    words = sorted({word for caption in caption_corpus() for word in caption.replace(",", "").split()})
    pieces = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")]
    pieces += [(f"▁{word}", -3.0) for word in words]
    pieces += [(piece, -12.0) for piece in ("▁", *string.ascii_letters, *string.digits, *string.punctuation) if f"▁{piece}" != piece]
    tokenizer = need("transformers", "transformers").T5Tokenizer(vocab=pieces, extra_ids=0)
    tokenizer.model_max_length = LENGTH
    return tokenizer
