"""Hands what a run logs to whoever decides here whether the run goes on; outside a trial it does nothing, and imports no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from graftwork import hookimpl

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["graftwork_metrics_logged", "listening"]

Listener = Callable[[str, int, Mapping[str, float]], None]
_listener: ContextVar[Listener | None] = ContextVar("graftwork_ray_listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener(stage, step, metrics)` for each row that runs of this thread log inside."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@hookimpl
def graftwork_metrics_logged(run: Run, stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """Pass a row on."""
    listener = _listener.get()
    if listener is not None:
        listener(stage, step, metrics)
