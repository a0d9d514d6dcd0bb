"""Pipeline files gone wrong: a mutation of the tree, of the text or of the bytes of a good one, drawn by hypothesis."""

from __future__ import annotations

import copy
import datetime
import math
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from hypothesis import strategies as st

__all__ = ["NUMBERS", "SNIPPETS", "mutants"]

Path = tuple[Any, ...]
Draw = Callable[[Any], Any]

NUMBERS = [
    *(0, 1, -1, 2, 7, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**64), 10**12, 10**18, 10**30, 10**400),
    *(0.0, -0.0, 0.5, -1.5, 1e-320, 1e308, math.nan, math.inf, -math.inf),
]
"""Around each bound that somebody may have forgotten; between 7 and what no machine holds there is nothing, which might be served."""

WORDS = [
    *("", " ", ".", "..", "/", "../../etc/passwd", "/etc/passwd", "~", "~nobody", "a/b/c", "a:b", "x" * 10_000, "\x00", "\x1b[2J"),
    *("\u202e", "\ufeff", "é", "日本語", "[bold]", "[/]", "{}", "{0.__class__}", "%s", "${HOME}", "null", "NaN", "1e5", "0o17", "1_000"),
    *("use", "from", "load", "as", "train", "blobs", "net", "plain", "dear", "fit", "through", "hits", "masks", "notes", "builtin/mlp"),
    *("cross-entropy", "accuracy", "base", "base/note", "later/note", "adamw", "lbfgs", "constant", "cosine", "higher", "__class__"),
]
KEYS = [
    *("use", "from", "load", "as", "stages", "name", "seed", "claim", "dataset", "model", "objective", "train", "sample", "evaluate"),
    *("guidance", "inputs", "epochs", "steps", "batch_size", "feeds", "optimizer", "schedule", "lr", "validate", "checkpoint", "split"),
    *("limit", "count", "width", "weight", "inner", "models", "base", "pace", "warmup", "self", "__init__", "p_count", "", ".", "a.b"),
]
ODD_KEYS = [*(None, True, False, 0, 3, -1, 1.5, math.nan, 2**70), datetime.date(2020, 1, 2), b"\x00\xff", ("a", "b"), ()]
SNIPPETS = [
    *('!!python/object/apply:os.system ["touch sprung"]', "!!python/name:os.system", "!!python/module:os", "!!python/tuple [1, 2]"),
    *('!!python/object/new:os.system ["touch sprung"]', "!!python/object:graftwork.Run {}", "!mine {a: 1}", "!<tag:x,2000:y> z"),
    *("!!binary aGVsbG8=", "!!binary '%%%'", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1, a: 2]", "!!timestamp 2020-99-99", "!!null x"),
    *("!!int words", "!!float words", "!!bool words", "!!str [a]", "!!map [a]", "!!seq {a: 1}", "2020-01-02", "2020-01-02T03:04:05Z"),
    *("2020-13-45", "&a [*a]", "&a {use: *a}", "&a {<<: *a}", "*nowhere", "{<<: [1, 2]}", "{<<: word}", "{<<: {use: net}, use: plain}"),
    *("? [a, b]", "{[a]: b}", "{{a: b}: c}", "{? : }", "{&k a: 1, *k : 2}", "0b101", "0x1F", "0o17", "017", "190:20:30", "1e1000", ".inf"),
    *(
        ".NaN",
        "-.INF",
        "~",
        "=",
        "<<",
        "|",
        ">",
        "- ",
        "'",
        '"',
        "\\",
        "%YAML 9.9",
        "---",
        "...",
        "#",
        "@",
        "`",
        "[",
        "{",
        "]",
        "}",
        ": ",
        ",",
    ),
    *(
        "\t",
        "\x00",
        "\x07",
        "\x1b]0;title\x07",
        "\x7f",
        "\x85",
        "\u2028",
        "\ufeff",
        "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    ),
    *(
        '"\\ud800"',
        '"\\x00"',
        '"\\U0010ffff"',
        '"\\e[31m"',
        "[" * 3000,
        "{a: " * 2000,
        "- " * 1500,
        "a" * 100_000,
        "9" * 5000,
        "'" + "x\n\n" * 500,
    ),
]
LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
MERGES = "m0: &m0 {x: 1}\n" + "".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 12))
WHOLE = [
    *(
        b"",
        b"\n",
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"---\n---\n",
        b"[]",
        b"3",
        b"word",
        b"null",
        b"stages:",
        b"stages: {}",
        b"stages: []",
    ),
    *(b"stages: 3", b"stages: {a: }", b"stages: {a: {}}", b"stages: {a: []}", b"&a {stages: *a}", b"stages: &a {b: *a}", b"\x80" * 64),
    *(
        b"stages: {a: &a {dataset: *a, model: *a}}",
        b"stages: {? {a: b} : c}",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"\x1f\x8b\x08",
        b"stages: !!set {a}",
    ),
    *((LAUGHS + "stages: *a11\n").encode(), (MERGES + "stages: *m11\n").encode(), b"stages: {a: {dataset: " + b"[" * 5000, b"? " * 3000),
]


