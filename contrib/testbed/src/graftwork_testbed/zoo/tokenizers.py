"""Tokenizers of scene captions, in the formats of CLIP and T5: a token a word of the grammar, smaller pieces for any other word."""

from __future__ import annotations

import itertools
import string
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from graftwork.builtin.hub import need
from graftwork_testbed.scenes.grammar import BACKGROUND_WORDS, Thing, describe
from graftwork_testbed.scenes.styles import DEGRADATIONS, STYLES
from graftwork_testbed.scenes.vocabulary import COLOURS, RELATIONS

__all__ = ["LENGTH", "byte_pair_merges", "caption_corpus", "caption_words", "clip_tokenizer", "t5_tokenizer"]

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


def caption_words() -> list[str]:
    """The words of the grammar, and the comma, sorted."""
    return sorted({word for caption in caption_corpus() for word in caption.replace(",", " ,").split()})


def byte_pair_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Merges, in order, after which each of the words is one piece (Sennrich et al., 2016, https://arxiv.org/abs/1508.07909).

    The commonest pair is merged first; of equally common ones the first in alphabetical order.

    Args:
        words: distinct, none empty; a word's last sign is marked by "</w>".
    """
    spelt = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for pieces in spelt for pair in pairwise(pieces)):
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        spelt = [_merged(pieces, merges[-1]) for pieces in spelt]
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    found: list[str] = []
    for piece in pieces:
        if found and (found[-1], piece) == pair:
            found[-1] += piece
        else:
            found.append(piece)
    return found


def clip_tokenizer() -> Any:
    """A `transformers.CLIPTokenizer` (byte-pair) whose merges make each word of the grammar one token.

    Other words are spelt by their bytes. It is the same each time it is made, as that of a trainer which breaks ties by the order of
    a hash table is not.

    Raises:
        GraftworkError: if transformers is not installed.
    """
    alphabet = sorted(need("tokenizers.pre_tokenizers", "transformers").ByteLevel.alphabet())
    merges = byte_pair_merges(caption_words())
    pieces = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(f"{sign}</w>" for sign in alphabet), *map("".join, merges)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = need("transformers", "transformers").CLIPTokenizer(vocab=vocabulary, merges=merges)
    tokenizer.model_max_length = LENGTH
    return tokenizer


def t5_tokenizer() -> Any:
    """A `transformers.T5Tokenizer` (unigram) with a piece for each word of the grammar and one for each printable character.

    Raises:
        GraftworkError: if transformers is not installed.
    """
    pieces = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")]
    pieces += [(f"▁{word}", -3.0) for word in caption_words() if word != ","]
    pieces += [(piece, -12.0) for piece in ("▁", *string.ascii_letters, *string.digits, *string.punctuation) if f"▁{piece}" != piece]
    tokenizer = need("transformers", "transformers").T5Tokenizer(vocab=pieces, extra_ids=0)
    tokenizer.model_max_length = LENGTH
    return tokenizer
