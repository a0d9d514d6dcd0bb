"""Checkpoints: what they hold comes back bit for bit; what is damaged or planted is refused; a disk that refuses leaves the last one."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import graftwork as gw
from graftwork.checkpoint import Checkpoints, flatten, load_state, save_state, unflatten
from graftwork.randomness import preserved, random_state, set_random_state

STATE = {
    "weights": {"a": torch.tensor([1.5, -0.0, math.inf]), "b": torch.zeros(0, 3)},
    7: ("tuple", [None, True, 2**60, 0.1, -math.inf]),
    (1, "two"): {"$odd": torch.arange(3, dtype=torch.int16)},
    "rows": numpy.arange(4, dtype=numpy.uint32),
    "count": numpy.float64(0.1),
}


def same(one: object, two: object) -> bool:
    if isinstance(one, (torch.Tensor, numpy.ndarray)):
        left, right = torch.as_tensor(one), torch.as_tensor(two)
        return type(one) is type(two) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(one, dict):
        return isinstance(two, dict) and list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))
    return one == two


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    save_state(tmp_path / "one", STATE)
    found = load_state(tmp_path / "one")
    assert same(found, STATE)
    assert torch.signbit(found["weights"]["a"][1])


def test_generators_come_back_and_go_on_alike(tmp_path: Path) -> None:
    save_state(tmp_path / "one", random_state())
    drawn = [random.random(), numpy.random.rand(), torch.rand(()).item()]  # noqa: NPY002
    set_random_state(load_state(tmp_path / "one"))
    assert drawn == [random.random(), numpy.random.rand(), torch.rand(()).item()]  # noqa: NPY002
    before = torch.get_rng_state()
    with preserved():
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_tensors_that_are_one_are_kept_once_and_views_are_kept_apart() -> None:
    bank = torch.arange(6.0)
    plain, tensors = flatten({"tied": [bank, bank], "part": bank[2:]})
    assert len(tensors) == 2
    found = unflatten(plain, tensors)
    assert found["tied"][0] is found["tied"][1]


def test_views_into_one_storage_can_be_written(tmp_path: Path) -> None:
    bank = torch.arange(6.0)
    save_state(tmp_path / "one", {"whole": bank, "part": bank[2:], "turned": bank.view(2, 3).T})
    found = load_state(tmp_path / "one")
    assert torch.equal(found["part"], bank[2:])
    assert torch.equal(found["turned"], bank.view(2, 3).T)


def test_what_no_checkpoint_can_hold_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(gw.CheckpointError, match=r"objective\.0 is a Linear"):
        save_state(tmp_path / "one", {"objective": [nn.Linear(1, 1)]})
    assert not list(tmp_path.iterdir())


def damaged(folder: Path, how: str) -> None:
    file = folder / ("state.json" if how == "state" else "tensors.safetensors")
    whole = bytearray(file.read_bytes())
    if how == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif how == "missing":
        file.unlink()
    elif how == "manifest":
        (folder / "manifest.json").write_text("[]")
    else:
        whole[len(whole) // 2] ^= 1
        file.write_bytes(whole)


DAMAGE = ["truncated", "flipped", "state", "missing", "manifest"]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    kept = Checkpoints(tmp_path / "kept", steps=1)
    for step in (1, 2, 3):
        kept.save(step, {"value": torch.tensor(step)})
    return tmp_path / "kept"


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_that_is_said(three: Path, how: str) -> None:
    assert sorted(path.name for path in three.iterdir()) == ["step-00000002", "step-00000003"]
    damaged(three / "step-00000003", how)
    said: list[str] = []
    found = Checkpoints(three, resume=True, warn=said.append).latest()
    assert found is not None
    assert found["value"] == 2
    assert "step-00000003" in said[0]
    assert said[0].endswith("going on from step-00000002, the one before")


def test_with_every_checkpoint_damaged_nothing_is_guessed(three: Path) -> None:
    for folder in three.iterdir():
        damaged(folder, "flipped")
    with pytest.raises(gw.CheckpointError, match=r"(?s)is damaged: its SHA-256.*no sound checkpoint is left: remove .*kept"):
        Checkpoints(three, resume=True).latest()


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch sprung",)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_planted_pickle_is_never_opened(three: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(three)
    planted = three / "step-00000003"
    torch.save(Trap(), planted / name) if name == "tensors.safetensors" else (planted / name).write_bytes(pickle.dumps(Trap()))
    sums = {one: gw.checkpoint.sha256(planted / one) for one in ("tensors.safetensors", "state.json")}
    if name != "manifest.json":  # by somebody who knows of the sums
        (planted / "manifest.json").write_text(json.dumps(sums))
    found = Checkpoints(three, resume=True).latest()
    assert found is not None
    assert found["value"] == 2
    assert not (three / "sprung").exists()


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow over 64 KiB, as on a disk that is all but full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_told_of_and_the_checkpoint_before_stays(three: Path, full_disk: None) -> None:
    kept = Checkpoints(three, resume=True)
    with pytest.raises(gw.GraftworkError, match=r"step-00000004 cannot be written"):
        kept.save(4, {"value": torch.zeros(2**16)})
    assert sorted(path.name for path in three.iterdir()) == ["step-00000002", "step-00000003"]
    found = kept.latest()
    assert found is not None
    assert found["value"] == 3


def test_a_read_only_folder_is_told_of(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:  # what a read-only file system answers, also to the superuser
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(gw.GraftworkError, match=r"step-00000004 cannot be written: Read-only file system"):
        Checkpoints(three).save(4, {})


def test_the_best_weights_stay_beside_the_newest_and_their_damage_is_told(three: Path) -> None:
    kept = Checkpoints(three)
    kept.save_best({"weight": torch.ones(2)})
    kept.save_best({"weight": torch.zeros(2)})
    best = kept.best()
    assert best is not None
    assert best["weight"].tolist() == [0, 0]
    assert set(load_file(three / "best" / "tensors.safetensors")) == {"0"}
    damaged(three / "best", "flipped")
    with pytest.raises(gw.CheckpointError, match=r"damaged.*remove .*kept to train this stage from its start"):
        kept.best()


def test_checkpoints_are_due_by_steps_or_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [step for step in range(1, 10) if Checkpoints(tmp_path, steps=3).due(step)] == [3, 6, 9]
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    kept = Checkpoints(tmp_path, minutes=2)
    due = []
    for now in (60.0, 119.0, 120.0, 130.0, 241.0):
        clock[0] = now
        due.append(kept.due(1))
        if due[-1]:
            kept.save(1, {})
    assert due == [False, False, True, False, True]
