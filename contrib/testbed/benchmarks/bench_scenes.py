"""What scenes cost: drawing them, opening them from the cache, a sample, a batch of 64, rendering a view.

In seconds of one core, not of the clock: on one thread, so that a machine busy with other things changes them little.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch

from graftwork.kinds.dataset import collate
from graftwork_testbed import ScenePairs, digit_scenes
from graftwork_testbed.scenes.styles import VIEWS, render_view

pytestmark = pytest.mark.bench

COUNTS = {"train": 8000, "val": 1000, "test": 1000}
"""The defaults: 10,000 scenes."""


@pytest.fixture(autouse=True, scope="module")
def _own_cache_and_core(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRAFTWORK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def scenes(_own_cache_and_core):
    return digit_scenes(train=1000, val=10, test=10)["train"]


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def each(work: Callable[[Any], object], items: Iterable[Any]) -> None:
    """Work on every item and keep nothing, as a loop that trains does."""
    for item in items:
        work(item)


def medians(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, taken in turns, so that a busy moment hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(seconds(work))
    return {name: statistics.median(times) for name, times in taken.items()}


def bench_drawing_ten_thousand_scenes_and_opening_them_again():
    drawing = seconds(lambda: digit_scenes(**COUNTS))
    opening = statistics.median(seconds(lambda: digit_scenes(**COUNTS)) for _ in range(3))
    print(f"10,000 scenes of 64x64: drawn in {drawing:.1f} s, opened in {opening:.2f} s")
    assert drawing < 20
    assert opening < 3


def bench_drawing_clips_and_panoramas():
    few = {"train": 160, "val": 20, "test": 20}
    for name, parameters in {"clips of 16 frames": {"frames": 16}, "panoramas": {"panorama": True}, "128x128": {"size": 128}}.items():
        print(f"200 {name}: {seconds(lambda parameters=parameters: digit_scenes(**few, **parameters)):.2f} s")


def bench_a_sample_and_a_batch(scenes):
    order = torch.randperm(len(scenes), generator=torch.Generator().manual_seed(0)).tolist()
    batches = [order[start : start + 64] for start in range(0, 960, 64)]
    found = medians(
        {
            "sample": lambda: each(scenes.__getitem__, order),
            "batch": lambda: each(scenes.__getitems__, batches),
            "collated": lambda: each(lambda batch: collate([scenes[index] for index in batch]), batches),
        },
        rounds=15,
    )
    sample, batch, collated = found["sample"] / len(order), found["batch"] / len(batches), found["collated"] / len(batches)
    print(
        f"a sample: {1e6 * sample:.0f} us; a batch of 64: {1e3 * batch:.2f} ms, {collated / batch:.1f} times faster than sample by sample"
    )
    assert sample < 50e-6
    assert collated > batch


def bench_rendering_views(scenes):
    images, mask = scenes.columns["image"], scenes.columns["mask"]
    works = {view: lambda view=view: render_view(view, images, mask, np.random.default_rng(0)) for view in VIEWS[1:]}
    for view, taken in medians(works, rounds=3).items():
        print(f"1,000 scenes as {view}: {taken:.2f} s")


def bench_a_pair(scenes):
    pairs = ScenePairs(digit_scenes(train=1000, val=10, test=10))["train"]
    print(f"1,000 pairs: rendered in {seconds(lambda: pairs[0]):.2f} s")
    found = medians({"pair": lambda: each(pairs.__getitem__, range(1000))}, rounds=9)
    print(f"a pair: {1e3 * found['pair']:.0f} us")
