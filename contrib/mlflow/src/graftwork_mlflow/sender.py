"""A thread that sends a run's numbers to MLflow: training never waits for a server, and what fails is tried again."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from graftwork.errors import GraftworkError

if TYPE_CHECKING:
    from graftwork_mlflow.points import About, Point
    from graftwork_mlflow.store import Store

__all__ = ["PATIENCE", "Sender"]

PATIENCE = "GRAFTWORK_MLFLOW_PATIENCE"
"""Environment variable: seconds without an answer after which a run that has ended waits no longer."""

EVERY = 2.0
"""Seconds between requests, while numbers come."""

PAUSES = (1.0, 5.0, 20.0, 60.0, 300.0)
"""Seconds before a failed request is sent again; the last is kept to."""

ATTEMPTS = 3
"""Failures in a row after which a run that has ended gives up."""

REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
"""Error codes of a request that would fail for ever."""


class Sender:
    """Sends numbers in order, and at the end what is to be uploaded.

    Args:
        about: the run.
        history: numbers that were logged before, to be sent if they are not there.
    """

    def __init__(self, about: About, history: Iterable[Point] = ()):
        self._about = about
        self._waiting: deque[tuple[Point, bool]] = deque((point, True) for point in history)
        self._ending: tuple[Sequence[tuple[Any, str]], str] | None = None
        self._store: Store | None = None
        self._error: BaseException | None = None
        self._told = False
        self._refused: list[str] = []
        self._abandoned = False
        self._answered = time.monotonic()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="graftwork-mlflow", daemon=True)
        self._thread.start()

    def add(self, points: Iterable[Point], history: bool = False) -> None:
        """Hand over numbers; `history` are those that may have been sent already.

        Raises:
            GraftworkError: the first time that MLflow has failed; the numbers are kept and sent again all the same.
        """
        self._waiting.extend((point, history) for point in points)
        if len(self._waiting) >= 1000 and self._error is None:
            self._wake.set()
        if self._error is not None and not self._told:
            self._told = True
            raise GraftworkError(f"MLflow cannot be written to, and is tried again: {_reason(self._error)}")

    def end(self, artifacts: Sequence[tuple[Any, str]], status: str) -> None:
        """Send what is left, upload, set the status, and wait until it is done.

        Args:
            artifacts: (file or folder, folder in MLflow).
            status: as MLflow spells it.

        Raises:
            GraftworkError: if MLflow refused something, or gave no answer for `$GRAFTWORK_MLFLOW_PATIENCE` seconds (120).
        """
        self._ending = (artifacts, status)
        self._answered = time.monotonic()
        self._wake.set()
        patience = _patience()
        while self._thread.is_alive() and time.monotonic() - self._answered < patience:
            self._thread.join(0.1)
        self._abandoned = self._thread.is_alive()
        unsent = len(self._waiting)
        if self._abandoned or self._error is not None:
            why = _reason(self._error) if self._error is not None else f"no answer for {patience:g} s"
            again = f"; graft run --resume {self._about.path} sends what is missing" if self._about.path is not None else ""
            raise GraftworkError(f"MLflow has not got all of the run ({unsent} numbers are left): {why}{again}")
        if self._refused:
            raise GraftworkError(f"MLflow refused {len(self._refused)} numbers, of {', '.join(sorted(set(self._refused))[:5])}")

    # -- on the thread ---------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        failures = 0
        while not self._abandoned:
            pause = PAUSES[min(failures, len(PAUSES)) - 1] if failures else EVERY
            if self._store is not None or failures:
                self._wake.wait(min(pause, 2.0) if self._ending else pause)
                self._wake.clear()
            ending = self._ending
            try:
                self._open()
                self._send()
                if ending is not None:
                    self._finish(*ending)
                self._error, failures = None, 0
                if ending is not None:
                    return
            except Exception as error:  # whatever it is, the run goes on
                self._error, failures = error, failures + 1
                if ending is not None and failures >= ATTEMPTS:
                    return

    def _open(self) -> None:
        if self._store is None:
            # urllib3 draws the jitter of its pauses from Python's own generator, from which a training may draw too
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
            from graftwork_mlflow.store import Store

            self._store = Store(self._about)
            self._answered = time.monotonic()

    def _send(self) -> None:
        """Send all that waits; what fails stays."""
        from graftwork_mlflow.store import METRICS

        assert self._store is not None
        while self._waiting:
            some = [self._waiting[index] for index in range(min(METRICS, len(self._waiting)))]
            new, steps = self._missing(some)
            self._request(new)
            self._store.steps = steps
            for _ in some:
                self._waiting.popleft()
            self._answered = time.monotonic()

    def _request(self, points: Sequence[Point]) -> None:
        """One request; of one that is refused the halves are sent, down to the number that is at fault."""
        from mlflow.exceptions import MlflowException

        assert self._store is not None
        if not points:
            return
        try:
            self._store.send(points)
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
            if len(points) == 1:
                self._refused.append(points[0].key)
                return
            self._request(points[: len(points) // 2])
            self._request(points[len(points) // 2 :])

    def _missing(self, some: Sequence[tuple[Point, bool]]) -> tuple[list[Point], dict[str, int]]:
        """The numbers that MLflow lacks, for steps may be taken again after an interruption; and key -> last step that it has with them."""
        assert self._store is not None
        there, new = dict(self._store.steps), []
        for point, history in some:
            if point.key not in there or point.step > there[point.key]:
                new.append(point)
                if history:
                    there[point.key] = point.step
        return new, there

    def _finish(self, artifacts: Sequence[tuple[Any, str]], status: str) -> None:
        assert self._store is not None
        for file, folder in artifacts:
            self._store.upload(file, folder)
            self._answered = time.monotonic()
        self._store.end(status)


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _patience() -> float:
    try:
        return float(os.environ.get(PATIENCE) or 120)
    except ValueError:
        return 120.0
