"""`graft list` against `python -c "import torch"`, with what is installed and with 64 more distributions."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

SOURCE = """
from graftwork import Component, Paper, hookimpl

PAPER = Paper("A paper", arxiv="1234.56789", year=2020)


@hookimpl
def graftwork_objectives():
    yield Component("dummy-{index}-a", "dummy_{index}.objective:Thing", "One thing", PAPER)
    yield Component("dummy-{index}-b", "dummy_{index}.objective:Other", "Another", PAPER)


@hookimpl
def graftwork_evaluators():
    yield Component("dummy-{index}-c", "dummy_{index}.evaluator:Third", "A third", PAPER)
"""


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


@pytest.mark.bench
@pytest.mark.parametrize("count", [0, 64])
def test_list_takes_under_a_quarter_of_importing_torch(install, count: int) -> None:
    for index in range(count):
        install(f"graftwork-dummy-{index}", SOURCE.replace("{index}", str(index)))
    graft = [str(Path(sys.executable).with_name("graft")), "list"]
    torch = [sys.executable, "-c", "import torch"]
    seconds(graft), seconds(torch)  # once, to warm the disk's cache
    pairs = [(seconds(graft), seconds(torch)) for _ in range(7)]
    listing, importing = (statistics.median(side) for side in zip(*pairs, strict=True))
    shown = subprocess.run(graft, check=True, capture_output=True, text=True).stdout
    assert shown.count("dummy-") >= 3 * count
    print(
        f"\ngraft list with {count} more distributions: {listing:.3f} s; import torch: {importing:.3f} s; ratio {listing / importing:.3f}"
    )
    assert listing < importing / 4
