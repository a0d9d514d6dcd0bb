from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import stat
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from graftwork_testbed.cache import cache_folder, cached

KEY = {"size": 3, "names": ["a", "b"], "drawing": 1}
MADE = {"image": torch.arange(24, dtype=torch.uint8).view(2, 3, 4), "weight": torch.tensor([0.5, -1.0])}

# Processes that start anew, from one that has imported torch already: a start of torch's own would take seconds each.
ANEW = multiprocessing.get_context("forkserver")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "graftwork_testbed.cache")
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """Makes tensors and counts how often."""

    def __init__(self, made=MADE):
        self.made, self.calls = made, 0

    def __call__(self):
        self.calls += 1
        return dict(self.made)


def never():
    raise AssertionError("made again")


def equal(first, second):
    return first.keys() == second.keys() and all(first[key].dtype == second[key].dtype and first[key].equal(second[key]) for key in first)


def files(folder):
    """Names of what is in the cache, but for the locks."""
    return sorted(path.name for path in folder.glob("things/*") if path.suffix != ".lock")


def kept(folder):
    (path,) = folder.glob("things/*.safetensors")
    return path


def run(code, folder):
    """A process of its own that runs this code, `folder` being its cache."""
    process = ANEW.Process(target=exec, args=(f"import os; os.environ['GRAFTWORK_CACHE'] = {str(folder)!r}\n{code}", {}))
    process.start()
    return process


# -- whole or absent ----------------------------------------------------------------------------------------------------------------


def test_the_second_call_reads(folder, caplog):
    first = cached("things", KEY, Maker())
    second = cached("things", KEY, never)
    assert equal(first, MADE)
    assert equal(second, MADE)
    assert re.fullmatch(r"[0-9a-f]{20}\.safetensors", kept(folder).name)
    assert files(folder) == [kept(folder).name]
    assert not caplog.records


@pytest.mark.parametrize("other", [{**KEY, "size": 4}, {**KEY, "more": None}, {**KEY, "names": ["b", "a"]}])
def test_another_key_or_name_is_another_file(folder, other):
    maker = Maker()
    for name, key in (("things", KEY), ("things", other), ("others", KEY)):
        cached(name, key, maker)
    assert maker.calls == 3
    assert len(files(folder)) == 2
    cached("things", dict(reversed(KEY.items())), never)  # order does not matter


def test_numpys_numbers_pass_for_pythons_in_a_key():
    cached("things", KEY, Maker())
    cached("things", {**KEY, "size": np.int64(3), "drawing": np.uint8(1)}, never)


def test_a_key_may_not_hold_the_caches_own_version():
    with pytest.raises(ValueError, match='the key of cached data may not hold "version"'):
        cached("things", {"version": 3}, never)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3),
        torch.zeros(0, 4),
        torch.ones(3, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.arange(12.0).view(3, 4).T,
        torch.arange(10)[::3],
        torch.arange(6).expand(4, 6),
    ],
    ids=["scalar", "empty", "bfloat16", "bool", "transposed", "strided", "expanded"],
)
def test_tensors_of_any_kind_come_back_as_they_were(tensor):
    cached("things", KEY, lambda: {"tensor": tensor})
    assert equal(cached("things", KEY, never), {"tensor": tensor})


def test_tensors_that_share_memory_come_back_apart():
    whole = torch.arange(12.0).view(1, 3, 4)
    made = {"whole": whole, "first": whole[:, 0], "same": whole, "row": whole[0, 1]}
    assert equal(cached("things", KEY, lambda: made), made)
    found = cached("things", KEY, never)
    assert equal(found, made)
    found["whole"].zero_()
    assert found["same"].equal(whole)


def test_the_file_is_plain_safetensors_with_its_key(folder):
    cached("things", KEY, Maker())
    assert equal(load_file(kept(folder)), MADE)
    with safe_open(kept(folder), framework="pt") as file:
        assert '"names": ["a", "b"]' in file.metadata()["key"]


