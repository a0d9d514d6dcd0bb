"""The page of a sweep: every setting with what ranks it, the best, the picture, the curves of the best, the trials' own pages."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.errors import GraftworkError
from graftwork.report.charts import Chart, overlaid
from graftwork.report.claims import measured
from graftwork.report.folder import FolderReader, finite, of_kind
from graftwork.report.page import linked_run
from graftwork.report.reading import is_run, read_run
from graftwork.report.rendering import address, brief, mean_and_error, render, unique_ends

__all__ = ["is_sweep", "sweep_page"]

FILES = ("sweep.json", "sweep.yaml")
SETTING = re.compile(r"trial-\d+")
TRIAL = re.compile(r"trial-\d+(/seed-\d+)?")
DRAWN = 8
"""Settings whose curves are drawn: as many as there are colours."""


@dataclass(frozen=True)
class Trial:
    """One run of a setting.

    Args:
        name: of its folder.
        label: "seed 3" among several, else the setting's name.
        status: "finished", "failed", "lost", "stopped"; "waiting", or "unfinished" once it has begun.
        message: why it did not finish.
        value: what the settings are ranked by; None where it was not measured.
        seconds: of wall time; None while it has not ended.
        link: address of its page; "" when it left no run.
    """

    name: str
    label: str
    status: str
    message: str
    value: float | None
    seconds: float | None
    link: str


@dataclass(frozen=True)
class Setting:
    """One setting.

    Args:
        name: of its folder.
        overrides: dotted key -> value.
        status: "finished", "waiting", or why it has no mean.
        mean: over its trials of what the settings are ranked by; None where one of them lacks it.
        shown: mean and standard error, in words.
        trials: one a seed.
    """

    name: str
    overrides: Mapping[str, Any]
    status: str
    mean: float | None
    shown: str
    trials: Sequence[Trial]

    @property
    def seconds(self) -> float | None:
        """Of all trials that have ended; None when none has."""
        known = [trial.seconds for trial in self.trials if trial.seconds is not None]
        return math.fsum(known) if known else None


def is_sweep(folder: Path) -> bool:
    """Whether a directory is a sweep's."""
    return any((folder / name).is_file() for name in FILES)


def sweep_page(folder: Path, target: Path) -> str:
    """The page of a sweep, finished or not, as HTML. The pages of trials that have none, or are not finished, are written first.

    Args:
        folder: of the sweep.
        target: where the page will stand; its links lead from there.
    """
    reader = FolderReader(folder)
    found = reader.json(FILES[0], dict)
    metric, direction = str(found.get("metric") or ""), str(found.get("direction") or "higher")
    settings = _ranked([_setting(reader, one, metric, target) for one in _listed(reader, found)], direction)
    keys = list(dict.fromkeys(key for one in settings for key in one.overrides))
    several = any(len(one.trials) > 1 for one in settings)
    picture = reader.picture(folder / "sweep.png") if (folder / "sweep.png").is_file() else None
    return render(
        "sweep.html.j2",
        title=str(found.get("name") or folder.resolve().name),
        folder=folder,
        metric=metric,
        direction=direction,
        settings=settings,
        best=settings[0] if settings and settings[0].mean is not None else None,
        keys=list(zip(keys, unique_ends([key.split(".") for key in keys], "."), strict=True)),
        several=several,
        ended=sum(one.status not in ("waiting", "unfinished") for one in settings),
        troubles=[trial for one in settings for trial in one.trials if trial.message],
        longest=max((one.seconds or 0.0 for one in settings), default=0.0),
        picture=picture,
        charts=_charts(reader, settings),
        drawn=DRAWN,
        damage=reader.damage,
    )


