"""What stands in a run directory, read for a page: whatever state the run is in, and without trusting what the files hold."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.document import Document
from graftwork.errors import GraftworkError
from graftwork.report.folder import FolderReader, Picture, finite, is_number, of_kind

__all__ = ["Cost", "Evaluation", "RunFolder", "Sample", "Series", "StageFolder", "TableRows", "is_run", "read_run"]

OWN_KEYS = ("stage", "step", "time")
MOST_SAMPLES = 64
MOST_ROWS = 200
NO_EVALUATOR = ("model", "checkpoints", "samples")


@dataclass(frozen=True)
class Series:
    """One figure of one stage as it was logged.

    Args:
        stage: of the pipeline.
        metric: its name.
        steps: in rising order.
        values: one a step; None for what was not finite.
    """

    stage: str
    metric: str
    steps: Sequence[int]
    values: Sequence[float | None]


@dataclass(frozen=True)
class Cost:
    """What a phase of a stage took.

    Args:
        stage: of the pipeline.
        phase: "model", "train", "sample" or an evaluator's label.
        seconds: of wall time.
        host_bytes: peak resident memory; None where it is not known.
        device_bytes: peak memory on the accelerator; None where there is none.
    """

    stage: str
    phase: str
    seconds: float
    host_bytes: int | None
    device_bytes: int | None


@dataclass(frozen=True)
class TableRows:
    """A table of an evaluator; `left_out` rows are in the file alone."""

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    left_out: int
    file: str


@dataclass(frozen=True)
class Evaluation:
    """What one evaluator left: its tables and figures, in the order of their names."""

    name: str
    tables: Sequence[TableRows]
    figures: Sequence[Picture]


@dataclass(frozen=True)
class Sample:
    """One sample that guidance made: a prompt, and a text or a picture."""

    prompt: str
    text: str
    picture: Picture | None


@dataclass(frozen=True)
class StageFolder:
    """A stage's files.

    Args:
        name: of the stage.
        finished: whether all of its phases are done.
        taken_from: folder of the run that it was taken from; "" when it was run here.
        evaluations: of its evaluators.
        samples: the first of what it sampled.
        more_samples: how many more there are.
    """

    name: str
    finished: bool
    taken_from: str
    evaluations: Sequence[Evaluation] = ()
    samples: Sequence[Sample] = ()
    more_samples: int = 0


@dataclass(frozen=True)
class RunFolder:
    """A run as its files tell it.

    Args:
        path: the directory.
        name: of the pipeline.
        status: "finished", "failed", "interrupted" (by the user), or "unfinished": it is going on, or was killed.
        text: the pipeline as it was run, in YAML.
        configuration: the same as data.
        environment: versions, seed, device.
        series: what was logged while training.
        results: stage -> metric -> number; None for what was not finite.
        costs: one a phase, in the order in which they ran.
        stages: their files, in the pipeline's order.
        damage: what could not be read, in words.
    """

    path: Path
    name: str
    status: str
    text: str
    configuration: Mapping[str, Any]
    environment: Mapping[str, Any]
    series: Sequence[Series]
    results: Mapping[str, Mapping[str, float | None]]
    costs: Sequence[Cost]
    stages: Sequence[StageFolder]
    damage: Sequence[str]

    @property
    def claim(self) -> Mapping[str, Any] | None:
        """The pipeline's claim, where it has one."""
        return of_kind(self.configuration.get("claim"), dict) or None

    @property
    def seed(self) -> Any:
        """Of everything that was drawn."""
        return self.environment.get("seed", self.configuration.get("seed", "unknown"))

    @property
    def seconds(self) -> float:
        """Of all phases."""
        return math.fsum(cost.seconds for cost in self.costs)

    @property
    def metrics(self) -> dict[str, float]:
        """ "stage/metric" -> number, of everything finite that was measured."""
        return {f"{stage}/{name}": value for stage, found in self.results.items() for name, value in found.items() if value is not None}


def is_run(folder: Path) -> bool:
    """Whether a directory is a run's."""
    return (folder / "pipeline.yaml").is_file()


def read_run(folder: Path) -> RunFolder:
    """Read a run directory, finished or not.

    Args:
        folder: the directory.

    Raises:
        GraftworkError: if it is no run's, or its pipeline cannot be read. What else is damaged is left out and named.
    """
    if not is_run(folder):
        what = "it has no pipeline.yaml" if folder.is_dir() else "there is no such directory"
        raise GraftworkError(f"{folder} is no run: {what}")
    return _Reader(folder).read()


