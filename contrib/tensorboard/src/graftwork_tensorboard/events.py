"""A run's event files: one folder a stage, so that stages lie over one another in TensorBoard, and the whole run's beside them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.image import imread
from safetensors.torch import load_file
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from graftwork.reuse import flat
from graftwork.run import Run
from graftwork.tracking import labelled, logged_rows

__all__ = ["FOLDER", "SAMPLES", "Events"]

FOLDER = "tensorboard"
"""Of the event files, in the run directory."""

SAMPLES = 64
"""Pictures in a grid of samples."""

NOT_EVALUATORS = ("checkpoints", "model", "samples")


class Events:
    """Writes the event files of one run, as it goes and at its end.

    When an interrupted run goes on, TensorBoard is told to forget what comes at or after the first step that is taken again; what the
    run's own log still holds from there is written anew. Stages that were taken from another run are written from the log.

    Args:
        run: kept on disk.
    """

    def __init__(self, run: Run):
        assert run.path is not None
        self._run, self._path = run, run.path
        self._folder = self._path / FOLDER
        self._writers: dict[str, SummaryWriter] = {}
        self._last: dict[str, int] = {}
        self._general = SummaryWriter(str(self._folder), purge_step=0 if self._folder.exists() else None)
        self._general.add_text("pipeline", _code((self._path / "pipeline.yaml").read_text(encoding="utf-8")), 0)
        self._general.add_text("environment", _code((self._path / "environment.json").read_text(encoding="utf-8")), 0)
        self._general.flush()

    def add(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row that has just been logged; what evaluators measured (step -1) stands at the stage's last step."""
        if stage not in self._writers:
            self._open(stage, step, behind=1)
        elif step >= 0:
            self._last[stage] = max(step, self._last[stage])
        self._write(stage, self._last[stage] if step < 0 else step, time.time(), labelled(step, metrics))
        self._writers[stage].flush()  # at any instant the process may be killed

    def close(self, status: str) -> None:
        """Write what there is at the end, and close the files."""
        found = {row.stage for row in logged_rows(self._run)}
        for stage in self._run.resolved["stages"]:
            pictures = _figures(self._path / "stages" / stage)
            samples = self._path / "stages" / stage / "samples"
            if stage not in self._writers and (stage in found or pictures or samples.exists()):
                self._open(stage, -1)
            if stage in self._writers:
                self._add_figures(stage, pictures)
                self._add_samples(stage, samples)
        self._general.add_text("status", status, 0)
        self._add_hyperparameters()
        for writer in (self._general, *self._writers.values()):
            writer.close()

    def _open(self, stage: str, step: int, behind: int = 0) -> None:
        """Begin a stage's file.

        Args:
            stage: which.
            step: of the first row that is to come; -1 is the stage's last.
            behind: how many of the log's newest rows of the stage the caller writes by itself.
        """
        rows = [row for row in logged_rows(self._run) if row.stage == stage]
        self._last[stage] = max((row.step for row in rows), default=0)
        folder, first = self._folder / stage, self._last[stage] if step < 0 else step
        again = folder.exists()
        self._writers[stage] = SummaryWriter(str(folder), purge_step=first if again else None)
        began = time.time() - self._run.elapsed
        for row in rows[: len(rows) - behind]:
            if row.step >= first or not again:
                self._write(stage, row.step, began + row.time, row.metrics)

    def _write(self, stage: str, step: int, when: float, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writers[stage].add_scalar(name, value, step, walltime=when)

    def _add_figures(self, stage: str, pictures: Mapping[str, Path]) -> None:
        writer, captions = self._writers[stage], []
        for name, path in pictures.items():
            writer.add_image(name, imread(path)[..., :3], self._last[stage], dataformats="HWC")
            if caption := _captions(path.parent).get(path.stem):
                captions.append(f"**{name}**: {caption}")
        if captions:
            writer.add_text("captions", "\n\n".join(captions), self._last[stage])

    def _add_samples(self, stage: str, folder: Path) -> None:
        writer, step = self._writers[stage], self._last[stage]
        if (folder / "images.safetensors").is_file():
            images = load_file(folder / "images.safetensors")["images"][:SAMPLES]
            writer.add_images("samples", images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3], step)
        if (folder / "samples.json").is_file():
            named = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
            for what in ("prompts", "texts"):
                if named.get(what):
                    writer.add_text(f"samples/{what}", _code("\n".join(map(str, named[what][:SAMPLES]))), step)

    def _add_hyperparameters(self) -> None:
        """The run's row in the table of hyperparameters: every setting, every result."""
        resolved = {key: value for key, value in self._run.resolved.items() if key not in ("claim", "name")}
        settings: dict[str, Any] = {key: _plain(value) for key, value in flat({**resolved, "seed": self._run.seed})}
        results = {
            f"{stage}/{name}": value for stage, found in self._run.results.items() for name, value in found.items() if math.isfinite(value)
        }
        assert self._general.file_writer is not None
        for summary in hparams(settings, results):
            self._general.file_writer.add_summary(summary, 0)
        for name, value in results.items():
            self._general.add_scalar(name, value, 0)


def _figures(folder: Path) -> dict[str, Path]:
    """ "evaluator/figure" -> picture, of all that stand in a stage's folder."""
    places = sorted(path for path in folder.glob("*") if path.is_dir() and path.name not in NOT_EVALUATORS)
    return {path.relative_to(folder).with_suffix("").as_posix(): path for place in places for path in sorted(place.rglob("*.png"))}


def _captions(folder: Path) -> dict[str, str]:
    path = folder / "captions.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _code(text: str) -> str:
    """Text as Markdown shows it letter by letter."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _plain(value: Any) -> bool | int | float | str:
    """A setting as the table of hyperparameters can hold it."""
    return value if isinstance(value, (bool, int, float, str)) else str(value)
