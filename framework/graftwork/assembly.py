"""From a document to stages that can run: every name, parameter, reference, split, key and interface is checked before anything trains."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic

from graftwork import config
from graftwork.artifact import Artifact
from graftwork.document import Document, KeyPath
from graftwork.errors import GraftworkError, PipelineError, Problem, nearest
from graftwork.inspection import inspect_stages
from graftwork.plan import From, Load, Part, Plan, Stage, Use, splits_of
from graftwork.record import RECORD
from graftwork.registry import Registered, Registry
from graftwork.space import MOST, Distribution, assignment, candidates, count
from graftwork.spec import Claim, PipelineSpec, StageSpec, SweepSpec

__all__ = ["assemble", "stages_behind"]

NAME = re.compile(r"(?!.*\.part$)[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
"""Of a stage or an evaluator: a folder on every system, and none of those that are swept away when a run goes on."""

NAMED = "letters, digits, '_', '-' and '.', at most 100, and does not end in \".part\""
RESERVED = ("model", "train", "sample", "samples", "checkpoints", RECORD)


def assemble(document: Document, registry: Registry) -> Plan:
    """Check a document whole.

    Raises:
        PipelineError: with every problem found, each at its place.
    """
    return _Assembly(document, registry).plan()


class _Assembly:
    """Collects problems while it turns a document into a plan."""

    def __init__(self, document: Document, registry: Registry):
        self.document, self.registry = document, registry
        self.problems: list[Problem] = []
        self.stages: dict[str, Stage] = {}

    def plan(self) -> Plan:
        """The plan, or PipelineError."""
        spec = self._spec()
        self.stages = {name: self._stage(name, block) for name, block in spec.stages.items()}
        if not self.problems:  # what follows builds things, and would repeat what is known
            inspect_stages(self.stages, self._problem)
        self._claim(spec.claim)
        self._sweep(spec.sweep)
        self._stop_if_any()
        return Plan(spec.name, spec.seed, self.stages, spec.claim)

    def _stop_if_any(self) -> None:
        if self.problems:
            order = {problem: self.document.places.get(problem.path, (10**9, 0)) for problem in self.problems}
            raise PipelineError(sorted(dict.fromkeys(self.problems), key=order.__getitem__))

    def _problem(self, message: object, path: KeyPath) -> None:
        self.problems.append(self.document.problem(str(message), path))

    # -- the document's shape --------------------------------------------------------------------------------------------------

    def _spec(self) -> PipelineSpec:
        """The document as a spec. Blocks that are wrong are reported and left out, so that the rest is checked all the same."""
        data = self.document.data
        while True:
            try:
                return PipelineSpec.model_validate(data)
            except pydantic.ValidationError as error:
                known = [info.alias or name for name, info in PipelineSpec.model_fields.items()]
                found = [(self._existing(one.path), one.message) for one in config.problems_of(error, known, "key")]
                for path, message in found:
                    self._problem(message, path)
                smaller = _without(data, [path for path, _ in found])
                if smaller is None:
                    self._stop_if_any()
                    raise AssertionError("unreachable") from error
                data = smaller

    def _existing(self, path: KeyPath) -> KeyPath:
        """The part of a path that the document has: pydantic adds the names of union members."""
        here: Any = self.document.data
        for depth, step in enumerate(path):
            if _has(here, step):
                here = here[step]
            elif depth + 1 < len(path):
                return self._existing((*path[:depth], *path[depth + 1 :]))
            else:
                return path[:depth]
        return path

    def _stage(self, name: str, spec: StageSpec) -> Stage:
        path: KeyPath = ("stages", name)
        stage = Stage(name, spec.seed, train=spec.train)
        if not NAME.fullmatch(name):
            self._problem(f"a stage's name is {NAMED}; it names a folder", path)
        raw = {key: value for key, value in (self.document.data["stages"].get(name) or {}).items() if value is not None}
        if not raw:
            self._problem("the stage is empty; it needs a dataset, a model, an objective, `sample` or `evaluate`", path)
        stage.dataset = self._part(spec.dataset, "dataset", (*path, "dataset"))
        stage.model = self._part(spec.model, "model", (*path, "model"))
        objective = self._part(spec.objective, "objective", (*path, "objective"))
        stage.objective = objective if isinstance(objective, Use) else None
        if isinstance(objective, From):
            self._problem("an objective belongs to its stage and cannot be taken from another", objective.path)
        for part, needed in (("objective", ("train", "model", "dataset")), ("train", ("objective",)), ("sample", ("model",))):
            for other in needed if part in raw else ():
                if other not in raw:
                    self._problem(f"a stage with `{part}` needs `{other}`", (*path, part))
        if spec.train is not None and spec.train.validate_ is not None:
            stage.validate = self._validation(spec.train.validate_.evaluate, (*path, "train", "validate", "evaluate"))
        if spec.sample is not None:
            guidance = self._part(spec.sample.guidance, "guidance", (*path, "sample", "guidance"))
            stage.guidance, stage.inputs = guidance if isinstance(guidance, Use) else None, spec.sample.inputs
        stage.evaluate = self._evaluators(spec.evaluate, (*path, "evaluate"))
        return stage

    def _validation(self, value: Any, path: KeyPath) -> Use | None:
        part = self._part(value, "evaluator", path)
        if not isinstance(part, Use):
            return None
        for parameter, split in splits_of(part):
            if split.rpartition("/")[2] == "test":
                self._problem(f'weights are selected on a validation split, never on a test split; `{parameter}` is "{split}"', path)
        return part

    def _evaluators(self, value: Any, path: KeyPath) -> list[Use]:
        found: list[Use] = []
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            here = (*path, index) if isinstance(value, list) else path
            label = None
            if isinstance(item, dict) and "as" in item:
                label = item["as"]
                item = {key: inner for key, inner in item.items() if key != "as"}
                if not isinstance(label, str) or not NAME.fullmatch(label):
                    self._problem(f"`as` is a label of {NAMED}; found {config.shown(label)}", (*here, "as"))
                    continue
                if label in RESERVED:
                    self._problem(f'`as` cannot be "{label}", which names something else in the stage\'s folder', (*here, "as"))
                    continue
            part = self._part(item, "evaluator", here)
            if isinstance(part, Use):
                shown = label or part.registered.name
                if any(shown == other.label for other in found):
                    self._problem(f'"{shown}" stands twice in this stage: give each a label of its own with `as: LABEL`', here)
                found.append(Use(part.registered, part.values, part.path, shown, f"{label}/" if label else ""))
        return found

    # -- components and references ---------------------------------------------------------------------------------------------

    def _part(self, value: Any, kind: str, path: KeyPath) -> Part | None:
        if value is None:
            return None
        if isinstance(value, str):
            value = {"use": value}
        ways = ("from", "load") if kind == "artifact" else ("use", "from")
        if not isinstance(value, dict) or len(set(ways) & set(value)) != 1:
            options = "" if kind == "artifact" else "a name, or "
            asked = f"{'an' if kind[0] in 'aeo' else 'a'} {kind} is {options}a mapping with either `{'` or `'.join(ways)}`"
            self._problem(f"{asked}; found {config.shown(value)}", path)
            return None
        if "from" in value:
            return self._from(value, kind, path)
        if kind == "artifact":
            return self._load(value, path)
        if not isinstance(value["use"], str):
            self._problem(f"`use` names a component; found {config.shown(value['use'])}", (*path, "use"))
            return None
        try:
            registered = self.registry.find(kind, value["use"])
            return self._use(registered, {key: item for key, item in value.items() if key != "use"}, path)
        except GraftworkError as error:
            self._problem(error, (*path, "use") if (*path, "use") in self.document.places else path)
            return None

    def _load(self, value: dict[str, Any], path: KeyPath) -> Load | None:
        folder = value["load"]
        if len(value) > 1 or not isinstance(folder, str):
            self._problem(f"`load` names the folder of an artifact, and nothing else stands beside it; found {config.shown(value)}", path)
            return None
        try:
            Artifact.load(Path(folder))
        except GraftworkError as error:
            self._problem(error, (*path, "load"))
            return None
        return Load(Path(folder), path)

    def _use(self, registered: Registered, given: dict[str, Any], path: KeyPath) -> Use | None:
        target = registered.load()
        known = config.parameters(target)
        before = len(self.problems)
        for name, value in given.items():
            parameter = known.get(name)
            if parameter is not None and parameter.reference:
                given = {**given, name: self._references(value, parameter.reference, (*path, name))}
        if len(self.problems) > before:
            return None
        values, invalid = config.validate(target, given)
        for one in invalid:
            self._problem(one.message, self._existing((*path, *one.path)))
        return None if invalid else Use(registered, values, path)

    def _references(self, value: Any, kind: str, path: KeyPath) -> Any:
        """References in a parameter's value: one, a list, or a mapping of names to them."""
        if isinstance(value, list):
            return [self._references(item, kind, (*path, index)) for index, item in enumerate(value)]
        if isinstance(value, dict) and not config.REFERENCE_KEYS & set(value):
            return {key: self._references(item, kind, (*path, key)) for key, item in value.items()}
        return self._part(value, kind, path) if isinstance(value, (str, dict)) else value

    def _from(self, value: dict[str, Any], kind: str, path: KeyPath) -> From | None:
        stage, slash, name = str(value["from"]).partition("/")
        order = list(self.document.data["stages"])
        here = str(path[1])
        extra = [key for key in value if key != "from"]
        problem = ""
        if extra:
            problem = f"beside `from` nothing else stands; found {', '.join(extra)}"
        elif stage not in order:
            earlier = ", ".join(order[: order.index(here)]) or "none"
            problem = f'there is no stage "{stage}"{nearest(stage, order)}; the earlier stages are {earlier}'
        elif stage == here and (path[2] != "evaluate" or kind == "artifact"):
            problem = f'stage "{stage}" refers to itself; only what it evaluates with may take its own dataset and model'
        elif order.index(stage) > order.index(here):
            cycle = here in stages_behind(self.document.data["stages"], stage)
            problem = (
                f'"{stage}" and "{here}" take from each other: a cycle'
                if cycle
                else f'stage "{stage}" comes later; `from` takes an earlier stage\'s output'
            )
        elif kind == "artifact" and not slash:
            problem = f"an artifact is taken as `from: {stage}/NAME`"
        elif kind in ("dataset", "model") and not slash and not _has_part(self.document.data["stages"][stage], kind):
            problem = f'stage "{stage}" has no {kind}'
        elif kind not in ("dataset", "model", "artifact"):
            problem = f"{kind} cannot be taken from a stage: only datasets, models and artifacts can"
        if problem:
            self._problem(problem, (*path, "from"))
            return None
        return From(kind, stage, name, path)

    def _claim(self, claim: Claim | None) -> None:
        for comparison in claim.comparisons if claim else ():
            for side in ("method", "baseline"):
                stage = getattr(comparison, side).partition("/")[0]
                if stage not in self.stages:
                    hint = f"{nearest(stage, self.stages)}; it has {', '.join(self.stages)}"
                    self._problem(f'{side} names stage "{stage}", which the pipeline lacks{hint}', ("claim", "compare"))

    def _sweep(self, sweep: SweepSpec | None) -> None:
        """Every value that a sweep tries is checked by itself as if it stood in its place; nothing is built."""
        if sweep is None:
            return
        for name, metric in (("metric", sweep.metric), ("stop", sweep.stop.metric if sweep.stop else None)):
            stage = metric.partition("/")[0] if metric else None
            if stage is not None and stage not in self.stages:
                self._problem(f'there is no stage "{stage}"{nearest(stage, self.stages)}; it has {", ".join(self.stages)}', ("sweep", name))
        if (asked := count(sweep)) > MOST:
            self._problem(f"the sweep has {asked} settings; one has at most {MOST}", ("sweep",))
        if sweep.trials is not None and not sweep.space:
            self._problem("`trials` counts the draws from `space`, and there is none; of a grid every point is run", ("sweep", "trials"))
        for key in (*sweep.grid, *sweep.space):
            self._swept_key(key, sweep)
        for key, text in sweep.space.items():
            try:
                Distribution.parse(text)
            except GraftworkError as error:
                self._problem(error, ("sweep", "space", key))
        if not self.problems:
            for place, key, value in candidates(sweep):
                for message in self._tried(key, value):
                    self._problem(message, ("sweep", *place))

    def _swept_key(self, key: str, sweep: SweepSpec) -> None:
        block = "grid" if key in sweep.grid else "space"
        parts = key.split(".")
        if key in sweep.grid and key in sweep.space:
            self._problem("the key stands in the grid and in the space; name it once", ("sweep", "space", key))
        if block == "grid" and not sweep.grid[key]:
            self._problem("the list of values is empty", ("sweep", block, key))
        if parts[0] != "stages" or len(parts) < 3:
            advice = "; how often each setting is run is `sweep.seeds`" if key == "seed" else ""
            self._problem(f"a key that is swept is written stages.STAGE.key{advice}", ("sweep", block, key))
        elif parts[1] not in self.document.data["stages"]:
            self._problem(f'there is no stage "{parts[1]}"{nearest(parts[1], self.document.data["stages"])}', ("sweep", block, key))

    def _tried(self, key: str, value: Any) -> list[str]:
        """What is wrong with the pipeline when one value of it is another."""
        changed = Document(copy.deepcopy(self.document.data), self.document.source)
        del changed.data["sweep"]
        trial = _Assembly(changed, self.registry)
        try:
            changed.override([assignment(key, value)])
            trial.stages = {name: trial._stage(name, block) for name, block in trial._spec().stages.items()}
            trial._stop_if_any()
        except PipelineError as error:
            return [f"{'.'.join(map(str, one.path))}: {one.message}" if one.path else one.message for one in error.problems]
        return []


