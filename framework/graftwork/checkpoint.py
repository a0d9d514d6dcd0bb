"""Checkpoints: everything that a training holds, in safetensors and JSON, each whole or absent, checked when it is read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from graftwork.errors import CheckpointError, GraftworkError
from graftwork.files import remove, replaced

__all__ = ["Checkpoints", "flatten", "load_state", "save_state", "sha256", "unflatten"]

STATE, TENSORS, MANIFEST = "state.json", "tensors.safetensors", "manifest.json"
STEP = re.compile(r"step-(\d+)")


def flatten(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split a tree of dicts, lists, tuples, numbers, text and tensors into what JSON holds and its tensors by name.

    Tensors that are one in memory stay one. `unflatten` gives the tree back, tuples, keys of any type and NumPy arrays included.

    Raises:
        CheckpointError: if something else stands in it; the message says where.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[Any, str] = {}

    def tensor(value: Tensor) -> str:
        same = (value.data_ptr(), value.dtype, value.shape, value.stride()) if value.numel() else object()
        if same not in names:
            names[same] = str(len(tensors))
            tensors[names[same]] = value.detach()
        return names[same]

    def plain(value: Any, place: str) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Tensor):
            return {"$tensor": tensor(value)}
        if isinstance(value, numpy.ndarray):
            held = value.astype(numpy.int64) if value.dtype == numpy.uint32 else value  # torch has no uint32 arithmetic
            return {"$array": tensor(torch.from_numpy(held)), "as": str(value.dtype)}
        if isinstance(value, numpy.generic):
            return value.item()
        if isinstance(value, Mapping):
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {key: plain(item, f"{place}.{key}") for key, item in value.items()}
            return {"$items": [[plain(key, place), plain(item, f"{place}.{key}")] for key, item in value.items()]}
        if isinstance(value, (list, tuple)):
            items = [plain(item, f"{place}.{index}") for index, item in enumerate(value)]
            return items if isinstance(value, list) else {"$tuple": items}
        raise CheckpointError(
            f"{place.lstrip('.') or 'the state'} is a {type(value).__name__}, which no checkpoint can hold: "
            "a state is made of tensors, numbers, text, lists, tuples and dicts"
        )

    return plain(tree, ""), tensors


def unflatten(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `flatten` was given."""
    if isinstance(plain, list):
        return [unflatten(item, tensors) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if "$tensor" in plain:
        return tensors[plain["$tensor"]]
    if "$array" in plain:
        return tensors[plain["$array"]].numpy().astype(plain["as"])
    if "$tuple" in plain:
        return tuple(unflatten(item, tensors) for item in plain["$tuple"])
    if "$items" in plain:
        return {unflatten(key, tensors): unflatten(item, tensors) for key, item in plain["$items"]}
    return {key: unflatten(item, tensors) for key, item in plain.items()}


def sha256(file: Path) -> str:
    """Hex SHA-256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_state(folder: Path, state: Any) -> None:
    """Write a state into a folder that is not there yet: beside its place first, renamed when it is whole and on the disk.

    Args:
        folder: a former one of that name is replaced.
        state: as `flatten` takes it.

    Raises:
        GraftworkError: if the disk refuses; what was written so far is taken away.
        CheckpointError: if the state holds what no checkpoint can hold.
    """
    plain, tensors = flatten(state)
    try:
        with replaced(folder) as beside:
            beside.mkdir()
            save_file(_apart(tensors), beside / TENSORS)
            (beside / STATE).write_text(json.dumps(plain), encoding="utf-8")
            sums = {name: sha256(beside / name) for name in (TENSORS, STATE)}
            (beside / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
            for file in beside.iterdir():
                _to_disk(file)
    except SafetensorError as error:
        raise GraftworkError(f"the checkpoint {folder} cannot be written: {error}") from None


def load_state(folder: Path) -> Any:
    """The state that `save_state` wrote, on the CPU.

    Raises:
        CheckpointError: if a file is missing or is not what was written; nothing is unpickled.
    """
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name in (TENSORS, STATE):
            if sha256(folder / name) != sums[name]:
                raise CheckpointError(f"{folder / name} is damaged: its SHA-256 is not that of the manifest")
        return unflatten(json.loads((folder / STATE).read_text(encoding="utf-8")), load_file(folder / TENSORS))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise CheckpointError(f"the checkpoint {folder} cannot be read: {reason}") from None


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU and contiguous, with views into one storage copied apart, which safetensors asks for."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        held = tensor.cpu().contiguous()
        storage = held.untyped_storage().data_ptr()
        found[name] = held.clone() if storage in seen and held.numel() else held
        seen.add(storage)
    return found


def _to_disk(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


class Checkpoints:
    """The checkpoints of one training: the newest few, and the best weights.

    Args:
        folder: holds `step-N` and `best`. None, in a process that does not write, keeps nothing.
        steps: one is due every so many steps; None goes by the clock.
        minutes: one is due when so many have passed since the last.
        keep: how many of the newest stay; with two, a damaged one has one before it.
        resume: go on from the newest sound one.
        mark: what the run wants kept with each, such as the length of its log; must be JSON.
        resumed: called with that mark, and the step, when training goes on from a checkpoint.
        warn: called with a sentence when a damaged one is passed over.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        steps: int | None = None,
        minutes: float | None = 5.0,
        keep: int = 2,
        resume: bool = False,
        mark: Callable[[], Any] = lambda: None,
        resumed: Callable[[Any, int], None] = lambda mark, step: None,
        warn: Callable[[str], None] = lambda text: None,
    ):
        self.folder, self.steps, self.minutes, self.keep, self.resume = folder, steps, minutes, keep, resume
        self._mark, self._resumed, self._warn = mark, resumed, warn
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether one is to be written after this step."""
        if self.steps is not None:
            return step % self.steps == 0
        return self.minutes is not None and time.monotonic() - self._last >= 60 * self.minutes

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write the checkpoint of a step; older ones than the newest `keep` go."""
        self._last = time.monotonic()
        if self.folder is not None:
            save_state(self.folder / f"step-{step:08d}", {"step": step, "mark": self._mark(), **state})
            self._prune()

    def latest(self) -> dict[str, Any] | None:
        """The newest sound checkpoint's state; None when there is none, or nothing is to be resumed.

        Raises:
            CheckpointError: if there are some and each is damaged.
        """
        if not self.resume:
            return None
        damaged = []
        for folder in self._newest_first():
            try:
                state: dict[str, Any] = load_state(folder)
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            for text in damaged:
                self._warn(f"{text}; going on from {folder.name}, the one before")
            self._resumed(state["mark"], state["step"])
            self._prune()
            return state
        if damaged:
            raise CheckpointError(
                "\n".join([*damaged, f"no sound checkpoint is left: remove {self.folder} to train this stage from its start"])
            )
        return None

    def save_best(self, state: Mapping[str, Any]) -> None:
        """Keep weights as the best so far."""
        if self.folder is not None:
            save_state(self.folder / "best", dict(state))

    def best(self) -> dict[str, Any] | None:
        """The best weights; None when none were kept.

        Raises:
            CheckpointError: if they are damaged.
        """
        if self.folder is None or not (self.folder / "best").exists():
            return None
        try:
            return load_state(self.folder / "best")  # type: ignore[no-any-return]
        except CheckpointError as error:
            raise CheckpointError(f"{error}; remove {self.folder} to train this stage from its start") from None

    def clear(self) -> None:
        """Take all of them away: training begins anew."""
        for folder in [*self._newest_first(), *([] if self.folder is None else [self.folder / "best"])]:
            remove(folder)

    def _prune(self) -> None:
        for old in self._newest_first()[self.keep :]:
            remove(old)

    def _newest_first(self) -> list[Path]:
        found = [path for path in self.folder.glob("step-*") if STEP.fullmatch(path.name)] if self.folder is not None else []
        return sorted(found, key=lambda path: path.name, reverse=True)
