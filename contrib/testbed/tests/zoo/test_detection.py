from __future__ import annotations

import math

import pytest
import torch

from graftwork import DataError
from graftwork_testbed.zoo.detection import box_area, generalized_iou, heatmap_peaks, iou, non_maximum_suppression

pytest.importorskip("transformers")

from transformers.loss.loss_for_object_detection import box_iou as library_iou
from transformers.loss.loss_for_object_detection import generalized_box_iou as library_giou

from graftwork_testbed.zoo.detection_objective import (
    giou_loss,
    heatmap_focal_loss,
    map_targets,
    pad_objects,
)


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def random_boxes(*shape, generator, size=64.0, dtype=torch.float32):
    first = torch.rand(*shape, 2, generator=generator, dtype=dtype) * size * 0.8
    return torch.cat([first, first + 1 + torch.rand(*shape, 2, generator=generator, dtype=dtype) * size * 0.4], dim=-1)


# -- boxes ---------------------------------------------------------------------------------------------------------------------


def test_overlaps_are_the_librarys():
    boxes, others = random_boxes(40, generator=drawn(), dtype=torch.float64), random_boxes(30, generator=drawn(1), dtype=torch.float64)
    torch.testing.assert_close(iou(boxes[:, None], others[None]), library_iou(boxes, others)[0])
    torch.testing.assert_close(generalized_iou(boxes[:, None], others[None]), library_giou(boxes, others))


@pytest.mark.parametrize(
    ("other", "plain", "generalized"),
    [
        ([0, 0, 4, 4], 1.0, 1.0),
        ([2, 0, 6, 4], 1 / 3, 1 / 3),
        ([1, 1, 3, 3], 1 / 4, 1 / 4),
        ([8, 0, 12, 4], 0.0, -1 / 3),
        ([8, 8, 12, 12], 0.0, 32 / 144 - 1),
        ([2, 2, 2, 2], 0.0, 0.0),
        ([4, 0, 2, 4], 0.0, 0.0),
    ],
)
def test_overlaps_of_two_boxes_are_what_a_ruler_says(other, plain, generalized):
    box, other = torch.tensor([0.0, 0, 4, 4]), torch.tensor(other, dtype=torch.float32)
    assert iou(box, other).item() == pytest.approx(plain)
    assert generalized_iou(box, other).item() == pytest.approx(generalized)


def test_a_box_that_ends_before_it_begins_has_no_area():
    assert box_area(torch.tensor([[0.0, 0, 2, 3], [2, 0, 0, 3], [2, 3, 0, 0], [1, 1, 1, 5]])).tolist() == [6, 0, 0, 0]


def test_two_points_have_a_finite_overlap_and_gradient():
    point = torch.ones(4, requires_grad=True)
    giou_loss(point, torch.ones(4)).backward()
    assert point.grad.isfinite().all()


def test_the_box_loss_has_the_gradient_of_its_formula():
    boxes = random_boxes(6, generator=drawn(2), dtype=torch.float64).requires_grad_()
    targets = random_boxes(6, generator=drawn(3), dtype=torch.float64)
    assert (generalized_iou(boxes, targets) < 0).any()
    assert torch.autograd.gradcheck(giou_loss, (boxes, targets))


def test_boxes_that_lie_apart_are_pulled_together():
    box, target = torch.tensor([0.0, 0, 4, 4], requires_grad=True), torch.tensor([10.0, 0, 14, 4])
    giou_loss(box, target).backward()
    assert box.grad[2] < 0  # descent moves the right side to the right


# -- suppression and peaks -----------------------------------------------------------------------------------------------------


def greedy(boxes, scores, labels, threshold):
    """What is kept of one image, by the loop of the textbook."""
    overlaps, scores, labels, kept = library_iou(boxes, boxes)[0].tolist(), scores.tolist(), labels.tolist(), []
    for one in sorted(range(len(scores)), key=lambda number: -scores[number]):
        if all(overlaps[one][other] <= threshold for other in kept if labels[other] == labels[one]):
            kept.append(one)
    return sorted(kept)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("ties", [False, True])
def test_suppression_keeps_what_the_greedy_loop_keeps(threshold, ties):
    generator = drawn(4)
    boxes = random_boxes(8, 5, generator=generator).repeat(1, 5, 1) + torch.rand(8, 25, 4, generator=generator)  # near duplicates
    scores, labels = torch.rand(8, 25, generator=generator), torch.randint(3, (8, 25), generator=generator)
    if ties:
        scores = (scores * 4).round() / 4
    kept = non_maximum_suppression(boxes, scores, labels, threshold)
    expected = [greedy(*image, threshold) for image in zip(boxes, scores, labels, strict=True)]
    assert [row.nonzero().flatten().tolist() for row in kept] == expected
    assert 0 < kept.sum() < kept.numel()