class _Reader(FolderReader):
    """Reads one run, and gathers what cannot be read."""

    def read(self) -> RunFolder:
        text = self.text(self.folder / "pipeline.yaml", limit=2**20) or ""
        configuration = Document.parse(text, str(self.folder / "pipeline.yaml")).data
        names = [str(name) for name in of_kind(configuration.get("stages"), dict)]
        results = self.json("results.json", dict)
        records = {name: self.json(f"stages/{name}/stage.json", dict) for name in names}
        rows = list(self._rows())
        stages = [self._stage(name, records[name]) for name in names]
        return RunFolder(
            path=self.folder,
            name=str(results.get("name") or configuration.get("name") or self.folder.name),
            status=_status(results, stages),
            text=text,
            configuration=configuration,
            environment=self.json("environment.json", dict),
            series=_series(rows),
            results={name: found for name in names if (found := _results(name, records[name], rows))},
            costs=[cost for name in names for cost in _costs(name, records[name])],
            stages=stages,
            damage=self.damage,
        )

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The log's rows. A last line that is cut off is what a kill leaves, and no damage."""
        lines = (self.text(self.folder / "metrics.jsonl") or "").splitlines()
        unread = 0
        for number, line in enumerate(lines):
            try:
                row = json.loads(line)
                row["stage"], row["step"] = str(row["stage"]), int(row["step"])
                yield row
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                unread += number < len(lines) - 1
        if unread:
            self.damage.append(f"metrics.jsonl: {unread} of {len(lines)} rows cannot be read")

    # -- a stage's files -------------------------------------------------------------------------------------------------------

    def _stage(self, name: str, record: Mapping[str, Any]) -> StageFolder:
        folder = self.folder / "stages" / name
        inside = [path for path in sorted(folder.glob("*")) if path.is_dir() and self.inside(path)] if self.inside(folder) else []
        evaluations = [self._evaluation(place) for place in inside if place.name not in NO_EVALUATOR and not place.name.endswith(".part")]
        samples = next((place for place in inside if place.name == "samples"), None)
        shown, more = self._samples(samples) if samples is not None else ([], 0)
        return StageFolder(
            name,
            bool(record.get("finished")),
            str(record.get("taken_from") or ""),
            [one for one in evaluations if one.tables or one.figures],
            shown,
            more,
        )

    def _evaluation(self, place: Path) -> Evaluation:
        around = place.relative_to(self.folder).as_posix()
        captions = self.json(f"{around}/captions.json", dict)
        tables = [self._table(f"{around}/{path.name}") for path in sorted(place.glob("*.json")) if _may_be_table(path)]
        figures = [self.picture(path, str(captions.get(path.stem) or "")) for path in sorted(place.glob("*.png"))]
        return Evaluation(place.name, [one for one in tables if one is not None], [one for one in figures if one is not None])

    def _table(self, name: str) -> TableRows | None:
        found = self.json(name, dict)
        columns, rows = of_kind(found.get("columns"), list), [of_kind(row, list) for row in of_kind(found.get("rows"), list)]
        if not columns:
            return None  # a component's own JSON, and no table
        shown = rows[:MOST_ROWS]
        return TableRows(Path(name).stem, str(found.get("caption") or ""), list(map(str, columns)), shown, len(rows) - len(shown), name)

    def _samples(self, folder: Path) -> tuple[list[Sample], int]:
        named = self.json(f"{folder.relative_to(self.folder).as_posix()}/samples.json", dict)
        prompts, texts = (list(map(str, of_kind(named.get(name), list))) for name in ("prompts", "texts"))
        files = sorted(folder.glob("*.png"))
        count = max(len(files), len(texts))
        found = []
        for index in range(min(count, MOST_SAMPLES)):
            picture = self.picture(files[index]) if index < len(files) else None
            found.append(Sample(_at(prompts, index), _at(texts, index), picture))
        return found, count - len(found)


def _status(results: Mapping[str, Any], stages: Sequence[StageFolder]) -> str:
    """As the run's end has written it; a run that came to none is told by its stages."""
    if results.get("status") in ("finished", "failed", "interrupted"):
        return str(results["status"])
    return "finished" if stages and all(stage.finished for stage in stages) else "unfinished"


def _series(rows: Sequence[Mapping[str, Any]]) -> list[Series]:
    """Stage by stage and figure by figure, what was logged while training (evaluators' rows have step -1)."""
    found: dict[tuple[str, str], list[tuple[int, float | None]]] = {}
    for row in rows:
        for name, value in row.items() if row["step"] >= 0 else ():
            if name not in OWN_KEYS and (value is None or is_number(value)):
                found.setdefault((row["stage"], name), []).append((row["step"], value))
    series = []
    for (stage, name), points in found.items():
        ordered = sorted(points, key=lambda point: point[0])
        series.append(Series(stage, name, [step for step, _ in ordered], [finite(value) for _, value in ordered]))
    return series


def _results(stage: str, record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """A stage's results: from its record; what evaluators logged, where it has none."""
    found = of_kind(record.get("results"), dict)
    if not found:
        for row in rows:
            if row["stage"] == stage and row["step"] < 0:
                found = found | {name: value for name, value in row.items() if name not in OWN_KEYS}
    return {str(name): finite(value) for name, value in found.items() if value is None or is_number(value)}


def _costs(stage: str, record: Mapping[str, Any]) -> Iterator[Cost]:
    for phase, took in of_kind(record.get("phases"), dict).items():
        seconds = of_kind(took, dict).get("seconds")
        if is_number(seconds) and math.isfinite(seconds):
            memory = [value if isinstance(value := took.get(name), int) else None for name in ("host_bytes", "device_bytes")]
            yield Cost(stage, str(phase), float(seconds), *memory)


def _may_be_table(path: Path) -> bool:
    return path.name != "captions.json" and not path.name.endswith(".trace.json")


def _at(values: Sequence[str], index: int) -> str:
    return values[index] if index < len(values) else ""
