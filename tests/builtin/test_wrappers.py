"""Few-shot subsets and class-balanced batches."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils.data import Subset

import graftwork as gw
from graftwork.builtin.networks import MLP
from graftwork.builtin.objectives import CrossEntropy
from graftwork.builtin.wrappers import BalancedBatches, ClassBalancedBatches, FewShotSubset, JoinedSplits, labels_of
from graftwork.engine import Engine
from graftwork.training import TrainConfig


def data(counts: tuple[int, ...] = (9, 4, 6)) -> gw.Dataset:
    label = torch.cat([torch.full((count,), index) for index, count in enumerate(counts)])
    label = label[torch.randperm(len(label), generator=torch.Generator().manual_seed(0))]
    train = gw.TensorSamples(features=torch.arange(len(label)).float()[:, None], label=label)
    test = gw.TensorSamples(features=torch.zeros(5, 1), label=torch.zeros(5).long())
    return gw.Dataset({"train": train, "test": test}, gw.DatasetInfo(classes=("a", "b", "c")))


class Refreshed(gw.Dataset):
    """Notes what it is asked."""

    def batch_sampler(self, split, batch_size, generator):
        return [[0], [1]]

    def refresh(self, model):
        self.seen = model


def test_labels_come_from_columns_subsets_and_plain_samples_alike() -> None:
    samples = data()["train"]
    expected = samples.columns["label"]
    plain = [samples[index] for index in range(len(samples))]
    assert torch.equal(labels_of(samples), expected)
    assert torch.equal(labels_of(plain), expected)
    assert torch.equal(labels_of(Subset(Subset(plain, [3, 1, 2]), [2, 0])), expected[[2, 3]])


def test_samples_without_labels_are_named() -> None:
    with pytest.raises(gw.DataError, match="the samples have no label: they have features"):
        labels_of(gw.TensorSamples(features=torch.zeros(3, 1)))


def test_each_class_keeps_so_many_shots_and_other_splits_stay() -> None:
    whole = data()
    few = FewShotSubset(whole, shots=4)
    assert Counter(labels_of(few["train"]).tolist()) == {0: 4, 1: 4, 2: 4}
    chosen = [sample["features"].item() for sample in few["train"]]
    assert len(set(chosen)) == 12  # without replacement
    assert few["test"] is whole["test"]
    assert few.info == whole.info


def test_the_draw_depends_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    first = FewShotSubset(data(), shots=3, seed=5)["train"].indices
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert FewShotSubset(data(), shots=3, seed=5)["train"].indices == first
    assert torch.equal(torch.get_rng_state(), state)
    assert FewShotSubset(data(), shots=3, seed=6)["train"].indices != first


def test_a_class_with_too_few_samples_is_named() -> None:
    with pytest.raises(gw.DataError, match='class 1 has 4 samples in split "train"; 5 shots were asked for'):
        FewShotSubset(data(), shots=5)


def test_wrappers_pass_on_what_they_do_not_change() -> None:
    inner = Refreshed(dict(data()))
    few = FewShotSubset(inner, shots=2)
    assert few.batch_sampler("test", 8, torch.Generator()) == [[0], [1]]
    assert few.batch_sampler("train", 8, torch.Generator()) is None  # its indices are others now
    few.refresh("model")
    assert inner.seen == "model"


def test_batches_have_p_classes_with_k_samples_each() -> None:
    labels = data((43, 37, 51))["train"].columns["label"]
    batches = list(BalancedBatches(labels, 2, 5, torch.Generator().manual_seed(0)))
    assert len(batches) == 131 // 10
    for batch in batches:
        assert sorted(Counter(labels[batch].tolist()).values()) == [5, 5]
        assert len(set(batch)) == 10


def test_no_sample_repeats_before_the_pool_is_filled_anew() -> None:
    labels = torch.arange(4).repeat_interleave(6)
    batches = list(BalancedBatches(labels, 4, 3, torch.Generator().manual_seed(0)))
    assert sorted(index for batch in batches for index in batch) == list(range(24))  # two batches, each sample once


def test_a_class_that_is_used_up_leaves_the_pool() -> None:
    labels = torch.tensor([0] * 2 + [1] * 2 + [2] * 40)  # classes 0 and 1 have one group, class 2 has twenty
    sampler = BalancedBatches(labels, 2, 2, torch.Generator().manual_seed(0))
    pairs = [set(labels[batch].tolist()) for batch in sampler]
    assert all(len(pair) == 2 for pair in pairs)
    # a pool serves at most two batches: {0, 2} and {1, 2}; or {0, 1}, after which class 2 alone is too few
    seen: set[int] = set()
    for pair in pairs:
        used_up = pair & {0, 1}
        if used_up & seen or seen == {0, 1}:
            seen = set()  # filled anew
        seen |= used_up
    assert {frozenset(pair) for pair in pairs} == {frozenset(p) for p in ((0, 1), (0, 2), (1, 2))}


def test_a_small_class_is_topped_up_with_its_own() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1, 1, 1])
    batch = next(iter(BalancedBatches(labels, 2, 5, torch.Generator().manual_seed(0))))
    of_first = [index for index in batch if labels[index] == 0]
    assert len(of_first) == 5
    assert set(of_first) == {0, 1}


def test_iterating_anew_shuffles_anew_and_repeats_under_a_seed() -> None:
    labels = torch.arange(4).repeat_interleave(10)
    sampler = BalancedBatches(labels, 2, 5, torch.Generator().manual_seed(3))
    first, second = list(sampler), list(sampler)
    assert first != second
    again = BalancedBatches(labels, 2, 5, torch.Generator().manual_seed(3))
    assert [list(again), list(again)] == [first, second]


def test_training_draws_balanced_batches() -> None:
    wrapped = ClassBalancedBatches(data((20, 12, 16)), classes=3, instances=2)
    seen = []

    class Watch(CrossEntropy):
        def forward(self, model, batches, progress):
            seen.append(Counter(batches["train"]["label"].tolist()))
            return super().forward(model, batches, progress)

    Engine(MLP(1, hidden=[4], num_classes=3), Watch(), wrapped, TrainConfig(epochs=1, batch_size=64), device="cpu").fit()
    assert seen == [{0: 2, 1: 2, 2: 2}] * 8


def test_class_balanced_batches_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="needs at least 2 instances per class; found 1"):
        ClassBalancedBatches(data(), instances=1)
    with pytest.raises(gw.DataError, match="batches of 4 classes were asked for; the split has 3"):
        ClassBalancedBatches(data(), classes=4, instances=2).batch_sampler("train", 8, torch.Generator())
    with pytest.raises(gw.ConfigError, match="needs at least 2 instances per class; found 1"):
        gw.dataset("class-balanced-batches", data=data(), instances=1)


def test_a_joined_split_holds_the_samples_of_its_parts() -> None:
    inner = data()
    joined = gw.dataset("joined-splits", data=inner, splits={"both": ["train", "test"]})
    assert list(joined) == ["train", "test", "both"]
    assert len(joined["both"]) == 24
    assert torch.equal(joined["both"][19]["features"], inner["test"][0]["features"])
    assert labels_of(joined["both"]).tolist() == [*labels_of(inner["train"]).tolist(), *labels_of(inner["test"]).tolist()]
    assert joined.batch_sampler("both", 4, torch.Generator()) is None
    assert joined.info == inner.info


def test_a_joined_dataset_samples_and_refreshes_as_the_one_inside() -> None:
    inner = Refreshed({"train": data()["train"]})
    joined = JoinedSplits(inner, {"twice": ["train", "train"]})
    assert joined.batch_sampler("train", 4, torch.Generator()) == inner.batch_sampler("train", 4, torch.Generator())


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"both": ["train", "tset"]}, r'no split "tset" \(did you mean "test"\?\)'),
        ({"train": ["test"]}, 'the dataset has a split "train" already'),
        ({"none": []}, 'split "none" is made of no split'),
    ],
)
def test_joins_that_cannot_be_are_named(splits: dict[str, list[str]], message: str) -> None:
    with pytest.raises(gw.DataError, match=message):
        JoinedSplits(data(), splits)
