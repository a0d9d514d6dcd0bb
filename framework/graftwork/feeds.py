"""Feeds: the streams of batches that an objective draws from, each of which can be put back to where it stood."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from graftwork.errors import DataError, nearest
from graftwork.interfaces import input_keys
from graftwork.kinds.dataset import Batch, Dataset, to_device
from graftwork.kinds.objective import INPUTS, Objective
from graftwork.randomness import seed_everything

__all__ = ["Feed", "feed_keys", "feed_splits", "missing_keys"]


def feed_splits(objective: Objective | type[Objective], data: Dataset, feeds: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Which split each feed draws from, and what is wrong with that.

    Args:
        objective: what will be trained (its class, where it cannot be built yet).
        data: the dataset.
        feeds: `train.feeds`; a feed that it leaves out takes the split of its own name.
    """
    names = tuple(objective.feeds) or tuple(feeds) or ("train",)
    label = objective.__name__ if isinstance(objective, type) else type(objective).__name__
    problems = [
        f'{label} has no feed "{feed}"{nearest(feed, names)}; it draws from {", ".join(names)}' for feed in feeds if feed not in names
    ]
    splits = {feed: feeds.get(feed, feed) for feed in names}
    for feed, split in splits.items():
        if split not in data:
            how = "" if feed in feeds else f"; name one: feeds: {{{feed}: SPLIT}}"
            problems.append(f'feed "{feed}" draws from split "{split}", which the dataset lacks; it has {", ".join(data)}{how}')
        elif len(data[split]) == 0:
            problems.append(f'feed "{feed}" draws from split "{split}", which is empty')
    return splits, problems


def missing_keys(wanted: Sequence[str], model: Any, data: Dataset, split: str) -> list[str]:
    """Keys that the first sample of a split lacks, `INPUTS` standing for the model's own (unknown while `model` is None)."""
    keys = [key for name in wanted for key in ((() if model is None else input_keys(model)) if name == INPUTS else (name,))]
    sample = data[split][0]
    return [key for key in keys if key not in sample]


class Feed:
    """One stream of batches without end: a split, drawn epoch after epoch, on the device.

    Its position is the state of its generator when the epoch began and the batches taken since. Putting it back replays the
    draws of indices and reads no sample.

    Args:
        name: for messages.
        data: the dataset.
        split: which of its splits.
        batch_size: samples a batch and process.
        seed: of the order.
        workers: processes that load; batches are then seeded one by one, so what samples draw depends on neither their number nor
            on where the stream was put back to.
        accelerator: spreads batches over processes and says where they go.
        keys: those that a batch keeps; None keeps all.
    """

    def __init__(
        self,
        name: str,
        data: Dataset,
        split: str,
        *,
        batch_size: int,
        seed: int,
        workers: int,
        accelerator: Accelerator,
        keys: Sequence[str] | None,
    ):
        self.name, self.keys, self.accelerator = name, keys, accelerator
        self.generator = torch.Generator().manual_seed(seed)
        self.taken = 0
        self._began = self.generator.get_state()
        samples: Any = data[split]
        composed = data.batch_sampler(split, batch_size, self.generator)
        if composed is None:
            drop_last = len(samples) >= batch_size * accelerator.num_processes
            composed = BatchSampler(RandomSampler(samples, generator=self.generator), batch_size, drop_last)
        self._order = _Skipping(composed)
        self._samples = _Seeded(samples, seed)
        loader: DataLoader[Any] = DataLoader(
            self._samples if workers else samples,  # type: ignore[arg-type]
            batch_sampler=self._order,
            collate_fn=data.collate,
            generator=self.generator,
            num_workers=workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        self.loader = accelerator.prepare_data_loader(loader) if accelerator.num_processes > 1 else loader

    def __len__(self) -> int:
        """Batches an epoch and process."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        """Batches without end, from where the stream stands.

        Raises:
            DataError: if an epoch gives no batch.
        """
        while True:
            self.generator.set_state(self._began)
            self._order.skip = self.taken * self.accelerator.num_processes
            for batch in self.loader:
                self.taken += 1
                kept = batch if self.keys is None else {key: batch[key] for key in self.keys}
                yield to_device(kept, self.accelerator.device)
            if not self.taken:
                raise DataError(f'feed "{self.name}" gave no batch: its sampler is empty')
            self.taken, self._began = 0, self.generator.get_state()
            self._samples.epoch += 1

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {"began": self._began, "taken": self.taken, "epoch": self._samples.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the stream back; iterators that were handed out before are worth nothing."""
        self._began, self.taken, self._samples.epoch = state["began"], state["taken"], state["epoch"]


class _Skipping:
    """A batch sampler that draws the first `skip` batches of an epoch and keeps them back."""

    def __init__(self, inner: Iterable[list[int]]):
        self.inner, self.skip = inner, 0
        self.batch_size = getattr(inner, "batch_size", None)  # what Accelerate asks of a batch sampler
        self.drop_last = getattr(inner, "drop_last", False)

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(iter(self.inner), self.skip, None)  # which a loader with workers asks for twice


class _Seeded:
    """Samples as loading processes read them: each batch is seeded, by the epoch and its indices."""

    def __init__(self, samples: Any, seed: int):
        self.samples, self.seed, self.epoch = samples, seed, 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: list[int]) -> Any:
        seed_everything(hash((self.seed, self.epoch, *indices)) % 2**63)
        many = getattr(self.samples, "__getitems__", None)
        return many(indices) if many is not None else [self.samples[index] for index in indices]


def feed_keys(objective: Objective, feed: str, model: Any) -> list[str] | None:
    """The sample keys that an objective reads from a feed, the model's own put in for `INPUTS`; None when it reads all."""
    wanted = objective.keys.get(feed)
    return None if wanted is None else [key for name in wanted for key in (input_keys(model) if name == INPUTS else (name,))]
