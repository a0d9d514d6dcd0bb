from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.filters import sobel

from graftwork import DataError
from graftwork_testbed.domains import DOMAINS, add_noise, blend, digit_domains, invert, rotate, trace_edges
from graftwork_testbed.handwriting import load_digit_images
from graftwork_testbed.photographs import PHOTOS, load_photo

IMAGES = load_digit_images(32)[0][:24]


@pytest.fixture(scope="module")
def data():
    return digit_domains()


def test_blending_is_the_absolute_difference_and_never_wraps():
    patches = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = np.abs(patches.numpy().astype(float) - IMAGES.numpy().astype(float)[:, None])
    assert np.array_equal(blend(IMAGES, patches).numpy(), expected)


def test_blending_shows_the_photo_outside_a_stroke_and_its_negative_inside():
    patches = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mask = (IMAGES > 127).unsqueeze(1).expand(-1, 3, -1, -1)
    blended = blend(255 * mask[:, 0].byte(), patches)
    assert blended[~mask].equal(patches[~mask])
    assert blended[mask].equal(255 - patches[mask])


def test_inverting_twice_gives_the_digit_back():
    assert invert(invert(IMAGES)).equal(IMAGES)
    assert invert(IMAGES)[0, 0, 0] == 255


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, -1])
def test_rotation_by_quarter_turns_is_exact_and_counter_clockwise(quarters):
    turned = rotate(IMAGES, torch.full((24,), 90.0 * quarters))
    assert turned.equal(torch.rot90(IMAGES, quarters, dims=(1, 2)))


def test_each_image_is_rotated_by_its_own_angle():
    turned = rotate(IMAGES[:1].repeat(2, 1, 1), torch.tensor([0.0, 180.0]))
    assert turned[0].equal(IMAGES[0])
    assert turned[1].equal(IMAGES[0].flip(0, 1))


def test_noise_has_the_deviation_asked_for():
    grey = torch.full((50, 32, 32), 128, dtype=torch.uint8)
    noisy = add_noise(grey, 0.1, np.random.default_rng(0)).double()
    assert noisy.mean() == pytest.approx(128, abs=0.5)
    assert noisy.std() == pytest.approx(25.5, rel=0.02)


def test_noise_is_clipped_at_black_and_white():
    noisy = add_noise(IMAGES, 2.0, np.random.default_rng(0))
    assert (noisy.min(), noisy.max()) == (0, 255)


def test_edges_are_the_sobel_magnitude_with_the_strongest_in_white():
    reference = np.stack([sobel(image, mode="reflect") for image in IMAGES.numpy().astype(float)])
    reference *= 255 / reference.max(axis=(1, 2), keepdims=True)
    assert np.abs(trace_edges(IMAGES).numpy() - reference).max() <= 0.51  # rounding


def test_transforms_of_a_digit_do_not_depend_on_its_neighbours_in_the_batch():
    angles = torch.linspace(-45, 45, 24)
    assert trace_edges(IMAGES)[5].equal(trace_edges(IMAGES[5:6])[0])
    assert rotate(IMAGES, angles)[5].equal(rotate(IMAGES[5:6], angles[5:6])[0])


def test_an_even_image_has_no_edges():
    assert trace_edges(torch.full((2, 16, 16), 90, dtype=torch.uint8)).max() == 0


def test_there_is_a_train_val_and_test_split_of_every_domain(data):
    assert list(data) == [f"{domain}/{split}" for domain in DOMAINS for split in ("train", "val", "test")]
    assert data.info.domains == DOMAINS
    assert (data.info.channels, data.info.size, len(data.info.classes)) == (3, (32, 32), 10)
    assert {samples[0]["image"].shape for samples in data.values()} == {(3, 32, 32)}


def test_splits_share_no_digit_and_domains_share_them_all(data):
    rows = {name: set(samples.columns["index"].tolist()) for name, samples in data.items()}
    for domain in DOMAINS:
        train, val, test = (rows[f"{domain}/{split}"] for split in ("train", "val", "test"))
        assert (train, val, test) == (rows["clean/train"], rows["clean/val"], rows["clean/test"])
        assert len(train | val | test) == len(train) + len(val) + len(test) == 1797


