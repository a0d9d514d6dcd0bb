"""Pipelines: stages assembled from registered components, written in YAML or Python, and run into a directory."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from graftwork import processes
from graftwork.assembly import assemble, stages_behind
from graftwork.document import Document, unshared
from graftwork.engine import pick_device
from graftwork.errors import GraftworkError
from graftwork.execution import Execution, Models
from graftwork.files import PART
from graftwork.metrics import metric_of
from graftwork.plan import Plan
from graftwork.registry import Registry, installed
from graftwork.reuse import StageCache, changes, flat
from graftwork.run import Observer, Run

__all__ = ["Pipeline", "Result"]


@dataclass
class Result:
    """What a run gave.

    Args:
        metrics: "stage/metric" -> number.
        models: stage -> its model, as the stage hands it on; one that this process did not make is restored when it is asked for.
        path: the run directory, or None when nothing was kept.
        run: the run, with its reports.
    """

    metrics: dict[str, float]
    models: Mapping[str, Any]
    path: Path | None
    run: Run

    def metric(self, name: str) -> float:
        """The metric "stage/metric"; an evaluator's label may be left out where that leaves no doubt.

        Raises:
            GraftworkError: if there is none, or several.
        """
        return metric_of(self.metrics, name)


@dataclass
class Pipeline:
    """A pipeline, assembled when it is run.

    Args:
        document: its data, with the places that they came from.
        registry: what is installed.
    """

    document: Document
    registry: Registry = field(default_factory=installed)

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Iterable[str] = ()) -> Pipeline:
        """Read a pipeline from a YAML file.

        Args:
            path: the file.
            overrides: dotted assignments, such as "stages.dann.train.epochs=5".

        Raises:
            PipelineError: if the file or an override cannot be read.
        """
        document = Document.read(Path(path))
        document.data.setdefault("name", re.sub(r"[^\w.-]+", "-", Path(path).stem, flags=re.ASCII).strip("-.")[:100] or "pipeline")
        document.override(overrides)
        return cls(document)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], overrides: Iterable[str] = ()) -> Pipeline:
        """A pipeline from plain data, as YAML would give it."""
        document = Document(unshared(dict(data)))
        document.override(overrides)
        return cls(document)

    def assemble(self) -> Plan:
        """Check everything; nothing is trained or written.

        Raises:
            PipelineError: with every problem found.
        """
        return assemble(self.document, self.registry)

    def run(
        self,
        out: str | Path | None = None,
        *,
        seed: int | None = None,
        device: str | None = None,
        stages: Iterable[str] | None = None,
        observer: Observer | None = None,
        resume: bool = False,
        reuse: bool = False,
        profile: bool = False,
    ) -> Result:
        """Run every stage; of several processes that a launcher has started, all train, and the first alone measures and writes.

        Args:
            out: directory of the run, which must be new or empty; None keeps nothing on disk.
            seed: instead of the pipeline's own.
            device: such as "cpu" or "cuda:1"; None is the GPU where there is one.
            stages: run only these (with whatever they take from included); all by default.
            observer: told what happens.
            resume: go on in `out`, which a run of this pipeline left unfinished; it ends as an unbroken one.
            reuse: take stages that other runs have finished, where nothing that they depend on has changed: configuration, seed, device,
                versions, code of what is installed in place, files. What is kept in `out` is theirs, and says so.
            profile: write a torch profiler's trace and its slowest operators into `out/profile`: of a few steps of each training, and of
                the first calls of modules in sampling and in each evaluation.

        Raises:
            PipelineError: if the pipeline has a problem; nothing was trained or written then.
            GraftworkError: for what can only be seen while running.
        """
        data = dict(self.document.data) if seed is None else {**self.document.data, "seed": seed}
        if stages is not None:
            _keep(data, list(stages))
        where = pick_device(device)
        path = Path(out) if out is not None else None
        if profile and path is None:
            raise GraftworkError("a profile is kept in a run's directory: give `out`")
        plan = assemble(replace(self.document, data=data), self.registry)
        processes.join(where)
        with processes.failing_together():
            first = processes.is_first()
            if resume and first:
                _check_former(path, data)
            hooks = self.registry.hooks if first else None
            run = Run(path if first else None, plan.name, plan.seed, where, data, observer if first else None, hooks, resume)
            models = _run(Execution(plan, run, StageCache() if reuse and run.path is not None else None, profile))
        metrics = {f"{stage}/{name}": value for stage, found in run.results.items() for name, value in found.items()}
        return Result(metrics, models, run.path, run)

    @classmethod
    def of_run(cls, path: str | Path) -> Pipeline:
        """The pipeline that a run directory was made by, to go on with: `Pipeline.of_run(path).run(path, resume=True)`.

        Raises:
            GraftworkError: if the directory is no run's.
        """
        file = Path(path) / "pipeline.yaml"
        if not file.is_file():
            raise GraftworkError(f"{path} is no run: it has no pipeline.yaml")
        return cls(Document.read(file))


def _run(execution: Execution) -> Models:
    """Run a plan and write its page; whatever happens, the run is brought to an end."""
    run = execution.run
    try:
        models = execution.stages()
    except BaseException as error:
        with contextlib.suppress(GraftworkError):  # a full disk has been told of already
            run.finish("failed" if isinstance(error, Exception) else "interrupted")
        raise
    run.finish()
    processes.wait()
    return models


def _check_former(path: Path | None, data: Mapping[str, Any]) -> None:
    """Hold a pipeline against the one that a directory was made by.

    Raises:
        GraftworkError: if there is no run, or it is of another pipeline; the differences are named.
    """
    if path is None:
        raise GraftworkError("a run that is gone on with is a directory: give `out`")
    held = {file.name for file in path.iterdir() if not file.name.endswith(PART)} if path.is_dir() else set()
    if not held or held == {"metrics.jsonl"}:
        return  # it was killed before it had written what it is
    former = Pipeline.of_run(path).document.data
    if differing := changes(dict(flat(former)), dict(flat(dict(data)))):
        raise GraftworkError(f"{path} is a run of another pipeline: {'; '.join(differing)}. Run this one into a directory of its own")


def _keep(data: dict[str, Any], wanted: list[str]) -> None:
    """Cut a pipeline to some stages and what they take from; its claim goes."""
    stages = data.get("stages") or {}
    unknown = [name for name in wanted if name not in stages]
    if unknown:
        raise GraftworkError(f"there is no stage {', '.join(unknown)}; the pipeline has {', '.join(stages)}")
    kept = set(wanted).union(*(stages_behind(stages, name) for name in wanted))
    data["stages"] = {name: stage for name, stage in stages.items() if name in kept}
    data.pop("claim", None)
