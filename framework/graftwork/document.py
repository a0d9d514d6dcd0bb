"""YAML documents that know the place of every value, and the overrides that a command line makes to them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.error import MarkedYAMLError

from graftwork.errors import PipelineError, Problem

__all__ = ["Document", "KeyPath", "dump", "flat", "unshared"]

KeyPath = tuple[str | int, ...]

LARGEST = 2**20
"""Bytes of a pipeline file."""

DEEPEST = 64
"""Levels that values may be nested in."""

MOST = 100_000
"""Values that a document may have, each counted where an alias stands for it too."""

TAG = "tag:yaml.org,2002:"
PLAIN = frozenset(f"{TAG}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge"))
"""What a pipeline is made of. Nothing else is built, whatever a tag asks for."""

KEYS = frozenset(f"{TAG}{name}" for name in ("int", "float", "str", "merge"))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's scalars and no others, and with bounds.

    1e-3 is a number, 017 is seventeen, and `on`, `off`, `yes`, `no`, 12:30 and 2020-01-02 are words.
    """

    yaml_implicit_resolvers: dict[Any, Any] = {}
    depth = 0

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 - the base class calls it so
        self._check_depth(self.flow_level)  # here, as the scanner's time grows with the square of the level
        super().fetch_flow_collection_start(TokenClass)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        self._check_depth(self.depth)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError) as error:  # of `!!bool word`, or of a number with more digits than Python reads
            raise MarkedYAMLError(problem=f"the value is not what its tag says: {error}", problem_mark=node.start_mark) from None

    def _check_depth(self, depth: int) -> None:
        if depth > DEEPEST:
            raise MarkedYAMLError(problem=f"values are nested in more than {DEEPEST} levels", problem_mark=self.get_mark())

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, 0 if re.match(r"[-+]?0[xo]", text) else 10)


_Loader.add_constructor(f"{TAG}int", _Loader.construct_yaml_int)
for _name, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?\d[\d_]*|0o[0-7_]+|0x[0-9a-fA-F_]+", "-+0123456789"),
    ("float", r"[-+]?(\d[\d_]*)?\.\d[\d_]*([eE][-+]?\d+)?|[-+]?\d[\d_]*(\.[\d_]*([eE][-+]?\d+)?|[eE][-+]?\d+)", "-+0123456789."),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"{TAG}{_name}", re.compile(f"^(?:{_pattern})$"), list(_first))


