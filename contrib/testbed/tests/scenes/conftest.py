"""A cache of its own for these tests, and scenes that several of them look at."""

from __future__ import annotations

from multiprocessing import forkserver

import pytest

from graftwork_testbed import digit_scenes

FEW = {"train": 80, "val": 40, "test": 40}


@pytest.fixture(autouse=True, scope="package")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAFTWORK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="package")
def _fork_server():
    """What processes of tests are forked from, started while there is other work: it takes seconds to import torch."""
    forkserver.ensure_running()


@pytest.fixture(scope="package")
def flat(_own_cache):
    """Scenes as they are by default, but few."""
    return digit_scenes(**FEW)


@pytest.fixture(scope="package")
def moving(_own_cache):
    """Clips of 12 frames."""
    return digit_scenes(size=48, max_digits=3, frames=12, train=16, val=2, test=2)


@pytest.fixture(scope="package")
def around(_own_cache):
    """Panoramas."""
    return digit_scenes(panorama=True, train=24, val=4, test=4)
