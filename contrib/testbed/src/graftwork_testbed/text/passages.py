"""Reference text cut into prose: paragraphs, passages of a given length, first sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["cut", "fill", "first_sentence", "prose_paragraphs"]

HYPHENATED = re.compile(r"(?<=\w-)\n\s*(?=\w)")
"""A compound that is broken over two lines."""

BLANK = re.compile(r"\n[ \t]*\n")
CLOSED = re.compile(r"""(?<!\.\.)[.:!?;]["'\u201d\u2019)\]]*$""")
NO_PROSE = re.compile(r"::=|^\s*(>>>|\.\.\. |[-=*+~#|^]{4,})", re.MULTILINE)
"""Grammar rules, sessions of the interpreter, and the lines that rule tables and underline headings."""

SENTENCE_END = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["'\u201d\u2019)\]]))\s+(?=["'\u201c\u2018(\[*]*[A-Z])""")


def prose_paragraphs(text: str, min_words: int = 5) -> list[str]:
    """The paragraphs of a plain-text document that are prose, in order, each on one line.

    Blank lines part paragraphs. One is prose if it has `min_words` words, ends as a sentence or a lead-in does (. : ; ! ?), and holds
    no grammar rule, interpreter session, table or underlined heading: code, signatures and lists of names are left out.

    Args:
        text: such as a help topic of pydoc.
        min_words: least number of words, at least 1.

    Raises:
        ValueError: if `min_words` is not positive.
    """
    if min_words < 1:
        raise ValueError(f"min_words must be positive; found {min_words}")
    blocks = (block for block in BLANK.split(text) if not NO_PROSE.search(block))
    lines = (" ".join(HYPHENATED.sub("", block).split()) for block in blocks)
    return [line for line in lines if CLOSED.search(line) and len(line.split()) >= min_words]


def cut(paragraph: str, max_words: int) -> list[str]:
    """A paragraph in pieces of at most `max_words` words: at ends of sentences, and inside one only where it is longer than that."""
    words = (piece for sentence in SENTENCE_END.split(paragraph) for piece in _chunks(sentence.split(), max_words))
    return fill(words, max_words)


def fill(pieces: Iterable[str], max_words: int) -> list[str]:
    """Pieces joined by spaces, in order, as many as fit into `max_words` words; a piece that is longer by itself is cut.

    Raises:
        ValueError: if `max_words` is not positive.
    """
    if max_words < 1:
        raise ValueError(f"max_words must be positive; found {max_words}")
    filled: list[list[str]] = []
    for piece in pieces:
        words = piece.split()
        parts = [words] if len(words) <= max_words else [part.split() for part in cut(piece, max_words)]
        for part in parts:
            if filled and len(filled[-1]) + len(part) <= max_words:
                filled[-1] += part
            else:
                filled.append(list(part))
    return [" ".join(words) for words in filled]


def first_sentence(paragraphs: Sequence[str]) -> tuple[str, list[str]]:
    """The first sentence of the first paragraph, and the paragraphs without it."""
    sentence, *rest = SENTENCE_END.split(paragraphs[0], maxsplit=1)
    return sentence, [*rest, *paragraphs[1:]]


def _chunks(words: Sequence[str], size: int) -> Iterable[str]:
    return (" ".join(words[start : start + size]) for start in range(0, len(words), size))
