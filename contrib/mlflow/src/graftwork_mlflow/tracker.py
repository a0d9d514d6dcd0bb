"""What MLflow is told of a run, and when."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from graftwork.run import Run, environment
from graftwork.tracking import LoggedRow, labelled, logged_rows
from graftwork_mlflow.names import TAG, key_of, parameters_of, shortened
from graftwork_mlflow.points import About, Point
from graftwork_mlflow.sender import Sender

__all__ = ["MODELS", "Tracker"]

MODELS = "GRAFTWORK_MLFLOW_MODELS"
"""Environment variable: 1 uploads the models too."""

STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}

PICTURES = 64
"""Samples that are uploaded."""


class Tracker:
    """Follows one run.

    Args:
        run: which; one that goes on goes on in MLflow too.
    """

    def __init__(self, run: Run):
        self._run = run
        self._last: dict[str, int] = {}
        self._live: set[str] = set()
        path = run.path.resolve() if run.path is not None else None
        name = path.name if path is not None else f"{run.name}-seed-{run.seed}"
        about = About(path, run.name, name, run.seed, _parent(), parameters_of(run.resolved, run.seed), _tags(run))
        self._sender = Sender(about, self._history())

    def add(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Hand over a row that has just been logged; what evaluators measured (step -1) stands at the stage's last step.

        Raises:
            GraftworkError: once, when MLflow cannot be written to.
        """
        self._live.add(stage)
        self._last[stage] = max(step, self._last.get(stage, 0))
        row = LoggedRow(stage, self._last[stage] if step < 0 else step, 0.0, labelled(step, metrics))
        self._sender.add(_points(row, time.time()))

    def close(self, status: str) -> None:
        """Hand over the stages that were taken from other runs, and the artifacts; wait until MLflow has all.

        Raises:
            GraftworkError: if it has not got all.
        """
        try:
            self._sender.add([point for point in self._history() if point.stage not in self._live], history=True)
        finally:
            self._sender.end(list(_artifacts(self._run.path)) if self._run.path is not None else [], STATUS.get(status, "FAILED"))

    def _history(self) -> Iterator[Point]:
        """All that stands in the run's log; when it was written is reckoned back from now, as of the last row."""
        rows = list(logged_rows(self._run))
        began = time.time() - max((row.time for row in rows), default=0.0)
        for row in rows:
            self._last[row.stage] = max(row.step, self._last.get(row.stage, 0))
            yield from _points(row, began + row.time)


def _points(row: LoggedRow, when: float) -> Iterator[Point]:
    for name, value in row.metrics.items():
        yield Point(row.stage, key_of(f"{row.stage}/{name}"), float(value), row.step, int(1000 * when))


def _parent() -> str:
    """The run of MLflow that the surrounding program has begun, if there is one."""
    active = sys.modules["mlflow"].active_run() if "mlflow" in sys.modules else None
    return str(active.info.run_id) if active is not None else os.environ.get("MLFLOW_RUN_ID", "")


def _tags(run: Run) -> dict[str, str]:
    about = environment()
    found = {
        "seed": run.seed,
        "device": run.device,
        "python": about["python"],
        "platform": about["platform"],
        **{f"version.{name}": version for name, version in about["versions"].items()},
        "mlflow.source.name": " ".join(map(str, about["command"])),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        **_git(),
    }
    return {key: shortened(value, TAG) for key, value in found.items() if value not in ("", None)}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def _git() -> dict[str, str]:
    """The commit that the working directory stands at, and whether something in it differs."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True, stdin=subprocess.DEVNULL).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, "git.changed": str(changed).lower()}


def _artifacts(path: Path) -> Iterator[tuple[Path, str]]:
    """(file or folder, folder in MLflow) of what people look for first; models when they are asked for."""
    for name in ("report.html", "results.json", "pipeline.yaml", "environment.json", "metrics.jsonl"):
        if (path / name).is_file():
            yield path / name, ""
    for stage in sorted(one for one in path.glob("stages/*") if one.is_dir()):
        for place in sorted(one for one in stage.iterdir() if one.is_dir() and one.name not in ("checkpoints", "model", "samples")):
            for file in sorted([*place.rglob("*.png"), *place.glob("*.json")]):
                yield file, (Path("stages") / file.parent.relative_to(path / "stages")).as_posix()
        for file in sorted((stage / "samples").glob("*.png"))[:PICTURES]:
            yield file, f"stages/{stage.name}/samples"
        if os.environ.get(MODELS, "0") not in ("", "0") and (stage / "model").is_dir():
            yield stage / "model", f"stages/{stage.name}/model"
