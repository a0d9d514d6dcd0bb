"""Running a plan: stage by stage, phase by phase, each remembered, so that nothing that was done is done again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from graftwork import artifact, processes
from graftwork.checkpoint import Checkpoints
from graftwork.engine import Engine
from graftwork.errors import GraftworkError
from graftwork.files import remove
from graftwork.kinds.dataset import Dataset
from graftwork.kinds.evaluator import Evaluator, Report
from graftwork.plan import From, Part, Plan, Stage, Use, build
from graftwork.profile import Profiles
from graftwork.randomness import preserved, seed_everything
from graftwork.record import StageRecord
from graftwork.reuse import StageCache
from graftwork.run import Run
from graftwork.usage import measured

__all__ = ["Execution", "Models"]


class Models(Mapping[str, Any]):
    """stage -> its model, as the stage hands it on. One that this process did not make is restored when it is asked for."""

    def __init__(self, execution: Execution):
        self._execution = execution
        self._stages = [stage.name for stage in execution.plan.stages.values() if stage.model is not None]

    def __getitem__(self, stage: str) -> Any:
        if stage not in self._stages:
            raise KeyError(stage)
        return self._execution.model(stage)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stages)

    def __len__(self) -> int:
        return len(self._stages)


class Execution:
    """Runs a plan's stages in order, handing each what it takes from earlier ones.

    Args:
        plan: what to run.
        run: where it is kept, and how far it has come.
        cache: finished stages of other runs, taken where nothing that they depend on has changed; None runs all.
        profile: write a profile of each phase.
    """

    def __init__(self, plan: Plan, run: Run, cache: StageCache | None = None, profile: bool = False):
        self.plan, self.run, self.cache = plan, run, cache
        self._profiles = Profiles(run, profile)
        self._models: dict[str, Any] = {}
        self._earlier = 0.0  # seconds that attempts before an interruption spent on the phase

    def stages(self) -> Models:
        """Run all that is not done yet; give stage -> model."""
        for index, stage in enumerate(self.plan.stages.values()):
            self.run.observer.stage_started(stage.name, index, len(self.plan.stages))
            record = self._record(stage)
            if record.finished:
                self._recall(stage, record)
            else:
                self._run(stage, record)
            self.run.observer.stage_finished(stage.name, self.run.results.get(stage.name, {}))
        return Models(self)

    def model(self, name: str) -> Any:
        """The model of a stage that is done, on the CPU."""
        if name not in self._models:
            stage = self.plan.stages[name]
            with preserved():  # the stage that asks must draw what it draws in an unbroken run
                seed_everything(self.run.seed + stage.seed)
                model = self._build_model(stage)
                model = model if stage.objective is None else self._train(stage, model, restore=True)
                self._models[name] = _to(model, torch.device("cpu"))
        return self._models[name]

    # -- what is done already --------------------------------------------------------------------------------------------------

    def _record(self, stage: Stage) -> StageRecord:
        """How far a stage has come, as the first process finds it."""
        found = processes.from_first(lambda: self._look(stage))
        self.run.records[stage.name] = found
        return found

    def _look(self, stage: Stage) -> StageRecord:
        """How far a stage has come: in this run's directory, else in another run's from which it is taken."""
        run = self.run
        folder = run.stage_folder(stage.name)
        found = StageRecord.load(folder) if folder is not None and run.resume else None
        if self.cache is not None and folder is not None:
            inputs = self.cache.describe(stage, run)
            if found is None:
                found = self.cache.take(stage.name, inputs, run) or StageRecord()
                found.inputs, found.keys = inputs, dict(self.cache.keys[stage.name])
        found = found or StageRecord()
        if found.finished and folder is not None and (damage := found.damage(folder)):
            raise GraftworkError(f"{damage}; remove {folder} and the stages after it, and go on with --resume to run them again")
        if found.phases:
            run.rewind(found.log_bytes, found.elapsed)
            run.log_begins = found.log_bytes
        return found

    def _recall(self, stage: Stage, record: StageRecord) -> None:
        """Take a finished stage's results and artifacts from disk; its dataset and model are built when somebody asks for them."""
        run = self.run
        run.results[stage.name] = dict(record.results)
        self._recall_reports(stage, record)
        if not record.taken_from:
            run.observer.note(stage.name, "was finished before")

    def _recall_reports(self, stage: Stage, record: StageRecord) -> None:
        run = self.run

        def load(label: str, names: list[str]) -> Mapping[str, artifact.Artifact]:
            folder = run.folder(stage.name, label)
            assert folder is not None
            return _sendable({name: artifact.Artifact.load(folder / name, run.device) for name in names})

        for label, names in record.artifacts.items():
            made = processes.from_first(partial(load, label, names))
            run.reports.setdefault(stage.name, {})[label] = Report(artifacts=made)

    # -- running ---------------------------------------------------------------------------------------------------------------

    def _run(self, stage: Stage, record: StageRecord) -> None:
        run = self.run
        run.results[stage.name] = dict(record.results)
        self._recall_reports(stage, record)
        with self._phase(stage, record, "model", again=True):
            model = self._build_model(stage)
        if stage.objective is not None:
            done = "train" in record.phases
            with self._phase(stage, record, "train", again=True):
                model = self._train(stage, model, restore=done)
                if not done:
                    run.save_model(stage.name, model)
        if model is not None:
            self._models[stage.name] = model  # what it is evaluated with may take it
        if stage.guidance is not None and "sample" not in record.phases:
            with self._phase(stage, record, "sample"):
                self._sample(stage, model)
        for use in stage.evaluate:
            if use.label not in record.phases:
                with self._phase(stage, record, use.label):
                    record.artifacts[use.label] = self._evaluate(stage, use, model)
        if model is not None:
            self._models[stage.name] = _to(model, torch.device("cpu"))
        folder = run.stage_folder(stage.name)
        if folder is not None:
            record.seal(folder)
            if self.cache is not None and record.keys == self.cache.keys[stage.name]:
                self.cache.offer(stage.name, record, folder, run)

    def _sample(self, stage: Stage, model: Any) -> None:
        """Sample in the first process; all get its figures."""
        assert stage.guidance is not None
        guidance = self._build(stage.guidance)
        if processes.is_first():
            with self._profiles.calls(stage.name, "sample"):
                samples = guidance.sample(model, stage.inputs)
            self.run.save_samples(stage.name, samples)
        self.run.results[stage.name] = processes.from_first(lambda: self.run.results[stage.name])

    def _evaluate(self, stage: Stage, use: Use, model: Any) -> list[str]:
        """Evaluate in the first process, which sees each sample once; all get the figures and artifacts, whose names are given."""
        run = self.run
        evaluator: Evaluator = self._build(use)
        data = self._data(stage)
        if processes.is_first():
            with self._profiles.calls(stage.name, use.label):
                report = evaluator.evaluate(model, Dataset({}) if data is None else data, run)
            run.add_report(stage.name, use.label, report, use.prefix)
        run.results[stage.name] = processes.from_first(lambda: run.results[stage.name])
        made = processes.from_first(lambda: _sendable(run.reports[stage.name][use.label].artifacts))
        if not processes.is_first():
            run.reports.setdefault(stage.name, {})[use.label] = Report(artifacts=made)
        return list(made)

    @contextmanager
    def _phase(self, stage: Stage, record: StageRecord, name: str, again: bool = False) -> Iterator[None]:
        """One phase: seeded, measured, and remembered when it ends; with `again` it is entered although it is done, to restore."""
        run = self.run
        done = name in record.phases
        folder = run.stage_folder(stage.name)
        if not done:
            run.observer.phase(stage.name, name)
            if folder is not None and run.resume and not again:
                remove(folder / ("samples" if name == "sample" else name))
        if name != "train":  # which goes on from where building the model has left the generators
            seed_everything(run.seed + stage.seed)
        started, before = run.log_begins, set(run.results.get(stage.name, {}))
        self._earlier = 0.0
        with measured(run.device) as usage:
            yield
        if done:
            return
        mark, results = processes.from_first(run.mark), run.results.get(stage.name, {})
        record.log_bytes, record.elapsed, record.results = int(mark["log_bytes"]), mark["elapsed"], dict(results)
        record.phases[name] = {
            **asdict(usage),
            "seconds": round(usage.seconds + self._earlier, 3),
            "log": [started, record.log_bytes],
            "results": [metric for metric in results if metric not in before],
        }
        run.log_begins = record.log_bytes
        if folder is not None:
            record.save(folder)

    def _build(self, part: Part) -> Any:
        return build(part, self._fetch, self.run.device)

    def _data(self, stage: Stage) -> Dataset | None:
        if stage.dataset is not None and stage.data is None:
            with preserved():  # it is built when somebody asks for it first, which must change nothing that is drawn
                seed_everything(self.run.seed + stage.seed)
                stage.data = self._build(stage.dataset)
        return stage.data

    def _fetch(self, part: From) -> Any:
        stage = self.plan.stages[part.stage]
        if part.kind == "dataset":
            return self._data(stage)
        if part.kind == "model":
            return _to(self.model(part.stage), self.run.device)
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

    def _build_model(self, stage: Stage) -> Any:
        """A stage's model before training; one of another stage that is trained here is a copy."""
        self._data(stage)
        if stage.model is None:
            return None
        model = self._build(stage.model)
        return copy.deepcopy(model) if stage.objective is not None and isinstance(stage.model, From) else model

    def _train(self, stage: Stage, model: Any, restore: bool) -> Any:
        """Train a stage's model; `restore` takes what the training ended with from its last checkpoint."""
        data = self._data(stage)
        assert data is not None
        with self._profiles.steps(stage.name, restore) as stepped:
            return self._engine(stage, model, data, restore, stepped).fit()

    def _engine(self, stage: Stage, model: Any, data: Dataset, restore: bool, stepped: Callable[[], None] | None) -> Engine:
        assert stage.objective is not None
        assert stage.train is not None
        return Engine(
            model,
            self._build(stage.objective),
            data,
            stage.train,
            seed=self.run.seed + stage.seed,
            device=self.run.device,
            validator=self._build(stage.validate) if stage.validate else None,
            log=None if restore else lambda step, metrics: self.run.log(stage.name, step, metrics),
            tick=lambda step, total, metrics: self.run.observer.tick(stage.name, step, total, metrics),
            checkpoints=self._checkpoints(stage, restore),
            stepped=stepped,
        )

    def _checkpoints(self, stage: Stage, restore: bool) -> Checkpoints | None:
        run, folder = self.run, self.run.folder(stage.name, "checkpoints")
        if stage.train is None or not processes.from_first(lambda: folder is not None):
            return None

        def resumed(mark: Mapping[str, float], step: int) -> None:
            if not restore:
                self._earlier = mark["elapsed"] - run.records[stage.name].elapsed
                run.rewind(int(mark["log_bytes"]), mark["elapsed"])
                run.observer.note(stage.name, f"goes on from its checkpoint of step {step}")

        when = stage.train.checkpoint
        return Checkpoints(
            folder,
            steps=when.steps,
            minutes=when.minutes,
            keep=when.keep,
            resume=run.resume or restore,
            mark=run.mark,
            resumed=resumed,
            warn=lambda text: run.observer.note(stage.name, text),
        )


def _sendable(artifacts: Mapping[str, artifact.Artifact]) -> Mapping[str, artifact.Artifact]:
    """Artifacts as other processes can be handed them: with their tensors in memory, where there are others."""
    if processes.count() == 1:
        return artifacts
    return {name: replace(made, tensors={key: made.tensors[key].cpu() for key in made.tensors}) for name, made in artifacts.items()}


def _to(model: Any, device: torch.device) -> Any:
    """A module or diffusers pipeline on a device; anything else as it is."""
    return model.to(device) if isinstance(model, nn.Module) or hasattr(model, "to") else model
