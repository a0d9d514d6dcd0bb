"""What the test bed costs: building a data set, and a batch against collating samples one by one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch

from graftwork.kinds.dataset import collate
from graftwork_testbed import digit_domains, digits, photos, textures

pytestmark = pytest.mark.bench


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.parametrize("build", [digits, digit_domains, photos, textures], ids=lambda build: build.__name__)
def bench_building(build):
    build()
    median = statistics.median(seconds(build) for _ in range(5))
    print(f"{build.__name__}: {median:.2f} s")
    assert median < 2


def bench_a_batch_is_cheaper_than_collating_its_samples():
    train = digit_domains(["photo"])["photo/train"]
    indices = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:64].tolist()
    batched, collated = [], []
    for _ in range(50):  # interleaved
        batched.append(seconds(lambda: train.__getitems__(indices)))
        collated.append(seconds(lambda: collate([train[index] for index in indices])))
    ratio = statistics.median(collated) / statistics.median(batched)
    print(f"a batch of 64: {1e3 * statistics.median(batched):.2f} ms, {ratio:.1f} times faster than sample by sample")
    assert ratio > 1
