"""Curves as SVG drawn here, so that a page shows them without a script; the points' values beside them, for the readout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from graftwork.report.reading import Series
from graftwork.report.scales import Axis, linear_axis, log_axis
from graftwork.report.thinning import means, thin

__all__ = ["Chart", "Line", "charts", "overlaid"]

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 44, 352, 10, 186
COLOURS = 8
MOST_SPANS = 240
POINTS = 36_000
"""All curves of a page together have about so many points: with their values they take a megabyte."""


@dataclass(frozen=True)
class Line:
    """One curve of a chart.

    Args:
        label: what it is of.
        colour: index of its colour.
        dash: index of its dashes: 0 is a full line.
        steps: in rising order, thinned.
        values: one a step; None where it breaks.
        trend: means over spans of steps, where the curve was thinned; else empty.
        logged: how many points there were.
        unusable: how many of them were not finite.
    """

    label: str
    colour: int
    dash: int
    steps: Sequence[int]
    values: Sequence[float | None]
    trend: Sequence[tuple[float, float]]
    logged: int
    unusable: int

    @property
    def known(self) -> list[tuple[int, float]]:
        """(step, value) of all that can be drawn."""
        return [(step, value) for step, value in zip(self.steps, self.values, strict=True) if value is not None]

    @property
    def summary(self) -> dict[str, tuple[int, float]] | None:
        """The first, last, least and greatest point; None when there is none."""
        known = self.known
        if not known:
            return None
        least, greatest = min(known, key=lambda point: point[1]), max(known, key=lambda point: point[1])
        return {"first": known[0], "last": known[-1], "least": least, "greatest": greatest}


@dataclass(frozen=True)
class Chart:
    """One logged figure against the step, a line a stage or run."""

    title: str
    lines: Sequence[Line]

    @cached_property
    def across(self) -> Axis:
        """The axis of steps."""
        return linear_axis((step for line in self.lines for step in (line.steps[0], line.steps[-1])), LEFT, RIGHT, most=5)

    @cached_property
    def scales(self) -> dict[str, Axis]:
        """ "linear", and "log" where every value is positive, -> the axis of values."""
        values = [value for line in self.lines for _, value in line.known]
        logarithmic = log_axis(values, BOTTOM, TOP)
        return {"linear": linear_axis(values, BOTTOM, TOP)} | ({"log": logarithmic} if logarithmic is not None else {})

    def path(self, line: Line, scale: str) -> str:
        """SVG path data of a curve."""
        return self._path(zip(line.steps, line.values, strict=True), self.scales[scale])

    def trend(self, line: Line, scale: str) -> str:
        """SVG path data of a curve's trend."""
        return self._path(line.trend, self.scales[scale])

    def dots(self, line: Line, scale: str) -> list[tuple[float, float]]:
        """Pixels of points that are to be marked, because so few have no line to be seen by."""
        known = line.known
        return [(self.across.at(step), self.scales[scale].at(value)) for step, value in known] if len(known) < 3 else []

    def _path(self, points: Iterable[tuple[float, float | None]], axis: Axis) -> str:
        parts, pen = [], "M"
        for step, value in points:
            if value is None:
                pen = "M"
                continue
            parts.append(f"{pen}{self.across.at(step):g} {axis.at(value):g}")
            pen = "L"
        return "".join(parts)

    @property
    def data(self) -> dict[str, Any]:
        """What the readout needs: pixels of the plot, ranges of the axes, points of the lines."""
        axes = {name: [axis.low, axis.high] for name, axis in self.scales.items()}
        lines = [{"s": line.steps, "v": [None if v is None else float(f"{v:.6g}") for v in line.values]} for line in self.lines]
        return {"x": [self.across.low, self.across.high], "y": axes, "box": [LEFT, RIGHT, TOP, BOTTOM], "lines": lines}

    @property
    def description(self) -> str:
        """The chart in a sentence a line, for who does not see it."""
        said = []
        for line in self.lines:
            found = line.summary
            if found is None:
                said.append(f"{line.label}: nothing finite.")
                continue
            (start, first), (end, last) = found["first"], found["last"]
            said.append(f"{line.label}: from {first:.4g} at step {start} to {last:.4g} at step {end}.")
        return f"{self.title} against the step. {' '.join(said[:12])}"


def charts(series: Sequence[tuple[str, int, Series]], group: str = "", total: int | None = None) -> list[Chart]:
    """A chart a metric, those of validation last.

    Args:
        series: label, index of the colour, and points of each curve.
        group: put before each title, such as "stage / ".
        total: how many curves the page has, where these are not all.
    """
    spans = max(6, min(MOST_SPANS, POINTS // (4 * max(1, total or len(series)))))
    named: dict[str, list[Line]] = {}
    for label, colour, one in series:
        if one.steps:
            named.setdefault(one.metric, []).append(_line(label, colour, one, spans))
    ordered = sorted(named, key=lambda name: name.startswith("validate/"))
    return [Chart(f"{group}{name}", named[name]) for name in ordered]


def overlaid(runs: Sequence[tuple[str, Sequence[Series]]]) -> list[Chart]:
    """A chart for each figure of each stage, a line a run.

    Args:
        runs: label and series of each.
    """
    by_stage: dict[str, list[tuple[str, int, Series]]] = {}
    for index, (label, series) in enumerate(runs):
        for one in series:
            by_stage.setdefault(one.stage, []).append((label, index, one))
    total = sum(map(len, by_stage.values()))
    return [chart for stage, found in by_stage.items() for chart in charts(found, f"{stage} / ", total)]


def _line(label: str, index: int, series: Series, spans: int) -> Line:
    kept = thin(series.steps, series.values, spans)
    steps, values = [series.steps[one] for one in kept], [series.values[one] for one in kept]
    thinned = len(kept) < len(series.steps)
    return Line(
        label=label,
        colour=index % COLOURS,
        dash=index // COLOURS % 3,
        steps=steps,
        values=values,
        trend=means(series.steps, series.values, min(spans, 120)) if thinned else (),
        logged=len(series.steps),
        unusable=sum(value is None for value in series.values),
    )