def _has_part(stage: Any, kind: str) -> bool:
    return isinstance(stage, dict) and bool(stage.get(kind))


def _has(around: Any, step: Any) -> bool:
    return step in around if isinstance(around, dict) else isinstance(around, list) and isinstance(step, int) and step < len(around)


def stages_behind(stages: Mapping[str, Any], start: str) -> set[str]:
    """Names of the stages that a stage takes from, directly or not."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for target in _sources(stages.get(waiting.pop())):
            if target not in found:
                found.add(target)
                waiting.append(target)
    return found


def _sources(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "from" in value:
            yield str(value["from"]).partition("/")[0]
        for item in value.values():
            yield from _sources(item)
    elif isinstance(value, list):
        for item in value:
            yield from _sources(item)


def _without(data: dict[str, Any], paths: list[KeyPath]) -> dict[str, Any] | None:
    """The data less the values at some paths; None when nothing that can be checked is left."""
    smaller = copy.deepcopy(data)
    changed = False
    for whole in paths:
        block = next((end for end, step in enumerate(whole[:3], 1) if step in ("train", "sample", "claim", "sweep")), len(whole))
        path = whole[:block]  # half a block would be reported for what it lacks
        around: Any = smaller
        for step in path[:-1]:
            around = around[step] if isinstance(around, dict) and step in around else None
        if isinstance(around, dict) and path and path[-1] in around:
            del around[path[-1]]
            changed = True
    return smaller if changed and smaller.get("stages") else None
