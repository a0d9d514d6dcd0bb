"""Wrappers: a few samples of each class, batches in which the classes are balanced, several splits as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from graftwork.errors import DataError
from graftwork.kinds.dataset import Dataset, Samples, Split

__all__ = ["BalancedBatches", "ClassBalancedBatches", "FewShotSubset", "JoinedSplits", "labels_of"]

Count = Annotated[int, Field(ge=1)]


def labels_of(samples: Any) -> Tensor:
    """The labels (N,) of samples: their `columns["label"]` where they have it, else read sample by sample.

    Raises:
        DataError: if they have none.
    """
    if isinstance(samples, Subset):
        return labels_of(samples.dataset)[torch.as_tensor(samples.indices)]
    if isinstance(samples, ConcatDataset):
        return torch.cat([labels_of(part) for part in samples.datasets])
    if "label" in getattr(samples, "columns", {}):
        return torch.as_tensor(samples.columns["label"])
    if not len(samples) or "label" not in samples[0]:
        raise DataError(f"the samples have no label: they have {', '.join(samples[0]) if len(samples) else 'no sample'}")
    return torch.tensor([int(samples[index]["label"]) for index in range(len(samples))])


class _Wrapper(Dataset):
    """A dataset that does what its inner one does, but for what a subclass changes."""

    def __init__(self, data: Dataset, **replaced: Samples):
        super().__init__({**data, **replaced}, data.info, data.collate)
        self.data = data

    def batch_sampler(self, split: str, batch_size: int, generator: torch.Generator) -> Iterable[list[int]] | None:
        return self.data.batch_sampler(split, batch_size, generator)

    def refresh(self, model: Any) -> None:
        self.data.refresh(model)

    def state_dict(self) -> dict[str, Any]:
        return self.data.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.data.load_state_dict(state)


class FewShotSubset(_Wrapper):
    """A dataset of which one split is cut to a few samples of each class; the other splits stay as they are.

    Args:
        data: the dataset.
        split: which split is cut.
        shots: samples of each class, drawn without replacement.
        seed: of the draw, which depends on it and on the labels alone.

    Raises:
        DataError: if the split has no labels, or a class fewer samples than asked for.
    """

    def __init__(self, data: Dataset, split: Split = "train", shots: Count = 5, seed: int = 0):
        labels, generator, chosen = labels_of(data[split]), torch.Generator().manual_seed(seed), []
        for label in torch.unique(labels).tolist():
            members = (labels == label).nonzero()[:, 0]
            if len(members) < shots:
                raise DataError(f'class {label} has {len(members)} samples in split "{split}"; {shots} shots were asked for')
            chosen += members[torch.randperm(len(members), generator=generator)[:shots]].tolist()
        few: Any = Subset(data[split], sorted(chosen))  # type: ignore[arg-type]
        super().__init__(data, **{split: few})
        self.split = split

    def batch_sampler(self, split: str, batch_size: int, generator: torch.Generator) -> Iterable[list[int]] | None:
        """The inner dataset's, but for the split that was cut, whose indices are others now."""
        return None if split == self.split else super().batch_sampler(split, batch_size, generator)


class BalancedBatches:
    """Batches of P classes with K samples each, as lists of indices; iterated anew, it shuffles anew.

    Each class's samples are shuffled and cut in groups of K; a class with fewer than K is topped up with some of its own again,
    and a remainder waits for the next shuffle. A batch takes a group of each of P classes drawn at random. A class that is used up
    leaves the pool, which is filled anew when fewer than P remain. An epoch has N // (P K) batches, at least one.

    Args:
        labels: (N,).
        classes: P.
        instances: K.
        generator: of all draws.

    Raises:
        DataError: if there are fewer than P classes.
    """

    def __init__(self, labels: Tensor, classes: int, instances: int, generator: torch.Generator):
        self.members = [(labels == label).nonzero()[:, 0] for label in torch.unique(labels)]
        if len(self.members) < classes:
            raise DataError(f"batches of {classes} classes were asked for; the split has {len(self.members)}")
        self.classes, self.instances, self.generator = classes, instances, generator
        self.length = max(1, len(labels) // (classes * instances))

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        pool: list[list[list[int]]] = []
        for _ in range(self.length):
            if len(pool) < self.classes:
                pool = [self._groups(members) for members in self.members]
            drawn = torch.randperm(len(pool), generator=self.generator)[: self.classes].tolist()
            yield [index for position in drawn for index in pool[position].pop()]
            pool = [groups for groups in pool if groups]

    def _groups(self, members: Tensor) -> list[list[int]]:
        again = torch.randint(len(members), (max(0, self.instances - len(members)),), generator=self.generator)
        shuffled = torch.cat([members[torch.randperm(len(members), generator=self.generator)], members[again]])
        return [group.tolist() for group in torch.split(shuffled, self.instances) if len(group) == self.instances]


class ClassBalancedBatches(_Wrapper):
    """A dataset that trains on batches of P classes with K samples each, whatever `train.batch_size` says; see `BalancedBatches`.

    Args:
        data: the dataset; splits that are trained on need labels.
        classes: P, classes in a batch.
        instances: K, samples of each class in a batch, at least 2.
    """

    def __init__(self, data: Dataset, classes: Count = 16, instances: Annotated[int, Field(json_schema_extra={"minimum": 2})] = 5):
        if instances < 2:
            raise ValueError(f"class-balanced-batches needs at least 2 instances per class; found {instances}")
        super().__init__(data)
        self.classes, self.instances = classes, instances

    def batch_sampler(self, split: str, batch_size: int, generator: torch.Generator) -> Iterable[list[int]]:
        """Balanced batches of a split; DataError if it has no labels, or fewer than P classes."""
        return BalancedBatches(labels_of(self[split]), self.classes, self.instances, generator)


class JoinedSplits(_Wrapper):
    """A dataset with further splits, each the samples of several of its own, one after the other.

    A metric on one, such as accuracy, is then the mean over domains, weighted by their sizes.

    Args:
        data: the dataset.
        splits: new split -> splits of `data` that make it up, such as {shifted/test: [photo/test, noisy/test]}.

    Raises:
        DataError: if a split is missing, a new name is taken, or a new split is made of nothing.
    """

    def __init__(self, data: Dataset, splits: dict[str, list[str]]):
        for name, parts in splits.items():
            if name in data:
                raise DataError(f'the dataset has a split "{name}" already: give the joined one another name')
            if not parts:
                raise DataError(f'split "{name}" is made of no split')
        joined: dict[str, Any] = {name: ConcatDataset([data[part] for part in parts]) for name, parts in splits.items()}  # type: ignore[misc]
        super().__init__(data, **joined)

    def batch_sampler(self, split: str, batch_size: int, generator: torch.Generator) -> Iterable[list[int]] | None:
        """The inner dataset's, for its own splits; a joined one is shuffled."""
        return super().batch_sampler(split, batch_size, generator) if split in self.data else None
