from __future__ import annotations

import socket

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from graftwork import DataError
from graftwork_testbed import diabetes, digit_domains, digits, shifted_moons
from graftwork_testbed.photographs import BANDS, PHOTOS, band, load_photo, photo_patches, photos, random_crops, read_image
from graftwork_testbed.texture_crops import TEXTURES, textures

COORDINATES = torch.arange(50 * 70).view(1, 50, 70)
"""An image whose pixels say where they are."""


def test_a_crop_is_a_window_of_the_image():
    crops = random_crops(COORDINATES, 200, 16, np.random.default_rng(0))
    window = (torch.arange(16) * 70).view(-1, 1) + torch.arange(16)
    assert crops.shape == (200, 1, 16, 16)
    assert (crops[:, 0] - crops[:, 0, :1, :1]).equal(window.expand(200, 16, 16))


def test_crops_reach_every_border_of_the_image():
    crops = random_crops(COORDINATES, 5000, 16, np.random.default_rng(0))
    top, left = crops[:, 0, 0, 0] // 70, crops[:, 0, 0, 0] % 70
    assert (top.min(), top.max(), left.min(), left.max()) == (0, 34, 0, 54)


def test_bands_of_different_splits_share_no_column_and_cover_all():
    columns = [set(band(COORDINATES, split)[0, 0].tolist()) for split in BANDS]
    assert set.union(*columns) == set(range(70))
    assert sum(map(len, columns)) == 70


@pytest.mark.parametrize("name", PHOTOS)
def test_every_photograph_is_in_the_wheels(name):
    photo = load_photo(name)
    assert photo.dtype == torch.uint8
    assert photo.shape[0] == 3
    assert min(photo.shape[1:]) >= 300
    assert photo.float().std() > 20


def test_shrinking_takes_the_mean_of_blocks():
    whole, small = load_photo("coffee").float(), load_photo("coffee", shrink=4).float()
    assert (avg_pool2d(whole, 4) - small).abs().max() <= 0.51


def test_patches_come_from_every_photograph_named():
    patches = photo_patches(["rocket", "coins"], 64, 16, np.random.default_rng(0))
    grey = (patches[:, 0] == patches[:, 1]).flatten(1).all(1)
    assert 16 < grey.sum() < 48  # coins is grey, the night sky behind the rocket is not


def test_splits_share_no_photograph():
    data = photos()
    shown = {split: {data.info.classes[label] for label in samples.columns["label"].unique()} for split, samples in data.items()}
    assert shown == {split: {name for name, photo in PHOTOS.items() if photo.split == split} for split in BANDS}


def test_split_by_region_puts_every_photograph_in_every_split():
    data = photos(split_by="region", crops=5)
    assert all(samples.columns["label"].bincount().tolist() == [5] * 9 for samples in data.values())


def test_crops_of_a_region_come_from_its_band():
    crops = photos(names=["china"], split_by="region", crops=4, size=24)["test"].columns["image"]
    strips = load_photo("china").unfold(2, 24, 1)  # (3, H, W - 23, 24)
    for crop in crops:
        _, left = (strips == crop[:, 0].view(3, 1, 1, 24)).all(0).all(-1).nonzero()[0].tolist()
        assert left >= 480  # the last quarter of 640 columns


def test_samples_have_image_label_and_index():
    sample = photos(size=48, crops=3)["test"][4]
    assert sample["image"].shape == (3, 48, 48)
    assert sample["image"].dtype == torch.float32
    assert (sample["label"], sample["index"]) == (7, 4)  # the second test photograph, coffee


def test_the_crops_of_a_photograph_do_not_depend_on_the_others():
    names = ["china", "rocket", "chelsea"]
    assert photos(names=names)["train"].columns["image"].equal(photos()["train"].columns["image"][128:256])


def test_the_seed_moves_the_crops():
    assert photos(seed=1).fingerprint() == photos(seed=1).fingerprint()
    assert photos(seed=1).fingerprint() != photos(seed=2).fingerprint()


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"size": 4}, ValueError, "size must be 8 to 256 pixels; found 4"),
        ({"crops": 0}, ValueError, "crops must be 1 to 4096; found 0"),
        ({"shrink": 9}, ValueError, "shrink must be 1 to 8; found 9"),
        ({"seed": -1}, ValueError, "must not be negative; found -1"),
        ({"split_by": "colour"}, ValueError, 'split_by must be "photo" or "region"; found "colour"'),
        ({"names": ["china"]}, ValueError, 'china: no photograph is left for val, test; use split_by "region"'),
        ({"names": []}, ValueError, "no photograph is left for train, val, test"),
        ({"names": ["china", "china"], "split_by": "region"}, ValueError, "named twice"),
        ({"names": ["chelsey"]}, DataError, r'no photograph "chelsey" \(did you mean "chelsea"\?\)'),
        ({"size": 64, "split_by": "region"}, ValueError, "do not fit: the smallest region has room for 58"),
        ({"size": 100, "shrink": 4}, ValueError, "crops of 100 pixels do not fit"),
    ],
)
def test_bad_parameters_of_photos_are_named(parameters, error, message):
    with pytest.raises(error, match=message):
        photos(**parameters)


def test_an_image_smaller_than_its_crops_is_refused():
    with pytest.raises(ValueError, match="a crop of 64 pixels does not fit an image of 50x70"):
        random_crops(COORDINATES, 1, 64, np.random.default_rng(0))


def test_a_file_that_the_installation_lacks_is_named():
    with pytest.raises(DataError, match=r"the installed skimage has no data/unicorn\.png"):
        read_image("skimage", "data/unicorn.png")


def test_textures_are_grey_and_labelled_by_surface():
    data = textures()
    assert data.info.classes == tuple(TEXTURES)
    for samples in data.values():
        assert samples.columns["label"].bincount().tolist() == [128] * 6
        assert samples.columns["image"][:, 0].equal(samples.columns["image"][:, 2])


def test_crops_of_a_texture_come_from_the_band_of_their_split():
    crops = textures(classes=["gravel"], crops=4, channels=1)["val"].columns["image"]
    strips = read_image("skimage", TEXTURES["gravel"], "L")[0].unfold(1, 32, 1)
    low, high = round(0.6 * 512), round(0.75 * 512)
    for crop in crops:
        left = (strips == crop[0, 0]).all(-1).nonzero()[0, 1]
        assert low <= left <= high - 32


def test_labels_follow_the_order_in_which_textures_are_named():
    chosen = textures(classes=["stars", "brick"], crops=10)
    images, labels = chosen["train"].columns["image"].float(), chosen["train"].columns["label"]
    assert images[labels == 0].mean() < 30 < images[labels == 1].mean()  # stars are mostly black


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"classes": ["gras"]}, DataError, r'no texture "gras" \(did you mean "grass"\?\); there are brick, grass'),
        ({"classes": []}, ValueError, "classes is empty"),
        ({"classes": ["brick", "brick"]}, ValueError, "named twice"),
        ({"channels": 4}, ValueError, "channels must be 1 or 3; found 4"),
        ({"size": 80}, ValueError, "the smallest region has room for 77"),
        ({"size": 300}, ValueError, "8 to 256 pixels; found 300"),
    ],
)
def test_bad_parameters_of_textures_are_named(parameters, error, message):
    with pytest.raises(error, match=message):
        textures(**parameters)


@pytest.mark.parametrize("build", [digits, digit_domains, photos, textures, shifted_moons, diabetes])
def test_no_data_set_opens_a_connection(build, monkeypatch):
    def refuse(*_args, **_keywords):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert len(build()) >= 3