def test_what_is_suppressed_suppresses_nothing():
    steps = torch.arange(9.0)[:, None]
    chain = torch.cat([4 * steps, 0 * steps, 4 * steps + 10, 0 * steps + 10], dim=1)  # each overlaps its neighbours by 6 / 14
    kept = non_maximum_suppression(chain[None], torch.linspace(0.9, 0.1, 9)[None], torch.zeros(1, 9, dtype=torch.long), 0.4)
    assert kept.squeeze(0).tolist() == [True, False] * 4 + [True]


def test_an_overlap_of_the_threshold_itself_is_allowed():
    boxes, scores = torch.tensor([[[0.0, 0, 4, 4], [0.0, 0, 4, 2]]]), torch.tensor([[0.9, 0.8]])
    labels = torch.zeros(1, 2, dtype=torch.long)
    assert non_maximum_suppression(boxes, scores, labels, 0.5).all()
    assert non_maximum_suppression(boxes, scores, labels, 0.49).tolist() == [[True, False]]


def test_suppression_of_nothing_is_nothing():
    assert non_maximum_suppression(torch.zeros(2, 0, 4), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0)


def test_suppression_names_what_does_not_fit():
    labels = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"boxes are \(B, K, 4\), scores and labels \(B, K\); found \(3, 4\), \(1, 3\), \(1, 3\)"):
        non_maximum_suppression(torch.zeros(3, 4), torch.zeros(1, 3), labels)
    with pytest.raises(ValueError, match=r"iou_threshold must be in \[0, 1\]; found 1.5"):
        non_maximum_suppression(torch.zeros(1, 3, 4), torch.zeros(1, 3), labels, 1.5)


def test_peaks_are_the_cells_that_no_neighbour_exceeds():
    maps = torch.rand(2, 3, 7, 5, generator=drawn(5))
    scores, labels, cells = heatmap_peaks(maps, 0.5, 100)
    for image in range(2):
        expected = {}
        for label in range(3):
            for row in range(7):
                for column in range(5):
                    around = maps[image, label, max(0, row - 1) : row + 2, max(0, column - 1) : column + 2]
                    if maps[image, label, row, column] == around.max() > 0.5:
                        expected[label, 5 * row + column] = maps[image, label, row, column].item()
        there = scores[image] > 0
        found = zip(labels[image][there].tolist(), cells[image][there].tolist(), strict=True)
        assert dict(zip(found, scores[image][there].tolist(), strict=True)) == expected
        assert scores[image].equal(scores[image].sort(descending=True).values)


def test_of_many_peaks_the_highest_are_taken():
    maps = torch.rand(2, 3, 7, 5, generator=drawn(5))
    everything, few = heatmap_peaks(maps, 0.0, 100), heatmap_peaks(maps, 0.0, 4)
    assert few[0].shape == (2, 4)
    assert all(one.equal(other[:, :4]) for one, other in zip(few, everything, strict=True))
    assert heatmap_peaks(maps, 1.0, 100)[0].shape == (2, 0)


