"""The three terms of every model of a pool, without training anything: W_D, W_T, and W_C of every pair."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from graftwork import DataError, Dataset, InterfaceError
from graftwork_osborn.eep import label_likelihoods
from graftwork_osborn.entropy import (
    Given,
    conditional_entropy,
    joint_from_coupling,
    joint_from_predictions,
    pairwise_conditional_entropy,
)
from graftwork_osborn.outputs import Outputs, is_segmentation, read_outputs
from graftwork_osborn.sampling import Reading
from graftwork_osborn.table import TransferabilityTable
from graftwork_osborn.transport import BUDGET, Transport, squared_distances

__all__ = ["Joint", "Source", "Task", "measure_pool", "read_pool"]

Joint: TypeAlias = Literal["coupling", "prediction"]


@dataclass(frozen=True)
class Source:
    """The set that a model was trained on.

    Args:
        data: has the split.
        split: which.
    """

    data: Dataset
    split: str


@dataclass(frozen=True)
class Task:
    """How W_T reads the joint of source and target classes.

    Args:
        joint: "coupling" sums the coupling over source and target samples of each class, as the paper's equations do; "prediction"
            counts which source class the model takes target samples for, as its prose says.
        given: "target" is H(source | target), OSBORN's; "source" is H(target | source), that of OTCE's code.

    Raises:
        ValueError: if one is none of these.
    """

    joint: Joint = "coupling"
    given: Given = "target"

    def __post_init__(self) -> None:
        if self.joint not in ("coupling", "prediction"):
            raise ValueError(f'joint is "coupling" or "prediction"; found {self.joint!r}')
        if self.given not in ("target", "source"):
            raise ValueError(f'given is "target" or "source"; found {self.given!r}')


@dataclass
class _Pair:
    """One model's outputs on its source set and on the target, and the costs between them."""

    name: str
    source: Outputs
    target: Outputs
    cost: Tensor = field(init=False)

    def __post_init__(self) -> None:
        theirs, ours = self.source.features, self.target.features
        if theirs is None or ours is None:
            raise InterfaceError(
                f'model "{self.name}" gives no features, which W_D measures: give a Backbone or Segmenter, or name a `layer`'
            )
        if theirs.shape[1] != ours.shape[1]:
            widths = f"{theirs.shape[1]} features on its source set and {ours.shape[1]} on the target"
            raise DataError(f'model "{self.name}" gives {widths}: both sets need images of one size')
        self.cost = squared_distances(theirs, ours)


def read_pool(
    pool: Mapping[str, nn.Module], target: Dataset, split: str, reading: Reading | None = None, seed: int = 0, complete: bool = True
) -> dict[str, Outputs]:
    """Each model's outputs on one and the same draw of the target.

    Args:
        pool: name -> model.
        target: the target's data.
        split: its labelled split.
        reading: how it is read.
        seed: of the draw, where the reading has none.
        complete: whether every target class must have a sample.

    Raises:
        DataError: if the pool is empty, a target class has no sample, or outputs are not finite.
    """
    if not pool:
        raise DataError("the pool has no model")
    found = {name: read_outputs(model, target, split, reading, name, seed) for name, model in pool.items()}
    segmented = {is_segmentation(model) for model in pool.values()}
    if len(segmented) > 1:
        raise InterfaceError("a pool is of classifiers or of segmenters; found both")
    if complete:
        labels = next(iter(found.values())).labels
        _check_classes(labels, 0 if segmented.pop() else len(target.info.classes), target, split)
    return found


def measure_pool(
    pool: Mapping[str, nn.Module],
    sources: Mapping[str, Source],
    target: Dataset,
    split: str = "train",
    *,
    transport: Transport | None = None,
    task: Task | None = None,
    reading: Reading | None = None,
    seed: int = 0,
) -> TransferabilityTable:
    """Everything that scores of subsets of a pool are made of (Bachu et al., 2023, section 3).

    One forward pass of each model over its source set and over the target, one coupling for each model between the two, each through
    that model's own features.

    Args:
        pool: name -> Backbone or Segmenter; label spaces of their own.
        sources: name -> the set that the model was trained on.
        target: the target's data.
        split: its labelled split.
        transport: how couplings are found.
        task: how W_T is read.
        reading: how sets are read.
        seed: of the draws, where the reading has none.

    Warns:
        UserWarning: if samples of the target are in a model's source set: the paper leaves such a model out.

    Raises:
        DataError: if a model lacks its source set, a target class has no sample, or features are not finite or of two widths.
        InterfaceError: if a model gives no features.
    """
    transport, task = transport or Transport(), task or Task()
    missing = [name for name in pool if name not in sources]
    if missing:
        raise DataError(f"osborn needs each model's source dataset to measure W_D; there is none for {', '.join(missing)}")
    found = read_pool(pool, target, split, reading, seed)
    classes = max(int(one.labels.max()) for one in found.values()) + 1
    domain, entropies = [], []
    for group in _groups(pool, sources, found, reading, seed, split):
        for pair, coupling in zip(group, transport.couplings([pair.cost for pair in group]), strict=True):
            domain.append(float((coupling * pair.cost).sum()))
            entropies.append(float(conditional_entropy(_joint(pair, coupling, task.joint, classes), task.given)))
    outputs = list(found.values())
    return TransferabilityTable(
        tuple(pool),
        torch.tensor(domain, dtype=torch.float64),
        torch.tensor(entropies, dtype=torch.float64),
        pairwise_conditional_entropy([one.predictions for one in outputs]).cpu().double(),
        torch.stack([label_likelihoods(one.probabilities, one.labels) for one in outputs]).cpu().double(),
    )


def _groups(
    pool: Mapping[str, nn.Module],
    sources: Mapping[str, Source],
    found: Mapping[str, Outputs],
    reading: Reading | None,
    seed: int,
    split: str,
) -> Iterator[list[_Pair]]:
    """Models with their costs, as many at once as the budget of cost entries holds."""
    group: list[_Pair] = []
    entries = 0
    for name, model in pool.items():
        source = sources[name]
        pair = _Pair(name, read_outputs(model, source.data, source.split, reading, name, seed), found[name])
        _warn_of_overlap(pair, source.split, split)
        if group and entries + pair.cost.numel() > BUDGET:
            yield group
            group, entries = [], 0
        group.append(pair)
        entries += pair.cost.numel()
    yield group


def _joint(pair: _Pair, coupling: Tensor, joint: Joint, classes: int) -> Tensor:
    if joint == "coupling":
        return joint_from_coupling(coupling, pair.source.labels, pair.target.labels, target_classes=classes)
    return joint_from_predictions(pair.target.predictions, pair.target.labels, pair.target.probabilities.shape[1], classes)


def _warn_of_overlap(pair: _Pair, source: str, target: str) -> None:
    shared = int(torch.isin(pair.target.digests, pair.source.digests).sum())
    if shared:
        warnings.warn(
            f'model "{pair.name}" was trained on the target: {shared} of {len(pair.target.digests)} samples of "{target}" are in '
            f'its source set "{source}"; the paper leaves such models out of the pool',
            stacklevel=4,
        )


def _check_classes(labels: Tensor, named: int, data: Dataset, split: str) -> None:
    counts = torch.bincount(labels, minlength=named)
    empty: Sequence[int] = (counts == 0).nonzero()[:, 0].tolist()
    if empty:
        shown = ", ".join(data.info.classes[index] if len(counts) == len(data.info.classes) else str(index) for index in empty[:8])
        raise DataError(f'split "{split}" has no sample of target class {shown}, and every class needs one: label some, or drop the class')
