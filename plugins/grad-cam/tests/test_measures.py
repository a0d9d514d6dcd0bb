"""The evaluators that measure maps, on a classifier whose evidence is known."""

from __future__ import annotations

import pytest
import torch

import graftwork as gw
from graftwork.errors import DataError
from graftwork_grad_cam.box_contrast import BoxContrast
from graftwork_grad_cam.grad_cam import GradCAM
from graftwork_grad_cam.guided_backprop import GuidedBackprop
from graftwork_grad_cam.maps import SaliencyMaps
from graftwork_grad_cam.pointing_game import PointingGame, asked_classes
from graftwork_grad_cam.regions import class_masks, padded_boxes, present_classes
from graftwork_grad_cam.saliency import SaliencyMethod
from graftwork_grad_cam.saliency_localization import SaliencyLocalization
from graftwork_grad_cam.targets import as_target


class Elsewhere(SaliencyMethod):
    """A saliency that always points at one corner, with a maximum that tells the class."""

    name = "elsewhere"

    def __init__(self, target="predicted"):
        super().__init__(target=target)

    def explain(self, model, batch, target=None):
        asked = self.target if target is None else as_target(target)
        ready = asked.prepare(model, batch)
        output = model(ready["image"])
        scores = asked.score(output, ready).detach()
        maps = torch.zeros(*scores.shape, 32, 32)
        maps[..., 0, 31] = scores
        return SaliencyMaps(maps, {}, scores, output, asked.pin(output, ready), asked)


# -- the pointing game -------------------------------------------------------------------------------------------------------------


def test_maps_that_know_where_things_are_win_the_pointing_game(colours, scenes):
    report = PointingGame(columns=1, tolerance=0).evaluate(colours, scenes)
    assert report.metrics["pointing-accuracy"] == 1
    assert report.metrics["mass-on-object"] == pytest.approx(1)
    assert report.metrics["centre-accuracy"] < 0.5
    rows = {row[0]: row for row in report.tables["classes"].rows}
    assert sum(row[1] for row in rows.values()) == 12
    assert set(rows) == {"red", "green", "blue"}


def test_pointing_at_a_corner_loses(colours, scenes):
    report = PointingGame(columns=1, saliency=Elsewhere(), tolerance=0).evaluate(colours, scenes)
    by_hand = [int(sample["mask"][0, 31] == label + 1) for sample in scenes["test"] for label in sample["labels"].tolist()]
    assert report.metrics["pointing-accuracy"] < 0.5
    assert sum(by_hand) < len(by_hand) / 2


def test_masks_and_boxes_give_the_same_game(colours, scenes, drop):
    for saliency in (GradCAM(), Elsewhere()):
        by_mask = PointingGame(columns=1, saliency=saliency, tolerance=4).evaluate(colours, drop(scenes, "boxes", "labels"))
        by_box = PointingGame(columns=1, saliency=saliency, tolerance=4).evaluate(colours, drop(scenes, "mask"))
        assert by_mask.metrics == pytest.approx(by_box.metrics)


def test_images_whose_boxes_are_all_difficult_are_skipped(colours, scenes, drop):
    data = drop(scenes, "mask")
    for index, sample in enumerate(data["test"]):
        sample["difficult"] = torch.tensor([index < 2, index < 3])
    report = PointingGame(columns=1, tolerance=0).evaluate(colours, data)
    assert sum(row[1] for row in report.tables["classes"].rows) == 6 * 2 - 2 * 2 - 1
    assert "2 images without one are skipped" in report.tables["classes"].caption


def test_with_recall_an_absent_class_is_rejected_by_its_maximum(colours, scenes):
    absent = PointingGame(columns=1, tolerance=0, reject_below=1e-4, top_k=3).evaluate(colours, scenes).metrics
    assert absent["pointing-recall"] == 1  # maps of absent colours are 0, and those of present ones are not
    never = PointingGame(columns=1, tolerance=0, reject_below=0.0, top_k=3).evaluate(colours, scenes).metrics
    assert never["pointing-recall"] < 1
    assert never["pointing-accuracy"] == 1
    always = PointingGame(columns=1, tolerance=0, reject_below=1e6, top_k=3).evaluate(colours, scenes)
    rows = always.tables["maxima"].rows
    assert [row[:2] for row in rows] == [["present", 12], ["absent", 6]]
    assert always.metrics["pointing-recall"] < 0.5
    assert "pointing-recall" not in PointingGame(columns=1, tolerance=0).evaluate(colours, scenes).metrics


def test_only_the_likeliest_absent_classes_are_asked_for(colours, scenes):
    report = PointingGame(columns=1, tolerance=0, reject_below=1e-4, top_k=2).evaluate(colours, scenes)
    assert [row[0] for row in report.tables["maxima"].rows] == ["present"]  # the two likeliest are the two that are there


def test_the_classes_of_a_sample_are_padded():
    classes, there = asked_classes(torch.tensor([[False, True, True], [True, False, False]]))
    assert classes[0].tolist() == [1, 2]
    assert there.tolist() == [[True, True], [True, False]]
    assert classes[1, 0] == 0


def test_a_pointing_game_without_objects_is_refused(colours, scenes, drop):
    with pytest.raises(DataError, match="reads where objects are from `mask` or `boxes`; the samples have image, label, index"):
        PointingGame(columns=1).evaluate(colours, drop(scenes, "mask", "boxes", "labels"))
    for sample in scenes["test"]:
        sample["mask"] = torch.zeros(32, 32, dtype=torch.long)
    with pytest.raises(DataError, match='split "test" shows no object that could be pointed at'):
        PointingGame(columns=1).evaluate(colours, scenes)
    with pytest.raises(ValueError, match="the tolerance must not be negative"):
        PointingGame(columns=1, tolerance=-1)


