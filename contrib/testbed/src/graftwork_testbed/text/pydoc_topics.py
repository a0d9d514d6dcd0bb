"""CPython's own help topics: what `help("with")` prints, by area of the language.

They are `pydoc_data.topics`, built from the Python language reference and shipped with every CPython (PSF License Version 2):
https://docs.python.org/3/license.html.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from graftwork import DataError
from graftwork_testbed.text.passages import prose_paragraphs

__all__ = ["AREAS", "DESCRIPTIONS", "OTHER", "Area", "Topic", "load_topics"]

Area: TypeAlias = Literal[
    "simple statements",
    "compound statements",
    "expressions",
    "lexical elements",
    "strings",
    "execution",
    "special methods",
    "built-in types",
]
"""An area of the language."""

AREAS: dict[Area, tuple[str, ...]] = {
    "simple statements": (
        *("assert", "assignment", "augassign", "break", "continue", "del", "global", "import", "nonlocal", "pass", "raise", "return"),
    ),
    "compound statements": ("async", "class", "compound", "else", "for", "function", "if", "try", "type-params", "while", "with"),
    "expressions": (
        *("assignment-expressions", "attribute-references", "await", "binary", "bitwise", "booleans", "calls", "comparisons"),
        *("conversions", "dict", "exprlists", "in", "lambda", "lists", "operator-summary", "power", "shifting", "slicings"),
        *("subscriptions", "unary", "yield"),
    ),
    "lexical elements": (
        *("atom-identifiers", "atom-literals", "floating", "id-classes", "identifiers", "imaginary", "integers", "numbers"),
    ),
    "strings": ("formatstrings", "string-methods", "strings"),
    "execution": ("__main__", "debugger", "dynamic-features", "exceptions", "execmodel", "naming"),
    "special methods": (
        *("attribute-access", "callable-types", "context-managers", "customization", "numeric-types", "sequence-types"),
        "specialnames",
    ),
    "built-in types": (
        *("bltin-code-objects", "bltin-ellipsis-object", "bltin-null-object", "bltin-type-objects", "objects", "specialattrs"),
        *("truth", "types", "typesfunctions", "typesmapping", "typesmethods", "typesmodules", "typesseq", "typesseq-mutable"),
    ),
}
"""Area -> its topics, over CPython 3.11 to 3.14: ours, after the chapters of the language reference that the topics are taken from."""

DESCRIPTIONS: dict[Area, str] = {
    "simple statements": "Statements on one line: assigning, deleting, importing, returning, raising, leaving a loop.",
    "compound statements": "Statements with blocks inside: conditions, loops, handlers, functions, classes, coroutines.",
    "expressions": "What is evaluated to a value: operators and their precedence, calls, subscripts, displays, comparisons.",
    "lexical elements": "How source text is read: identifiers, keywords, and literals of whole, real and imaginary numbers.",
    "strings": "Text values: string literals, the methods of strings, and how values are formatted as text.",
    "execution": "How a program runs: name spaces and scopes, exceptions, and stepping through code in the debugger.",
    "special methods": "Methods with double underscores by which a class customises creation, attributes, operators and containers.",
    "built-in types": "The types of the language itself: sequences, mappings, modules, methods, truth, and their attributes.",
}
"""A sentence on each area, for methods that take the meaning of a label into account. Ours."""

OTHER = "other"
"""The area of topics that the table does not know, of a CPython that is newer than it."""

FOOTNOTE = re.compile(r"\[\d+\]")
"""Numbered anew in each topic, so that one text reads differently in two."""

HEADING = re.compile(r"\A\s*(\S.*)\n[*=]{3,}\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Topic:
    """One help topic.

    Args:
        name: as pydoc knows it, such as "context-managers".
        title: its heading, such as "With Statement Context Managers".
        area: a key of AREAS, or OTHER.
        paragraphs: its prose, in order, without what a shorter topic says too.
    """

    name: str
    title: str
    area: str
    paragraphs: tuple[str, ...]


def load_topics(min_words: int = 5) -> list[Topic]:
    """The help topics of the running CPython, by name.

    Topics overlap: "compound" holds all of "if", "for" and "try", and "if" and "else" are one. A paragraph that several of them hold goes
    to the shortest of these (to the first by name where two are equally long), so that no text is in two topics; a topic that is left
    without a paragraph is left out.

    Args:
        min_words: least words of a paragraph.

    Raises:
        ValueError: if `min_words` is not positive.
        DataError: if this Python ships no help topics.
    """
    try:
        texts: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise DataError(f"this Python ships no help topics: {error}; CPython's own installers do") from error
    area_of: dict[str, str] = {name: area for area, names in AREAS.items() for name in names}
    taken: set[str] = set()
    found: list[Topic] = []
    for name in sorted(texts, key=lambda name: (len(texts[name]), name)):
        said = {FOOTNOTE.sub("", line): line for line in reversed(prose_paragraphs(texts[name], min_words))}
        own = tuple(line for key, line in reversed(said.items()) if key not in taken)
        taken.update(said)
        heading = HEADING.search(texts[name])
        title = heading[1].strip() if heading else name.replace("-", " ")
        if own:
            found.append(Topic(name, title, area_of.get(name, OTHER), own))
    if not found:
        raise DataError(f"none of the {len(texts)} help topics of this Python has a paragraph of {min_words} words or more")
    return sorted(found, key=lambda topic: topic.name)
