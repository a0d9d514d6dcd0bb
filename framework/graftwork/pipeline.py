"""Pipelines: stages assembled from registered components, written in YAML or Python, and run into a directory."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graftwork import artifact
from graftwork.assembly import assemble, stages_behind
from graftwork.document import Document
from graftwork.engine import Engine, pick_device, seed_everything
from graftwork.errors import GraftworkError
from graftwork.kinds.dataset import Dataset
from graftwork.kinds.evaluator import Evaluator
from graftwork.plan import From, Part, Plan, Stage, build
from graftwork.registry import Registry, installed
from graftwork.run import Observer, Run

__all__ = ["Pipeline", "Result"]


@dataclass
class Result:
    """What a run gave.

    Args:
        metrics: "stage/metric" -> number.
        models: stage -> its model, as the stage hands it on.
        path: the run directory, or None when nothing was kept.
        run: the run, with its reports.
    """

    metrics: dict[str, float]
    models: dict[str, Any]
    path: Path | None
    run: Run

    def metric(self, name: str) -> float:
        """The metric "stage/metric"; an evaluator's label may be left out where that leaves no doubt.

        Raises:
            GraftworkError: if there is none, or several.
        """
        if name in self.metrics:
            return self.metrics[name]
        stage, _, metric = name.partition("/")
        near = [key for key in self.metrics if key.startswith(f"{stage}/") and key.endswith(f"/{metric}")]
        if len(near) == 1:
            return self.metrics[near[0]]
        raise GraftworkError(
            f'the run measured {"several" if near else "no"} "{name}"; it measured {", ".join(near or self.metrics) or "nothing"}'
        )


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
        document.data.setdefault("name", Path(path).stem.replace(" ", "-"))
        document.override(overrides)
        return cls(document)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], overrides: Iterable[str] = ()) -> Pipeline:
        """A pipeline from plain data, as YAML would give it."""
        document = Document(copy.deepcopy(dict(data)))
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
    ) -> Result:
        """Run every stage.

        Args:
            out: directory of the run, which must be new or empty; None keeps nothing on disk.
            seed: instead of the pipeline's own.
            device: such as "cpu" or "cuda:1"; None is the GPU where there is one.
            stages: run only these (with whatever they take from included); all by default.
            observer: told what happens.

        Raises:
            PipelineError: if the pipeline has a problem; nothing was trained or written then.
            GraftworkError: for what can only be seen while running.
        """
        data = dict(self.document.data) if seed is None else {**self.document.data, "seed": seed}
        if stages is not None:
            _keep(data, list(stages))
        where = pick_device(device)
        plan = assemble(replace(self.document, data=data), self.registry)
        run = Run(Path(out) if out is not None else None, plan.name, plan.seed, where, data, observer, self.registry.hooks)
        try:
            models = _Execution(plan, run).stages()
        except BaseException:
            run.finish("failed")
            raise
        if run.path is not None:
            from graftwork.report import write_page

            write_page(run.path)
        run.finish()
        metrics = {f"{stage}/{name}": value for stage, found in run.results.items() for name, value in found.items()}
        return Result(metrics, models, run.path, run)


def _keep(data: dict[str, Any], wanted: list[str]) -> None:
    """Cut a pipeline to some stages and what they take from; its claim goes."""
    stages = data.get("stages") or {}
    unknown = [name for name in wanted if name not in stages]
    if unknown:
        raise GraftworkError(f"there is no stage {', '.join(unknown)}; the pipeline has {', '.join(stages)}")
    kept = set(wanted).union(*(stages_behind(stages, name) for name in wanted))
    data["stages"] = {name: stage for name, stage in stages.items() if name in kept}
    data.pop("claim", None)


class _Execution:
    """Runs a plan's stages in order, handing each what it takes from earlier ones."""

    def __init__(self, plan: Plan, run: Run):
        self.plan, self.run = plan, run
        self.models: dict[str, Any] = {}

    def stages(self) -> dict[str, Any]:
        """Run them all; give stage -> model."""
        for index, stage in enumerate(self.plan.stages.values()):
            self.run.observer.stage_started(stage.name, index, len(self.plan.stages))
            started = time.perf_counter()
            self._run(stage)
            self.run.timings[stage.name] = round(time.perf_counter() - started, 3)
            self.run.observer.stage_finished(stage.name, self.run.results.get(stage.name, {}))
        return self.models

    def _build(self, part: Part) -> Any:
        return build(part, self._fetch, self.run.device)

    def _fetch(self, part: From) -> Any:
        stage = self.plan.stages[part.stage]
        if part.kind == "dataset":
            return stage.data
        if part.kind == "model":
            return _to(self.models[part.stage], self.run.device)
        return self._artifact(part)

    def _artifact(self, part: From) -> artifact.Artifact:
        """An artifact that an evaluator of an earlier stage reported, by its name or "label/name"."""
        found = {
            key: made
            for label, report in self.run.reports.get(part.stage, {}).items()
            for name, made in report.artifacts.items()
            for key in (name, f"{label}/{name}")
        }
        if part.name not in found:
            raise GraftworkError(f'stage "{part.stage}" made no artifact "{part.name}"; it made {", ".join(found) or "none"}')
        return found[part.name]

    def _run(self, stage: Stage) -> None:
        run = self.run
        seed = run.seed + stage.seed
        run.observer.phase(stage.name, "model")
        seed_everything(seed)
        if stage.dataset is not None and stage.data is None:
            stage.data = self._build(stage.dataset)
        model = None
        if stage.model is not None:
            model = self._build(stage.model)
            if stage.objective is not None and isinstance(stage.model, From):
                model = copy.deepcopy(model)  # training must not change the earlier stage's
        if stage.objective is not None:
            model = self._train(stage, model)
            run.save_model(stage.name, model)
        if stage.guidance is not None:
            run.observer.phase(stage.name, "sample")
            seed_everything(seed)
            run.save_samples(stage.name, self._build(stage.guidance).sample(model, stage.inputs))
        if model is not None:
            self.models[stage.name] = model  # what it is evaluated with may take it
        for use in stage.evaluate:
            run.observer.phase(stage.name, use.label)
            seed_everything(seed)
            evaluator: Evaluator = self._build(use)
            report = evaluator.evaluate(model, stage.data if stage.data is not None else Dataset({}), run)
            run.add_report(stage.name, use.label, report, use.prefix)
        if model is not None:
            self.models[stage.name] = _to(model, torch.device("cpu"))

    def _train(self, stage: Stage, model: Any) -> Any:
        assert stage.objective is not None
        assert stage.train is not None
        assert stage.data is not None
        self.run.observer.phase(stage.name, "train")
        objective = self._build(stage.objective)
        engine = Engine(
            model,
            objective,
            stage.data,
            stage.train,
            seed=self.run.seed + stage.seed,
            device=self.run.device,
            validator=self._build(stage.validate) if stage.validate else None,
            log=lambda step, metrics: self.run.log(stage.name, step, metrics),
            tick=lambda step, total, metrics: self.run.observer.tick(stage.name, step, total, metrics),
            checkpoints=self.run.folder(stage.name, "checkpoints"),
        )
        return engine.fit()


def _to(model: Any, device: torch.device) -> Any:
    """A module or diffusers pipeline on a device; anything else as it is."""
    return model.to(device) if isinstance(model, nn.Module) or hasattr(model, "to") else model