def _listed(reader: FolderReader, found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The settings as sweep.json has them; as the trials' folders say, while no trial has ended."""
    listed = found.get("settings")
    if isinstance(listed, list):
        sound: list[Mapping[str, Any]] = [one for one in listed if isinstance(one, dict) and SETTING.fullmatch(str(one.get("name")))]
        if len(sound) < len(listed):
            reader.damage.append(f"{FILES[0]}: {len(listed) - len(sound)} of {len(listed)} settings cannot be read")
        return sound
    names = [path.name for path in sorted(reader.folder.glob("trial-*")) if SETTING.fullmatch(path.name) and path.is_dir()]
    about: list[Mapping[str, Any]] = [next((reader.json(f"{run}/trial.json", dict) for run in _runs(reader, name)), {}) for name in names]
    return [{"name": name, "overrides": one.get("overrides")} for name, one in zip(names, about, strict=True)]


def _runs(reader: FolderReader, setting: str) -> Iterator[str]:
    """Names of a setting's trials that have begun: its own folder, or one a seed."""
    folder = reader.folder / setting
    found = [folder, *sorted(folder.glob("seed-*"), key=lambda path: (len(path.name), path.name))]
    for name in (path.relative_to(reader.folder).as_posix() for path in found if is_run(path)):
        if TRIAL.fullmatch(name):
            yield name


def _setting(reader: FolderReader, one: Mapping[str, Any], metric: str, target: Path) -> Setting:
    name = str(one["name"])
    told = {str(trial.get("name")): trial for trial in of_kind(one.get("trials"), list) if isinstance(trial, dict)}
    names = [trial for trial in dict.fromkeys([*told, *_runs(reader, name)]) if TRIAL.fullmatch(trial) and trial.split("/")[0] == name]
    trials = [_trial(reader, trial, told.get(trial, {}), metric, target) for trial in names]
    values = [trial.value for trial in trials if trial.value is not None]
    status = str(one.get("status") or "waiting")
    begun = any(trial.status == "unfinished" for trial in trials)
    return Setting(
        name=name,
        overrides=of_kind(one.get("overrides"), dict),
        status="unfinished" if status == "waiting" and begun else status,
        mean=finite(one.get("mean")),
        shown=mean_and_error(values) if values else "",
        trials=trials,
    )


def _trial(reader: FolderReader, name: str, told: Mapping[str, Any], metric: str, target: Path) -> Trial:
    metrics = {key: number for key, value in of_kind(told.get("metrics"), dict).items() if (number := finite(value)) is not None}
    status = str(told.get("status") or "unfinished")
    return Trial(
        name=name,
        label=name.partition("/")[2].replace("-", " ") or name,
        status=status,
        message=str(told.get("message") or ""),
        value=measured(metrics, metric),
        seconds=finite(told.get("seconds")),
        link=_link(reader, name, status, target),
    )


def _link(reader: FolderReader, name: str, status: str, target: Path) -> str:
    """The address of a trial's page; "" when there is none and none can be written, which is noted where there is a run."""
    folder = reader.folder / name
    if not is_run(folder) or not reader.inside(folder):
        return ""
    if status == "finished" and (folder / "report.html").is_file():
        return address(folder / "report.html", target)  # without reading the run: a sweep may have thousands
    try:
        return linked_run(folder, target)[1]
    except GraftworkError as error:
        reader.damage.append(f"{name} has no page: {error}")
        return ""


def _ranked(settings: Sequence[Setting], direction: str) -> list[Setting]:
    """The best first; those without a mean last, in their order."""
    sign = -1 if direction == "higher" else 1
    return sorted(settings, key=lambda one: (one.mean is None, 0.0 if one.mean is None else sign * one.mean))


def _charts(reader: FolderReader, settings: Sequence[Setting]) -> list[Chart]:
    """Curves of the best settings over each other, each at its first seed."""
    runs = []
    for one in settings[:DRAWN]:
        first = next((trial for trial in one.trials if trial.link), None)
        if first is not None:
            own = ", ".join(map(brief, one.overrides.values()))
            runs.append((f"{one.name}: {own}" if own else one.name, read_run(reader.folder / first.name).series))
    return overlaid(runs)
