from __future__ import annotations

import pytest
import torch

from graftwork_testbed.splits import stratified_split

LABELS = torch.tensor([0] * 40 + [1] * 60 + [5] * 20)[torch.randperm(120, generator=torch.Generator().manual_seed(1))]


def test_every_sample_is_in_exactly_one_split():
    parts = stratified_split(LABELS, 0.1, 0.25, seed=0)
    assert torch.cat(list(parts.values())).sort().values.equal(torch.arange(120))


def test_each_stratum_is_shared_out_by_the_fractions():
    parts = stratified_split(LABELS, 0.1, 0.25, seed=3)
    for stratum, size in ((0, 40), (1, 60), (5, 20)):
        counts = {name: int((LABELS[part] == stratum).sum()) for name, part in parts.items()}
        assert counts == {"train": size * 65 // 100, "val": size // 10, "test": size // 4}


def test_a_stratum_that_does_not_divide_evenly_is_off_by_less_than_one_sample():
    labels = torch.zeros(442, dtype=torch.long)
    parts = stratified_split(labels, 0.15, 0.25, seed=0)
    assert abs(len(parts["val"]) - 0.15 * 442) < 1
    assert abs(len(parts["test"]) - 0.25 * 442) < 1


def test_the_seed_alone_decides():
    first, again, other = (stratified_split(LABELS, 0.2, 0.2, seed=seed)["test"] for seed in (7, 7, 8))
    assert first.equal(again)
    assert not first.equal(other)


def test_without_a_test_fraction_there_is_no_test_split():
    assert list(stratified_split(LABELS, 0.2, 0.0, seed=0)) == ["train", "val"]


@pytest.mark.parametrize(("val", "test"), [(0.0, 0.2), (0.5, 0.5), (-0.1, 0.2), (0.1, 1.0), (0.1, -0.1)])
def test_fractions_that_leave_nothing_to_a_split_are_refused(val, test):
    with pytest.raises(ValueError, match="must be positive and leave a share to train"):
        stratified_split(LABELS, val, test, seed=0)


def test_too_few_samples_name_the_empty_split():
    with pytest.raises(ValueError, match="4 samples leave val empty"):
        stratified_split(torch.zeros(4, dtype=torch.long), 0.05, 0.25, seed=0)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="must not be negative; found -1"):
        stratified_split(LABELS, 0.1, 0.1, seed=-1)
