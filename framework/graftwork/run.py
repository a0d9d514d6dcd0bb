"""The run directory: what a run was, what it measured and what it made, each file whole or absent."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from graftwork import document
from graftwork.checkpoint import sha256
from graftwork.errors import GraftworkError
from graftwork.files import PART, remove, replaced, sweep, write_text
from graftwork.kinds.evaluator import Report
from graftwork.kinds.guidance import Samples
from graftwork.record import StageRecord, finite
from graftwork.tracking import Trackers

__all__ = ["Observer", "Run", "environment"]

VERSIONS_OF = ("torch", "accelerate", "safetensors", "pydantic", "transformers", "diffusers", "datasets", "numpy", "scipy", "torchmetrics")


class Observer:
    """Watches a run; the command line's progress bars are one. Each method may be left as it is."""

    def stage_started(self, stage: str, index: int, count: int) -> None:
        """Stage `index` of `count`, from 0, begins."""

    def phase(self, stage: str, phase: str) -> None:
        """A stage goes on to its next part: "model", "train", "sample" or the name of an evaluator."""

    def tick(self, stage: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Training has done `step` of `total` steps; `metrics` are the newest means."""

    def stage_finished(self, stage: str, metrics: Mapping[str, float]) -> None:
        """A stage ended with these results."""

    def note(self, stage: str, text: str) -> None:
        """Something that the user should know: what is gone on from, what is taken from another run and why, what was damaged."""


def environment() -> dict[str, Any]:
    """Versions, platform and devices, for provenance."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "command": sys.argv,
        "versions": dict(_versions()),
    }


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    """(name, version) of what every run uses, and of every part of graftwork that is installed."""
    versions = {dist.name: dist.version for dist in distributions() if dist.name}
    return tuple((name, version) for name, version in sorted(versions.items()) if name in VERSIONS_OF or name.startswith("graftwork"))


