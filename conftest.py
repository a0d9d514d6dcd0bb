"""What holds for every test of the repository."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def rare_collections() -> Iterator[None]:
    """Collections walk the million objects that imports leave behind: what is there is set aside, and the rest is looked at less often."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()
