from __future__ import annotations

import numpy as np
import pytest
import torch

from graftwork_testbed import digit_scenes
from graftwork_testbed.scenes.layout import Vocabulary, draw_layout
from graftwork_testbed.scenes.motion import FASTEST, draw_velocities, trajectories


def bounced(place, step, side, frames):
    """One coordinate of a square's centre, a frame at a time: where the square would pass an edge it turns back."""
    low, high, places = side / 2, 1 - side / 2, [place]
    for _ in range(frames - 1):
        place += step
        while not low <= place <= high:
            place = 2 * low - place if place < low else 2 * high - place
            step = -step
        places.append(place)
    return places


@pytest.fixture(scope="module")
def drawn():
    generator = np.random.default_rng(0)
    layout = draw_layout(40, Vocabulary(), generator)
    return layout, draw_velocities(layout.sizes, generator)


def test_digits_bounce_off_the_edges_like_mirrors(drawn):
    layout, velocities = drawn
    places = trajectories(layout.centres, velocities, layout.sizes, 64)
    for scene, slot in (layout.sizes > 0).nonzero().tolist():
        for axis in (0, 1):
            values = (tensor[scene, slot, axis].item() for tensor in (layout.centres, velocities))
            expected = bounced(*values, layout.sizes[scene, slot].item(), 64)
            assert places[scene, :, slot, axis].tolist() == pytest.approx(expected, abs=2e-5)


def test_squares_stay_inside_and_some_turn_back(drawn):
    layout, velocities = drawn
    places = trajectories(layout.centres, velocities, layout.sizes, 64)
    half = layout.sizes[:, None, :, None] / 2
    assert (places - half).min() >= -1e-6
    assert (places + half).max() <= 1 + 1e-6
    steps = places.diff(dim=1)
    assert ((steps[:, 1:] * steps[:, :-1] < 0).any(1) & (layout.sizes[..., None] > 0)).any(2).sum() > 40


def test_the_first_frame_is_the_layout_and_absent_digits_rest(drawn):
    layout, velocities = drawn
    places = trajectories(layout.centres, velocities, layout.sizes, 5)
    assert places[:, 0].allclose(layout.centres, atol=1e-6)
    absent = layout.sizes == 0
    assert not places.transpose(1, 2)[absent].any()
    assert not velocities[absent].any()


def test_speeds_are_from_a_fourth_of_the_fastest_up_in_every_direction(drawn):
    layout, velocities = drawn
    moving = velocities[layout.sizes > 0]
    speed = moving.norm(dim=-1)
    assert FASTEST / 4 - 1e-6 <= speed.min() < 0.3 * FASTEST
    assert 0.95 * FASTEST < speed.max() <= FASTEST + 1e-6
    assert {tuple(signs) for signs in moving.sign().tolist()} == {(-1, -1), (-1, 1), (1, -1), (1, 1)}


def test_a_clip_begins_with_the_image_and_its_masks(moving):
    for samples in moving.values():
        for key in ("image", "mask", "instances", "boxes"):
            whole = samples.columns["clip" if key == "image" else f"clip_{key}"]
            assert samples.columns[key].equal(whole[:, 0])


def test_the_first_frame_is_the_scene_that_does_not_move(moving):
    still = digit_scenes(size=48, max_digits=3, train=16, val=2, test=2)
    for split, samples in moving.items():
        assert samples.captions == still[split].captions
        assert (samples.columns["image"].short() - still[split].columns["image"].short()).abs().max() <= 1
        assert samples.columns["relation"].equal(still[split].columns["relation"])


def test_a_sample_of_a_clip_has_its_shapes(moving):
    sample, n = moving["train"][3], int(moving["train"].counts[3])
    shapes = {key: tuple(sample[key].shape) for key in ("clip", "clip_mask", "clip_instances", "clip_boxes", "velocity")}
    assert shapes == {
        "clip": (12, 3, 48, 48),
        "clip_mask": (12, 48, 48),
        "clip_instances": (12, 48, 48),
        "clip_boxes": (12, n, 4),
        "velocity": (n, 2),
    }


def test_boxes_move_with_the_velocity_until_they_turn_back(moving):
    """A box is drawn to the pixel, so that each of its edges is off by up to one."""
    checked = 0
    for samples in moving.values():
        for number in range(len(samples)):
            sample = samples[number]
            middles = (sample["clip_boxes"][..., :2] + sample["clip_boxes"][..., 2:]) / 2
            for slot, velocity in enumerate(sample["velocity"]):
                assert 0 < velocity.norm() <= FASTEST * 48 + 1e-4
                clear = (sample["clip_boxes"][0, slot, :2].min() > 5) and (sample["clip_boxes"][0, slot, 2:].max() < 43)
                if clear:  # far enough from the edges for two steps, the margin around the strokes included
                    assert (middles[2, slot] - middles[0, slot] - 2 * velocity).abs().max() <= 1
                    checked += 1
    assert checked > 5


def test_no_digit_leaves_the_frame(moving):
    for samples in moving.values():
        for number in range(len(samples)):
            boxes = samples[number]["clip_boxes"]
            assert boxes.min() >= 0
            assert boxes.max() <= 48
            widths = boxes[..., 2:] - boxes[..., :2]
            assert (widths.amax(0) - widths.amin(0)).max() <= 2  # nothing is cut off: sizes stay the same, to the pixel


def test_boxes_go_around_the_whole_digit_though_another_covers_it():
    """Three digits that cross: what is seen of each lies in its box, and fills it wherever no later digit's box comes near."""
    data = digit_scenes(size=48, min_digits=3, max_digits=3, frames=32, train=4, val=1, test=1)
    instances, boxes = (data["train"].columns[key] for key in ("clip_instances", "clip_boxes"))
    covered = whole = 0
    for scene in range(4):
        for frame in range(32):
            for slot in range(3):
                left, top, right, bottom = boxes[scene, frame, slot].tolist()
                rows, across = (instances[scene, frame] == slot + 1).nonzero(as_tuple=True)
                later = boxes[scene, frame, slot + 1 : 3]
                alone = all(x >= right or y >= bottom or u <= left or v <= top for x, y, u, v in later.tolist())
                if len(rows):
                    seen = [across.min().item(), rows.min().item(), across.max().item() + 1, rows.max().item() + 1]
                    assert seen[0] >= left
                    assert seen[1] >= top
                    assert seen[2] <= right
                    assert seen[3] <= bottom
                    whole += alone
                    covered += seen != [left, top, right, bottom]
                    assert not alone or seen == [left, top, right, bottom]
    assert whole > 0
    assert covered > 0


def test_the_mask_of_every_frame_has_the_class_of_its_instances(moving):
    samples = moving["train"]
    classes = torch.cat([torch.zeros(16, 1), samples.columns["labels"] + 1], 1).long()
    for scene in range(16):
        assert classes[scene][samples.columns["clip_instances"][scene].long()].equal(samples.columns["clip_mask"][scene].long())


def test_every_frame_is_restyled():
    data = digit_scenes(size=32, max_digits=1, frames=3, styles=["photo", "grey", "noise"], train=3, val=1, test=1)
    plain, grey, noise = (data[f"{look}/train"].columns for look in ("photo", "grey", "noise"))
    assert grey["image"].equal(grey["clip"][:, 0])
    assert grey["clip"][:, :, 0].equal(grey["clip"][:, :, 2])
    assert ((grey["clip"] != plain["clip"]).flatten(2).any(2)).all()
    difference = noise["clip"].short() - plain["clip"].short()
    assert difference[:, 0].ne(difference[:, 1]).any()  # grain of its own in each frame
