"""COCO's mean average precision on cases whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork.builtin.detection import DetectionMAP, average_precisions
from graftwork.interfaces import Detector

pytest.importorskip("faster_coco_eval")

BOX = [10.0, 10.0, 30.0, 30.0]
FAR = [50.0, 50.0, 60.0, 60.0]


def truth(*boxes: list[float], labels: list[int] | None = None) -> dict[str, torch.Tensor]:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels or [0] * len(boxes), dtype=torch.long)}


def found(*boxes: list[float], scores: list[float], labels: list[int] | None = None) -> dict[str, torch.Tensor]:
    return {**truth(*boxes, labels=labels), "scores": torch.tensor(scores)}


def shifted(overlap: float) -> list[float]:
    """BOX moved to the right, so that its intersection over union with BOX is `overlap`."""
    shift = 20 * (1 - overlap) / (1 + overlap)
    return [BOX[0] + shift, BOX[1], BOX[2] + shift, BOX[3]]


class Answers(nn.Module):
    """Gives out prepared detections, in order."""

    def __init__(self, detections: list[Any]):
        super().__init__()
        self.unused, self.detections, self.modes = nn.Parameter(torch.zeros(1)), list(detections), []

    def detect(self, image: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        self.modes.append((len(image), self.training, torch.is_grad_enabled()))
        answer, self.detections = self.detections[: len(image)], self.detections[len(image) :]
        return answer


def of_split(truths: list[dict[str, torch.Tensor]], **info: Any) -> gw.Dataset:
    rows = [{"image": torch.zeros(3, 64, 64), **one} for one in truths]
    return gw.Dataset({"test": rows}, gw.DatasetInfo(**info))


def precisions(truths: list[dict[str, torch.Tensor]], detections: list[dict[str, torch.Tensor]]) -> list[float]:
    """Average precision at each overlap of the only class."""
    labels, table = average_precisions(truths, detections)
    assert labels == [0]
    return table[:, 0].tolist()


# -- by hand ------------------------------------------------------------------------------------------------------------------


def test_exact_boxes_have_the_precision_one_at_every_overlap() -> None:
    assert precisions([truth(BOX, FAR)], [found(FAR, BOX, scores=[0.9, 0.2])]) == pytest.approx([1] * 10)


@pytest.mark.parametrize("overlap", [0.52, 0.61, 0.83, 0.94])
def test_a_shifted_box_counts_up_to_its_overlap(overlap: float) -> None:
    thresholds = [0.5 + 0.05 * step for step in range(10)]
    assert precisions([truth(BOX)], [found(shifted(overlap), scores=[0.9])]) == pytest.approx([float(overlap >= t) for t in thresholds])


def test_a_false_detection_before_the_true_one_halves_the_precision_and_one_after_it_costs_nothing() -> None:
    assert precisions([truth(BOX)], [found(BOX, FAR, scores=[0.8, 0.9])])[0] == pytest.approx(0.5)
    assert precisions([truth(BOX)], [found(BOX, FAR, scores=[0.9, 0.8])])[0] == pytest.approx(1.0)


def test_an_object_that_is_missed_costs_the_recalls_beyond_it() -> None:
    assert precisions([truth(BOX, FAR)], [found(BOX, scores=[0.9])])[0] == pytest.approx(51 / 101)  # recalls 0, 0.01, ..., 0.5


def test_precision_is_interpolated_from_the_right() -> None:
    """Ranks: hit, miss, hit, of two objects: precision 1 up to recall 1/2, then 2/3."""
    one = found(BOX, [0.0, 0.0, 5.0, 5.0], FAR, scores=[0.9, 0.8, 0.7])
    assert precisions([truth(BOX, FAR)], [one])[0] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_second_detection_of_an_object_is_false() -> None:
    one = found(BOX, shifted(0.9), FAR, scores=[0.9, 0.8, 0.7])
    assert precisions([truth(BOX, FAR)], [one])[0] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_box_in_another_image_or_of_another_class_is_no_match() -> None:
    assert precisions([truth(BOX), truth()], [found(scores=[]), found(BOX, scores=[0.9])])[0] == 0
    labels, table = average_precisions([truth(BOX, FAR, labels=[0, 3])], [found(BOX, FAR, BOX, scores=[0.9, 0.9, 0.8], labels=[3, 3, 0])])
    assert labels == [0, 3]
    assert table[0].tolist() == pytest.approx([1.0, 1.0 if table[0, 1] == 1 else 0.5])


def test_only_the_highest_scored_count_where_there_are_too_many() -> None:
    _, table = average_precisions([truth(BOX)], [found(FAR, BOX, scores=[0.9, 0.8])], most=1)
    assert table[0, 0] == 0


def test_a_class_that_is_detected_but_nowhere_true_does_not_count() -> None:
    labels, table = average_precisions([truth(BOX)], [found(BOX, FAR, scores=[0.5, 0.9], labels=[0, 7])])
    assert labels == [0]
    assert table.mean().item() == pytest.approx(1)


# -- against a loop -----------------------------------------------------------------------------------------------------------


def by_loop(truths: list[dict[str, torch.Tensor]], detections: list[dict[str, torch.Tensor]], label: int, threshold: float) -> float:
    """Average precision at one overlap, a detection at a time."""
    ranked = []
    for image, one in enumerate(detections):
        rows = zip(one["scores"].tolist(), one["labels"].tolist(), one["boxes"].tolist(), strict=True)
        ranked += [(score, image, box) for score, kind, box in rows if kind == label]
    ranked.sort(key=lambda each: -each[0])
    own = {i: [box.tolist() for box, n in zip(one["boxes"], one["labels"], strict=True) if n == label] for i, one in enumerate(truths)}
    total, used, hits = sum(map(len, own.values())), set(), []
    for _, image, (x1, y1, x2, y2) in ranked:
        best, match = threshold, None
        for at, (a1, b1, a2, b2) in enumerate(own[image]):
            inside = max(0, min(x2, a2) - max(x1, a1)) * max(0, min(y2, b2) - max(y1, b1))
            overlap = inside / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - inside)
            if (image, at) not in used and overlap >= best:
                best, match = overlap, at
        hits.append(match is not None)
        used.add((image, match)) if match is not None else None
    points = [(sum(hits[: n + 1]) / total, sum(hits[: n + 1]) / (n + 1)) for n in range(len(hits))]
    recalls = numpy.linspace(0, 1, 101)  # COCO's own numbers: whether 0.6 is reached by 3 of 5 is a matter of rounding
    return sum(max((p for r, p in points if r >= recall), default=0.0) for recall in recalls) / 101


def test_crowded_images_equal_a_loop_over_detections() -> None:
    generator = torch.Generator().manual_seed(0)
    truths, detections = [], []
    for _ in range(12):
        corners = torch.rand(5, 2, generator=generator) * 40
        boxes = torch.cat([corners, corners + 8 + 12 * torch.rand(5, 2, generator=generator)], dim=1)
        labels = torch.randint(3, (5,), generator=generator)
        truths.append({"boxes": boxes, "labels": labels})
        noisy = boxes.repeat(2, 1) + 1.5 * torch.randn(10, 4, generator=generator)
        swapped = torch.where(torch.rand(10, generator=generator) < 0.2, (labels.repeat(2) + 1) % 3, labels.repeat(2))
        detections.append({"boxes": noisy, "labels": swapped, "scores": torch.rand(10, generator=generator)})
    labels, table = average_precisions(truths, detections)
    expected = [[by_loop(truths, detections, label, 0.5 + 0.05 * step) for label in labels] for step in range(10)]
    torch.testing.assert_close(table, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)
    assert 0.05 < table.mean() < 0.95  # neither trivial nor hopeless


# -- the evaluator ------------------------------------------------------------------------------------------------------------


def test_the_evaluator_reports_means_over_classes_and_a_table() -> None:
    truths = [truth(BOX, FAR, labels=[0, 1]), truth(BOX, labels=[1])]
    detections = [found(shifted(0.8), scores=[0.9]), found(BOX, scores=[0.7], labels=[1])]
    model = Answers(detections).train()
    report = DetectionMAP(batch_size=1).evaluate(model, of_split(truths, classes=("cup", "fork")))
    assert isinstance(model, Detector)
    cup, fork = [7 / 10, 1, 1], [51 / 101] * 3  # 0.8 is reached by the overlaps from 0.5 to 0.8; one fork of two is missed
    assert report.tables["classes"].rows == [["cup", 1, *map(pytest.approx, cup)], ["fork", 2, *map(pytest.approx, fork)]]
    means = [(a + b) / 2 for a, b in zip(cup, fork, strict=True)]
    assert report.metrics == pytest.approx(dict(zip(("map", "map-50", "map-75"), means, strict=True)))
    assert model.modes == [(1, False, False)] * 2
    assert model.training


def test_boxes_may_come_in_one_tensor_where_images_have_as_many() -> None:
    data = gw.Dataset(
        {"test": gw.TensorSamples(image=torch.zeros(2, 3, 8, 8), boxes=torch.tensor([[BOX], [FAR]]), labels=torch.zeros(2, 1).long())}
    )
    model = Answers([found(BOX, scores=[0.9]), found(FAR, scores=[0.9])])
    assert DetectionMAP().evaluate(model, data).metrics["map"] == pytest.approx(1)


def test_classes_named_or_unknown() -> None:
    data = of_split([truth(BOX, FAR, labels=[0, 5])], classes=("cup",))
    answer = [found(BOX, scores=[0.9])]
    assert [row[0] for row in DetectionMAP().evaluate(Answers(answer), data).tables["classes"].rows] == ["cup", "5"]
    named = DetectionMAP(classes=["mug"]).evaluate(Answers(answer), data).tables["classes"].rows
    assert [row[0] for row in named] == ["mug", "5"]


def test_a_detector_that_finds_nothing_scores_zero() -> None:
    report = DetectionMAP().evaluate(Answers([found(scores=[])]), of_split([truth(BOX)]))
    assert report.metrics == {"map": 0.0, "map-50": 0.0, "map-75": 0.0}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], "Answers gives 0 answers for 1 images"),
        ([truth(BOX)], "Answers detects without scores"),
        ([found(BOX, scores=[0.9, 0.8])], r"Answers detects boxes \(1, 4\), labels \(1,\), scores \(2,\); boxes are \(n, 4\)"),
    ],
)
def test_an_answer_of_another_form_is_refused(answer: list[Any], message: str) -> None:
    with pytest.raises(gw.InterfaceError, match=message):
        DetectionMAP().evaluate(Answers(answer), of_split([truth(BOX)]))


def test_a_split_without_objects_and_a_missing_library_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(gw.DataError, match='split "test" has no object to detect'):
        DetectionMAP().evaluate(Answers([found(scores=[])]), of_split([truth()]))
    monkeypatch.setitem(__import__("sys").modules, "faster_coco_eval", None)
    with pytest.raises(gw.GraftworkError, match=r'pip install "graftwork\[detection\]"'):
        average_precisions([truth(BOX)], [found(BOX, scores=[0.5])])
