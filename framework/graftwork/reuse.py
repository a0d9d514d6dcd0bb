"""Stages that another run has finished, found by the content of all that they depend on; the runs themselves are the store."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from filelock import FileLock

from graftwork.checkpoint import sha256
from graftwork.document import flat
from graftwork.errors import GraftworkError
from graftwork.files import cache_folder, replaced, write_text
from graftwork.plan import From, Part, Stage, Use, parts_in
from graftwork.record import StageRecord
from graftwork.run import VERSIONS_OF, Run

__all__ = ["StageCache", "changes", "flat", "phase_inputs"]

CANDIDATES = 8
"""Finished stages that are remembered for one training."""

SMALL = 64 * 2**20
"""Files up to this size are known by their bytes, larger ones by size and time."""

Inputs = dict[str, dict[str, Any]]
"""phase -> what it depends on -> value or digest."""


def phase_inputs(stage: Stage, run: Run, keys: Mapping[str, Mapping[str, str]]) -> Inputs:
    """What each phase of a stage depends on; the first, "train", stands for dataset, model and training together.

    Args:
        stage: which.
        run: for seed, device and the configuration as it is run.
        keys: earlier stage -> phase -> key.
    """
    block = run.resolved["stages"][stage.name]
    common = {"stage": stage.name, "seed": run.seed + stage.seed, "device": run.device.type}

    def inputs(parts: Iterable[Part | None], **configuration: Any) -> dict[str, Any]:
        named = [part for part in parts if part is not None]
        found = {**common, **dict(flat(configuration))}
        found |= {f"distribution {name}": version for name, version in _versions(named).items()}
        found |= {f"file {path}": digest for path, digest in _files(configuration)}
        for part in (inner for outer in named for inner in parts_in(outer)):
            if isinstance(part, From) and part.stage != stage.name:
                found |= {f"stage {part.stage}": _key_behind(part, keys[part.stage])}
        return found

    trained = {name: block[name] for name in ("dataset", "model", "objective", "train") if name in block}
    first = inputs([stage.dataset, stage.model, stage.objective, stage.validate], **trained)
    phases = {"train": first}
    behind = {"training": _digest(first)}
    if stage.guidance is not None:
        phases["sample"] = {**inputs([stage.guidance], sample=block["sample"]), **behind}
    listed = block.get("evaluate", [])
    for index, use in enumerate(stage.evaluate):
        raw = listed[index] if isinstance(listed, list) else listed
        phases[use.label] = {**inputs([use], evaluate=raw), **behind, "after": ", ".join(one.label for one in stage.evaluate[:index])}
        own = [part.name for part in parts_in(use) if isinstance(part, From) and part.kind == "artifact" and part.stage == stage.name]
        phases[use.label] |= {f"artifact {name}": "of this stage" for name in own}
    return phases


def _key_behind(part: From, keys: Mapping[str, str]) -> str:
    """What a reference depends on: the training alone for a model or dataset, every phase for an artifact."""
    return keys["train"] if part.kind in ("dataset", "model") else _digest(dict(keys))


def changes(former: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two phases' inputs, each in words."""
    names = [name for name in dict.fromkeys([*now, *former]) if former.get(name) != now.get(name)]
    return [_change(name, former.get(name), now.get(name)) for name in names]


def _change(name: str, before: Any, after: Any) -> str:
    kind, _, rest = name.partition(" ")
    if kind == "stage" and rest:
        return f'stage "{rest}" is another'
    if kind == "file":
        return f"{rest} has other content"
    if before is None or after is None:
        return f"{name} is {after}" if before is None else f"{name} was {before}"
    return "the training is another" if name == "training" else f"{name} was {before} and is {after}"


class StageCache:
    """Finds finished stages in the directories of other runs.

    What it keeps itself is small: for each training the folders where it stands, and what each pipeline's stages last depended on.

    Args:
        folder: of that index.

    Attributes:
        keys: stage -> phase -> key, of the stages that were described.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder or cache_folder() / "stages"
        self.keys: dict[str, dict[str, str]] = {}

    def describe(self, stage: Stage, run: Run) -> Inputs:
        """What a stage depends on; its keys are known to the stages after it from here on."""
        inputs = phase_inputs(stage, run, self.keys)
        self.keys[stage.name] = {phase: _digest(found) for phase, found in inputs.items()}
        return inputs

    def take(self, stage: str, inputs: Inputs, run: Run) -> StageRecord | None:
        """Take over what another run has finished of a stage; None when nothing is to be had. The observer is told which, or why not."""
        keys = {phase: _digest(found) for phase, found in inputs.items()}
        best: tuple[list[str], StageRecord, Path] | None = None
        for folder in self._known(keys["train"]):
            found = self._sound(folder, run, stage)
            if found is None:
                continue
            equal = [phase for phase in ("train", *found.phases) if phase in keys and found.keys.get(phase) == keys[phase]]
            if "train" in equal and (best is None or len(equal) > len(best[0])):
                best = (list(dict.fromkeys(equal)), found, folder)
        if best is None:
            self._say_why(stage, inputs, run)
            return None
        equal, found, folder = best
        return _adopt(stage, [phase for phase in keys if phase in equal], found, folder, run, whole=set(equal) == set(keys))

    def offer(self, stage: str, record: StageRecord, folder: Path, run: Run) -> None:
        """Remember where a finished stage stands; a cache that cannot be written is told of and changes nothing."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):
                known = [str(one) for one in self._known(record.keys["train"]) if one != folder.resolve()]
                entry = self.folder / f"{record.keys['train']}.json"
                write_text(entry, json.dumps([*known, str(folder.resolve())][-CANDIDATES:]))
                write_text(self._last(run, stage), json.dumps(record.inputs))
        except (OSError, GraftworkError) as error:
            run.observer.note(stage, f"is not remembered for other runs: {error}")

    def _known(self, key: str) -> list[Path]:
        return [Path(one) for one in _json(self.folder / f"{key}.json") or []]

    def _last(self, run: Run, stage: str) -> Path:
        return self.folder / "last" / _digest({"pipeline": run.name, "stage": stage})

    def _sound(self, folder: Path, run: Run, stage: str) -> StageRecord | None:
        """The record of a finished stage whose files are as they were written."""
        try:
            found = StageRecord.load(folder)
        except GraftworkError:
            return None
        if found is None or not found.finished:
            return None
        if damage := found.damage(folder):
            run.observer.note(stage, f"is not taken from {folder}: {damage}")
            return None
        return found

    def _say_why(self, stage: str, inputs: Inputs, run: Run) -> None:
        former = _json(self._last(run, stage))
        if former:
            reasons = changes(former.get("train", {}), inputs["train"])
            if reasons:
                run.observer.note(stage, f"runs: {'; '.join(reasons)}")


