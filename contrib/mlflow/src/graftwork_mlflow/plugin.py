"""The run hooks. MLflow is imported by the first run that it is asked to follow, on a thread of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from graftwork import hookimpl
from graftwork.tracking import asked_for

if TYPE_CHECKING:
    from graftwork.run import Run
    from graftwork_mlflow.tracker import Tracker

_followed: WeakKeyDictionary[Run, Tracker] = WeakKeyDictionary()


@hookimpl
def graftwork_run_started(run: Run) -> None:
    """Follow the run, if `$GRAFTWORK_TRACKERS` asks for it, or is not set and `$MLFLOW_TRACKING_URI` is."""
    asked = asked_for("mlflow")
    if asked or (asked is None and os.environ.get("MLFLOW_TRACKING_URI")):
        from graftwork_mlflow.tracker import Tracker

        _followed[run] = Tracker(run)


@hookimpl
def graftwork_metrics_logged(run: Run, stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """Hand over a row."""
    if (tracker := _followed.get(run)) is not None:
        tracker.add(stage, step, metrics)


@hookimpl
def graftwork_run_finished(run: Run, status: str) -> None:
    """Hand over the artifacts, and wait until all has been sent."""
    if (tracker := _followed.pop(run, None)) is not None:
        tracker.close(status)
