"""Trackers: who is told, what a failing one costs, what the log gives them."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.checkpoint import sha256
from graftwork.errors import ConfigError
from graftwork.registry import installed
from graftwork.run import Run
from graftwork.tracking import LoggedRow, logged_rows

SEEING = """
from graftwork import hookimpl

SEEN = []

@hookimpl
def graftwork_metrics_logged(run, stage, step, metrics):
    SEEN.append(step)

@hookimpl
def graftwork_run_finished(run, status):
    SEEN.append(status)
    if run.path is not None:
        (run.path / "seen.txt").write_text("left by a tracker")
"""

FAILING = """
from graftwork import hookimpl

@hookimpl
def graftwork_metrics_logged(run, stage, step, metrics):
    raise OSError("the server is away")
"""


@pytest.fixture
def trackers(install: Callable[..., Path]) -> None:
    install("graftwork-before", FAILING)
    install("graftwork-seeing", SEEING)
    install("graftwork-zlast", FAILING)


def begin(path: Path | None = None, resume: bool = False) -> Run:
    return Run(path, "toy", 0, torch.device("cpu"), {"stages": {}}, None, installed().hooks, resume)


def seen() -> list[Any]:
    return sys.modules["graftwork_seeing"].SEEN  # type: ignore[no-any-return]


@pytest.mark.usefixtures("trackers")
def test_a_tracker_that_fails_ten_thousand_times_warns_twice_and_keeps_no_other_from_being_told() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = begin()
        for step in range(10_000):
            run.log("s", step, {"loss": 1.0})
        run.finish()
    for name in ("before", "zlast"):
        said = [str(one.message) for one in caught if name in str(one.message)]
        assert said == [
            f"a tracker failed in graftwork_metrics_logged: OSError: the server is away ({name}; the run goes on)",
            f"the tracker {name} failed in graftwork_metrics_logged 10000 times; what was logged stands in metrics.jsonl",
        ]
    assert seen() == [*range(10_000), "finished"]


@pytest.mark.usefixtures("trackers")
def test_a_filter_that_makes_errors_of_warnings_stops_no_run_by_a_tracker() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = begin()
        run.log("s", 1, {"loss": 1.0})
        run.finish()
    assert seen() == [1, "finished"]


@pytest.mark.usefixtures("trackers")
@pytest.mark.parametrize(
    ("choice", "told"), [("seeing", True), (" seeing , before", True), ("before", False), ("none", False), ("", False)]
)
def test_the_variable_names_who_is_told(monkeypatch: pytest.MonkeyPatch, choice: str, told: bool) -> None:
    monkeypatch.setenv("GRAFTWORK_TRACKERS", choice)
    begin().finish()
    assert seen() == (["finished"] if told else [])


@pytest.mark.usefixtures("trackers")
def test_a_tracker_that_is_not_installed_is_an_error_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTWORK_TRACKERS", "seeign")
    with pytest.raises(ConfigError, match=r'tracker "seeign" \(did you mean "seeing"\?\), which is not installed; installed: before'):
        begin(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("trackers")
def test_what_a_tracker_leaves_at_the_end_is_in_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTWORK_TRACKERS", "seeing")
    begin(tmp_path / "run").finish()
    sums = json.loads((tmp_path / "run/manifest.json").read_text())
    assert sums["seen.txt"] == sha256(tmp_path / "run/seen.txt")


def test_the_log_is_read_with_names_apart_and_measurements_at_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTWORK_TRACKERS", "none")
    run = begin(tmp_path / "run")
    run.log("s", 4, {"accuracy": 1.0, "loss": float("nan")})
    run.log("s", 4, {"validate/accuracy": 0.5})
    run.log("t", -1, {"accuracy": 0.25})
    run.log("s", -1, {"accuracy": 0.75})
    run.finish()
    with (tmp_path / "run/metrics.jsonl").open("a") as log:
        log.write('{"stage": "s", "st')  # a row that a kill cut short
    assert [(row.stage, row.step, row.metrics) for row in logged_rows(run)] == [
        ("s", 4, {"train/accuracy": 1.0}),
        ("s", 4, {"validate/accuracy": 0.5}),
        ("t", 0, {"accuracy": 0.25}),
        ("s", 4, {"accuracy": 0.75}),
    ]
    assert all(isinstance(row, LoggedRow) and 0 <= row.time < 60 for row in logged_rows(run))
