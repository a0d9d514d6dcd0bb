from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, sobel

from graftwork import DataError
from graftwork_testbed.scenes.styles import DEGRADATIONS, MAPS, PALETTE, STYLES, VIEWS, gaussian_blur, render_view, sobel_magnitude

IMAGES = torch.randint(0, 256, (4, 3, 48, 40), generator=torch.Generator().manual_seed(0)).byte()
SEMANTIC = torch.zeros(4, 48, 40, dtype=torch.uint8)
SEMANTIC[:, 10:30, 8:20] = torch.tensor([1, 4, 7, 10], dtype=torch.uint8).view(4, 1, 1)


def view(name, images=IMAGES, semantic=SEMANTIC, seed=0):
    return render_view(name, images, semantic, np.random.default_rng(seed))


def test_the_views_are_styles_degradations_and_maps():
    assert (*STYLES, *DEGRADATIONS, *MAPS) == VIEWS
    assert len(set(VIEWS)) == 12


@pytest.mark.parametrize("sigma", [0.6, 1.1, 1.5, 3.0])
def test_blurring_is_scipys_gaussian_filter_with_mirrored_edges(sigma):
    images = torch.rand(2, 3, 30, 21, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    radius = max(1, int(np.ceil(3 * sigma)))
    expected = gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="mirror", radius=(0, 0, radius, radius))
    assert np.abs(gaussian_blur(images, sigma).numpy() - expected).max() < 1e-12


def test_the_gradient_is_scipys_sobel_over_four_largest_over_channels():
    images = torch.rand(2, 3, 20, 17, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    found = sobel_magnitude(images)[:, 0].numpy()
    for image, length in zip(images.numpy(), found, strict=True):
        lengths = [np.hypot(sobel(channel, 0, mode="nearest"), sobel(channel, 1, mode="nearest")) / 4 for channel in image]
        assert np.abs(length - np.max(lengths, 0)).max() < 1e-12


def test_a_slope_has_twice_its_steepness_as_gradient():
    slope = (0.01 * torch.arange(20.0)).expand(1, 1, 12, 20)
    assert sobel_magnitude(slope)[..., 1:-1].allclose(torch.tensor(0.02), atol=1e-6)


def test_photo_is_the_picture_itself():
    assert view("photo") is IMAGES


def test_grey_is_the_luminance_of_bt_601():
    expected = np.einsum("nchw,c->nhw", IMAGES.numpy().astype(float), [0.299, 0.587, 0.114])
    shown = view("grey")
    assert shown[:, 0].equal(shown[:, 1])
    assert shown[:, 0].equal(shown[:, 2])
    assert np.abs(shown[:, 0].numpy() - expected).max() <= 0.501


@pytest.mark.parametrize("size", [32, 64, 128])
def test_blur_widens_in_proportion_to_the_picture(size):
    images = torch.randint(0, 256, (1, 3, size, size), generator=torch.Generator().manual_seed(0)).byte()
    sigma = 1.5 * size / 64
    radius = int(np.ceil(3 * sigma))
    expected = gaussian_filter(images.numpy().astype(float), (0, 0, sigma, sigma), mode="mirror", radius=(0, 0, radius, radius))
    assert np.abs(view("blur", images, torch.zeros(1, size, size).byte()).numpy() - expected).max() <= 0.51


def test_noise_has_a_deviation_of_015_and_is_clipped():
    flat = torch.full((20, 3, 48, 48), 128, dtype=torch.uint8)
    noisy = view("noise", flat, torch.zeros(20, 48, 48).byte()).double() / 255
    assert noisy.mean() == pytest.approx(128 / 255, abs=4 * 0.15 / noisy.numel() ** 0.5)
    assert noisy.std() == pytest.approx(0.15, rel=0.01)
    assert (view("noise").min(), view("noise").max()) == (0, 255)


def test_low_resolution_has_the_means_of_four_by_four_blocks():
    """A pattern that is gone in every block's mean leaves what is under it; a random picture keeps its blocks' means, but for a blur."""
    blocks = torch.randint(40, 216, (1, 3, 2, 2), generator=torch.Generator().manual_seed(0)).byte()
    picture = blocks.repeat_interleave(24, 2).repeat_interleave(24, 3)
    noise = 20 * (-1) ** torch.arange(48 * 48).view(48, 48)
    shown = view("low-resolution", (picture.short() + noise).clamp(0, 255).byte(), torch.zeros(1, 48, 48).byte())
    assert shown[:, :, 10:14, 10:14].equal(picture[:, :, 10:14, 10:14])
    assert shown[:, :, 34:38, 10:14].equal(picture[:, :, 34:38, 10:14])
    means = IMAGES.float().unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2))
    again = view("low-resolution").float().unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2))
    middle = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    assert np.corrcoef(means[middle].flatten(), again[middle].flatten())[0, 1] > 0.97


