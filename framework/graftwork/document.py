"""YAML documents that know the place of every value, and the overrides that a command line makes to them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from graftwork.errors import PipelineError, Problem

__all__ = ["Document", "KeyPath", "dump"]

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's scalars: 1e-3 is a number, and `on`, `off`, `yes` and `no` are words."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


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
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
            raise PipelineError([Problem(f"the file cannot be read: {reason}", place=str(path))]) from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, source: str = "") -> Document:
        """Parse YAML text; as `read`."""
        document = cls({}, source)
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            problems = list(document._note(node, ())) if node else []
            data = loader.construct_document(node) if node else None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
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
        """Record the place of a node and all below it; give a problem for each key that stands twice."""
        self.places.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                name = str(key.value)
                below = (*path, name)
                if name in seen:
                    mark = key.start_mark
                    yield Problem("the key stands twice", below, f"{self.source}:{mark.line + 1}:{mark.column + 1}")
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
                self._set(key.split("."), yaml.load(text, _Loader))
            except (LookupError, yaml.YAMLError) as error:
                problems.append(Problem(str(error.args[0] if isinstance(error, LookupError) else error), place=f'override "{assignment}"'))
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
    return yaml.safe_dump(dict(data), sort_keys=False, width=120, allow_unicode=True)
