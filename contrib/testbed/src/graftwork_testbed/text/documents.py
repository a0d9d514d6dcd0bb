"""Data sets whose samples are parts of documents: whole documents go to train, val or test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graftwork import DataError, Dataset, DatasetInfo, TensorSamples
from graftwork_testbed.splits import SPLITS

__all__ = ["Document", "document_dataset", "grouped_split"]

DRAWS = 64
"""Assignments of a stratum's groups that are drawn; the one whose shares of samples come nearest to the fractions is kept."""


@dataclass(frozen=True)
class Document:
    """A text that one split holds whole.

    Args:
        name: such as that of a help topic.
        label: its class.
        text: the samples that it is cut into.
        columns: what its samples hold besides, by key: tensors (n, ...) or lists of n.
    """

    name: str
    label: int
    text: Sequence[str]
    columns: Mapping[str, Sequence[Any] | Tensor] = field(default_factory=dict)


def document_dataset(
    documents: Sequence[Document], key: str, val_fraction: float, test_fraction: float, seed: int, info: DatasetInfo
) -> Dataset:
    """Samples `text`, `label`, the document's name under `key`, `index` (their position in all documents), and the documents' columns.

    Args:
        documents: in order; those without a sample are passed over.
        key: what the samples call a document.
        val_fraction: share of each class's documents that goes to val.
        test_fraction: share that goes to test.
        seed: of the split.
        info: of the data set.

    Raises:
        ValueError: if the fractions leave no share to train, or the seed is negative.
        DataError: if a split is left without a document.
    """
    documents = [document for document in documents if len(document.text)]
    sizes = [len(document.text) for document in documents]
    starts = np.cumsum([0, *sizes])
    parts = grouped_split([document.label for document in documents], sizes, val_fraction, test_fraction, seed)
    splits = {}
    for split, groups in parts.items():
        chosen, counts = [documents[group] for group in groups], torch.tensor([sizes[group] for group in groups])
        columns: dict[str, Any] = {
            "text": [text for document in chosen for text in document.text],
            "label": torch.tensor([document.label for document in chosen]).repeat_interleave(counts),
            key: [document.name for document in chosen for _ in document.text],
            "index": torch.cat([torch.arange(starts[group], starts[group + 1]) for group in groups]),
        }
        columns |= {name: _join([document.columns[name] for document in chosen]) for name in documents[0].columns}
        splits[split] = TensorSamples(**columns)
    return Dataset(splits, info)


def grouped_split(
    strata: Sequence[int], sizes: Sequence[int], val_fraction: float, test_fraction: float, seed: int
) -> dict[str, list[int]]:
    """Groups of each split, in ascending order. A stratum of three groups or more has at least one in every split.

    The fractions are those of a stratum's groups, to the nearest group; which groups go where is drawn so that the shares of samples come
    near them too. A stratum of two groups is in train and test, one of a single group in train.

    Args:
        strata: (G,) the stratum of each group, such as the area of a topic.
        sizes: (G,) samples in each group, positive.
        val_fraction: share that goes to "val", in (0, 1).
        test_fraction: share that goes to "test", in (0, 1).
        seed: non-negative.

    Returns:
        split name -> positions of its groups.

    Raises:
        ValueError: if the fractions leave no share to train, or the seed is negative.
        DataError: if a split is left without a group.
    """
    if not 0 < val_fraction < 1 or not 0 < test_fraction < 1 or val_fraction + test_fraction >= 1:
        raise ValueError(f"val_fraction {val_fraction} and test_fraction {test_fraction} must be positive and leave a share to train")
    if seed < 0:
        raise ValueError(f"the seed must not be negative; found {seed}")
    rng = np.random.default_rng(seed)
    split_of = np.empty(len(strata), dtype=int)
    for stratum in sorted(set(strata)):
        members = np.flatnonzero(np.asarray(strata) == stratum)
        split_of[members] = _assign(np.asarray(sizes)[members], val_fraction, test_fraction, rng)
    parts = {name: np.flatnonzero(split_of == number).tolist() for number, name in enumerate(SPLITS)}
    if empty := [name for name, groups in parts.items() if not groups]:
        found = f"{len(strata)} documents of {len(set(strata))} classes"
        raise DataError(f"{found} leave {', '.join(empty)} empty: documents are not parted, so that a class needs three of them")
    return parts


def _assign(sizes: np.ndarray, val_fraction: float, test_fraction: float, rng: np.random.Generator) -> np.ndarray:
    """The split of each group of one stratum: 0 train, 1 val, 2 test."""
    count = len(sizes)
    test = min(max(round(test_fraction * count), 1), count - 2) if count > 2 else count - 1
    val = min(max(round(val_fraction * count), 1), count - 1 - test) if count > 2 else 0
    pattern = np.repeat([0, 1, 2], [count - val - test, val, test])
    drawn = rng.permuted(np.tile(pattern, (DRAWS, 1)), axis=1)
    shares = np.stack([(drawn == 1) @ sizes, (drawn == 2) @ sizes], axis=1) / sizes.sum()
    return drawn[np.abs(shares - [val_fraction, test_fraction]).sum(1).argmin()]


def _join(columns: list[Any]) -> Any:
    return torch.cat(columns) if isinstance(columns[0], Tensor) else [value for column in columns for value in column]
