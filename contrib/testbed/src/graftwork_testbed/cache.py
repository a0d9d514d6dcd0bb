"""What is costly to generate is kept on disk: one safetensors file for each set of parameters, whole or absent.

The folder is `$GRAFTWORK_CACHE`, or the user's cache folder as the platform has it (`~/.cache/graftwork` on Linux).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from graftwork.files import cache_folder

__all__ = ["cache_folder", "cached"]

VERSION = 1
"""Of the layout of the files; another version's are made anew."""

logger = logging.getLogger(__name__)


class _UnusableError(Exception):
    """A cached file that is damaged, or of another version."""


def cached(name: str, key: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that `make` gives, from disk where an earlier call with the same name and key has left them.

    A file that is damaged (each is checked against its SHA-256) or of another version is made anew, and a warning is logged that
    says so. Of processes that want the same at once, one makes it and the others wait. A folder that cannot be written still
    serves what it holds; what it lacks is made in memory, with a warning. What `make` raises passes, and nothing is kept.

    Args:
        name: of the data set; a folder in the cache.
        key: everything that the tensors depend on, the version of the code that makes them included, as JSON can hold it; numpy's
            numbers pass for Python's.
        make: gives the tensors, by name.

    Raises:
        ValueError: if the key holds "version", which is the cache's own.
    """
    if "version" in key:
        raise ValueError('the key of cached data may not hold "version", which is the cache\'s own; call it after what it is of')
    described = json.dumps({"version": VERSION, **key}, sort_keys=True, default=lambda number: number.item())
    path = cache_folder() / name / f"{hashlib.sha256(described.encode()).hexdigest()[:20]}.safetensors"
    with contextlib.suppress(OSError, _UnusableError):  # no lock: a file is whole from the moment that it has its name
        return _read(path, described)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # filelock's word for a file system without locks
        _warn_not_kept(name, path, error)
        return make()
    try:
        return _read_or_make(name, path, described, make)
    finally:
        lock.release()


def _read_or_make(name: str, path: Path, described: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """With the lock held: what another process has left meanwhile, or what `make` gives."""
    try:
        return _read(path, described)
    except FileNotFoundError:
        pass
    except _UnusableError as error:
        logger.warning("%s is made anew: the cached file %s", path, error)
    except OSError as error:
        logger.warning("%s is made anew: the cached file cannot be read (%s)", path, error.strerror or error)
    tensors = make()
    try:
        _write(path, tensors, described)
    except (OSError, SafetensorError) as error:
        _warn_not_kept(name, path, error)
    return tensors


def _warn_not_kept(name: str, path: Path, error: Exception) -> None:
    logger.warning("%s cannot be kept in %s (%s); it is made in memory", name, path.parent, getattr(error, "strerror", None) or error)


def _read(path: Path, described: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("key") != described:
                raise _UnusableError("is of another version")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a safetensors file is no mapping
    except SafetensorError as error:
        raise _UnusableError(f"is damaged ({error})") from None
    if _digest(tensors) != header.get("sha256"):
        raise _UnusableError("is damaged (its checksum is wrong)")
    return tensors


def _write(path: Path, tensors: dict[str, Tensor], described: str) -> None:
    """With the lock held: write beside and rename, so that a reader sees the whole file or none."""
    for left in path.parent.glob(f"{path.stem}*.part"):  # by a process that was killed: the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    apart = _apart(tensors)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.stem}-", suffix=".part") as beside:
        whole = Path(beside) / path.name
        save_file(apart, whole, metadata={"key": described, "sha256": _digest(apart)})
        shutil.copymode(path.with_suffix(".lock"), whole)  # as the user's umask has it; safetensors leaves 0600, which no one can share
        os.replace(whole, path)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous, and none in another's memory, which safetensors refuses."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.contiguous()
        storage = own.untyped_storage()
        if storage.nbytes() != own.nbytes or storage.data_ptr() in taken:
            own = own.clone()
        taken.add(own.untyped_storage().data_ptr())
        found[name] = own
    return found


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
