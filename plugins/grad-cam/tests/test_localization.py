from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from graftwork_grad_cam.boxes import box_masks, from_centres, paired_iou
from graftwork_grad_cam.localization import (
    ClassCounts,
    box_contrast,
    correct_boxes,
    largest_component_boxes,
    localization_errors,
    mass_inside,
    peaks,
    pointing_hits,
    rejections,
)

# -- boxes -------------------------------------------------------------------------------------------------------------------------


def test_overlaps_of_boxes():
    first, second = (
        torch.tensor([[0.0, 0, 4, 4], [2.0, 2, 2, 2]]),
        torch.tensor([[0.0, 0, 4, 4], [2.0, 0, 6, 4], [5.0, 5, 6, 6], [1.0, 1, 2, 2]]),
    )
    torch.testing.assert_close(paired_iou(first, second), torch.tensor([[1.0, 8 / 24, 0, 1 / 16], [0, 0, 0, 0]]))


def test_boxes_from_centres_and_sizes():
    assert from_centres(torch.tensor([0.5, 0.5, 0.2, 0.4])).tolist() == pytest.approx([0.4, 0.3, 0.6, 0.7])


def test_a_box_holds_the_pixels_whose_centre_is_inside():
    assert box_masks(torch.tensor([1.0, 0, 3, 2]), 3, 4).int().tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_the_box_is_tight_around_the_largest_component_above_the_threshold():
    maps = torch.zeros(1, 12, 16)
    maps[0, 1:3, 1:3] = 1.0  # the maximum, but small
    maps[0, 5:10, 6:14] = 0.2
    maps[0, 9, 6:14] = 0.1  # under 15 % of the maximum
    assert largest_component_boxes(maps).tolist() == [[6, 5, 14, 9]]
    assert largest_component_boxes(maps, 0.5).tolist() == [[1, 1, 3, 3]]


def test_pixels_are_connected_over_corners_and_maps_are_not():
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 0] = maps[0, 1, 1] = maps[0, 2, 2] = 1
    maps[1, 3, 3] = 1
    assert largest_component_boxes(maps).tolist() == [[0, 0, 3, 3], [3, 3, 4, 4]]


def test_an_empty_map_has_an_empty_box():
    maps = torch.zeros(3, 1, 5, 5)
    maps[1, 0, 2, 3] = 4
    assert largest_component_boxes(maps).tolist() == [[[0, 0, 0, 0]], [[3, 2, 4, 3]], [[0, 0, 0, 0]]]
    assert largest_component_boxes(torch.zeros(2, 5, 5)).tolist() == [[0, 0, 0, 0]] * 2


def test_boxes_of_a_batch_equal_those_of_an_independent_loop():
    maps = torch.from_numpy(ndimage.gaussian_filter(np.random.default_rng(0).random((20, 24, 30)), (0, 2, 2))).float()
    maps = (maps - maps.amin(dim=(1, 2), keepdim=True)).square()
    expected = []
    for each in maps.numpy():
        labels, count = ndimage.label(each > 0.15 * each.max(), structure=np.ones((3, 3)))
        biggest = 1 + max(range(count), key=lambda index: (labels == index + 1).sum())
        rows, columns = ndimage.find_objects((labels == biggest).astype(int))[0]
        expected.append([columns.start, rows.start, columns.stop, rows.stop])
    assert largest_component_boxes(maps).tolist() == expected


def test_a_box_is_correct_when_class_and_place_are():
    boxes, classes = torch.tensor([[[0.0, 0, 10, 10], [0.0, 0, 10, 10], [50.0, 50, 60, 60]]]), torch.tensor([[3, 4, 3]])
    truth, owners = torch.tensor([[[0.0, 0, 10, 12], [0.0, 0, 0, 0]]]), torch.tensor([[3, -1]])
    assert correct_boxes(boxes, classes, truth, owners).tolist() == [[True, False, False]]
    assert correct_boxes(boxes, classes, truth, owners, min_iou=0.9).tolist() == [[False, False, False]]
    half = torch.tensor([[[0.0, 0, 10, 6]]])
    assert correct_boxes(half, classes[:, :1], truth, owners).tolist() == [[True]]  # exactly 0.5 is enough


