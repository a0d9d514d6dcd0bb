"""Trackers: plugins that implement the run hooks. Each is told apart from the others, and none of them ever stops a run."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftwork.errors import ConfigError, nearest

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["CHOICE", "LoggedRow", "Trackers", "asked_for", "labelled", "logged_rows"]

CHOICE = "GRAFTWORK_TRACKERS"
"""Environment variable that names the trackers of a run, joined by commas; "none" or nothing names none."""

RUN_HOOKS = ("graftwork_run_started", "graftwork_metrics_logged", "graftwork_run_finished")


def asked_for(name: str) -> bool | None:
    """Whether `$GRAFTWORK_TRACKERS` names a tracker; None where the variable is not set and the choice is the tracker's own."""
    chosen = _chosen()
    return None if chosen is None else name in chosen


def _chosen() -> list[str] | None:
    text = os.environ.get(CHOICE)
    return None if text is None else [name for part in text.split(",") if (name := part.strip()) and name != "none"]


class Trackers:
    """Tells the trackers of one run what happens.

    One that fails is warned of the first time, and at the end how often it went on failing.

    Args:
        hooks: pluggy's relay; None for a run that nobody watches.

    Raises:
        ConfigError: if `$GRAFTWORK_TRACKERS` names one that is not installed.
    """

    def __init__(self, hooks: Any = None):
        found = {hook: [] if hooks is None else getattr(hooks, hook).get_hookimpls() for hook in RUN_HOOKS}
        chosen = None if hooks is None else _chosen()
        known = {_name(one) for implementations in found.values() for one in implementations}
        for name in chosen or ():
            if name not in known:
                there = f"installed: {', '.join(sorted(known)) or 'none'}"
                raise ConfigError(f'{CHOICE} names the tracker "{name}"{nearest(name, known)}, which is not installed; {there}')
        self._told = {hook: [one for one in made if chosen is None or _name(one) in chosen] for hook, made in found.items()}
        self._failures: Counter[tuple[str, str]] = Counter()

    def tell(self, hook: str, **arguments: Any) -> None:
        """Call one of the run hooks of every tracker, whatever another one does."""
        for implementation in self._told[hook]:
            try:
                implementation.function(*(arguments[name] for name in implementation.argnames))
            except Exception as error:
                key = (_name(implementation), hook)
                self._failures[key] += 1
                if self._failures[key] == 1:
                    _warn(f"a tracker failed in {hook}: {type(error).__name__}: {error} ({key[0]}; the run goes on)")
        if hook == "graftwork_run_finished":
            for (name, where), count in self._failures.items():
                if count > 1:
                    _warn(f"the tracker {name} failed in {where} {count} times; what was logged stands in metrics.jsonl")
            self._failures.clear()


def _name(implementation: Any) -> str:
    """A plugin's own name: pluggy knows it as "distribution:name"."""
    return str(implementation.plugin_name).rpartition(":")[2]


def _warn(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # a filter that makes errors of warnings must not stop a run either
        warnings.warn(text, stacklevel=4)


def labelled(step: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """A row's figures by the names that trackers use: what training logs goes under "train/", beside the core's own "validate/".

    An objective may log an accuracy on its batches and an evaluator measure one on the test split: one name would join the two.
    """
    return {name if step < 0 or name.startswith("validate/") else f"train/{name}": value for name, value in metrics.items()}


@dataclass(frozen=True)
class LoggedRow:
    """A row of metrics.jsonl, for trackers.

    Args:
        stage: whose.
        step: optimiser steps done; what evaluators and guidance measured stands at the stage's last step.
        time: seconds since the run began.
        metrics: name, as `labelled` gives it -> number; what is not finite is left out.
    """

    stage: str
    step: int
    time: float
    metrics: dict[str, float]


def logged_rows(run: Run) -> Iterator[LoggedRow]:
    """The rows that stand in a run's log, in order; a last one that was cut short is left out."""
    if run.path is None:
        return
    last: dict[str, int] = {}
    for line in (run.path / "metrics.jsonl").read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        stage, step, seconds = row.pop("stage"), row.pop("step"), row.pop("time")
        last[stage] = max(step, last.get(stage, 0))
        metrics = {name: value for name, value in row.items() if value is not None}
        yield LoggedRow(stage, last[stage] if step < 0 else step, seconds, labelled(step, metrics))
