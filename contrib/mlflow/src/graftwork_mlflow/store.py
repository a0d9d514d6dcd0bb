"""One run in MLflow: found again or made, written to, ended. Every call may fail, as the network does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from graftwork.files import write_text
from graftwork_mlflow.points import About, Point

__all__ = ["REMEMBERED", "Store"]

REMEMBERED = "mlflow.json"
"""In a run directory: which run of MLflow it is."""

METRICS, PARAMETERS = 1000, 100
"""Most that one request may hold."""


class Store:
    """A run in MLflow, on the server or in the store that MLflow's environment variables name.

    Args:
        about: the run.

    Attributes:
        steps: key -> last step that stood in MLflow already; of a run that goes on.
    """

    def __init__(self, about: About):
        self._about = about
        self._client = mlflow.MlflowClient()
        self._experiment = self._find_experiment()
        self._parent = about.parent or self._find_parent()
        self.steps: dict[str, int] = {}
        former = self._former(about.path)
        if former is None:
            self.run_id = self._create(about.name, {**about.tags, **({"mlflow.parentRunId": self._parent} if self._parent else {})})
            if about.path is not None:
                _remember(about.path, self.run_id)
        else:
            self.run_id = former
            self._client.update_run(former, status="RUNNING")
            for key in self._client.get_run(former).data.metrics:
                self.steps[key] = max(point.step for point in self._client.get_metric_history(former, key))
        self._describe()

    def send(self, points: Sequence[Point]) -> None:
        """Add numbers, at most `METRICS` of them."""
        self._client.log_batch(self.run_id, metrics=[Metric(one.key, one.value, one.when, one.step) for one in points])

    def upload(self, file: Path, folder: str) -> None:
        """Add an artifact, a file or a whole folder, under a folder of the run's artifacts ("" is their root)."""
        if file.is_dir():
            self._client.log_artifacts(self.run_id, str(file), folder or None)
        else:
            self._client.log_artifact(self.run_id, str(file), folder or None)

    def end(self, status: str) -> None:
        """Set how the run ended: "FINISHED", "FAILED" or "KILLED"; a reproduction or sweep that it is part of has the newest status."""
        self._client.set_terminated(self.run_id, status)
        if self._parent and not self._about.parent:
            self._client.set_terminated(self._parent, status)

    # -- inside ----------------------------------------------------------------------------------------------------------------

    def _find_experiment(self) -> str:
        if self._about.parent:
            return str(self._client.get_run(self._about.parent).info.experiment_id)
        if chosen := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return chosen
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self._about.experiment
        with suppress(MlflowException):  # another process may make it at this moment
            if self._client.get_experiment_by_name(name) is None:
                return str(self._client.create_experiment(name))
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return str(self._client.create_experiment(name))
        if found.lifecycle_stage != "active":
            raise MlflowException(f'the experiment "{name}" is deleted: restore it, or name another by MLFLOW_EXPERIMENT_NAME')
        return str(found.experiment_id)

    def _find_parent(self) -> str:
        """The run of the reproduction or sweep around this one, made by whichever of its runs comes first."""
        group = self._about.group
        if group is None:
            return ""
        with FileLock(group / f".{REMEMBERED}.lock"):
            found = self._former(group)
            if found is None:
                found = self._create(group.name, {"mlflow.note.content": f"The runs of {group.name}"})
                _remember(group, found)
        self._client.update_run(found, status="RUNNING")
        return found

    def _former(self, folder: Path | None) -> str | None:
        """The run that a folder remembers, if this server has it still."""
        try:
            run_id = str(json.loads(((folder or Path()) / REMEMBERED).read_text(encoding="utf-8"))["run_id"]) if folder else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if run_id is None:
            return None
        try:
            found = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run_id if found.info.lifecycle_stage == "active" else None

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        made = self._client.create_run(self._experiment, start_time=int(1000 * time.time()), tags=dict(tags), run_name=name)
        return str(made.info.run_id)

    def _describe(self) -> None:
        """Parameters and tags; the parameters of a run that goes on are those that it has."""
        parameters = [Param(key, value) for key, value in self._about.parameters.items()]
        for some in _portions(parameters, PARAMETERS):
            self._client.log_batch(self.run_id, params=some)
        for some in _portions([RunTag(key, value) for key, value in self._about.tags.items()], PARAMETERS):
            self._client.log_batch(self.run_id, tags=some)


def _portions(items: Sequence[Any], count: int) -> Iterable[Sequence[Any]]:
    return (items[start : start + count] for start in range(0, len(items), count))


def _remember(folder: Path, run_id: str) -> None:
    write_text(folder / REMEMBERED, json.dumps({"run_id": run_id}))
