from __future__ import annotations

import functools
import math
import socket

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.measure import label as connected

from graftwork import DataError
from graftwork_testbed.medical import (
    PICTURES,
    bright_objects,
    dark_ridges,
    field_of_view,
    load_picture,
    medical_patches,
    stained_tissue,
    structure_mask,
)
from graftwork_testbed.splits import SPLITS

SIDE = torch.arange(64.0)
RADIUS = torch.stack(torch.meshgrid(SIDE, SIDE, indexing="ij")).sub(31.5).norm(dim=0)
"""Distance of each pixel of a 64x64 image from its middle."""


@functools.cache
def whole(name):
    """A picture and its mask."""
    return load_picture(name), structure_mask(name)


@pytest.fixture(scope="module")
def patches():
    """All four pictures with their masks."""
    return medical_patches("segment", classes=list(PICTURES), crops=40)


def places(crops, picture):
    """Where each crop (N, 3, S, S) lies in a picture (3, H, W): (N, 2) of top and left, found by comparing pixels."""
    size = crops.shape[-1]
    height, width = picture.shape[1:]
    found = []
    for crop in crops:
        start = (picture == crop[:, :1, :1]).all(0)[: height - size + 1, : width - size + 1]
        start = start & (picture == crop[:, -1:, -1:]).all(0)[size - 1 :, size - 1 :]
        for top, left in start.nonzero().tolist():
            if picture[:, top : top + size, left : left + size].equal(crop):
                found.append((top, left))
                break
    assert len(found) == len(crops)
    return torch.tensor(found)


@pytest.mark.parametrize("name", PICTURES)
def test_regions_of_different_splits_share_no_pixel_and_cover_the_picture(name):
    height, width = load_picture(name).shape[1:]
    claimed = torch.zeros(height, width, dtype=torch.long)
    for top, bottom, left, right in PICTURES[name].regions.values():
        claimed[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] += 1
    assert list(PICTURES[name].regions) == list(SPLITS)
    assert claimed.unique().tolist() == [1]


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("split", SPLITS)
def test_crops_and_masks_lie_in_the_region_of_their_split(patches, name, split):
    picture, mask = whole(name)
    number = list(PICTURES).index(name)
    columns = patches[split].columns
    chosen = (columns["label"] == number).nonzero().squeeze(1)[::16]
    top, bottom, left, right = PICTURES[name].regions[split]
    height, width = picture.shape[1:]
    for (y, x), index in zip(places(columns["image"][chosen], picture).tolist(), chosen.tolist(), strict=True):
        assert round(top * height) <= y <= round(bottom * height) - 32
        assert round(left * width) <= x <= round(right * width) - 32
        assert columns["mask"][index].equal(mask[y : y + 32, x : x + 32].long() * (number + 1))


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("split", SPLITS)
def test_half_of_the_crops_lie_on_the_structure(patches, name, split):
    columns = patches[split].columns
    masks = columns["mask"][columns["label"] == list(PICTURES).index(name)]
    assert len(masks) == 40
    assert masks.flatten(1).any(1).sum() >= 20


def test_a_crop_on_the_structure_is_drawn_by_a_pixel_and_then_a_window_around_it():
    crops = medical_patches("segment", classes=["cell"], crops=400, size=16, structure_share=1.0)["val"].columns["mask"] > 0
    assert crops.flatten(1).any(1).all()
    share = crops.float().mean(0)  # how often each place in a window is structure
    sums = torch.from_numpy(np.lib.stride_tricks.sliding_window_view(structure_mask("cell")[374:, 428:].numpy(), (16, 16)).copy()).float()
    flat = sums.flatten(2)
    expected = (flat * flat.sum(2, keepdim=True)).sum((0, 1)).view(16, 16) / flat.sum()
    any_window = flat[flat.any(2)].mean(0).view(16, 16)
    assert (share - expected).abs().max() < 4 * 0.5 / math.sqrt(400)
    assert (share - any_window).abs().max() > 4 * 0.5 / math.sqrt(400)  # windows that hold some, drawn evenly, would not pass


