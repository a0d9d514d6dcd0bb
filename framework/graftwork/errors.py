"""What graftwork raises for a user's mistake: what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "ArtifactError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GraftworkError",
    "InterfaceError",
    "PipelineError",
    "PluginError",
    "Problem",
    "UnknownComponentError",
    "nearest",
]


class GraftworkError(Exception):
    """A mistake that the user can mend. The command line prints the message alone, with no traceback."""

    exit_status = 2


class PluginError(GraftworkError):
    """A plugin or one of its components cannot be loaded; the message names the distribution and the reason."""


class UnknownComponentError(GraftworkError):
    """No installed distribution registers that name, or more than one does."""


class ConfigError(GraftworkError):
    """A parameter is missing, unknown, of the wrong type or out of range."""


class InterfaceError(GraftworkError):
    """A model does not offer what its user needs of it."""


class DataError(GraftworkError):
    """A dataset lacks a split or a sample key, or its files cannot be read."""


class ArtifactError(GraftworkError):
    """An artifact is of another type, or was made from another model or other data."""


class CheckpointError(GraftworkError):
    """A checkpoint is damaged, or a state cannot be kept in one."""


@dataclass(frozen=True)
class Problem:
    """One mistake in a pipeline.

    Args:
        message: what was found and what was expected.
        path: keys and indices that lead to it, such as ("stages", "dann", "objective").
        place: file, line and column, such as "p.yaml:4:12"; empty for pipelines built in Python.
    """

    message: str
    path: tuple[str | int, ...] = ()
    place: str = ""

    def __str__(self) -> str:
        dotted = ".".join(map(str, self.path))
        return ": ".join(part for part in (self.place, dotted, self.message) if part)


class PipelineError(GraftworkError):
    """Everything that is wrong with a pipeline, reported together."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        count = f"{len(self.problems)} problems" if len(self.problems) != 1 else "1 problem"
        super().__init__("\n".join([f"the pipeline has {count}; nothing was run", *(f"  {p}" for p in self.problems)]))


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause that names the nearest of `known`, such as ' (did you mean "dann"?)', or nothing when none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f' (did you mean "{close[0]}"?)' if close else ""