def _adopt(stage: str, phases: list[str], found: StageRecord, folder: Path, run: Run, whole: bool) -> StageRecord:
    """Link or copy a stage's files, and its rows of the log, into a run."""
    into = run.stage_folder(stage)
    assert into is not None
    names = ["model", "train", *(phase for phase in phases if phase != "train")]
    outside = {"samples" if phase == "sample" else phase for phase in found.phases if phase not in names}
    kept = {path: digest for path, digest in found.sums.items() if path.partition("/")[0] not in outside}
    with replaced(into) as beside:
        beside.mkdir()
        for path in kept:
            _link(folder / path, beside / path)
    log = folder.parent.parent / "metrics.jsonl"
    rows = log.read_bytes() if log.is_file() else b""
    record = StageRecord(keys={}, inputs={}, taken_from=str(folder))
    for name in (name for name in names if name in found.phases):
        phase = found.phases[name]
        start, end = phase["log"]
        before = int(run.mark()["log_bytes"])
        run.adopt_rows(rows[start:end])
        record.phases[name] = {**phase, "log": [before, int(run.mark()["log_bytes"])]}
        record.results |= {metric: found.results[metric] for metric in phase["results"]}
        if name in found.artifacts:
            record.artifacts[name] = found.artifacts[name]
    record.log_bytes, record.elapsed = int(run.mark()["log_bytes"]), run.elapsed
    record.finished, record.sums = whole, kept if whole else {}
    record.save(into)
    parts = ", ".join(name for name in names if name in record.phases)
    whole_or_part = "is taken from" if whole else f"runs what is new; {parts} come from"
    run.observer.note(stage, f"{whole_or_part} {folder}: nothing that it depends on has changed")
    return record


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the system has none: files of runs are replaced and never written to."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _digest(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def _files(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(path, digest) of every file and folder that a configuration names."""
    if isinstance(value, (dict, list)):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _files(item, str(name))
    elif isinstance(value, str) and (key == "load" or "/" in value or os.sep in value):
        path = Path(value).expanduser()
        if path.is_file():
            yield value, _file_digest(path, by_content=True)
        elif path.is_dir():
            inside = [one for one in sorted(path.rglob("*")) if one.is_file()]
            yield value, _digest({one.relative_to(path).as_posix(): _file_digest(one, by_content=False) for one in inside})


def _file_digest(path: Path, by_content: bool) -> str:
    about = path.stat()
    return sha256(path) if by_content and about.st_size <= SMALL else f"{about.st_size} bytes of {about.st_mtime_ns}"


def _versions(parts: Iterable[Part]) -> dict[str, str]:
    """name -> version, of the distributions that parts come from, what those require, and what every run uses."""
    used = [inner.registered for part in parts for inner in parts_in(part) if isinstance(inner, Use)]
    owners = {one.distribution: one.component.target for one in used}
    found = {name: version for name in ("graftwork", *VERSIONS_OF) if (version := _version(name, name))}
    for name, target in owners.items():
        found |= _with_requirements(name, re.split(r"[.:]", target)[0])
    return dict(sorted(found.items()))


@functools.cache
def _with_requirements(name: str, package: str) -> dict[str, str]:
    found = {name: _version(name, package)}
    about = _metadata(name)
    for requirement in about.requires or [] if about else []:
        needed = re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()
        if needed.startswith("graftwork-") and "extra ==" not in requirement:
            found |= _with_requirements(needed, needed.replace("-", "_"))
        elif version := _version(needed, ""):
            found[needed] = version
    return found


def _metadata(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


@functools.cache
def _version(name: str, package: str) -> str:
    """A distribution's version; "" when it is not installed. Of one that is installed in place, also a digest of its code."""
    found = _metadata(name)
    if found is None:
        return ""
    installed_from = json.loads(found.read_text("direct_url.json") or "{}")
    if not installed_from.get("dir_info", {}).get("editable"):
        return found.version
    spec = importlib.util.find_spec(package) if package else None
    places = spec.submodule_search_locations or [] if spec else []
    code = {str(file.relative_to(place)): sha256(file) for place in places for file in sorted(Path(place).rglob("*.py"))}
    return f"{found.version}, code {_digest(code)[:12]}"
