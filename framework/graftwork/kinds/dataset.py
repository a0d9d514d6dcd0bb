"""Datasets: a mapping from split name to map-style samples, which are dicts with one shared vocabulary of keys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from graftwork.errors import DataError, nearest

__all__ = ["Batch", "Dataset", "DatasetInfo", "Samples", "Split", "TensorSamples", "collate", "fetch", "to_device"]

Batch: TypeAlias = dict[str, Any]
"""Collated samples: tensors with a leading batch dimension; lists where samples differ in shape or hold text."""


@dataclass(frozen=True)
class SplitName:
    """Marks a component's parameter as the name of a split, which assembly holds against the stage's dataset."""


Split: TypeAlias = Annotated[str, SplitName()]
"""Annotation of a parameter that names a split, such as "photo/test"."""


@runtime_checkable
class Samples(Protocol):
    """A map-style torch dataset of dict samples. With `__getitems__` it may fetch a list of samples, or a whole batch, at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset before a sample is read.

    Args:
        classes: names of the classes, in the order of `label`; empty when there are none.
        channels: of `image`; 0 when there are no images.
        size: (height, width) of `image` in pixels; (0, 0) when there are none, or they differ.
        domains: names of the domains; a domain's splits are "domain/split".
        features: width of `features`, for tabular data; 0 when there are none.
        description: one sentence.
    """

    classes: tuple[str, ...] = ()
    channels: int = 0
    size: tuple[int, int] = (0, 0)
    domains: tuple[str, ...] = ()
    features: int = 0
    description: str = ""


def collate(samples: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> Batch:
    """Join samples into a batch.

    Tensors and numbers of equal shape are stacked into (B, ...); text, and tensors that differ in shape (boxes), become lists.

    Args:
        samples: dict samples with the same keys; or a batch that `__getitems__` made already, which is returned as it is.
    """
    if isinstance(samples, Mapping):
        return dict(samples)
    return {key: _join([sample[key] for sample in samples]) for key in samples[0]}


def fetch(samples: Samples, indices: Sequence[int], collate: Callable[[Any], Batch]) -> Batch:
    """A batch of the samples at `indices`: at once where they have `__getitems__`, else one by one, as a DataLoader does."""
    many = getattr(samples, "__getitems__", None)
    return collate(many(indices) if many is not None else [samples[index] for index in indices])


def _join(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, (bool, int, float)):
        return torch.tensor(values)
    if not isinstance(first, Tensor) and hasattr(first, "__array__"):
        values = [torch.as_tensor(value) for value in values]
        first = values[0]
    if isinstance(first, Tensor) and all(value.shape == first.shape for value in values):
        return torch.stack(values)
    return values


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with every tensor on `device`; lists of tensors too, and whatever else can be moved, such as graphs."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, list):
            return [move(item) for item in value]
        return value.to(device) if hasattr(value, "to") else value

    return {key: move(value) for key, value in batch.items()}


class TensorSamples:
    """Samples held in memory as columns; a batch is one indexing a column, with no loop over samples.

    Args:
        columns: key -> tensor (N, ...) or list of N. A uint8 `image` column comes out as float32 in [0, 1].

    Raises:
        DataError: if the columns differ in length.
    """

    def __init__(self, **columns: Tensor | Sequence[Any]):
        lengths = {key: len(column) for key, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"the columns of TensorSamples differ in length: {lengths}")
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: self._value(key, column[index]) for key, column in self.columns.items()}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch of the samples at `indices`, already collated."""
        chosen = torch.as_tensor(indices)
        return {
            key: self._value(key, column[chosen]) if isinstance(column, Tensor) else [column[i] for i in indices]
            for key, column in self.columns.items()
        }

    def select(self, indices: Tensor) -> TensorSamples:
        """The samples at `indices` (long), as samples of their own."""
        return TensorSamples(
            **{
                key: column[indices] if isinstance(column, Tensor) else [column[i] for i in indices.tolist()]
                for key, column in self.columns.items()
            }
        )

    @staticmethod
    def _value(key: str, value: Any) -> Any:
        return value.float() / 255 if key == "image" and value.dtype == torch.uint8 else value


class Dataset(Mapping[str, Samples]):
    """Splits by name, with what is known of them. A wrapper takes a Dataset and gives one.

    Args:
        splits: split name -> samples. Domains are splits: "clean/train". A Hugging Face `DatasetDict` (torch format) fits.
        info: what is known before a sample is read.
        collate: joins samples into a batch.
    """

    def __init__(
        self,
        splits: Mapping[str, Samples],
        info: DatasetInfo | None = None,
        collate: Callable[[Any], Batch] = collate,
    ):
        self._splits = dict(splits)
        self.info = info or DatasetInfo()
        self.collate = collate

    def __getitem__(self, split: str) -> Samples:
        try:
            return self._splits[split]
        except KeyError:
            raise DataError(f'no split "{split}"{nearest(split, self)}; the dataset has {", ".join(self)}') from None

    def __contains__(self, split: object) -> bool:
        return split in self._splits

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits)

    def __len__(self) -> int:
        return len(self._splits)

    def batch_sampler(self, split: str, batch_size: int, generator: torch.Generator) -> Iterable[list[int]] | None:
        """Batches of indices that training draws from a split in one epoch, iterated anew each epoch.

        None, the default, is a shuffle by `generator` that drops the last short batch. Wrappers that compose batches override it.
        """
        return None

    def refresh(self, model: Any) -> None:
        """Called between epochs with the model in training; wrappers that depend on it recompute here. Default: nothing."""

    def state_dict(self) -> dict[str, Any]:
        """What `refresh` has changed, in tensors and plain data, for checkpoints. Default: nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""

    def fingerprint(self) -> str:
        """Hex digest of the info, the splits' names and lengths, and up to eight samples spread over each split."""
        digest = hashlib.sha256(repr(asdict(self.info)).encode())
        for name, samples in self._splits.items():
            count = len(samples)
            digest.update(f"{name}:{count}".encode())
            for index in sorted({i * (count - 1) // 7 for i in range(8)}) if count else ():
                for key, value in sorted(samples[index].items()):
                    digest.update(key.encode())
                    digest.update(_bytes(value))
        return digest.hexdigest()


def _bytes(value: Any) -> bytes:
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if hasattr(value, "to_dict"):  # a graph, whose repr shows shapes alone
        value = value.to_dict()
    if isinstance(value, Mapping):
        return b"".join(repr(key).encode() + _bytes(item) for key, item in value.items())
    return repr(value).encode()