# -- boxes from maps ---------------------------------------------------------------------------------------------------------------


def test_maps_that_know_where_things_are_localise_without_error(colours, scenes):
    report = SaliencyLocalization(columns=1, top_k=3).evaluate(colours, scenes)
    assert report.metrics == {"top-1-localization-error": 0, "top-3-localization-error": 0}
    assert "boxes" in report.figures


def test_a_wrong_class_or_a_wrong_place_is_an_error(colours, scenes):
    lost = SaliencyLocalization(columns=1, saliency=Elsewhere()).evaluate(colours, scenes)
    assert lost.metrics["top-1-localization-error"] == 1
    with torch.no_grad():
        colours.head.weight.copy_(colours.head.weight.roll(1, 0))  # every colour taken for the next
    confused = SaliencyLocalization(columns=1, top_k=1).evaluate(colours, scenes)
    assert confused.metrics["top-1-localization-error"] > 0.5
    assert confused.tables["errors"].rows[0][2] > 0


def test_more_tries_can_only_help(colours, scenes):
    with torch.no_grad():
        colours.head.weight.add_(torch.randn(3, 3))
    metrics = SaliencyLocalization(columns=1, top_k=3, threshold=0.5).evaluate(colours, scenes).metrics
    assert metrics["top-3-localization-error"] <= metrics["top-1-localization-error"]


def test_localisation_needs_boxes_and_numbers_in_range(colours, scenes, drop):
    with pytest.raises(DataError, match="boxes and the classes of what is in them"):
        SaliencyLocalization(columns=1).evaluate(colours, drop(scenes, "labels", "label"))
    with pytest.raises(ValueError, match=r"the threshold must be in \[0, 1\) and min_iou in \(0, 1\]; found 1.0 and 0.5"):
        SaliencyLocalization(columns=1, threshold=1.0)


# -- contrast ----------------------------------------------------------------------------------------------------------------------


def test_a_map_inside_its_box_alone_has_no_finite_contrast(colours, scenes):
    with pytest.raises(DataError, match="none of 12 maps has a finite contrast"):
        BoxContrast().evaluate(colours, scenes)


def test_contrast_of_a_hazy_scene(colours, scenes):
    for sample in scenes["test"]:
        sample["image"] = sample["image"] + 0.2
    report = BoxContrast().evaluate(colours, scenes)
    expected = (1.2 / 0.2 + 0.8 / 0.2) / 2
    assert report.metrics["box-contrast"] == pytest.approx(expected, rel=1e-4)
    assert 0 < report.metrics["mass-in-box"] < 1


def test_a_saliencys_own_target_has_a_map_for_every_box(colours, scenes):
    for sample in scenes["test"]:
        sample["image"] = sample["image"] + 0.2
    own = BoxContrast(saliency=GradCAM(target="label"), own_target=True, limit=4).evaluate(colours, scenes)
    assert own.metrics["box-contrast"] < BoxContrast(limit=4).evaluate(colours, scenes).metrics["box-contrast"]
    with pytest.raises(DataError, match="the saliency gave 3 maps a sample, but the samples have up to 2 boxes"):
        BoxContrast(saliency=GradCAM(target="top-3"), own_target=True).evaluate(colours, scenes)


# -- where objects are -------------------------------------------------------------------------------------------------------------


def test_regions_are_read_from_masks_and_boxes_alike(scenes):
    batch = scenes.collate([dict(sample) for sample in scenes["test"]])
    classes = torch.arange(3).expand(6, 3)
    by_mask = class_masks({"mask": batch["mask"]}, classes, (32, 32))
    by_box = class_masks({"boxes": batch["boxes"], "labels": batch["labels"]}, classes, (32, 32))
    assert torch.equal(by_mask, by_box)
    assert torch.equal(
        present_classes({"mask": batch["mask"]}, 3), present_classes({"boxes": batch["boxes"], "labels": batch["labels"]}, 3)
    )
    shifted = class_masks({"mask": batch["mask"]}, classes, (32, 32), mask_offset=0)
    assert torch.equal(shifted[:, 1:], by_mask[:, :2])


def test_boxes_of_unequal_number_are_padded_and_take_the_label_where_there_are_no_labels():
    batch = {
        "boxes": [torch.tensor([[0.0, 0, 1, 1]]), torch.zeros(0, 4), torch.tensor([[0.0, 0, 1, 1], [1.0, 1, 2, 2]])],
        "label": torch.tensor([4, 5, 6]),
    }
    boxes, classes, difficult = padded_boxes(batch, 3)
    assert boxes.shape == (3, 2, 4)
    assert classes.tolist() == [[4, -1], [-1, -1], [6, 6]]
    assert not difficult.any()


# -- in a pipeline -----------------------------------------------------------------------------------------------------------------


def test_evaluators_take_a_saliency_by_name():
    game = gw.evaluator("pointing-game", saliency={"use": "guided-backprop", "rule": "plain"}, tolerance=3)
    assert isinstance(game.saliency, GuidedBackprop)
    assert game.saliency.rule == "plain"


def test_models_are_left_as_they_were(colours, scenes):
    colours.train()
    for evaluator in (PointingGame(columns=1), SaliencyLocalization(columns=1), GradCAM(limit=2), GuidedBackprop(limit=2)):
        evaluator.evaluate(colours, scenes)
    assert colours.training
    assert all(p.requires_grad and p.grad is None for p in colours.parameters())
    assert not any(module._forward_hooks for module in colours.modules())
