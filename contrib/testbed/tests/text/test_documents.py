from __future__ import annotations

import numpy as np
import pytest
import torch

from graftwork import DataError, DatasetInfo
from graftwork_testbed.text.documents import Document, document_dataset, grouped_split

RNG = np.random.default_rng(7)
STRATA = RNG.integers(6, size=90).tolist()
SIZES = RNG.integers(1, 60, size=90).tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_group_is_in_exactly_one_split_and_every_stratum_in_all(seed):
    parts = grouped_split(STRATA, SIZES, 0.15, 0.25, seed)
    assert sorted(group for groups in parts.values() for group in groups) == list(range(90))
    for groups in parts.values():
        assert {STRATA[group] for group in groups} == set(range(6))


def test_fractions_are_those_of_the_groups_and_near_those_of_the_samples():
    parts = grouped_split(STRATA, SIZES, 0.15, 0.25, 0)
    strata, sizes = np.array(STRATA), np.array(SIZES)
    for name, fraction in (("val", 0.15), ("test", 0.25)):
        for stratum in range(6):
            members = np.flatnonzero(strata == stratum)
            chosen = np.intersect1d(parts[name], members)
            assert len(chosen) == round(fraction * len(members))
            assert sizes[chosen].sum() / sizes[members].sum() == pytest.approx(fraction, abs=0.1)


@pytest.mark.parametrize(("count", "expected"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1))])
def test_small_strata_serve_training_first_then_testing(count, expected):
    strata = [0] * count + [1] * 5
    parts = grouped_split(strata, [1] * len(strata), 0.2, 0.2, 0)
    assert tuple(sum(group < count for group in parts[name]) for name in ("train", "val", "test")) == expected


def test_the_seed_moves_groups():
    first, again, other = (grouped_split(STRATA, SIZES, 0.15, 0.25, seed) for seed in (0, 0, 1))
    assert first == again != other


def test_samples_follow_their_document_with_its_columns():
    documents = [Document(f"d{n}", n % 2, [f"d{n} {k}" for k in range(n + 1)], {"ids": torch.full((n + 1, 2), n)}) for n in range(8)]
    data = document_dataset([Document("empty", 0, [], {"ids": torch.zeros(0, 2)}), *documents], "book", 0.2, 0.2, 0, DatasetInfo())
    texts = [text for document in documents for text in document.text]
    seen = []
    for samples in data.values():
        for sample in (samples[index] for index in range(len(samples))):
            number = int(sample["book"][1:])
            assert sample["text"] == texts[sample["index"]]
            assert sample["text"].startswith(f"{sample['book']} ")
            assert sample["label"] == number % 2
            assert sample["ids"].tolist() == [number, number]
            seen.append(int(sample["index"]))
    assert sorted(seen) == list(range(36))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (([0] * 9, [1] * 9, 0.5, 0.5, 0), ValueError, "must be positive and leave a share to train"),
        (([0] * 9, [1] * 9, 0.0, 0.5, 0), ValueError, "val_fraction 0.0"),
        (([0] * 9, [1] * 9, 0.1, 0.1, -1), ValueError, "must not be negative; found -1"),
        (([0, 0, 1], [1] * 3, 0.2, 0.2, 0), DataError, "3 documents of 2 classes leave val empty"),
        (([], [], 0.2, 0.2, 0), DataError, "leave train, val, test empty"),
    ],
)
def test_what_cannot_be_split_is_told(arguments, kind, message):
    with pytest.raises(kind, match=message):
        grouped_split(*arguments)