def test_no_crop_comes_twice_where_there_is_room_for_enough():
    data = medical_patches(crops=96)
    for split, samples in data.items():
        for number in range(4):
            crops = samples.columns["image"][samples.columns["label"] == number]
            assert len(torch.unique(crops.flatten(1), dim=0)) == 96, (split, number)
    small = medical_patches(classes=["microaneurysms"])["val"].columns["image"]  # 41 x 41 pixels hold 100 windows
    assert len(torch.unique(small.flatten(1), dim=0)) <= 100 < len(small)


def test_without_a_share_the_empty_background_prevails():
    masks = medical_patches("segment", classes=["cell"], structure_share=0.0)["train"].columns["mask"]
    assert masks.flatten(1).any(1).float().mean() < 0.15  # 4 % of the windows touch the cell


def test_the_black_border_of_the_retina_is_in_no_crop():
    border = load_picture("retina")[0] < 20
    assert border.float().mean() > 0.2
    for samples in medical_patches(size=64, classes=["retina"]).values():
        assert samples.columns["image"][:, 0].min() >= 60


def test_the_field_of_view_is_a_disc_without_its_rim():
    field = field_of_view(load_picture("retina"))
    # in the file, of 1411 pixels, the disc spans rows 8 to 1398 and columns 10 to 1398
    rows, columns = torch.meshgrid(torch.arange(471.0), torch.arange(471.0), indexing="ij")
    away, radius = torch.hypot(rows - 234.0, columns - 234.3), 231.5
    assert field[away < radius - 12 * math.sqrt(2) - 1].all()  # the rim is a square of 12 pixels, at most its diagonal
    ys, xs = (field & (away > radius - 12 + 1)).nonzero().T  # a notch at the upper right, with which the camera marks the side
    assert (ys.max() - ys.min(), xs.max() - xs.min()) < (30, 30)
    assert ys.max() < 235 < xs.min()
    assert field_of_view(load_picture("cell")).all()


def test_stains_are_told_apart_by_the_law_of_absorption():
    hematoxylin, dab = torch.tensor([0.65, 0.70, 0.29]), torch.tensor([0.27, 0.57, 0.78])  # Ruifrok and Johnston's, of unit length
    brown = RADIUS < 20
    density = torch.where(RADIUS > 10, 0.8, 0.1) * hematoxylin.view(3, 1, 1) + torch.where(brown, 0.9, 0.05) * dab.view(3, 1, 1)
    image = (255 * torch.exp(-density)).round().byte()
    assert stained_tissue(image).equal(brown)


def test_bright_objects_are_found_whatever_the_noise():
    noise = torch.randint(-30, 31, (64, 64), generator=torch.Generator().manual_seed(0))
    image = (torch.where(RADIUS < 15, 180, 60) + noise).byte().expand(3, -1, -1)
    assert bright_objects(image).equal(RADIUS < 15)


def test_the_cell_is_one_ellipse_of_thirteen_micrometres():
    mask = structure_mask("cell")
    ys, xs = mask.nonzero().T
    tall, wide = (ys.max() - ys.min() + 1).item(), (xs.max() - xs.min() + 1).item()
    assert connected(mask.numpy()).max() == 1
    assert mask.sum().item() == pytest.approx(math.pi / 4 * tall * wide, rel=0.01)
    assert 2 * math.sqrt(mask.sum().item() / math.pi) * 0.107 == pytest.approx(13.1, abs=0.1)  # at 0.107 micrometres a pixel


def test_dark_lines_are_found_and_bright_ones_and_slopes_are_not():
    image = 120 + torch.arange(64.0).expand(64, 64)  # a slope from left to right
    dark, bright = image.clone(), image.clone()
    dark[30:33] -= 60
    bright[30:33] += 60
    found = dark_ridges(torch.cat([dark, bright]).byte().expand(3, -1, -1))
    assert found[31, 4:60].all()
    assert not found[:26].any()
    assert not found[38:84].any()
    assert not found[95].any()  # the middle of the bright line


def test_retinal_masks_mark_what_is_darker_than_its_surroundings():
    for name in ("retina", "microaneurysms"):
        picture, mask = whole(name)
        around = torch.nn.functional.max_pool2d(mask[None].float(), 9, 1, 4)[0].bool() & ~mask & field_of_view(picture)
        green = picture[1].float()
        assert green[mask].mean() < green[around].mean() - 5
        assert PICTURES[name].heuristic


