"""What a run remembers of each stage, on disk, so that it can go on after any interruption and lend the stage to other runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from graftwork.checkpoint import sha256
from graftwork.errors import GraftworkError
from graftwork.files import write_text

__all__ = ["RECORD", "StageRecord", "finite"]

RECORD = "stage.json"


@dataclass
class StageRecord:
    """How far a stage has come. It is written after each of its phases, and is true at every instant.

    Args:
        inputs: phase -> what it depends on -> value or digest; the phase "train" stands for dataset, model and training.
        keys: phase -> hex digest of its inputs.
        phases: finished phase -> what it took (`usage.Usage`), its range of bytes in the log, the names of its results.
        results: metric -> number.
        artifacts: evaluator's label -> names of the artifacts that it reported.
        log_bytes: length of metrics.jsonl at the end of the last phase.
        elapsed: seconds of the run until then.
        finished: whether all phases are done; the sums are there then.
        sums: path within the stage's folder -> SHA-256.
        taken_from: folder of the stage that this one was taken from; "" when it was run here.
    """

    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)
    results: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    log_bytes: int = 0
    elapsed: float = 0.0
    finished: bool = False
    sums: dict[str, str] = field(default_factory=dict)
    taken_from: str = ""

    @property
    def seconds(self) -> float:
        """Of all phases."""
        return round(sum(float(phase["seconds"]) for phase in self.phases.values()), 3)

    def save(self, folder: Path) -> None:
        """Write it into a stage's folder, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / RECORD, json.dumps({**asdict(self), "results": finite(self.results)}, indent=1))

    def seal(self, folder: Path) -> None:
        """Note the stage as finished, with the sums of its files."""
        self.finished, self.sums = True, sums_of(folder)
        self.save(folder)

    @classmethod
    def load(cls, folder: Path) -> StageRecord | None:
        """The record in a stage's folder; None when there is none.

        Raises:
            GraftworkError: if it cannot be read.
        """
        path = folder / RECORD
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            found["results"] = {name: math.nan if value is None else value for name, value in found["results"].items()}
            return cls(**found)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise GraftworkError(f"{path} is no record of a stage: {error}; remove {folder} to run the stage from its start") from None

    def damage(self, folder: Path) -> str:
        """What is wrong with a finished stage's files: "" when each is as it was written."""
        for name, expected in self.sums.items():
            file = folder / name
            if not file.is_file():
                return f"{file} is missing"
            if sha256(file) != expected:
                return f"{file} was changed: its SHA-256 is not that of the stage's record"
        return ""


def sums_of(folder: Path) -> dict[str, str]:
    """Path within a folder -> SHA-256, of every file but the folder's own record and those still being written."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / RECORD)
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers that JSON can hold: None for what is not finite."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
