from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from graftwork_testbed import load_digit_images
from graftwork_testbed.scenes.layout import Vocabulary, draw_layout
from graftwork_testbed.scenes.panorama import SHRINK, STEEPEST, directions, distortion, place_around, room, sphere_alphas
from graftwork_testbed.scenes.render import extents
from graftwork_testbed.scenes.vocabulary import RELATIONS

FULL = torch.full((1, 1, 40, 40), 255, dtype=torch.uint8)
AXES = {"right": (1, 0, 0), "left": (-1, 0, 0), "above": (0, 1, 0), "below": (0, -1, 0), "ahead": (0, 0, 1), "behind": (0, 0, -1)}


def pixel_of(direction, size):
    """Row and column of the pixel that shows a direction, by longitude and latitude."""
    x, y, z = direction
    longitude, latitude = math.atan2(x, z), math.asin(y / math.hypot(x, y, z))
    return min(int((0.5 - latitude / math.pi) * size), size - 1), min(int((longitude / math.pi + 1) * size), 2 * size - 1)


# -- the frame --------------------------------------------------------------------------------------------------------------------


def test_directions_are_unit_vectors_by_longitude_and_latitude():
    seen = directions(16).double()
    assert seen.norm(dim=-1).allclose(torch.ones(16, 32).double(), atol=1e-6)
    for row, column in itertools.product(range(16), range(32)):
        assert pixel_of(seen[row, column].tolist(), 16) == (row, column)


@pytest.mark.parametrize("size", [16, 64, 128])
def test_pixels_weighted_by_their_solid_angle_cover_the_sphere(size):
    """The midpoint rule on cos(latitude) overshoots by (pi / size)^2 / 24."""
    weights = (math.pi / size) ** 2 / distortion(size).double()
    assert weights.sum().item() == pytest.approx(4 * math.pi * (1 + (math.pi / size) ** 2 / 24), rel=1e-5)


def test_distortion_is_one_over_the_cosine_of_the_latitude(around):
    latitude = [math.pi / 2 - (row + 0.5) * math.pi / 64 for row in range(64)]
    sample = around["train"][0]
    assert sample["distortion"].shape == sample["image"].shape[1:] == (64, 128)
    assert sample["distortion"][:, 17].tolist() == pytest.approx([1 / math.cos(angle) for angle in latitude], rel=1e-5)
    assert around["train"].__getitems__([0, 1])["distortion"].shape == (2, 64, 128)
    assert around.info.size == (64, 128)


# -- digits on the sphere ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latitude", [-50, -30, 0, 20, 40, 50])
def test_a_digit_is_wider_by_one_over_the_cosine_of_its_latitude(latitude):
    """A white square: across its own middle it is 1 / cos wider than on the horizon, and its height stays, to the pixel."""
    size, share = 512, 0.12
    half = math.tan(share * math.pi * SHRINK / 2)
    places = torch.tensor([[[0.3, math.radians(latitude)]]])
    drawn = sphere_alphas(FULL, places, torch.full((1, 1), share), torch.zeros(1, 1), size)[0, 0] > 0.5
    row = pixel_of((0, math.sin(math.radians(latitude)), math.cos(math.radians(latitude))), size)[0]
    level = drawn.sum(1)[row].item() * math.pi / size
    assert level == pytest.approx(2 * math.atan(half) / math.cos(math.radians(latitude)), abs=2 * math.pi / size, rel=0.01)
    left, top, right, bottom = extents(drawn).tolist()
    steep = abs(math.radians(latitude))
    widest = 2 * math.atan2(half, math.cos(steep) - half * math.sin(steep))  # the edge that is nearer to the pole
    assert (right - left) * math.pi / size == pytest.approx(widest, abs=2 * math.pi / size)
    assert (bottom - top) * math.pi / size == pytest.approx(2 * math.atan(half), rel=0.06, abs=2 * math.pi / size)
    assert (left + right) / 2 == pytest.approx((0.3 / math.pi + 1) * size, abs=1.5)


def test_the_projection_is_gnomonic_at_random_points():
    """Against scipy: turn the sphere until the digit lies ahead, divide by the depth, turn back the digit, read its picture."""
    generator = np.random.default_rng(0)
    written, size = load_digit_images(40)[0], 64
    layout = draw_layout(8, Vocabulary(least=2), generator)
    strokes = written[torch.from_numpy(generator.integers(0, len(written), (8, 4)))]
    places = place_around(layout.sizes, layout.counts, generator)
    drawn = sphere_alphas(strokes, places, layout.sizes, layout.angles, size)
    rows, columns = generator.integers(0, size, 4000), generator.integers(0, 2 * size, 4000)
    latitude, longitude = math.pi * (0.5 - (rows + 0.5) / size), math.pi * ((columns + 0.5) / size - 1)
    seen = np.stack([np.cos(latitude) * np.sin(longitude), np.sin(latitude), np.cos(latitude) * np.cos(longitude)], -1)
    hit = 0
    for scene, slot in (layout.sizes > 0).nonzero().tolist():
        east, north = places[scene, slot].double().tolist()
        x, y, z = (Rotation.from_euler("x", north) * Rotation.from_euler("y", -east)).apply(seen).T
        half = math.tan(layout.sizes[scene, slot].item() * math.pi * SHRINK / 2)
        with np.errstate(all="ignore"):
            plane = (x + 1j * y) / z / half * np.exp(1j * math.radians(layout.angles[scene, slot].item()))
        read = map_coordinates(
            np.pad(strokes[scene, slot].double().numpy() / 255, 1),
            [(1 - plane.imag) * 20 + 0.5, (plane.real + 1) * 20 + 0.5],
            order=1,
            mode="constant",
        )
        ramp = np.clip((read - 0.25) / 0.35, 0, 1) * (z > 0)
        expected = 3 * ramp**2 - 2 * ramp**3
        assert np.abs(drawn[scene, slot].numpy()[rows, columns] - expected).max() < 5e-3
        hit += (expected > 0.5).sum()
    assert hit > 100


