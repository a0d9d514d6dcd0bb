"""What only built components can tell, before anything trains: that models offer what is needed, splits exist, samples have their keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from graftwork.document import KeyPath
from graftwork.errors import ConfigError, GraftworkError, nearest
from graftwork.feeds import feed_splits, missing_keys
from graftwork.interfaces import missing_members
from graftwork.kinds.dataset import Dataset
from graftwork.kinds.objective import Objective
from graftwork.plan import From, Load, Part, Stage, Use, build, parts_in, splits_of

__all__ = ["inspect_stages"]


def inspect_stages(stages: Mapping[str, Stage], report: Callable[[object, KeyPath], None]) -> None:
    """Build what can be built before training and hold it against what the stages ask of it; their `data` is filled in.

    Args:
        stages: in the order in which they run.
        report: called with each problem and its place.
    """
    inspection = _Inspection(stages, report)
    with torch.random.fork_rng(devices=[]):
        for stage in stages.values():
            inspection.look_at(stage)


class _NotYetError(Exception):
    """A reference to what training has yet to make, or to what is too dear to make twice."""


class _Inspection:
    """Builds parts to look at, models that are described alike once."""

    def __init__(self, stages: Mapping[str, Stage], report: Callable[[object, KeyPath], None]):
        self.stages, self._problem = stages, report
        self._models: dict[str, Any] = {}

    def look_at(self, stage: Stage) -> None:
        """Check one stage; those before it were looked at."""
        stage.data = self._try(stage.dataset)
        model = self._try(stage.model)
        exported = model
        if stage.objective is not None:
            objective = self._try(stage.objective)
            known = objective if objective is not None else stage.objective.target
            if hasattr(known, "feeds"):
                self._check_objective(stage, known, model)
            if not _exports_model(objective, known):
                exported = None  # what it hands on is known only after training
        for use in [*stage.evaluate, *([stage.validate] if stage.validate else [])]:
            self._check_evaluator(use, stage, exported)
        if stage.guidance is not None:
            self._check_needs(self._try(stage.guidance) or stage.guidance.target, exported, stage.guidance)

    def _try(self, part: Part | None) -> Any:
        """Build a part to look at, if it can be built before anything has trained; a problem becomes a Problem."""
        if part is None:
            return None
        try:
            return self._built(part)
        except _NotYetError:
            return None
        except GraftworkError as error:
            self._problem(error, part.path)
            return None

    def _built(self, part: Part) -> Any:
        if any(isinstance(one, Use) and one.registered.component.deferred for one in parts_in(part)):
            raise _NotYetError
        if isinstance(part, Use) and part.registered.kind == "model":
            key = _described(part)
            if key not in self._models:
                self._models[key] = build(part, self._fetch)
            return self._models[key]
        return build(part, self._fetch)

    def _fetch(self, part: From) -> Any:
        stage = self.stages[part.stage]
        if part.kind == "dataset" and stage.data is not None:
            return stage.data
        if part.kind == "model" and stage.objective is None and stage.model is not None:
            return self._built(stage.model)
        raise _NotYetError

    def _check_needs(self, user: Any, model: Any, use: Use) -> None:
        missing = missing_members(model, user.needs) if model is not None else []
        if missing:
            needs = user.needs.__name__
            self._problem(f"{use.title} needs a model that offers {needs}; {type(model).__name__} lacks {', '.join(missing)}", use.path)

    def _check_objective(self, stage: Stage, objective: Any, model: Any) -> None:
        assert stage.objective is not None
        assert stage.train is not None
        self._check_needs(objective, model, stage.objective)
        if stage.data is None:
            return
        path: KeyPath = ("stages", stage.name, "train", "feeds")
        splits, problems = feed_splits(objective, stage.data, stage.train.feeds)
        for message in problems:
            self._problem(message, path)
        for feed, split in splits.items():
            try:
                stage.train.batch_size_of(feed)
            except ConfigError as error:
                self._problem(error, ("stages", stage.name, "train", "batch_size"))
            if not problems:
                self._check_keys(objective.keys.get(feed, ()), model, stage.data, split, stage.objective, (*path, feed))

    def _check_evaluator(self, use: Use, stage: Stage, model: Any) -> None:
        evaluator = self._try(use)
        if evaluator is None:
            return
        self._check_needs(evaluator, model, use)
        if stage.data is None:
            return
        for split in self._known_splits(use, stage.data, splits_of(use)):
            if len(stage.data[split]):
                self._check_keys(evaluator.keys, model, stage.data, split, use, use.path)
        for inner in parts_in(use):  # what an inner evaluator leaves to its default, the outer one may set
            if inner is not use and isinstance(inner, Use) and inner.registered.kind == "evaluator":
                self._known_splits(inner, stage.data, [one for one in splits_of(inner) if one[0] in inner.values])

    def _known_splits(self, use: Use, data: Dataset, splits: Iterable[tuple[str, str]]) -> list[str]:
        """The splits, of (parameter, split), that the data has; the others are reported."""
        known = []
        for parameter, split in splits:
            if split in data:
                known.append(split)
            else:
                found = f'{parameter} is "{split}", which the dataset lacks{nearest(split, data)}; it has {", ".join(data)}'
                self._problem(found, (*use.path, parameter))
        return known

    def _check_keys(self, wanted: Any, model: Any, data: Dataset, split: str, use: Use, path: KeyPath) -> None:
        for key in missing_keys(wanted, model, data, split):
            self._problem(f'{use.title} reads "{key}"; the samples of "{split}" have {", ".join(data[split][0])}', path)


def _exports_model(objective: Any, known: Any) -> bool:
    """Whether a stage hands on its model as it is; an objective that could not be built yet is judged by its class."""
    if isinstance(objective, Objective):
        return objective.exports_model
    return getattr(known, "export", None) is Objective.export


def _described(part: Part) -> str:
    if isinstance(part, From):
        return f"from {part.stage}/{part.name}"
    if isinstance(part, Load):
        return f"load {part.folder}"
    shown = {name: _described(value) if isinstance(value, Part) else repr(value) for name, value in part.values.items()}
    return f"{part.registered.distribution}/{part.registered.name} {shown}"