# -- targets and losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 4.0), (1.5, 3.0), (0.0, 0.0)])
def test_the_focal_loss_is_the_papers_sum(alpha, beta):
    logits = 2 * torch.randn(2, 3, 4, 5, generator=drawn(), dtype=torch.float64)
    heatmap = torch.rand(2, 3, 4, 5, generator=drawn(1), dtype=torch.float64)
    heatmap[0, 1, 2, 3] = heatmap[1, 0, 0, 0] = heatmap[1, 2, 3, 1] = 1.0
    total = 0.0
    for logit, wanted in zip(logits.flatten().tolist(), heatmap.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        total -= (1 - p) ** alpha * math.log(p) if wanted == 1 else (1 - wanted) ** beta * p**alpha * math.log(1 - p)
    assert heatmap_focal_loss(logits, heatmap, alpha, beta).item() == pytest.approx(total / 3, rel=1e-12)


def test_the_focal_loss_has_the_gradient_of_its_formula():
    logits = torch.randn(1, 2, 3, 3, generator=drawn(), dtype=torch.float64, requires_grad=True)
    heatmap = torch.rand(1, 2, 3, 3, generator=drawn(1), dtype=torch.float64)
    heatmap[0, 0, 1, 1] = 1.0
    assert torch.autograd.gradcheck(heatmap_focal_loss, (logits, heatmap))


def test_the_focal_loss_is_finite_where_the_sigmoid_is_not_and_divides_by_one_at_least():
    logits = torch.tensor([[[[200.0, -200.0]]]], requires_grad=True)
    loss = heatmap_focal_loss(logits, torch.zeros(1, 1, 1, 2))
    loss.backward()
    assert loss.item() == pytest.approx(200.0)
    assert logits.grad.isfinite().all()
    with pytest.raises(ValueError, match=r"logits \(1, 1, 1, 2\) and heatmap \(1, 1, 2, 1\) differ in shape"):
        heatmap_focal_loss(logits, torch.zeros(1, 1, 2, 1))


def by_loops(boxes, labels, num_classes, size, stride, spread, radius):
    """The targets of one image, a cell and an object at a time."""
    heatmap, owned, positive = torch.zeros(num_classes, *size), torch.zeros(4, *size), torch.zeros(size, dtype=torch.bool)
    owner_area = torch.full(size, math.inf)
    for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
        width, height = box[2] - box[0], box[3] - box[1]
        if width <= 0 or height <= 0:
            continue
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        own = (min(max(int(y // stride), 0), size[0] - 1), min(max(int(x // stride), 0), size[1] - 1))
        across, down = (max(spread * side / 6 / stride, 1 / 6) for side in (width, height))
        for row in range(size[0]):
            for column in range(size[1]):
                bell = math.exp(-((column - own[1]) ** 2) / (2 * across**2) - (row - own[0]) ** 2 / (2 * down**2))
                heatmap[label, row, column] = max(heatmap[label, row, column].item(), bell)
                u, v = (column + 0.5) * stride, (row + 0.5) * stride
                inside = box[0] < u < box[2] and box[1] < v < box[3]
                near = abs(u - x) <= radius * stride and abs(v - y) <= radius * stride
                if ((inside and near) or (row, column) == own) and width * height < owner_area[row, column]:
                    owner_area[row, column], positive[row, column] = width * height, True
                    owned[:, row, column] = torch.tensor(box)
    return heatmap, owned, positive


@pytest.mark.parametrize(("spread", "radius", "stride"), [(0.54, 1.5, 4), (2.0, 3.0, 4), (1.0, 0.5, 8)])
def test_targets_are_what_loops_over_cells_and_objects_give(spread, radius, stride):
    generator = drawn(6)
    boxes = [random_boxes(count, generator=generator) - 4 for count in (5, 0, 1)]  # some begin outside, and many overlap
    labels = [torch.randint(3, (len(each),), generator=generator) for each in boxes]
    boxes[0][2, 2] = boxes[0][2, 0]  # of no width
    size = (64 // stride, 48 // stride)
    targets = map_targets(pad_objects(boxes, labels, 3), 3, size, stride, spread, radius)
    for image, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        heatmap, owned, positive = by_loops(box, label, 3, size, stride, spread, radius)
        torch.testing.assert_close(targets.heatmap[image], heatmap, atol=1e-5, rtol=1e-4)
        assert targets.positive[image].equal(positive)
        assert (targets.boxes[image] * positive).equal(owned)
    assert targets.positive[0].any()


def test_only_centres_are_one_and_the_narrowest_box_has_a_cell_of_its_own():
    boxes = torch.tensor([[[10.0, 10, 34, 34], [51.0, 20, 52, 40], [0.0, 0, 200, 200]]])
    targets = map_targets(pad_objects(boxes, torch.tensor([[0, 1, 2]]), 3), 3, (16, 16), 4)
    ones = (targets.heatmap == 1).nonzero().tolist()
    assert ones == [[0, 0, 5, 5], [0, 1, 7, 12], [0, 2, 15, 15]]  # the last one's centre is outside: the nearest cell
    assert targets.positive[0, 7, 12]
    assert targets.boxes[0, :, 7, 12].tolist() == [51, 20, 52, 40]


def test_of_two_boxes_over_a_cell_the_smaller_is_learnt():
    boxes = torch.tensor([[[0.0, 0, 64, 64], [24.0, 24, 40, 40]]])
    targets = map_targets(pad_objects(boxes, torch.zeros(1, 2, dtype=torch.long), 1), 1, (16, 16), 4)
    assert targets.boxes[0, :, 8, 8].tolist() == [24, 24, 40, 40]


def test_lists_and_stacked_batches_give_the_same_objects():
    boxes, labels = random_boxes(3, 2, generator=drawn()), torch.tensor([[1, 2], [0, 0], [2, 1]])
    stacked, listed = pad_objects(boxes, labels, 3), pad_objects(list(boxes), list(labels), 3)
    assert all(one.equal(other) for one, other in zip(stacked, listed, strict=True))
    assert stacked.present.all()
    ragged = pad_objects([boxes[0], boxes[1][:1], boxes[2][:0]], [labels[0], labels[1][:1], labels[2][:0]], 3)
    assert ragged.present.tolist() == [[True, True], [True, False], [False, False]]


@pytest.mark.parametrize(
    ("boxes", "labels", "message"),
    [
        ([torch.ones(2, 4)], [], "boxes are of 1 images, labels of 0"),
        ([torch.ones(1, 4), torch.ones(2, 4)], [torch.zeros(1), torch.zeros(3)], r"image 1 .* boxes \(2, 4\) and labels \(3,\)"),
        ([torch.ones(2, 5)], [torch.zeros(2)], r"image 0 .* boxes \(2, 5\) and labels \(2,\); they are \(n, 4\) and \(n,\)"),
        ([torch.ones(1, 4)], [torch.tensor([7])], "label 7 is none of the detector's 3 classes, 0 to 2"),
        ([torch.ones(1, 4)], [torch.tensor([-1])], "label -1 is none of"),
    ],
)
def test_objects_that_cannot_be_are_named(boxes, labels, message):
    with pytest.raises(DataError, match=message):
        pad_objects(boxes, labels, 3)
