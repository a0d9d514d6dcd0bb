"""Docstrings of the standard library by area, read from its source files; no module is imported.

The sources ship with CPython (PSF License Version 2): https://docs.python.org/3/license.html.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

from graftwork import DataError, Dataset, DatasetInfo
from graftwork_testbed.splits import Fraction, Seed
from graftwork_testbed.text.documents import Document, document_dataset
from graftwork_testbed.text.passages import cut, prose_paragraphs
from graftwork_testbed.text.pydoc_text import MaxWords

__all__ = ["DESCRIPTIONS", "MODULES", "docstring_text", "docstrings_of"]

LibraryArea: TypeAlias = Literal["networking", "text", "numbers", "files", "concurrency", "testing"]
Owner: TypeAlias = Literal["module", "class", "function"]

MODULES: dict[LibraryArea, str] = {
    "networking": (
        "http.client http.cookiejar http.cookies http.server urllib.error urllib.parse urllib.request urllib.response urllib.robotparser "
        "socket socketserver ssl ftplib imaplib poplib smtplib ipaddress webbrowser wsgiref.handlers wsgiref.headers wsgiref.simple_server "
        "wsgiref.util xmlrpc.client xmlrpc.server"
    ),
    "text": (
        "string textwrap difflib re re._parser json.decoder json.encoder html html.parser csv gettext locale codecs shlex tokenize "
        "configparser reprlib pprint email.charset email.generator email.header email.message email.parser email.policy email.utils"
    ),
    "numbers": "numbers fractions _pydecimal statistics random secrets operator colorsys bisect heapq",
    "files": (
        "pathlib pathlib._local shutil tempfile glob fnmatch filecmp fileinput linecache stat os posixpath genericpath _pyio "
        "gzip bz2 lzma tarfile zipfile zipapp mimetypes"
    ),
    "concurrency": (
        "threading queue sched asyncio.base_events asyncio.events asyncio.futures asyncio.locks asyncio.protocols asyncio.queues "
        "asyncio.runners asyncio.streams asyncio.subprocess asyncio.taskgroups asyncio.tasks asyncio.timeouts asyncio.transports "
        "concurrent.futures._base concurrent.futures.process concurrent.futures.thread multiprocessing.connection multiprocessing.context "
        "multiprocessing.managers multiprocessing.pool multiprocessing.process multiprocessing.queues multiprocessing.shared_memory"
    ),
    "testing": (
        "unittest unittest.async_case unittest.case unittest.loader unittest.main unittest.mock unittest.result unittest.runner "
        "unittest.signals unittest.suite doctest bdb pdb trace timeit cProfile pstats traceback"
    ),
}
"""Area -> its modules, over CPython 3.11 to 3.14; those that the running Python has not are passed over. Ours."""

DESCRIPTIONS: dict[LibraryArea, str] = {
    "networking": "Talking to other machines: clients and servers, sockets, addresses, mail, and requests for web pages.",
    "text": "Working with strings: searching, comparing, wrapping, parsing and writing text formats, encodings and messages.",
    "numbers": "Arithmetic and mathematics: exact and decimal numbers, averages, random draws, sorting and comparing values.",
    "files": "Files and directories: opening, copying, naming, finding, compressing and archiving what is stored on disk.",
    "concurrency": "Doing several things at once: threads, processes, locks, queues, event loops and tasks to wait for.",
    "testing": "Checking and examining programs: test cases and assertions, mock objects, debugging, tracing and timing code.",
}
"""A sentence on each area, for methods that take the meaning of a label into account. Ours."""


def docstring_text(
    owners: list[Owner] = ["module", "class", "function"],  # noqa: B006 - read only
    unit: Literal["summary", "docstring"] = "summary",
    max_words: MaxWords = 100,
    val_fraction: Fraction = 0.15,
    test_fraction: Fraction = 0.25,
    seed: Seed = 0,
) -> Dataset:
    """What the standard library says of its modules, classes and functions, to be classified by area; nothing is fetched or imported.

    Samples: `text`, `label` (networking, text, numbers, files, concurrency or testing), `module` and `index`. Modules are split whole: none
    is in two splits, and no text occurs twice. Names that begin with an underscore are left out, and so are paragraphs that are no prose.

    Args:
        owners: whose docstrings: of modules, of classes, of functions and methods.
        unit: the first paragraph of a docstring, or all its prose.
        max_words: longer texts are cut, at the end of a sentence where there is one.
        val_fraction: share of each area's modules that goes to val.
        test_fraction: share that goes to test.
        seed: of the split.

    Raises:
        ValueError: if a parameter is out of range.
        DataError: if this Python ships no sources of its library, or a split is left empty.
    """
    if not owners or len(set(owners)) != len(owners) or not set(owners) <= {"module", "class", "function"}:
        raise ValueError(f"owners must be one or more of module, class and function, each once; found {list(owners)}")
    if unit not in ("summary", "docstring"):
        raise ValueError(f'unit must be "summary" or "docstring"; found "{unit}"')
    if max_words < 8:
        raise ValueError(f"max_words must be at least 8; found {max_words}")
    taken: set[str] = set()
    documents = []
    for label, modules in enumerate(MODULES.values()):
        for module in modules.split():
            prose = [prose_paragraphs(text) for owner, text in docstrings_of(module) if owner in owners]
            texts = [cut(paragraphs[0] if unit == "summary" else " ".join(paragraphs), max_words)[0] for paragraphs in prose if paragraphs]
            own = [text for text in dict.fromkeys(texts) if text not in taken]
            taken.update(own)
            documents.append(Document(module, label, own))
    if not taken:
        raise DataError(
            f"there are no sources of the standard library in {sysconfig.get_path('stdlib')}; CPython's own installers ship them"
        )
    info = DatasetInfo(classes=tuple(MODULES), description="Docstrings of Python's standard library, by area")
    return document_dataset(documents, "module", val_fraction, test_fraction, seed, info)


def docstrings_of(module: str) -> tuple[tuple[Owner, str], ...]:
    """(owner, docstring) of a module of the standard library and of what it defines, in order; empty where there is no such source.

    Args:
        module: dotted name.
    """
    path = Path(sysconfig.get_path("stdlib"), *module.split("."))
    for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
        if file.is_file():
            return _read(file)
    return ()


@cache
def _read(file: Path) -> tuple[tuple[Owner, str], ...]:
    return tuple(_docstrings(ast.parse(file.read_bytes()), "module"))


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, owner: Owner) -> Iterator[tuple[Owner, str]]:
    if text := ast.get_docstring(node):
        yield owner, text
    if owner == "function":
        return
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from _docstrings(child, "class")
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not child.name.startswith("_"):
            yield from _docstrings(child, "function")
