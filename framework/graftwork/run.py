"""The run directory: what a run was, what it measured and what it made, each file whole or absent."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from graftwork import document
from graftwork.errors import GraftworkError
from graftwork.kinds.evaluator import Report
from graftwork.kinds.guidance import Samples

__all__ = ["Observer", "Run", "environment", "write_text"]

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


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place and rename it there.

    Raises:
        GraftworkError: if the disk refuses.
    """
    beside = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise GraftworkError(f"{path} cannot be written: {error.strerror or error}") from None


def environment() -> dict[str, Any]:
    """Versions, platform and devices, for provenance."""
    versions = {dist.name: dist.version for dist in distributions() if dist.name}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "command": sys.argv,
        "versions": {name: version for name, version in sorted(versions.items()) if name in VERSIONS_OF or name.startswith("graftwork")},
    }


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

    Attributes:
        results: stage -> metric -> number.
        reports: stage -> evaluator's label -> its report.

    Raises:
        GraftworkError: if the directory is not empty or cannot be made.
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
    ):
        self.path, self.name, self.seed, self.device, self.resolved = path, name, seed, device, resolved
        self.observer = observer or Observer()
        self._hooks = hooks
        self.results: dict[str, dict[str, float]] = {}
        self.reports: dict[str, dict[str, Report]] = {}
        self.timings: dict[str, float] = {}
        self._started = time.time()
        self._metrics: Any = None
        if path is not None:
            self._begin(path)
        self._tell("graftwork_run_started", run=self)

    def _begin(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise GraftworkError(f"{path} is not empty: a run needs a directory of its own; choose another --out")
            self._metrics = (path / "metrics.jsonl").open("a", encoding="utf-8")
        except OSError as error:
            raise GraftworkError(f"the run directory {path} cannot be made: {error.strerror or error}") from None
        write_text(path / "pipeline.yaml", document.dump(self.resolved))
        write_text(path / "environment.json", json.dumps({**environment(), "seed": self.seed, "device": str(self.device)}, indent=2))

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row of figures to metrics.jsonl."""
        if self._metrics is not None:
            row = {"stage": stage, "step": step, "time": round(time.time() - self._started, 3), **finite(metrics)}
            self._metrics.write(json.dumps(row) + "\n")
            self._metrics.flush()
        self._tell("graftwork_metrics_logged", run=self, stage=stage, step=step, metrics=metrics)

    def folder(self, stage: str, *parts: str) -> Path | None:
        """A folder of the run for a stage's files, made; None when nothing is kept on disk."""
        if self.path is None:
            return None
        folder = self.path.joinpath("stages", stage, *parts)
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
        folder = self.folder(stage, label)
        if folder is None:
            return
        for name, table in report.tables.items():
            write_text(folder / f"{name}.json", json.dumps(dataclasses.asdict(table), default=str, indent=1))
        for name, figure in report.figures.items():
            beside = folder / f"{name}.part"
            figure.figure.savefig(beside, format="png", dpi=120, bbox_inches="tight")
            beside.replace(folder / f"{name}.png")
        if report.figures:
            captions = {name: figure.caption for name, figure in report.figures.items()}
            write_text(folder / "captions.json", json.dumps(captions, indent=1))
        for name, artifact in report.artifacts.items():
            artifact.save(folder / name)

    def save_model(self, stage: str, model: Any) -> None:
        """Keep a model in its ecosystem's format: its own `save_pretrained`, else safetensors of its state."""
        folder = self.folder(stage, "model")
        if folder is None:
            return
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(folder)
        elif isinstance(model, nn.Module):
            state = {
                key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items() if isinstance(value, Tensor)
            }
            save_file(state, folder / "model.safetensors.part", metadata={"class": type(model).__name__})
            (folder / "model.safetensors.part").replace(folder / "model.safetensors")

    def save_samples(self, stage: str, samples: Samples) -> None:
        """Keep what guidance produced: images as safetensors and PNG, texts and prompts as JSON."""
        self.results.setdefault(stage, {}).update({name: float(value) for name, value in samples.metrics.items()})
        folder = self.folder(stage, "samples")
        if folder is None:
            return
        write_text(folder / "samples.json", json.dumps({"texts": list(samples.texts), "prompts": list(samples.prompts)}, indent=1))
        if samples.images is not None:
            from matplotlib.image import imsave

            images = samples.images.detach().float().cpu().clamp(0, 1)
            save_file({"images": images.contiguous()}, folder / "images.safetensors")
            for index, image in enumerate(images):
                imsave(folder / f"{index:04d}.png", image.expand(3, -1, -1).permute(1, 2, 0).numpy())

    def finish(self, status: str = "finished") -> None:
        """Write results.json and the manifest (SHA-256 of every file), and tell the trackers."""
        if self._metrics is not None and self.path is not None:
            self._metrics.close()
            results = {stage: finite(metrics) for stage, metrics in self.results.items()}
            summary = {"name": self.name, "seed": self.seed, "status": status, "seconds": self.timings, "results": results}
            write_text(self.path / "results.json", json.dumps(summary, indent=2))
            self.write_manifest()
        self._tell("graftwork_run_finished", run=self, status=status)

    def write_manifest(self) -> None:
        """manifest.json: relative path -> SHA-256, of every other file in the directory."""
        if self.path is None:
            return
        files: Iterable[Path] = sorted(file for file in self.path.rglob("*") if file.is_file() and file.name != "manifest.json")
        sums = {}
        for file in files:
            with file.open("rb") as stream:
                sums[str(file.relative_to(self.path))] = hashlib.file_digest(stream, "sha256").hexdigest()
        write_text(self.path / "manifest.json", json.dumps(sums, indent=1))

    def _tell(self, hook: str, **arguments: Any) -> None:
        """Call a run hook; a tracker that fails is warned of and never stops a run."""
        if self._hooks is None:
            return
        try:
            getattr(self._hooks, hook)(**arguments)
        except Exception as error:
            warnings.warn(f"a tracker failed in {hook}: {type(error).__name__}: {error}", stacklevel=2)


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers that JSON can hold: None for what is not finite."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