def test_index_pairs_the_versions_of_a_digit(data):
    clean, inverted = data["clean/test"].columns, data["inverted/test"].columns
    assert clean["index"].equal(inverted["index"])
    assert (clean["image"] + inverted["image"]).unique().tolist() == [255]


def test_every_version_of_a_digit_has_its_label(data):
    labels = load_digit_images(8)[1]
    assert all(samples.columns["label"].equal(labels[samples.columns["index"]]) for samples in data.values())


def test_domain_is_the_position_in_what_was_asked_for():
    data = digit_domains(["photo", "clean"])
    assert data["photo/val"][0]["domain"] == 0
    assert data["clean/val"][0]["domain"] == 1


def test_a_domain_does_not_depend_on_which_others_are_built(data):
    alone = digit_domains(["noisy", "photo"])
    for split in ("noisy/train", "photo/test"):
        assert alone[split].columns["image"].equal(data[split].columns["image"])


def test_the_seed_decides_everything_and_no_global_generator_is_touched(data):
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    again = digit_domains()
    assert torch.get_rng_state().equal(before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert all(again[name].columns["image"].equal(data[name].columns["image"]) for name in data)
    assert not digit_domains(["photo"], seed=1)["photo/train"].columns["image"].equal(data["photo/train"].columns["image"])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_background_comes_from_a_photograph_of_the_same_split(split):
    blended = digit_domains(["photo"], binarise=0.5)[f"photo/{split}"].columns["image"]
    rows = blended[:6, :, 0]  # the top row lies in every digit's black margin

    def found(name: str) -> torch.Tensor:
        strips = load_photo(name).unfold(2, 32, 1).permute(1, 2, 0, 3).flatten(2)  # (H, W - 31, 3 * 32)
        return torch.stack([(strips == row.flatten()).all(2).any() for row in rows])

    own = torch.stack([found(name) for name, photo in PHOTOS.items() if photo.split == split]).any(0)
    assert own.all()


def test_binarising_changes_grey_pixels_only(data):
    hard, soft = digit_domains(["photo"], binarise=0.5)["photo/test"].columns["image"], data["photo/test"].columns["image"]
    digits = load_digit_images(32)[0][data["photo/test"].columns["index"]]
    for certain in (digits == 255, digits == 0):  # pixels that are black or white already do not change
        where = certain.unsqueeze(1).expand(-1, 3, -1, -1)
        assert hard[where].equal(soft[where])
    assert not hard.equal(soft)


def test_images_are_as_large_as_asked():
    data = digit_domains(size=8)
    assert {samples[0]["image"].shape for samples in data.values()} == {(3, 8, 8)}


def test_rotation_stays_within_its_range():
    nearly = digit_domains(["clean", "rotated"], rotation=0.01)
    difference = nearly["clean/test"].columns["image"].short() - nearly["rotated/test"].columns["image"].short()
    assert difference.abs().max() <= 1


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"domains": ["clean", "photos"]}, DataError, r'no domain "photos" \(did you mean "photo"\?\); there are clean, photo'),
        ({"domains": []}, ValueError, "domains is empty"),
        ({"domains": ["clean", "clean"]}, ValueError, "named twice: clean, clean"),
        ({"size": 200}, ValueError, "8 to 128 pixels; found 200"),
        ({"rotation": 0}, ValueError, "rotation must be above 0 and at most 180 degrees; found 0"),
        ({"noise": 3}, ValueError, "noise must be above 0 and at most 2; found 3"),
        ({"binarise": 1.0}, ValueError, "binarise must be at least 0 and below 1; found 1.0"),
        ({"test_fraction": 1.0}, ValueError, "leave a share to train"),
        ({"seed": -1}, ValueError, "must not be negative"),
    ],
)
def test_bad_parameters_are_named(parameters, error, message):
    with pytest.raises(error, match=message):
        digit_domains(**parameters)
