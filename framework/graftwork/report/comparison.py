"""Several runs on one page: what differs in what they were told, what they measured, their curves over each other, what they took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.document import flat
from graftwork.errors import GraftworkError
from graftwork.report.charts import overlaid
from graftwork.report.folder import Picture
from graftwork.report.page import environment_rows, reached
from graftwork.report.reading import Cost, RunFolder, is_run, read_run
from graftwork.report.rendering import render, unique_tails, write_html
from graftwork.report.reproduction import is_reproduction
from graftwork.report.sweep import is_sweep

__all__ = ["comparison_page", "write_comparison"]

UNSET = "not set"


@dataclass(frozen=True)
class Measured:
    """One metric over the runs.

    Args:
        name: "stage/metric".
        values: one a run; None where it was not measured, or not finite.
        differences: of each run from the first; None where there is none.
    """

    name: str
    values: Sequence[float | None]
    differences: Sequence[float | None]


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write a page that compares runs; give its path.

    Args:
        folders: two run directories or more, finished or not; differences are from the first.
        out: the page's file.

    Raises:
        GraftworkError: if there are fewer than two, one is given twice, one is no run's, or the page cannot be written.
    """
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise GraftworkError("a comparison needs two runs or more, each given once")
    for folder in folders:
        _refuse(folder)
    return write_html(out, comparison_page([read_run(folder) for folder in folders]))


def _refuse(folder: Path) -> None:
    """Refuse what holds runs and is none, among runs that are to be compared.

    Raises:
        GraftworkError: if the directory is a reproduction's or a sweep's.
    """
    if is_run(folder):
        return
    inside = [path for path in sorted(folder.glob("*")) if is_run(path)] or [folder / "..."]
    for kind, is_one in (("reproduction", is_reproduction), ("sweep", is_sweep)):
        if is_one(folder):
            raise GraftworkError(f"{folder} is a {kind}: compare its runs, such as {inside[0]}, or give it alone")


def comparison_page(runs: Sequence[RunFolder]) -> str:
    """The page that compares runs, as HTML."""
    labels = unique_tails([run.path for run in runs])
    settings = [dict(flat(dict(run.configuration))) for run in runs]
    surroundings = [{name: value for name, value in environment_rows(run.environment) if name not in ("command", "seed")} for run in runs]
    return render(
        "comparison.html.j2",
        title=f"{labels[0]} and {labels[1]}" if len(runs) == 2 else f"{len(runs)} runs",
        runs=list(zip(labels, runs, [reached(run) for run in runs], strict=True)),
        labels=labels,
        settings=_differing(settings),
        same=_same(settings),
        surroundings=_differing(surroundings),
        metrics=_metrics(runs),
        charts=overlaid([(label, run.series) for label, run in zip(labels, runs, strict=True)]),
        costs=_costs(runs),
        longest=max((cost.seconds for run in runs for cost in run.costs), default=0.0),
        figures=_figures(labels, runs),
    )


def _differing(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(key, one value a run) of what is not the same in all."""
    keys = dict.fromkeys(key for one in found for key in one)
    rows = [(key, [str(one[key]) if key in one else UNSET for one in found]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _same(found: Sequence[Mapping[str, Any]]) -> int:
    """How many settings are the same in all runs."""
    return sum(all(key in one and one[key] == value for one in found) for key, value in found[0].items())


def _metrics(runs: Sequence[RunFolder]) -> list[Measured]:
    found = [run.metrics for run in runs]
    rows = []
    for name in dict.fromkeys(name for metrics in found for name in metrics):
        values = [metrics.get(name) for metrics in found]
        first = values[0]
        rows.append(Measured(name, values, [None if first is None or value is None else value - first for value in values]))
    return rows


def _costs(runs: Sequence[RunFolder]) -> list[tuple[str, str, list[Cost | None]]]:
    """(stage, phase, one cost a run)."""
    found = [{(cost.stage, cost.phase): cost for cost in run.costs} for run in runs]
    return [(*key, [one.get(key) for one in found]) for key in dict.fromkeys(key for one in found for key in one)]


def _figures(labels: Sequence[str], runs: Sequence[RunFolder]) -> list[tuple[str, list[tuple[str, Picture]]]]:
    """(stage/evaluator/figure, (run, picture)) of what at least two runs drew."""
    found: dict[str, list[tuple[str, Picture]]] = {}
    for label, run in zip(labels, runs, strict=True):
        for stage in run.stages:
            for evaluation in stage.evaluations:
                for picture in evaluation.figures:
                    found.setdefault(f"{stage.name}/{evaluation.name}/{picture.name}", []).append((label, picture))
    return [(name, pictures) for name, pictures in found.items() if len(pictures) > 1]
