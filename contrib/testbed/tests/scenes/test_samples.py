from __future__ import annotations

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from graftwork import DataError
from graftwork.kinds.dataset import collate
from graftwork_testbed.scenes.samples import RAGGED, SceneSamples


def same(first, second):
    """Whether two values of a sample or batch are equal, types, shapes and all."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and first.equal(second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(map(same, first.values(), second.values()))
    if isinstance(first, list):
        return isinstance(second, list) and len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.fixture(params=["flat", "moving", "around"])
def samples(request):
    return request.getfixturevalue(request.param)["train"]


def test_a_batch_is_what_collating_its_samples_gives(samples):
    for indices in ([3, 0, 5, 3], list(range(len(samples))), [2], [-1, 1]):
        assert same(samples.__getitems__(indices), collate([samples[index] for index in indices]))


def test_ragged_keys_are_stacked_where_counts_agree(samples):
    counts = samples.counts.tolist()
    n = max(set(counts), key=counts.count)
    alike = [index for index, count in enumerate(counts) if count == n][:3]
    batch = samples.__getitems__(alike)
    assert same(batch, collate([samples[index] for index in alike]))
    ragged = [key for key in RAGGED if key in batch]
    assert all(isinstance(batch[key], torch.Tensor) for key in ragged)
    other = next(index for index, count in enumerate(counts) if count != n)
    mixed = samples.__getitems__([alike[0], other])
    assert all(isinstance(mixed[key], list) for key in ragged)


def test_a_sample_is_its_columns_cut_to_its_count(samples):
    for index in (0, 1, len(samples) - 1):
        sample, n = samples[index], int(samples.counts[index])
        assert sample["image"].equal(samples.columns["image"][index].float() / 255)
        assert sample["mask"].equal(samples.columns["mask"][index].long())
        assert sample["boxes"].equal(samples.columns["boxes"][index, :n])
        assert sample["relation"].equal(samples.columns["relation"][index, : n * (n - 1) // 2])
        assert sample["caption"] == samples.captions[index]


def test_indices_may_be_negative_or_numbers_of_torch_and_end_where_the_samples_do(flat):
    samples = flat["val"]
    assert same(samples[-1], samples[39])
    assert same(samples[torch.tensor(7)], samples[7])
    for index in (40, -41):
        with pytest.raises(IndexError):
            samples[index]
        with pytest.raises(IndexError):
            samples.__getitems__([0, index])
    with pytest.raises(TypeError):
        samples[1.5]
    assert len(list(iter(samples))) == 40


def test_changing_pictures_masks_and_boxes_in_place_leaves_the_data_as_they_were(samples):
    kept = pickle.dumps(samples[0])
    changed = {"image", "mask", "instances", "boxes", "clip", "clip_mask", "clip_instances", "clip_boxes", "velocity", "distortion"}
    for key in changed & samples[0].keys():
        samples[0][key].add_(1)
        if key != "distortion":
            samples.__getitems__([0, 0])[key].add_(1)
    assert same(pickle.loads(kept), samples[0])


def test_selecting_keeps_scenes_whole(samples):
    chosen = torch.tensor([4, 0, 4])
    few = samples.select(chosen)
    assert len(few) == 3
    assert all(same(few[place], samples[index]) for place, index in enumerate(chosen.tolist()))


def test_replacing_gives_other_columns_and_leaves_the_samples_alone(flat):
    samples = flat["val"]
    other = samples.replace(label=torch.full((40,), 7), weight=torch.arange(40.0))
    assert other[3]["label"] == 7
    assert other[3]["weight"] == 3
    assert other[3]["image"].equal(samples[3]["image"])
    assert "weight" not in samples[3]
    assert same(other.replace(label=samples.columns["label"]).columns["label"], samples.columns["label"])


def test_pictures_that_are_floats_come_out_as_they_are(flat):
    pictures = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    other = flat["val"].replace(image=pictures)
    for _ in range(2):
        assert other[5]["image"].equal(pictures[5])
        assert other.__getitems__([5, 6])["image"].equal(pictures[5:7])


@pytest.mark.parametrize(
    ("change", "lengths"),
    [
        ({"columns": {"label": torch.zeros(3)}}, "'label': 3, 'counts': 2, 'captions': 2"),
        ({"counts": torch.ones(1)}, "'label': 2, 'counts': 1, 'captions': 2"),
        ({"captions": ["a", "b", "c"]}, "'label': 2, 'counts': 2, 'captions': 3"),
    ],
)
def test_columns_of_different_length_are_refused(change, lengths):
    whole = {"columns": {"label": torch.zeros(2)}, "counts": torch.ones(2), "captions": ["a", "b"]}
    with pytest.raises(DataError, match=f"the columns of scenes differ in length: {{{lengths}}}"):
        SceneSamples(**{**whole, **change})


def test_pickling_carries_the_columns_once(samples):
    packed = pickle.dumps(samples)
    again = pickle.loads(packed)
    assert all(same(again[index], samples[index]) for index in range(0, len(samples), 5))
    size = sum(column.nbytes for column in samples.columns.values())
    assert len(packed) < 1.1 * size + 50_000


def test_workers_of_a_loader_read_the_same_and_leave_the_columns_readable(flat):
    """A worker that does not fork has the samples by pickling, for which torch moves the columns' memory under their owner's feet."""
    samples, order = flat["test"], list(range(39, -1, -1))
    settings = {"batch_size": 16, "sampler": order, "collate_fn": flat.collate}
    before, held = list(DataLoader(samples, **settings)), samples[3]
    kept = pickle.dumps(held)
    loaded = list(DataLoader(samples, num_workers=1, multiprocessing_context="forkserver", **settings))
    assert list(map(len, (batch["caption"] for batch in loaded))) == [16, 16, 8]
    assert all(map(same, before, loaded))
    assert all(map(same, before, DataLoader(samples, **settings)))
    assert same(held, pickle.loads(kept))


def test_keys_stand_in_one_order(samples):
    assert list(samples[0]) == list(samples.__getitems__([0, 1])) == list(samples.select(torch.tensor([1, 0]))[0])
    assert set(samples[0]) == {*samples.columns, "caption", *samples.constant}