def test_the_folder_is_that_of_the_environment_or_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GRAFTWORK_CACHE", "~/there")
    assert cache_folder() == tmp_path / "there"
    monkeypatch.delenv("GRAFTWORK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder().name == "graftwork"
    assert tmp_path in cache_folder().parents


def test_files_have_the_permissions_that_the_umask_leaves(folder):
    old = os.umask(0o027)
    try:
        cached("things", KEY, Maker())
    finally:
        os.umask(old)
    assert stat.S_IMODE(kept(folder).stat().st_mode) == 0o640


# -- what is damaged ----------------------------------------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def restate(path):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(MADE, path, metadata={**metadata, "key": metadata["key"].replace('"version": 1', '"version": 0')})


def rename(path):
    """The tensors' bytes as they were, but under one another's names: the checksum covers names and shapes."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({"image": MADE["image"], "height": MADE["weight"]}, path, metadata=metadata)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (truncate, r"is damaged \(.+\)"),
        (flip, r"is damaged \(its checksum is wrong\)"),
        (rename, r"is damaged \(its checksum is wrong\)"),
        (restate, "is of another version"),
        (lambda path: save_file(MADE, path), "is of another version"),
        (lambda path: path.write_bytes(b"not a file of tensors at all"), r"is damaged \(.+\)"),
        (lambda path: path.write_bytes(b""), r"is damaged \(.+\)"),
    ],
    ids=["truncated", "flipped", "renamed", "version", "foreign", "garbage", "empty"],
)
def test_a_file_that_cannot_be_used_is_made_anew_and_a_warning_says_so(folder, caplog, damage, why):
    cached("things", KEY, Maker())
    path = kept(folder)
    damage(path)
    maker = Maker()
    assert equal(cached("things", KEY, maker), MADE)
    assert maker.calls == 1
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert re.fullmatch(f"{re.escape(str(path))} is made anew: the cached file {why}", record.getMessage())
    cached("things", KEY, never)
    assert equal(load_file(path), MADE)


# -- what cannot be kept ------------------------------------------------------------------------------------------------------------


def test_where_the_folder_cannot_be_written_it_is_made_in_memory(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "file" / "cache"))
    maker = Maker()
    assert equal(cached("things", KEY, maker), MADE)
    assert equal(cached("things", KEY, maker), MADE)
    assert maker.calls == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"things cannot be kept in {tmp_path}/file/cache/things (Not a directory); it is made in memory"
    ] * 2


def test_what_the_folder_holds_is_read_though_nothing_can_be_locked_in_it(folder, caplog):
    cached("things", KEY, Maker())
    lock = kept(folder).with_suffix(".lock")
    lock.unlink()
    lock.mkdir()  # as of a folder that belongs to another: the lock cannot be opened
    assert equal(cached("things", KEY, never), MADE)
    assert not caplog.records
    kept(folder).unlink()
    maker = Maker()
    assert equal(cached("things", KEY, maker), MADE)
    assert maker.calls == 1
    assert "cannot be kept in" in caplog.text


def test_what_cannot_be_written_is_not_made_twice(folder, caplog):
    kept_at = cache_folder() / "things"
    maker = Maker()

    def make():
        for lock in kept_at.glob("*.lock"):
            lock.with_suffix(".safetensors").mkdir()  # in the file's place
        return maker()

    assert equal(cached("things", KEY, make), MADE)
    assert maker.calls == 1
    (record,) = caplog.records
    assert record.getMessage() == f"things cannot be kept in {kept_at} (Is a directory); it is made in memory"
    assert not list(kept_at.glob("*.part"))


@pytest.mark.parametrize("error", [OSError("no such picture"), ValueError("no such size"), KeyboardInterrupt()])
def test_what_making_raises_passes_and_nothing_is_left(folder, caplog, error):
    def make():
        raise error

    with pytest.raises(type(error)) as raised:
        cached("things", KEY, make)
    assert raised.value is error
    assert files(folder) == []
    assert not caplog.records
    assert equal(cached("things", KEY, Maker()), MADE)  # the lock is free again


# -- many processes -----------------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, torch
from graftwork_testbed import cache
def killed(*paths):
    os.kill(os.getpid(), signal.SIGKILL)
cache.os.replace = killed
cache.cached("things", {"size": 3, "names": ["a", "b"], "drawing": 1}, lambda: {"image": torch.zeros(5)})
"""


def test_a_process_killed_while_it_writes_leaves_no_file_and_no_lock_and_what_it_left_is_swept(folder):
    process = run(KILLED, folder)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (left,) = files(folder)
    assert left.endswith(".part")
    assert equal(cached("things", KEY, Maker()), MADE)
    assert files(folder) == [kept(folder).name]


RACE = """
import time, torch
from pathlib import Path
from graftwork_testbed.cache import cached
def make():
    with open({log!r}, "a") as file:
        file.write("made ")
    time.sleep(0.2)
    return {{"image": torch.arange(5) + os.getpid()}}
Path({ready!r}).touch()
while not Path({gate!r}).exists():
    time.sleep(0.002)
Path({found!r}).write_text(str(cached("things", {{"race": 1}}, make)["image"].tolist()))
"""


def test_of_processes_that_want_the_same_at_once_one_makes_it_and_the_others_wait(folder, tmp_path):
    gate, log = tmp_path / "gate", tmp_path / "log"
    found, ready = ([tmp_path / f"{what}{number}" for number in range(2)] for what in ("found", "ready"))
    racing = [
        run(RACE.format(gate=str(gate), log=str(log), found=str(path), ready=str(here)), folder)
        for path, here in zip(found, ready, strict=True)
    ]
    while not all(path.exists() for path in ready):
        assert all(process.is_alive() for process in racing)
        time.sleep(0.005)
    gate.touch()
    for process in racing:
        process.join(60)
    assert [process.exitcode for process in racing] == [0, 0]
    assert log.read_text() == "made "
    assert found[0].read_text() == found[1].read_text() == str(cached("things", {"race": 1}, never)["image"].tolist())
    assert files(folder) == [kept(folder).name]
