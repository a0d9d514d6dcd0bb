"""What holds for every test of the repository."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator

import pytest

PRELOADED = [
    "graftwork.pipeline",
    "graftwork.execution",
    "graftwork.report",
    "graftwork.pool",
    "matplotlib.figure",
    "graftwork_testbed.cache",
    "graftwork_testbed.scenes.samples",
]
"""What processes that tests start have imported already; the server that they are forked from is one for all tests."""


def pytest_collection_finish() -> None:
    """Tell the server what to import before any test starts it."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)


@pytest.fixture(scope="session", autouse=True)
def rare_collections() -> Iterator[None]:
    """Collections walk the million objects that imports leave behind: what is there is set aside, and the rest is looked at less often."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()
