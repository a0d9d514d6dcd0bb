"""What is costly to generate is kept on disk: one safetensors file for each set of parameters, whole or absent.

The folder is `$GRAFTWORK_CACHE`, or the user's cache folder as the platform has it (`~/.cache/graftwork` on Linux).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_cache_dir
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["cache_folder", "cached"]

VERSION = 1
"""Of the layout of the files; another version's are made anew."""

logger = logging.getLogger(__name__)


class _UnusableError(Exception):
    """A cached file that is damaged, or of another version."""


def cache_folder() -> Path:
    """Where generated data are kept; it may not exist yet."""
    return Path(os.environ.get("GRAFTWORK_CACHE") or user_cache_dir("graftwork"))


def cached(name: str, key: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that `make` gives, from disk where an earlier call with the same name and key has left them.

    A file that is damaged (each is checked against its SHA-256) or of another version is made anew, and a warning is logged that
    says so. Of processes that want the same at once, one makes it and the others wait. Where the folder cannot be written, the
    tensors are made in memory, with a warning.

    Args:
        name: of the data set; a folder in the cache.
        key: everything that the tensors depend on, as JSON can hold it, the version of the code that makes them included.
        make: gives the tensors, by name.
    """
    described = json.dumps({"version": VERSION, **key}, sort_keys=True)
    path = cache_folder() / name / f"{hashlib.sha256(described.encode()).hexdigest()[:20]}.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if path.exists():
                try:
                    return _read(path, described)
                except _UnusableError as error:
                    logger.warning("%s is made anew: the cached file %s", path, error)
            tensors = make()
            _write(path, tensors, described)
            return tensors
    except OSError as error:
        logger.warning("%s cannot be kept in %s (%s); it is made in memory", name, path.parent, error.strerror or error)
        return make()


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
    """Write beside and rename, so that a reader sees the whole file or none."""
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    os.close(descriptor)
    try:
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, beside, metadata={"key": described, "sha256": _digest(contiguous)})
        os.replace(beside, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        Path(beside).unlink(missing_ok=True)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(memoryview(tensors[name].numpy()).cast("B"))
    return digest.hexdigest()