class _Dumper(yaml.SafeDumper):
    """Quotes each word that this loader or another, of YAML 1.1, would take for something else."""

    yaml_implicit_resolvers = {
        first: [*yaml.SafeLoader.yaml_implicit_resolvers.get(first, ()), *_Loader.yaml_implicit_resolvers.get(first, ())]
        for first in {*yaml.SafeLoader.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _compose(text: str) -> tuple[_Loader, yaml.Node | None]:
    """The nodes of a document, none of which is beyond a bound, and the loader that turns them into data.

    Raises:
        YAMLError: if it is no YAML, asks for anything but plain data, or is beyond a bound.
    """
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is not None:
        _measure(node, {})
    return loader, node


def _measure(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for with every alias written out; `known` keeps it by id, 0 for a node that is being measured."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise MarkedYAMLError(problem="a value holds itself", problem_mark=node.start_mark)
        return known[id(node)]
    if node.tag not in PLAIN:
        what = f"the tag {node.tag!r} is not taken: a pipeline is made of mappings, lists, words and numbers"
        raise MarkedYAMLError(problem=what, problem_mark=node.start_mark)
    if isinstance(node, yaml.ScalarNode) and not node.value.isascii() and re.search("[\ud800-\udfff]", node.value):
        raise MarkedYAMLError(problem="the text has half a character, which no file can hold", problem_mark=node.start_mark)
    known[id(node)] = 0
    inside = [] if isinstance(node, yaml.ScalarNode) else node.value
    if isinstance(node, yaml.MappingNode):
        inside = [one for pair in node.value for one in pair]
    count = 1 + sum(_measure(one, known) for one in inside)
    if count > MOST:
        raise MarkedYAMLError(problem=f"it stands for more than {MOST} values", problem_mark=node.start_mark)
    known[id(node)] = count
    return count


def unshared(value: Any) -> Any:
    """A copy in which what an alias stands for is a value of its own, so that an override changes it in one place."""
    if isinstance(value, dict):
        return {key: unshared(item) for key, item in value.items()}
    return [unshared(item) for item in value] if isinstance(value, list) else value


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> value, of nested configuration."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not items or not value:
        yield path, value
    for key, item in items:
        yield from flat(item, f"{path}.{key}" if path else str(key))


@dataclass
class Document:
    """Plain data with the places it came from.

    Args:
        data: mappings, lists and scalars.
        source: name of the file, or "" when built in Python.
        places: key path -> (line, column), from 1.
    """

    data: dict[str, Any]
    source: str = ""
    places: dict[KeyPath, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Document:
        """Read a YAML file.

        Raises:
            PipelineError: if it cannot be read, is no YAML, has a key twice, or is no mapping; with the place.
        """
        try:
            with path.open("rb") as file:
                found = file.read(LARGEST + 1)
            text = found.decode("utf-8-sig")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or ("it is no UTF-8 text" if isinstance(error, UnicodeError) else str(error))
            raise PipelineError([Problem(f"the file cannot be read: {reason}", place=str(path))]) from None
        if len(found) > LARGEST:
            raise PipelineError([Problem(f"the file is too large: a pipeline has at most {LARGEST} bytes", place=str(path))])
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, source: str = "") -> Document:
        """Parse YAML text; as `read`."""
        document = cls({}, source)
        try:
            loader, node = _compose(text)
            problems = list(document._note(node, ())) if node else []
            data = unshared(loader.construct_document(node)) if node and not problems else None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
            what = getattr(error, "problem", None) or str(error) or type(error).__name__
            raise PipelineError([Problem(f"this is no YAML: {what}", place=place)]) from None
        if problems:
            raise PipelineError(problems)
        if not isinstance(data, dict):
            found = "nothing" if data is None else type(data).__name__
            raise PipelineError([Problem(f"a pipeline is a mapping with the key `stages`; found {found}", place=source)])
        document.data = data
        return document

    def _note(self, node: yaml.Node, path: KeyPath) -> Iterable[Problem]:
        """Record the place of a node and all below it; give a problem for each key that stands twice or is neither word nor number."""
        self.places.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                place = f"{self.source}:{key.start_mark.line + 1}:{key.start_mark.column + 1}"
                if key.tag not in KEYS or key.value.lower().endswith((".nan", ".inf")):
                    yield Problem("a key is a word or a number", path, place)
                    continue
                name = str(key.value)
                below = (*path, name)
                if name in seen:
                    yield Problem("the key stands twice", below, place)
                seen.add(name)
                yield from self._note(value, below)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                yield from self._note(value, (*path, index))

    def place(self, path: KeyPath) -> str:
        """ "file:line:column" of a value, or of the nearest value around it that has a place."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                line, column = self.places[path[:end]]
                return f"{self.source or '<pipeline>'}:{line}:{column}"
        return self.source

    def problem(self, message: str, path: KeyPath) -> Problem:
        """A Problem at a value's place."""
        return Problem(message, path, self.place(path))

    def override(self, assignments: Iterable[str]) -> None:
        """Set values by dotted keys, such as "stages.dann.train.epochs=5"; numbers index lists; the value is YAML.

        Raises:
            PipelineError: if an assignment has no "=", its value is no YAML, or its key leads through a scalar or past a list's end.
        """
        problems = []
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            try:
                if not equals or not key:
                    raise LookupError("an override is written key.of.the.pipeline=value")
                loader, node = _compose(text)
                self._set(key.split("."), loader.construct_document(node) if node else None)
            except (LookupError, yaml.YAMLError) as error:
                said = error.args[0] if isinstance(error, LookupError) else getattr(error, "problem", None) or error
                problems.append(Problem(str(said), place=f'override "{assignment}"'))
        if problems:
            raise PipelineError(problems)

    def _set(self, keys: list[str], value: Any) -> None:
        here: Any = self.data
        path: KeyPath = ()
        step: Any
        for depth, key in enumerate(keys):
            step = int(key) if isinstance(here, list) and key.isdigit() else key
            path = (*path, step)
            if isinstance(here, str) and depth and keys[depth - 1] not in ("stages", "train"):
                here = self._expand(path[:-1], here)
            if not isinstance(here, (dict, list)) or (isinstance(here, list) and not (isinstance(step, int) and step < len(here))):
                raise LookupError(f'"{".".join(keys[: depth + 1])}" leads nowhere: "{".".join(keys[:depth])}" is {type(here).__name__}')
            if depth == len(keys) - 1:
                here[step] = value
                self._forget(path)
            else:
                here = here.setdefault(step, {}) if isinstance(here, dict) else here[step]

    def _expand(self, path: KeyPath, name: str) -> dict[str, Any]:
        """Turn the shorthand `objective: name` into `objective: {use: name}`, so that a parameter can be set beside it."""
        around: Any = self.data
        for step in path[:-1]:
            around = around[step]
        around[path[-1]] = {"use": name}
        return around[path[-1]]  # type: ignore[no-any-return]

    def _forget(self, path: KeyPath) -> None:
        self.places = {known: place for known, place in self.places.items() if known[: len(path)] != path}


def dump(data: Mapping[str, Any]) -> str:
    """YAML text of plain data, keys in order."""
    return str(yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True))
