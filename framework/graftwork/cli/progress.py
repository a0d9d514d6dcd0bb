"""Progress of a run on the terminal: a bar with the loss and the time left; a line a phase where there is no terminal."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from graftwork.cli.terminal import literal
from graftwork.run import Observer

__all__ = ["Progress", "Silent"]


class Silent(Observer):
    """Shows nothing."""

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End."""


class Progress(Silent):
    """Shows a bar for each stage that trains, and each stage's results when it ends. Writes to stderr."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop drawing."""
        self._bars.stop()

    def stage_started(self, stage: str, index: int, count: int) -> None:
        """Name the stage."""
        self._task = None
        self._console.print(f"[bold]{literal(stage)}[/] ({index + 1} of {count})")

    def phase(self, stage: str, phase: str) -> None:
        """Name the phase."""
        if not self._console.is_terminal:
            self._console.print(f"  {literal(phase)}")

    def tick(self, stage: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Move the bar."""
        if self._task is None:
            self._task = self._bars.add_task(literal(stage), total=total, figures="")
        shown = f"loss {metrics['loss']:.3f}" if "loss" in metrics else ""
        self._bars.update(self._task, completed=step, figures=shown)

    def note(self, stage: str, text: str) -> None:
        """Print it."""
        self._console.print(f"  {literal(stage)} {literal(text)}", style="dim")

    def stage_finished(self, stage: str, metrics: Mapping[str, float]) -> None:
        """Print the stage's results."""
        shown = literal(", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
        self._console.print(f"  {shown}" if shown else "  done")
