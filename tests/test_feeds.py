"""Feeds: a stream of batches is put back to where it stood, whatever its samples draw and however many processes load it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

import pytest
import torch
from accelerate import Accelerator

import graftwork as gw
from graftwork.builtin.wrappers import ClassBalancedBatches
from graftwork.feeds import Feed


class Noisy:
    """Samples with noise of their own, as augmentation makes it; counts what is read."""

    def __init__(self, count: int):
        self.count, self.read = count, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, object]:
        self.read += 1
        return {"index": index, "label": index % 4, "noise": torch.rand(3)}


def feed(workers: int = 0, composed: bool = False, count: int = 20) -> Feed:
    data = gw.Dataset({"train": Noisy(count)})
    if composed:
        data = ClassBalancedBatches(data, classes=2, instances=2)
    torch.manual_seed(0)
    return Feed("train", data, "train", batch_size=4, seed=7, workers=workers, accelerator=Accelerator(cpu=True), keys=("index", "noise"))


def taken(stream: Iterator[dict[str, torch.Tensor]], count: int) -> list[tuple[list[int], list[float]]]:
    return [(batch["index"].tolist(), batch["noise"].flatten().tolist()) for batch in islice(stream, count)]


def test_an_epoch_sees_each_sample_once_and_the_next_in_another_order() -> None:
    batches = [indices for indices, _ in taken(iter(feed()), 10)]
    first, second = [*chain(*batches[:5])], [*chain(*batches[5:])]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("composed", [False, True])
@pytest.mark.parametrize("stop", [0, 3, 5, 8])
def test_a_stream_goes_on_where_it_was_put_back_to(workers: int, composed: bool, stop: int) -> None:
    unbroken = taken(iter(feed(workers, composed)), stop + 6)[stop:]
    broken = feed(workers, composed)
    stream = iter(broken)
    taken(stream, stop)
    state, drawn = broken.state_dict(), torch.get_rng_state()
    again = feed(workers, composed)
    again.load_state_dict(state)
    torch.set_rng_state(drawn)  # as the engine does; without workers, samples draw from the global stream
    assert taken(iter(again), 6) == unbroken


def test_what_was_taken_before_is_not_read_again() -> None:
    broken = feed()
    taken(iter(broken), 3)
    again = feed()
    again.load_state_dict(broken.state_dict())
    taken(iter(again), 1)
    assert again._samples.samples.read == 4


def test_what_samples_draw_depends_on_no_number_of_workers_and_differs_between_epochs() -> None:
    one, two = taken(iter(feed(1)), 10), taken(iter(feed(2)), 10)
    assert one == two
    noise = {tuple(sorted(zip(indices, [values[i : i + 3][0] for i in range(0, 12, 3)], strict=True))) for indices, values in one}
    assert len(noise) == 10


def test_an_empty_sampler_is_an_error() -> None:
    class Empty(gw.Dataset):
        def batch_sampler(self, split: str, batch_size: int, generator: torch.Generator) -> list[list[int]]:
            return []

    nothing = Feed(
        "train", Empty({"train": Noisy(4)}), "train", batch_size=2, seed=0, workers=0, accelerator=Accelerator(cpu=True), keys=None
    )
    with pytest.raises(gw.DataError, match='feed "train" gave no batch: its sampler is empty'):
        next(iter(nothing))
