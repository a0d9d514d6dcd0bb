"""What a sweep found: each setting with its figures, the best, as JSON, as a page of Markdown, and as a picture."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.files import replaced, write_text
from graftwork.reproduce import shown
from graftwork.spec import SweepSpec
from graftwork.trials import Outcome, Trial, metric_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Entry", "Sweep", "stopped_before"]

FILE = "sweep.json"
WIDE = 50.0
"""Values of which the largest is more than so many times the smallest are drawn on a logarithmic axis."""


@dataclass
class Entry:
    """One setting.

    Args:
        name: of its folder.
        overrides: dotted key -> value.
        trials: one a seed.
        outcomes: of those that have ended, by the trial's name.
    """

    name: str
    overrides: Mapping[str, Any]
    trials: Sequence[Trial]
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def values(self, metric: str) -> list[float]:
        """The metric of each trial that finished, by seed."""
        ended = [self.outcomes[trial.name] for trial in self.trials if trial.name in self.outcomes]
        return [metric_of(outcome.metrics, metric) for outcome in ended if outcome.status == "finished"]

    @property
    def status(self) -> str:
        """ "finished", "waiting", or why it has no mean: "failed", "lost", "stopped"."""
        found = {outcome.status for outcome in self.outcomes.values()}
        if len(self.outcomes) < len(self.trials):
            return "waiting"
        return next((status for status in ("failed", "lost", "stopped") if status in found), "finished")

    def mean(self, metric: str) -> float:
        """Mean over the seeds; nan while one of them has not finished: settings are compared over the same seeds."""
        return statistics.fmean(self.values(metric)) if self.status == "finished" else math.nan


@dataclass
class Sweep:
    """A sweep's settings and what came of them.

    Args:
        name: of the pipeline.
        metric: "stage/metric" that ranks the settings.
        direction: "higher" or "lower" is better.
        entries: one a setting, in the order in which they were drawn.
    """

    name: str
    metric: str
    direction: str
    entries: list[Entry]

    @classmethod
    def planned(cls, name: str, spec: SweepSpec, trials: Sequence[Trial]) -> Sweep:
        """A sweep of which nothing has ended yet."""
        by_setting: dict[str, list[Trial]] = {}
        for trial in trials:
            by_setting.setdefault(trial.name.partition("/")[0], []).append(trial)
        entries = [Entry(setting, own[0].overrides, own) for setting, own in by_setting.items()]
        return cls(name, spec.metric or "", spec.direction, entries)

    def add(self, outcome: Outcome) -> None:
        """Take in what came of a trial."""
        setting = outcome.trial.name.partition("/")[0]
        next(entry for entry in self.entries if entry.name == setting).outcomes[outcome.trial.name] = outcome

    @property
    def ranked(self) -> list[Entry]:
        """All settings, the best first; those without a mean last."""
        sign = -1 if self.direction == "higher" else 1
        means = {entry.name: entry.mean(self.metric) for entry in self.entries}
        return sorted(
            self.entries,
            key=lambda entry: (math.isnan(means[entry.name]), 0 if math.isnan(means[entry.name]) else sign * means[entry.name]),
        )

    @property
    def best(self) -> Entry | None:
        """The best setting; None when none has finished."""
        first = self.ranked[0]
        return None if math.isnan(first.mean(self.metric)) else first

    @property
    def keys(self) -> list[str]:
        """The dotted keys that are swept."""
        return list(self.entries[0].overrides)

    @property
    def troubles(self) -> list[tuple[str, str, str]]:
        """(trial, status, message) of each that did not finish."""
        return [
            (name, outcome.status, outcome.message)
            for entry in self.entries
            for name, outcome in entry.outcomes.items()
            if outcome.status != "finished"
        ]

    def write(self, out: Path, picture: bool = False) -> None:
        """Write the table into a sweep's directory, and with `picture` the figure."""
        write_text(out / FILE, self.to_json())
        if picture and self.best is not None:
            with replaced(out / "sweep.png") as beside:
                self._draw(beside)
        write_text(out / "sweep.md", self.to_markdown(out))

    def to_json(self) -> str:
        """All of it; a number that is not finite is null."""
        best = self.best
        settings = [
            {
                "name": entry.name,
                "overrides": dict(entry.overrides),
                "status": entry.status,
                "mean": _number(entry.mean(self.metric)),
                "trials": [
                    {
                        "name": outcome.trial.name,
                        "seed": outcome.trial.seed,
                        "status": outcome.status,
                        "message": outcome.message,
                        "attempts": outcome.attempts,
                        "seconds": round(outcome.seconds, 3),
                        "metrics": {name: _number(value) for name, value in outcome.metrics.items()},
                    }
                    for outcome in (entry.outcomes[trial.name] for trial in entry.trials if trial.name in entry.outcomes)
                ],
            }
            for entry in self.entries
        ]
        about = {"name": self.name, "metric": self.metric, "direction": self.direction, "best": best.name if best else None}
        return json.dumps({**about, "settings": settings}, indent=1)

    def to_markdown(self, out: Path) -> str:
        """The table, best first, each setting with a link to its report, for a README; the figure where it was drawn."""
        heads = ["setting", *self.keys, f"{self.metric} ({self.direction} is better)", "status"]
        lines = [f"# Sweep of {_cell(self.name)}", "", _row(heads), _row(["---"] * len(heads))]
        for entry in self.ranked:
            pages = [f"{trial.name}/report.html" for trial in entry.trials if (out / trial.name / "report.html").is_file()]
            links = f"[{entry.name}]({pages[0]})" if len(self.entries[0].trials) == 1 and pages else entry.name
            if len(self.entries[0].trials) > 1:
                links += "".join(f" [{page.split('/')[1]}]({page})" for page in pages)
            values = entry.values(self.metric)
            cells = [
                links,
                *(_cell(json.dumps(value)) for value in entry.overrides.values()),
                shown(values) if values else "-",
                entry.status,
            ]
            lines.append(_row(cells))
        if (out / "sweep.png").is_file():
            lines += ["", f"![{self.metric} against each key that was swept](sweep.png)"]
        lines += ["", *(f"- {name} {status}: {_cell(message)}" for name, status, message in self.troubles)]
        best = self.best
        if best is not None:
            chosen = " ".join(f"{key}={json.dumps(value)}" for key, value in best.overrides.items())
            lines += ["", f"The best setting, {best.name}, is run again by: `graft run sweep.yaml {chosen}`"]
        return "\n".join([*lines, ""])

    def _draw(self, path: Path) -> None:
        """One panel a key: the metric of every setting that finished, the best one marked, means over a listed value joined."""
        from matplotlib.figure import Figure

        columns = min(3, len(self.keys))
        rows = -(-len(self.keys) // columns)
        figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, key in zip(grid, self.keys, strict=False):
            self._panel(axes, key)
        for axes in grid[len(self.keys) :]:
            axes.set_visible(False)
        figure.savefig(path, format="png", dpi=120)

    def _panel(self, axes: Axes, key: str) -> None:
        entries = [entry for entry in self.entries if math.isfinite(entry.mean(self.metric))]
        values = [entry.overrides[key] for entry in entries]
        numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        named = sorted({json.dumps(value) for value in values})
        places = [float(value) if numeric else float(named.index(json.dumps(value))) for value in values]
        means = [entry.mean(self.metric) for entry in entries]
        errors = [statistics.stdev(found) / math.sqrt(len(found)) if len(found := one.values(self.metric)) > 1 else 0.0 for one in entries]
        axes.errorbar(places, means, yerr=errors if any(errors) else None, fmt="o", color="#33658a", markersize=5, alpha=0.75)
        if len(set(places)) < len(places):
            joined = sorted(set(places))
            axes.plot(
                joined, [statistics.fmean(m for p, m in zip(places, means, strict=True) if p == one) for one in joined], color="#86a5ba"
            )
        best = self.best
        if best is not None:
            at = entries.index(best)
            star: dict[str, Any] = {"marker": "*", "markersize": 14, "color": "#d1495b", "markeredgecolor": "white", "linestyle": "none"}
            axes.plot(places[at], means[at], **star, zorder=5, label=f"best: {best.name}")
            axes.legend(fontsize=8, loc="best")
        if not numeric:
            axes.set_xticks(range(len(named)), [name.strip('"')[:24] for name in named], rotation=20, ha="right")
            axes.margins(x=0.2)
        elif min(places) > 0 and max(places) / min(places) > WIDE:
            axes.set_xscale("log")
        axes.set_xlabel(key.replace("$", r"\$"), fontsize=8)
        axes.set_ylabel(self.metric.replace("$", r"\$"), fontsize=8)
        axes.grid(alpha=0.25)


def stopped_before(trial: Trial, out: Path) -> Outcome | None:
    """The outcome of a trial that an earlier part of the sweep ended early; None when there is none."""
    try:
        held = json.loads((out / FILE).read_text(encoding="utf-8"))
        former = next(one for setting in held["settings"] for one in setting["trials"] if one["name"] == trial.name)
        if former["status"] == "stopped":
            return Outcome(trial, "stopped", message=former["message"], attempts=former["attempts"], seconds=former["seconds"])
    except (OSError, StopIteration, ValueError, KeyError, TypeError):
        return None
    return None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Text that stays inside its cell, and is text."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