def test_nothing_shows_on_the_other_side_of_the_sphere():
    drawn = sphere_alphas(FULL, torch.zeros(1, 1, 2), torch.full((1, 1), 0.7), torch.zeros(1, 1), 32)
    assert not drawn[..., :16].any()
    assert not drawn[..., 48:].any()
    assert drawn[0, 0, 16, 32] == 1


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_digits_keep_apart_off_the_poles_and_off_the_seam(n):
    generator = np.random.default_rng(0)
    layout = draw_layout(300, Vocabulary(least=n, most=n), generator)
    places = place_around(layout.sizes, layout.counts, generator).double()
    assert not places[:, n:].any()
    longitude, latitude = places[:, :n].unbind(-1)
    corner = (math.sqrt(2) * torch.tan(layout.sizes[:, :n].double() * math.pi * SHRINK / 2)).atan()  # from the middle to a corner
    assert latitude.abs().max() <= STEEPEST + 1e-6
    assert (latitude.abs() + corner).max() < math.radians(80)
    assert (longitude.abs() + (corner.sin() / latitude.cos()).arcsin()).max() < math.pi
    for i, j in itertools.combinations(range(n), 2):
        cosine = (
            latitude[:, i].sin() * latitude[:, j].sin()
            + latitude[:, i].cos() * latitude[:, j].cos() * (longitude[:, i] - longitude[:, j]).cos()
        )
        assert (cosine.arccos() - corner[:, i] - corner[:, j]).min() > 0


def test_no_digit_crosses_the_seam_and_boxes_are_tight(around):
    for samples in around.values():
        for number, instances in enumerate(samples.columns["instances"].numpy()):
            count = int(samples.counts[number])
            assert set(np.unique(instances)) == set(range(count + 1))
            for slot in range(count):
                rows, across = np.nonzero(instances == slot + 1)
                assert across.max() - across.min() < 64  # less than half way round
                tight = [across.min(), rows.min(), across.max() + 1, rows.max() + 1]
                assert samples.columns["boxes"][number, slot].tolist() == tight


def test_relations_around_are_true_of_the_boxes_middles(around):
    for samples in around.values():
        for number in range(len(samples)):
            sample = samples[number]
            middles = (sample["boxes"][:, :2] + sample["boxes"][:, 2:]) / 2 / torch.tensor([128.0, 64.0])  # shares of the frame
            for first, relation, second in sample["relation"].tolist():
                across, down = (middles[first] - middles[second]).tolist()
                assert {"left of": across < 0, "right of": across > 0, "above": down < 0, "below": down > 0}[RELATIONS[relation]]
                if (first, second) == (0, 1):
                    assert (abs(across) > abs(down)) == (relation < 2)


# -- the room ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [16, 33])
def test_a_wall_of_one_colour_is_seen_in_its_direction_and_nowhere_else(side):
    for number, direction in enumerate(AXES.values()):
        walls = torch.zeros(1, 6, 3, side, side)
        walls[0, number] = 0.7
        shown = room(walls)[0, 0]
        assert shown[pixel_of(direction, side)] == pytest.approx(0.7, abs=1e-6)
        expected = directions(side).abs().argmax(-1) == [abs(end) for end in direction].index(1)
        expected &= (directions(side) * torch.tensor(direction)).sum(-1) > 0
        assert shown.allclose(0.7 * expected.float(), atol=1e-6)


def test_six_equal_walls_leave_no_gap():
    assert room(torch.full((2, 6, 3, 24, 24), 0.3)).allclose(torch.tensor(0.3), atol=1e-6)


def test_walls_are_upright_not_mirrored_and_meet_at_their_edges():
    """Paint each wall, as seen from the middle of the room, with a smooth function of the direction: the room shows that function."""

    def paint(seen):
        x, y, z = np.moveaxis(seen / np.linalg.norm(seen, axis=-1, keepdims=True), -1, 0)
        return np.stack([x + 0.5 * y, y - 0.7 * z * x, z + 0.3 * x * y]) / 4 + 0.5

    side = 64
    across, down = np.meshgrid(*[(np.arange(side) + 0.5) / side * 2 - 1] * 2)
    walls = []
    for name, ahead in AXES.items():
        up = np.array({"above": AXES["behind"], "below": AXES["ahead"]}.get(name, AXES["above"]))  # the head tilts from ahead
        walls.append(paint(np.array(ahead) + across[..., None] * np.cross(up, ahead) - down[..., None] * up))
    shown = room(torch.tensor(np.stack(walls)).float()[None])[0].double().numpy()
    difference = np.abs(shown - paint(directions(side).double().numpy()))
    assert difference.max() < 0.02  # half a pixel of a wall, at its edges
    assert difference.mean() < 0.001
