"""The run hooks. TensorBoard is imported by the first run that it is asked to follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from graftwork import hookimpl
from graftwork.tracking import asked_for

if TYPE_CHECKING:
    from graftwork.run import Run
    from graftwork_tensorboard.events import Events

_followed: WeakKeyDictionary[Run, Events] = WeakKeyDictionary()


@hookimpl
def graftwork_run_started(run: Run) -> None:
    """Follow the run, if `$GRAFTWORK_TRACKERS` asks for it and the run is kept on disk."""
    if asked_for("tensorboard") and run.path is not None:
        from graftwork_tensorboard.events import Events

        _followed[run] = Events(run)


@hookimpl
def graftwork_metrics_logged(run: Run, stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """Add a row."""
    if (events := _followed.get(run)) is not None:
        events.add(stage, step, metrics)


@hookimpl
def graftwork_run_finished(run: Run, status: str) -> None:
    """Add figures, samples and hyperparameters."""
    if (events := _followed.pop(run, None)) is not None:
        events.close(status)