def test_both_tasks_have_the_same_crops():
    classify, segment = (medical_patches(task, classes=["cell", "ihc"], crops=8) for task in ("classify", "segment"))
    for split in SPLITS:
        assert classify[split].columns["image"].equal(segment[split].columns["image"])
        assert "mask" not in classify[split].columns


def test_heuristic_masks_are_left_out_unless_named():
    assert medical_patches(crops=1).info.classes == tuple(PICTURES)
    assert medical_patches("segment", crops=1).info.classes == ("ihc", "cell")
    assert medical_patches("segment", crops=1, classes=["retina"])["test"][0]["mask"].unique().tolist() in ([0], [0, 1], [1])


def test_a_sample_is_float_image_long_mask_label_and_index():
    sample = medical_patches("segment", size=48, crops=3)["test"][4]
    assert (sample["image"].shape, sample["image"].dtype) == ((3, 48, 48), torch.float32)
    assert (sample["mask"].shape, sample["mask"].dtype) == ((48, 48), torch.long)
    assert set(sample["mask"].unique().tolist()) <= {0, 2}
    assert (sample["label"], sample["index"]) == (1, 4)


def test_one_channel_is_the_luma_that_pillow_computes():
    coloured, grey = (medical_patches(crops=4, channels=channels, classes=["retina", "ihc"])["val"].columns["image"] for channels in (3, 1))
    for image, expected in zip(grey, coloured, strict=True):
        luma = torch.from_numpy(np.array(Image.fromarray(expected.permute(1, 2, 0).numpy()).convert("L")))
        assert (image[0].int() - luma.int()).abs().max() <= 1


def test_crops_of_a_picture_depend_on_the_seed_and_not_on_the_other_pictures():
    alone, among = medical_patches(classes=["cell"], crops=6), medical_patches(crops=6, classes=["ihc", "cell"])
    assert alone["train"].columns["image"].equal(among["train"].columns["image"][6:])
    again, other = medical_patches(classes=["cell"], crops=6), medical_patches(classes=["cell"], crops=6, seed=1)
    assert alone.fingerprint() == again.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(("size", "classes"), [(41, list(PICTURES)), (70, ["retina", "ihc", "cell"]), (8, list(PICTURES))])
def test_sizes_up_to_those_promised_fit_and_find_structure(size, classes):
    for samples in medical_patches("segment", size=size, classes=classes, crops=4, structure_share=1.0).values():
        assert (samples.columns["mask"].flatten(1) > 0).any(1).all()


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"size": 42}, ValueError, "crops of 42 pixels do not fit: microaneurysms has room for 41; ask for less, or leave it out"),
        ({"size": 71, "classes": ["ihc", "retina"]}, ValueError, "crops of 71 pixels do not fit: retina has room for 70"),
        ({"size": 200, "classes": ["microaneurysms"]}, ValueError, "microaneurysms has room for 61"),
        ({"size": 7}, ValueError, "size must be 8 to 256 pixels; found 7"),
        ({"crops": 0}, ValueError, "crops must be 1 to 4096; found 0"),
        ({"channels": 2}, ValueError, "channels must be 1 or 3; found 2"),
        ({"structure_share": 1.5}, ValueError, r"structure_share must be 0 to 1; found 1\.5"),
        ({"seed": -1}, ValueError, "must not be negative; found -1"),
        ({"task": "detect"}, ValueError, 'task must be "classify" or "segment"; found "detect"'),
        ({"classes": []}, ValueError, r"at least one picture, and each once; found \[\]"),
        ({"classes": ["ihc", "ihc"]}, ValueError, r"each once; found \['ihc', 'ihc'\]"),
        ({"classes": ["retna"]}, DataError, r'no medical picture "retna" \(did you mean "retina"\?\); there are retina, ihc'),
    ],
)
def test_bad_parameters_are_named(parameters, error, message):
    with pytest.raises(error, match=message):
        medical_patches(**parameters)


def test_a_mask_of_an_unknown_picture_is_refused():
    with pytest.raises(DataError, match='no medical picture "lung"'):
        structure_mask("lung")


def test_no_connection_is_opened(monkeypatch):
    def refuse(*_args, **_keywords):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert len(medical_patches(crops=1)) == 3
