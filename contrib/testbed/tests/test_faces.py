from __future__ import annotations

import socket
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from graftwork import DataError
from graftwork_testbed import face_patches
from graftwork_testbed.face_patches import faces, load_faces


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A folder that stands for the installed scikit-image."""
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(face_patches, "files", lambda _package: tmp_path)
    return tmp_path / "data/lfw_subset.npy"


def test_at_its_own_size_a_patch_is_as_it_was_shipped():
    images, labels = load_faces(25)
    shipped = np.load(files("skimage") / "data/lfw_subset.npy", allow_pickle=False)
    assert torch.from_numpy(shipped).float().equal(images)
    assert labels.tolist() == [0] * 100 + [1] * 100


def test_the_first_hundred_look_like_one_another_and_the_others_do_not():
    images, _ = load_faces(25)
    flat = images.flatten(1) - images.flatten(1).mean(1, keepdim=True)
    flat = torch.nn.functional.normalize(flat, dim=1)
    alike = flat @ flat[:100].T  # correlation of each patch with each face
    alike[:100].fill_diagonal_(torch.nan)
    found, others = alike[:100].nanmean(1), alike[100:].mean(1)
    assert (found.view(-1, 1) > others).float().mean() > 0.9  # of all pairs of a face and another patch


@pytest.mark.parametrize("size", [16, 32, 64])
def test_other_sizes_are_resampled_as_pillow_does(size):
    native, images = load_faces(25)[0], load_faces(size)[0]
    for index in (0, 57, 130):
        expected = Image.fromarray(native[index].numpy(), mode="F").resize((size, size), Image.Resampling.BICUBIC)
        torch.testing.assert_close(images[index], torch.from_numpy(np.array(expected)).clamp(0, 1), atol=2e-3, rtol=0)


def test_splits_share_the_classes_out_and_nothing_between_them():
    data = faces()
    counts = {name: samples.columns["label"].bincount().tolist() for name, samples in data.items()}
    assert counts == {"train": [60, 60], "val": [15, 15], "test": [25, 25]}
    assert torch.cat([samples.columns["index"] for samples in data.values()]).sort().values.equal(torch.arange(200))


def test_index_leads_to_the_patch():
    images, labels = load_faces(40)
    for sample in (faces(size=40)["test"][3], faces(size=40)["val"][29]):
        assert sample["image"].equal(images[sample["index"]].expand(3, -1, -1))
        assert sample["label"] == labels[sample["index"]]
        assert sample["image"].dtype == torch.float32


@pytest.mark.parametrize(("size", "between"), [(32, 0), (25, 1)])
def test_halves_are_the_left_and_the_right_of_one_patch(size, between):
    whole, halves = faces(size, views="whole"), faces(size, views="halves")
    assert halves.info.size == (size, size // 2)
    for split in whole:
        image, columns = whole[split].columns["image"], halves[split].columns
        half = size // 2
        assert columns["image"].equal(image[..., :half])
        assert columns["view"].equal(image[..., half + between :])
        assert columns["view"].shape == columns["image"].shape


def test_labels_follow_the_order_in_which_classes_are_named():
    only = faces(classes=["face"])
    assert only.info.classes == ("face",)
    assert all((samples.columns["index"] < 100).all() for samples in only.values())
    turned = faces(classes=["non-face", "face"])["train"].columns
    assert turned["label"].equal((turned["index"] < 100).long())


def test_one_channel_is_one_of_three():
    one, three = faces(channels=1)["val"].columns["image"], faces()["val"].columns["image"]
    assert one.expand(-1, 3, -1, -1).equal(three)
    assert (one.min(), one.max()) >= (0, 0)
    assert one.max() <= 1


def test_the_seed_alone_decides():
    assert faces(seed=3).fingerprint() == faces(seed=3).fingerprint() != faces(seed=4).fingerprint()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"size": 7}, "size must be 8 to 128 pixels; found 7"),
        ({"channels": 4}, "channels must be 1 or 3; found 4"),
        ({"views": "thirds"}, 'views must be "whole" or "halves"; found "thirds"'),
        ({"classes": []}, r"name face, non-face or both, each once; found \[\]"),
        ({"classes": ["face", "face"]}, r"each once; found \['face', 'face'\]"),
        ({"classes": ["cat"]}, r"each once; found \['cat'\]"),
        ({"val_fraction": 0.0}, "val_fraction 0.0"),
        ({"test_fraction": 0.9}, "must be positive and leave a share to train"),
        ({"seed": -1}, "must not be negative; found -1"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        faces(**parameters)


def test_a_missing_file_is_named(installed):
    with pytest.raises(DataError, match=r"no readable data/lfw_subset\.npy .*; reinstall it from its wheel"):
        load_faces()


def test_a_pickle_is_not_loaded(installed):
    np.save(installed, np.array([{"an": "object"}]), allow_pickle=True)
    with pytest.raises(DataError, match="allow_pickle=False"):
        load_faces()


def test_a_file_of_another_shape_is_refused(installed):
    np.save(installed, np.zeros((10, 25, 25)))
    with pytest.raises(DataError, match=r"should hold 200 patches of 25x25; found \(10, 25, 25\)"):
        load_faces()


def test_no_connection_is_opened(monkeypatch):
    def refuse(*_args, **_keywords):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert len(faces()) == 3
