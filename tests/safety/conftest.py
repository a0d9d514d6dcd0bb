"""Traps: pickles that leave a mark when they are sprung, and a watch over what a process writes and starts."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


@dataclass
class Traps:
    """Writes files that spring when they are unpickled.

    Args:
        mark: exists once one was sprung.
    """

    mark: Path

    @property
    def sprung(self) -> bool:
        return self.mark.exists()

    def plant(self, path: Path) -> Path:
        """A trap under a name, in the form that its suffix asks for."""
        path.parent.mkdir(parents=True, exist_ok=True)
        objects = np.empty(1, dtype=object)
        objects[0] = Trap(self.mark)
        if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
            torch.save({"weight": Trap(self.mark)}, path)
        elif path.suffix == ".npy":
            np.save(path, objects, allow_pickle=True)
        elif path.suffix == ".npz":
            np.savez(path, data=objects, allow_pickle=True)
        elif path.suffix == ".joblib":
            pytest.importorskip("joblib").dump(Trap(self.mark), path)
        else:
            path.write_bytes(pickle.dumps(Trap(self.mark)))
        return path


@pytest.fixture
def traps(tmp_path: Path) -> Iterator[Traps]:
    found = Traps(tmp_path / "sprung")
    yield found
    assert not found.sprung, "a planted pickle was opened"


@dataclass
class Watch:
    """What was written, removed or started while it was on."""

    seen: list[str] = field(default_factory=list)
    on: bool = False
    allowed: tuple[str, ...] = ()

    @contextlib.contextmanager
    def over(self, *allowed: Path) -> Iterator[list[str]]:
        """Watch; what lies under `allowed` may be written."""
        self.seen, self.on, self.allowed = [], True, ("/dev/", sys.pycache_prefix or "/dev/", *(str(path) for path in allowed))
        try:
            yield self.seen
        finally:
            self.on = False

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        writes = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        changes = event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "shutil.rmtree", "os.truncate")
        starts = event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
        if starts or ((writes or changes) and not str(arguments[0]).startswith(self.allowed) and "__pycache__" not in str(arguments[0])):
            self.seen.append(f"{event} {arguments[0]}")


WATCH = Watch()
sys.addaudithook(WATCH.hear)  # an audit hook stays for good, so there is one


@pytest.fixture
def watch() -> Watch:
    return WATCH


@pytest.fixture
def quiet_network(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """No Hugging Face id is looked up: names that are none are refused at once, with no tries again."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with contextlib.suppress(ImportError):
        import datasets.config

        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return lambda: None
