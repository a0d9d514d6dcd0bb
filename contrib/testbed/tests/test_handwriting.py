from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import avg_pool2d

from graftwork_testbed.handwriting import digits, load_digit_images

TABLE, WRITTEN = load_digits(return_X_y=True)
ORIGINAL = torch.from_numpy(TABLE).view(-1, 8, 8)


def test_at_size_8_the_images_are_scikit_learns_own():
    images, labels = load_digit_images(8)
    assert (images.double() * 16 / 255).round().equal(ORIGINAL)
    assert labels.equal(torch.from_numpy(WRITTEN).long())


@pytest.mark.parametrize("size", [32, 40, 64])
def test_enlarged_digits_look_like_the_originals_inside_a_black_margin(size):
    images, _ = load_digit_images(size)
    assert images.shape == (1797, size, size)
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], dim=1)
    assert border.max() < 0.02 * 255
    if size == 40:  # a cell of the original is exactly 4x4 pixels
        cells = avg_pool2d(images[:, 4:-4, 4:-4].float(), 4)
        assert torch.corrcoef(torch.stack([cells.flatten().double(), ORIGINAL.flatten()]))[0, 1] > 0.99


def test_every_digit_is_in_exactly_one_split_and_index_finds_it():
    data = digits()
    rows = torch.cat([data[split].columns["index"] for split in ("train", "val", "test")])
    assert rows.sort().values.equal(torch.arange(1797))
    test = data["test"].columns
    assert test["label"].equal(torch.from_numpy(WRITTEN).long()[test["index"]])


def test_a_sample_is_a_float_image_in_three_equal_channels():
    sample = digits()["train"][0]
    assert sample["image"].shape == (3, 32, 32)
    assert sample["image"].dtype == torch.float32
    assert 0 <= sample["image"].min() < sample["image"].max() <= 1
    assert sample["image"][0].equal(sample["image"][2])


def test_one_channel_and_another_size_are_told_in_the_info():
    data = digits(size=16, channels=1)
    assert data["val"][3]["image"].shape == (1, 16, 16)
    assert (data.info.channels, data.info.size) == (1, (16, 16))


def test_a_batch_equals_its_samples_one_by_one():
    train = digits()["train"]
    batch = train.__getitems__([5, 0, 9])
    assert batch["image"].equal(torch.stack([train[i]["image"] for i in (5, 0, 9)]))
    assert batch["label"].equal(torch.stack([train[i]["label"] for i in (5, 0, 9)]))


def test_labels_follow_the_order_in_which_classes_are_named():
    data = digits(classes=[8, 3])
    train = data["train"].columns
    assert data.info.classes == ("8", "3")
    assert torch.tensor([8, 3])[train["label"]].equal(torch.from_numpy(WRITTEN).long()[train["index"]])


def test_held_out_classes_are_seen_in_test_only_and_wholly():
    data = digits(held_out_classes=[5, 6, 7, 8, 9])
    seen = {split: set(data[split].columns["label"].tolist()) for split in data}
    assert seen == {"train": {0, 1, 2, 3, 4}, "val": {0, 1, 2, 3, 4}, "test": {5, 6, 7, 8, 9}}
    assert len(data["test"]) == (WRITTEN >= 5).sum()
    assert len(data["train"]) + len(data["val"]) == (WRITTEN < 5).sum()


def test_held_out_labels_come_last_and_name_their_digit():
    data = digits(classes=[1, 2, 3, 4], held_out_classes=[2, 1])
    assert data.info.classes == ("3", "4", "2", "1")
    test = data["test"].columns
    assert torch.tensor([3, 4, 2, 1])[test["label"]].equal(torch.from_numpy(WRITTEN).long()[test["index"]])


def test_the_seed_moves_digits_between_splits():
    assert digits(seed=0).fingerprint() == digits(seed=0).fingerprint()
    assert not digits(seed=0)["test"].columns["index"].equal(digits(seed=1)["test"].columns["index"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"size": 7}, "8 to 128 pixels; found 7"),
        ({"size": 129}, "8 to 128 pixels; found 129"),
        ({"channels": 2}, "channels must be 1 or 3; found 2"),
        ({"classes": [0, 12]}, r"digits from 0 to 9; found \[12\]"),
        ({"classes": [1, 1]}, "classes names a digit twice"),
        ({"held_out_classes": [-1]}, r"held_out_classes are digits from 0 to 9; found \[-1\]"),
        ({"classes": [0, 1], "held_out_classes": [4]}, r"held_out_classes \[4\] are not among the classes \[0, 1\]"),
        ({"classes": [0], "held_out_classes": [0]}, "no class is left to train on"),
        ({"classes": []}, "no class is left to train on"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, "leave a share to train"),
        ({"seed": -3}, "must not be negative; found -3"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        digits(**parameters)