def test_errors_count_the_first_and_any_of_the_tries():
    correct = torch.tensor([[True, False], [False, True], [False, False], [True, True]])
    assert localization_errors(correct) == (0.5, 0.25)


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(ValueError, match=r"a share of the maximum in \[0, 1\)"):
        largest_component_boxes(torch.zeros(1, 2, 2), threshold)


# -- pointing ----------------------------------------------------------------------------------------------------------------------


def test_the_peak_is_the_first_maximum():
    maps = torch.zeros(2, 1, 4, 5)
    maps[0, 0, 2, 3] = maps[0, 0, 3, 0] = 7
    assert peaks(maps).tolist() == [[[2, 3]], [[0, 0]]]


def test_a_hit_lies_strictly_within_the_tolerance():
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[20, 30] = True
    for distance, expected in ((14, True), (15, False), (16, False)):
        assert pointing_hits(torch.tensor([20, 30 - distance]), mask).item() is expected
    assert pointing_hits(torch.tensor([20 - 9, 30 - 12]), mask).item() is False  # 9, 12, 15
    assert pointing_hits(torch.tensor([20 - 9, 30 - 11]), mask).item() is True


def test_without_tolerance_the_point_itself_must_be_on_the_mask():
    mask = torch.eye(4, dtype=torch.bool)
    assert pointing_hits(torch.tensor([[1, 1], [1, 2]]), mask.expand(2, 4, 4), 0).tolist() == [True, False]
    with pytest.raises(ValueError, match="the tolerance must not be negative; found -1"):
        pointing_hits(torch.tensor([1, 1]), mask, -1)


def test_the_accuracy_is_the_mean_of_the_classes_own():
    counts = ClassCounts.empty(4)
    counts.add(torch.tensor([[True, True], [False, True]]), torch.tensor([[0, 1], [0, 3]]), torch.tensor([[True, True], [True, False]]))
    counts.add(torch.tensor([[True], [True]]), torch.tensor([[1], [1]]), torch.tensor([[True], [True]]))
    assert counts.total.tolist() == [2, 3, 0, 0]
    assert counts.accuracy == (0.5 + 1.0) / 2


def test_a_map_rejects_by_its_maximum():
    assert rejections(torch.tensor([[[0.1, 0.3]], [[0.6, 0.0]]]), 0.5).tolist() == [True, False]


# -- contrast ----------------------------------------------------------------------------------------------------------------------


def test_a_uniform_map_has_a_contrast_of_one():
    assert box_contrast(torch.full((6, 8), 0.3), torch.tensor([1.0, 1, 4, 3])).item() == pytest.approx(1)


def test_contrast_is_the_mean_inside_over_the_mean_outside():
    maps = torch.ones(2, 4, 4)
    maps[:, :2, :2] = torch.tensor([3.0, 0.5])[:, None, None]
    assert box_contrast(maps, torch.tensor([[0.0, 0, 2, 2]] * 2)).tolist() == pytest.approx([3, 0.5])


def test_a_contrast_that_is_none_is_inf_or_nan():
    maps = torch.zeros(2, 4, 4)
    maps[0, :2, :2] = 1
    found = box_contrast(maps, torch.tensor([[0.0, 0, 2, 2]] * 2)).tolist()
    assert found[0] == math.inf
    assert math.isnan(found[1])


def test_mass_inside_is_a_share_of_the_sum():
    maps, mask = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[True, False], [False, True]])
    assert mass_inside(maps, mask).item() == pytest.approx(0.5)
    assert math.isnan(mass_inside(torch.zeros(2, 2), mask).item())