@pytest.mark.parametrize("width", [48, 96])
def test_the_hole_is_a_black_square_of_a_sixth_of_the_height_squared(width):
    white = torch.full((40, 3, 48, width), 255, dtype=torch.uint8)
    black = (view("hole", white, torch.zeros(40, 48, width).byte()) == 0).all(1)
    side = 20
    assert abs(side - 48 / 6**0.5) <= 0.5  # to the nearest pixel
    assert (black.sum((1, 2)) == side**2).all()
    corners = [(rows.min().item(), across.min().item()) for rows, across in (hole.nonzero(as_tuple=True) for hole in black)]
    assert all(hole[top : top + side, left : left + side].all() for hole, (top, left) in zip(black, corners, strict=True))
    assert len(set(corners)) > 30


def test_what_is_outside_the_hole_is_untouched():
    shown = view("hole")
    assert ((shown == IMAGES) | (shown == 0)).all()


def test_a_poster_has_four_levels_a_channel():
    assert set(view("poster").unique().tolist()) == {0, 85, 170, 255}


def test_night_is_dark_and_blue_around_and_lighter_on_digits():
    grey = torch.full_like(IMAGES, 200)
    shown = view("night", grey).double() / 255
    around, inside = shown[:, :, 40:, 28:].mean((0, 2, 3)), shown[:, :, 15:25, 12:16].mean((0, 2, 3))
    assert around.tolist() == pytest.approx([200 / 255 * tint for tint in (0.16, 0.2, 0.38)], abs=0.005)
    assert inside.tolist() == pytest.approx([0.6 * 200 / 255] * 3, abs=0.01)


def test_a_sketch_of_an_even_picture_is_paper_with_hatching_on_digits():
    shown = view("sketch", torch.full_like(IMAGES, 100)).double() / 255
    assert shown[:, :, 40:, 28:].mean((0, 2, 3)).tolist() == pytest.approx([0.97, 0.955, 0.92], abs=0.003)
    rows, across = torch.meshgrid(torch.arange(48), torch.arange(40), indexing="ij")
    hatched = ((rows + across) % 4 == 0) & (SEMANTIC[0] > 0)
    ink = torch.tensor([0.97, 0.955, 0.92]) * 0.35 + 100 / 255 * 0.65
    assert shown[:, :, hatched].mean((0, 2)).tolist() == pytest.approx(ink.tolist(), abs=0.005)


def test_watercolour_is_pale_around_and_keeps_the_digits():
    shown = view("watercolour", torch.full_like(IMAGES, 100)).double() / 255
    around, inside = shown[:, :, 40:, 28:].mean(), shown[:, :, 15:25, 12:16].mean()
    assert around.item() == pytest.approx(0.55 + 0.45 * 100 / 255, abs=0.005)
    assert inside.item() == pytest.approx(0.12 + 0.88 * 100 / 255, abs=0.005)


def test_edges_are_white_where_the_blurred_gradient_is_steep():
    step = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    step[..., 16:] = 255
    shown = view("edges", step, torch.zeros(1, 32, 32).byte())
    assert set(shown.unique().tolist()) == {0, 255}
    assert (shown[..., 15:17] == 255).all()
    assert not shown[..., :13].any()
    assert not shown[..., 19:].any()


def test_segments_are_the_palette_and_nothing_of_the_picture():
    shown = view("segments")
    assert shown.equal(view("segments", 255 - IMAGES))
    for number, digit in enumerate((1, 4, 7, 10)):
        assert (shown[number, :, 10:30, 8:20] == PALETTE[digit].view(3, 1, 1)).all()
        assert (shown[number, :, :10] == PALETTE[0].view(3, 1, 1)).all()
    assert len({tuple(colour) for colour in PALETTE.tolist()}) == 11


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_bytes_of_the_same_shape_and_depend_on_the_generator_alone(name):
    shown = view(name)
    assert (shown.dtype, shown.shape) == (torch.uint8, IMAGES.shape)
    assert shown.equal(view(name))
    drawn = {"sketch", "night", "watercolour", "noise", "hole"}
    assert shown.equal(view(name, seed=1)) == (name not in drawn)
    if name != "photo":
        assert not shown.equal(IMAGES)


def test_views_of_many_scenes_are_those_of_each():
    small, semantic = IMAGES[:, :, :16, :16], SEMANTIC[:1, :16, :16].expand(514, -1, -1)
    images = small[:1].expand(514, -1, -1, -1).contiguous()  # more than are rendered at once
    images[-1] = small[1]
    shown = view("poster", images, semantic)
    assert shown[-1].equal(view("poster", small[1:2], semantic[:1])[0])
    assert shown[0].equal(shown[512])


def test_an_unknown_view_names_the_nearest():
    with pytest.raises(DataError, match=r'no view "skech" \(did you mean "sketch"\?\); there are photo, sketch'):
        view("skech")