class Run:
    """One run of a pipeline and its directory.

    Args:
        path: the directory; made here, and refused if it holds anything. None keeps nothing on disk.
        name: of the pipeline.
        seed: of everything that is drawn.
        device: where models are.
        resolved: the pipeline as it is run.
        observer: told what happens.
        hooks: pluggy's relay, through which trackers are told.
        resume: go on in a directory that an interrupted run of this pipeline left.

    Attributes:
        results: stage -> metric -> number.
        reports: stage -> evaluator's label -> its report; of what was not run by this process, its artifacts alone.
        records: stage -> how far it has come.
        log_begins: length of the log when the phase that is running began.

    Raises:
        GraftworkError: if the directory is not empty or cannot be made; on resuming, if it is no run's, is another pipeline's, or
            another process is writing it.
    """

    def __init__(
        self,
        path: Path | None,
        name: str,
        seed: int,
        device: torch.device,
        resolved: Mapping[str, Any],
        observer: Observer | None = None,
        hooks: Any = None,
        resume: bool = False,
    ):
        self.path, self.name, self.seed, self.device, self.resolved = path, name, seed, device, resolved
        self.observer, self.resume = observer or Observer(), resume
        self._trackers = Trackers(hooks)
        self.results: dict[str, dict[str, float]] = {}
        self.reports: dict[str, dict[str, Report]] = {}
        self.records: dict[str, StageRecord] = {}
        self._started = time.time()
        self._log: Any = None
        self._rewind_to: int | None = None
        self.log_begins = 0
        if path is not None:
            self._open(path)
        self._trackers.tell("graftwork_run_started", run=self)

    def _open(self, path: Path) -> None:
        log = path / "metrics.jsonl"
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not self.resume and any(path.iterdir()):
                what = "a run needs a directory of its own; choose another --out, or go on with --resume"
                raise GraftworkError(f"{path} is not empty: {what}")
            self._log = log.open("ab")
        except OSError as error:
            raise GraftworkError(f"the run directory {path} cannot be made: {error.strerror or error}") from None
        _lock(self._log, path)
        if self.resume:
            sweep(path)
            remove(path / "results.json")  # until this one ends it is unfinished, whatever the former said
            self._rewind_to = 0
        write_text(path / "pipeline.yaml", document.dump(self.resolved))
        write_text(path / "environment.json", json.dumps({**environment(), "seed": self.seed, "device": str(self.device)}, indent=2))

    # -- the log, and how far it is true ---------------------------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        """Seconds since the run began, less those between an interruption and going on."""
        return round(time.time() - self._started, 3)

    def mark(self) -> dict[str, float]:
        """The length of the log and the seconds so far, for a checkpoint: `rewind` takes it."""
        self._cut()
        return {"log_bytes": 0 if self._log is None else self._log.tell(), "elapsed": self.elapsed}

    def rewind(self, log_bytes: int, elapsed: float) -> None:
        """On resuming: what the log holds after so many bytes was written by steps that are taken again, and goes before the next row.

        Raises:
            GraftworkError: if the log is shorter than that.
        """
        if self._log is None or not self.resume:
            return
        if self._log.tell() < log_bytes:
            raise GraftworkError(f"{self.path}/metrics.jsonl has lost rows since it was written: this run cannot be gone on with")
        self._rewind_to, self._started = log_bytes, time.time() - elapsed

    def _cut(self) -> None:
        if self._rewind_to is not None and self._log is not None:
            self._log.truncate(self._rewind_to)
            self._log.seek(0, os.SEEK_END)
            self._rewind_to = None

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row of figures to metrics.jsonl."""
        if self._log is not None:
            self._cut()
            own = {"stage": stage, "step": step, "time": self.elapsed}
            row = {**own, **finite(metrics), **own}  # a metric of such a name must not take a row's place
            self._write((json.dumps(row) + "\n").encode())
        self._trackers.tell("graftwork_metrics_logged", run=self, stage=stage, step=step, metrics=metrics)

    def _write(self, rows: bytes) -> None:
        try:
            self._log.write(rows)
            self._log.flush()
        except OSError as error:
            raise GraftworkError(f"{self.path}/metrics.jsonl cannot be written: {error.strerror or error}") from None

    def rows(self, stage: str) -> bytes:
        """The rows of a stage, as they stand in the log."""
        if self.path is None:
            return b""
        lines = (self.path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        return b"".join(line for line in lines if json.loads(line)["stage"] == stage)

    def adopt_rows(self, rows: bytes) -> None:
        """Add rows of another run."""
        if self._log is not None:
            self._cut()
            self._write(rows)

    # -- a stage's files -------------------------------------------------------------------------------------------------------

    def stage_folder(self, stage: str) -> Path | None:
        """The folder of a stage, which may not exist; None when nothing is kept on disk."""
        return None if self.path is None else self.path / "stages" / stage

    def folder(self, stage: str, *parts: str) -> Path | None:
        """A folder of the run for a stage's files, made; None when nothing is kept on disk."""
        around = self.stage_folder(stage)
        if around is None:
            return None
        folder = around.joinpath(*parts)
        if not folder.resolve().is_relative_to(around.resolve()):
            raise GraftworkError(f"{'/'.join(parts)} leads out of the run directory {self.path}: a stage writes inside its own folder")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def add_report(self, stage: str, label: str, report: Report, prefix: str) -> None:
        """Keep an evaluator's report: metrics in the results, tables as JSON, figures as PNG, artifacts in their folders.

        A metric whose name another evaluator of the stage has taken goes under "label/name".
        """
        self.reports.setdefault(stage, {})[label] = report
        taken = self.results.get(stage, {})
        given = {f"{prefix}{name}": float(value) for name, value in report.metrics.items()}
        metrics = {f"{label}/{name}" if name in taken else name: value for name, value in given.items()}
        unusable = [name for name, value in metrics.items() if not math.isfinite(value)]
        if unusable:
            warnings.warn(f"stage {stage}: {label} gave {', '.join(unusable)} that is not finite", stacklevel=2)
        self.results.setdefault(stage, {}).update(metrics)
        self.log(stage, -1, metrics)
        if self.path is None:
            return
        for name, table in report.tables.items():
            write_text(self._file(stage, label, f"{name}.json"), json.dumps(dataclasses.asdict(table), default=str, indent=1))
        for name, figure in report.figures.items():
            with replaced(self._file(stage, label, f"{name}.png")) as beside:
                figure.figure.savefig(beside, format="png", dpi=120, bbox_inches="tight")
        if report.figures:
            captions = {name: figure.caption for name, figure in report.figures.items()}
            write_text(self._file(stage, label, "captions.json"), json.dumps(captions, indent=1))
        for name, artifact in report.artifacts.items():
            artifact.save(self._file(stage, label, name))

    def _file(self, stage: str, label: str, name: str) -> Path:
        """A path inside an evaluator's folder; a name that leads out of it is refused."""
        folder = self.folder(stage, label)
        assert folder is not None
        path = folder / name
        try:
            inside = path.resolve().is_relative_to(folder.resolve()) and path != folder
        except (OSError, ValueError):  # a NUL, or too long
            inside = False
        if not inside or name.endswith(PART):
            raise GraftworkError(f"stage {stage}: {label} calls one of its files {name!r}, which is no name of a file in its folder")
        return path

    def save_model(self, stage: str, model: Any) -> None:
        """Keep a model in its ecosystem's format: its own `save_pretrained`, else safetensors of its state."""
        around = self.folder(stage)
        if around is None or not (hasattr(model, "save_pretrained") or isinstance(model, nn.Module)):
            return
        with replaced(around / "model") as folder:
            folder.mkdir()
            if hasattr(model, "save_pretrained"):
                model.save_pretrained(folder)
                return
            state = {
                key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items() if isinstance(value, Tensor)
            }
            save_file(state, folder / "model.safetensors", metadata={"class": type(model).__name__})

    def save_samples(self, stage: str, samples: Samples) -> None:
        """Keep what guidance produced: images as safetensors and PNG, texts and prompts as JSON."""
        metrics = {name: float(value) for name, value in samples.metrics.items()}
        self.results.setdefault(stage, {}).update(metrics)
        if metrics:
            self.log(stage, -1, metrics)
        around = self.folder(stage)
        if around is None:
            return
        with replaced(around / "samples") as folder:
            folder.mkdir()
            named = {"texts": list(samples.texts), "prompts": list(samples.prompts)}
            (folder / "samples.json").write_text(json.dumps(named, indent=1), encoding="utf-8")
            if samples.images is not None:
                from matplotlib.image import imsave

                images = samples.images.detach().float().cpu().clamp(0, 1)
                save_file({"images": images.contiguous()}, folder / "images.safetensors")
                for index, image in enumerate(images):
                    imsave(folder / f"{index:04d}.png", image.expand(3, -1, -1).permute(1, 2, 0).numpy())

    def finish(self, status: str = "finished") -> None:
        """Write results.json and the page, tell the trackers, and write the manifest: the SHA-256 of every file, theirs included."""
        if self._log is not None and self.path is not None:
            if status == "finished":
                self._cut()
            summary = {
                "name": self.name,
                "seed": self.seed,
                "status": status,
                "seconds": {stage: record.seconds for stage, record in self.records.items()},
                "phases": {stage: record.phases for stage, record in self.records.items()},
                "results": {stage: finite(metrics) for stage, metrics in self.results.items()},
            }
            write_text(self.path / "results.json", json.dumps(summary, indent=2))
            self._write_page(self.path)
        self._trackers.tell("graftwork_run_finished", run=self, status=status)
        if self._log is not None:
            self.write_manifest()
            self._log.close()  # which lets others write here

    @staticmethod
    def _write_page(path: Path) -> None:
        try:
            from graftwork.report import write_page

            write_page(path)
        except Exception as error:  # the run is what counts; `graft report` tries again
            warnings.warn(f"{path} has no page: {type(error).__name__}: {error}", stacklevel=2)

    def write_manifest(self) -> None:
        """manifest.json: relative path -> SHA-256, of every other file in the directory."""
        if self.path is None:
            return
        files = sorted(file for file in self.path.rglob("*") if file.is_file() and file != self.path / "manifest.json")
        known = {f"stages/{stage}/{path}": digest for stage, record in self.records.items() for path, digest in record.sums.items()}
        names = [file.relative_to(self.path).as_posix() for file in files]
        sums = {name: known.get(name) or sha256(self.path / name) for name in names}
        write_text(self.path / "manifest.json", json.dumps(sums, indent=1))


def _lock(file: Any, path: Path) -> None:
    """Hold a run's log for this process, as long as it is open; where the system has no such locks, nothing is held."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise GraftworkError(f"{path} is being written by another process") from None