def _paths(value: Any, path: Path = ()) -> Iterator[Path]:
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from _paths(value[key], (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _paths(item, (*path, index))


def _at(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


def _strange(draw: Draw, tree: Any) -> Any:
    """A value of any type: a number at a bound, a word that means something, a part of the tree itself, an empty or a nested thing."""
    kind = draw(st.integers(0, 7))
    if kind == 0:
        return draw(st.sampled_from(NUMBERS))
    if kind == 1:
        return draw(st.sampled_from(WORDS))
    if kind == 2:
        return copy.deepcopy(_at(tree, draw(st.sampled_from(list(_paths(tree))))))
    if kind == 3:
        plain = [None, True, False, [], {}, [[]], [{}], {"use": None}, {"use": {}}, {"from": []}, {"use": "net", "from": "base"}]
        return draw(st.sampled_from([*plain, {"load": "."}, {"load": "/nowhere"}, datetime.date(2020, 1, 2), b"\x00\xff"]))
    if kind == 4:
        return {draw(st.sampled_from(KEYS)): draw(st.sampled_from([*NUMBERS, *WORDS]))}
    if kind == 5:
        return [draw(st.sampled_from([*NUMBERS, *WORDS])) for _ in range(draw(st.integers(1, 3)))]
    if kind == 6:
        return draw(st.text(max_size=8))
    nested: Any = draw(st.sampled_from(WORDS))
    for _ in range(draw(st.sampled_from([3, 30, 90]))):
        nested = [nested] if draw(st.booleans()) else {"use": nested}
    return nested


def _on_tree(draw: Draw, tree: Any) -> Any:
    """One change to one place of the tree."""
    path = draw(st.sampled_from([path for path in _paths(tree) if path] or [()]))
    if not path:
        return _strange(draw, tree)
    around, key = _at(tree, path[:-1]), path[-1]
    change = draw(st.integers(0, 8))
    if change == 0:
        del around[key]
    elif change in (1, 2, 3):
        around[key] = _strange(draw, tree)
    elif change == 4 and isinstance(around, dict):
        around[draw(st.sampled_from([*KEYS, *WORDS, *ODD_KEYS]))] = around.pop(key)
    elif change == 5 and isinstance(around, dict):
        around[draw(st.sampled_from([*KEYS, *ODD_KEYS]))] = _strange(draw, tree)
    elif change == 6:
        other = draw(st.sampled_from([path for path in _paths(tree) if path]))
        taken = copy.deepcopy(_at(tree, other))
        around[key] = taken
    elif change == 7 and isinstance(around, list):
        around.insert(key, copy.deepcopy(around[key]))
    else:
        around[key] = {"use": around[key]} if draw(st.booleans()) else [around[key]]
    return tree


def _on_text(draw: Draw, text: str) -> str:
    """One change to the text: a piece put in, taken out, doubled or moved; a line indented otherwise; a value replaced."""
    lines = text.splitlines(keepends=True) or [""]
    change = draw(st.integers(0, 7))
    at, line = draw(st.integers(0, len(text))), draw(st.integers(0, len(lines) - 1))
    if change in (0, 1):
        return text[:at] + draw(st.sampled_from(SNIPPETS)) + text[at:]
    if change in (2, 3):  # in place of a value, where the parser expects one
        key, colon, rest = lines[line].partition(": ")
        lines[line] = f"{key}{colon or ': '}{draw(st.sampled_from(SNIPPETS))}\n" if colon or not rest else lines[line]
    elif change == 4:
        return text[:at] + text[at + draw(st.integers(1, 40)) :]
    elif change == 5:
        lines.insert(draw(st.integers(0, len(lines))), lines[line])
    elif change == 6:
        lines[line] = draw(st.sampled_from(["\t", " ", "   ", "- ", "? ", ": ", "!", "&x ", "*x ", "<<: "])) + lines[line]
    else:
        lines[line], lines[0] = lines[0], lines[line]
    return "".join(lines)


def _on_bytes(draw: Draw, data: bytes) -> bytes:
    """One change to the bytes: some overwritten, the rest cut off, a mark before them, another encoding."""
    change = draw(st.integers(0, 3))
    at = draw(st.integers(0, max(0, len(data) - 1)))
    if change == 0:
        some = draw(st.binary(min_size=1, max_size=4))
        return data[:at] + some + data[at + len(some) :]
    if change == 1:
        return data[:at]
    if change == 2:
        return draw(st.sampled_from([b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"%YAML 1.1\n---\n", b"--- "])) + data
    return data.decode("utf-8", "replace").encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-7", "cp037"])), "replace")


def _dump(tree: Any) -> str:
    """YAML of a tree, odd keys and all; Python's integers may have more digits than it prints."""
    try:
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, ValueError, TypeError):
        return yaml.dump(tree, sort_keys=False)


@st.composite
def mutants(draw: Any, bases: st.SearchStrategy[str]) -> bytes:
    """The bytes of a pipeline file that one to four mutations have gone over.

    Args:
        draw: hypothesis'.
        bases: YAML texts of good pipelines.
    """
    level = draw(st.integers(0, 9))
    if level == 0:
        whole = draw(st.sampled_from([*WHOLE, None]))
        return draw(st.binary(max_size=60)) if whole is None else whole
    text = draw(bases)
    if level <= 5:
        tree = yaml.safe_load(text)
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
            tree = _on_tree(draw, tree)
        text = _dump(tree)
    if level in (5, 6, 7, 8):
        for _ in range(draw(st.sampled_from([1, 1, 2, 4]))):
            text = _on_text(draw, text)
    data = text.encode("utf-8", "surrogatepass")
    return _on_bytes(draw, data) if level == 9 else data
