from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import graftwork as gw
from graftwork import Dataset, DatasetInfo, Engine, GraftworkError, InterfaceError, TrainConfig
from graftwork.interfaces import Detector
from graftwork_testbed.scenes.dataset import digit_scenes

transformers = pytest.importorskip("transformers")

from transformers.image_transforms import center_to_corners_format  # noqa: E402
from transformers.loss.loss_for_object_detection import generalized_box_iou as library_giou  # noqa: E402

from graftwork_testbed.zoo import detector as module  # noqa: E402
from graftwork_testbed.zoo.detection_objective import (  # noqa: E402
    AnchorFreeDetection,
    heatmap_focal_loss,
    map_targets,
    pad_objects,
)
from graftwork_testbed.zoo.detector import (  # noqa: E402
    AnchorFreeDetector,
    AnchorFreeDetectorConfig,
    anchor_free_detector,
    load_anchor_free_detector,
)


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def random_boxes(*shape, generator, size=64.0, dtype=torch.float32):
    first = torch.rand(*shape, 2, generator=generator, dtype=dtype) * size * 0.8
    return torch.cat([first, first + 1 + torch.rand(*shape, 2, generator=generator, dtype=dtype) * size * 0.4], dim=-1)


def small_detector(seed=0, **parameters):
    torch.manual_seed(seed)
    return anchor_free_detector(**{"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "neck_channels": 16, **parameters})


class Planted(nn.Module):
    """Gives the same map whatever it is asked."""

    def __init__(self, planted):
        super().__init__()
        self.planted = nn.Parameter(planted)

    def forward(self, features):
        return self.planted.expand(len(features), -1, -1, -1)


def plant(model, heatmap, distances):
    """A detector whose heads give a heat map of logits (C, h, w) and distances (4, h, w) in pixels to the left, top, right and bottom."""
    model.classifier, model.regressor = Planted(heatmap[None]), Planted((distances / model.config.stride).expm1().log()[None])
    return model.eval()


# -- the detector --------------------------------------------------------------------------------------------------------------


def test_the_default_detector_is_small_and_a_detector():
    model = anchor_free_detector()
    assert isinstance(model, Detector)
    assert 250_000 < sum(each.numel() for each in model.parameters()) < 350_000
    assert model(torch.rand(2, 3, 64, 64)).heatmap.shape == (2, 10, 16, 16)


@torch.no_grad()
def test_before_training_each_class_has_its_prior_and_boxes_reach_two_cells():
    maps = anchor_free_detector()(torch.rand(4, 3, 64, 64, generator=drawn()))
    assert maps.heatmap.sigmoid().mean().item() == pytest.approx(module.PRIOR, rel=0.15)
    sides = maps.boxes[:, 2:] - maps.boxes[:, :2]
    assert sides.mean().item() == pytest.approx(2 * module.REACH * 4, rel=0.1)


@torch.no_grad()
def test_a_box_is_its_distances_around_the_middle_of_its_cell():
    distances = torch.rand(4, 8, 16, generator=drawn()) * 20 + 1
    maps = plant(small_detector(), torch.zeros(10, 8, 16), distances)(torch.rand(1, 3, 32, 64))
    row, column = 5, 11
    left, top, right, bottom = distances[:, row, column].tolist()
    expected = [4 * 11.5 - left, 4 * 5.5 - top, 4 * 11.5 + right, 4 * 5.5 + bottom]
    assert maps.boxes[0, :, row, column].tolist() == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_maps_are_also_given_as_detectors_of_transformers_give_them():
    model, image = small_detector().eval(), torch.rand(2, 3, 48, 64)
    maps = model(image)
    assert maps.logits[1, 16 * 3 + 7].equal(maps.heatmap[1, :, 3, 7])
    corners = center_to_corners_format(maps.pred_boxes[1, 16 * 3 + 7]) * torch.tensor([64.0, 48, 64, 48])
    torch.testing.assert_close(corners, maps.boxes[1, :, 3, 7])
    assert set(model(pixel_values=image).keys()) == {"heatmap", "boxes", "logits", "pred_boxes"}


@torch.no_grad()
def test_an_image_of_an_odd_size_is_seen_as_if_it_went_on_in_the_mean_colour():
    model, image = small_detector().eval(), torch.rand(1, 3, 50, 61)
    extended = functional.pad(image, (0, 3, 0, 6), value=0.5)
    torch.testing.assert_close(model(image).boxes, model(extended).boxes)
    torch.testing.assert_close(model(image).heatmap, model(extended).heatmap)


def scene_of_two():
    """A map of 16 x 16 cells with a 3 at (20, 12, 40, 44), seen from three cells, and a 7 at (44, 30, 60, 62)."""
    heatmap, distances = torch.full((10, 16, 16), -9.0), torch.full((4, 16, 16), 2.0)
    for label, row, column, logit, box in [
        (3, 6, 7, 3.0, (20.0, 12.0, 40.0, 44.0)),
        (3, 7, 7, 2.0, (20.0, 12.0, 40.0, 44.0)),  # beside the peak: no peak of its own
        (3, 9, 7, 1.0, (21.0, 13.0, 41.0, 45.0)),  # a peak of its own: a duplicate
        (7, 11, 12, 0.0, (44.0, 30.0, 60.0, 62.0)),
    ]:
        heatmap[label, row, column] = logit
        left, top, right, bottom = box
        x, y = 4 * column + 2, 4 * row + 2
        distances[:, row, column] = torch.tensor([x - left, y - top, right - x, bottom - y])
    return heatmap, distances


@torch.no_grad()
def test_what_the_maps_show_is_detected_once_and_in_order_of_score():
    model = plant(small_detector(), *scene_of_two())
    (found,) = model.detect(torch.rand(1, 3, 64, 64))
    assert found["labels"].tolist() == [3, 7]
    assert found["labels"].dtype == torch.long
    assert found["scores"].tolist() == pytest.approx([1 / (1 + math.exp(-3)), 0.5])
    torch.testing.assert_close(found["boxes"], torch.tensor([[20.0, 12, 40, 44], [44, 30, 60, 62]]))


@torch.no_grad()
def test_thresholds_and_the_most_detections_are_obeyed():
    model, image = plant(small_detector(), *scene_of_two()), torch.rand(1, 3, 64, 64)
    assert model.detect(image, score_threshold=0.5)[0]["labels"].tolist() == [3]
    assert model.detect(image, max_detections=1)[0]["labels"].tolist() == [3]
    assert model.detect(image, iou_threshold=0.95)[0]["labels"].tolist() == [3, 3, 7]
    nothing = model.detect(image, score_threshold=0.99)[0]
    assert {key: tuple(value.shape) for key, value in nothing.items()} == {"boxes": (0, 4), "scores": (0,), "labels": (0,)}
    assert model.detect(image.new_zeros(0, 3, 64, 64)) == []


@torch.no_grad()
def test_boxes_end_at_the_image_and_what_lies_in_its_padding_is_dropped():
    heatmap, distances = torch.full((10, 16, 16), -9.0), torch.full((4, 16, 16), 3.0)
    heatmap[1, 14, 2], heatmap[2, 15, 9] = 4.0, 4.0  # middles at 58 and 62 pixels, of an image of 59
    (found,) = plant(small_detector(), heatmap, distances).detect(torch.rand(1, 3, 59, 64))
    assert found["labels"].tolist() == [1]
    torch.testing.assert_close(found["boxes"], torch.tensor([[7.0, 55, 13, 59]]))


@torch.no_grad()
def test_images_are_detected_in_independently_of_one_another():
    model, images = small_detector().eval(), torch.rand(3, 3, 64, 64, generator=drawn())
    together, alone = model.detect(images), [model.detect(image[None])[0] for image in images]
    for one, other in zip(together, alone, strict=True):
        assert one["labels"].equal(other["labels"])
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("loader", ["AutoModel", "AutoModelForObjectDetection", "load_anchor_free_detector"])
def test_a_saved_detector_comes_back_as_it_was(tmp_path, loader):
    model, image = small_detector(num_classes=4, image_mean=[0.4, 0.5, 0.6]).eval(), torch.rand(2, 3, 64, 64)
    model.save_pretrained(tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".safetensors", ".json"}
    found = load_anchor_free_detector(str(tmp_path)) if loader not in dir(transformers) else None
    found = found or getattr(transformers, loader).from_pretrained(tmp_path)
    assert type(found) is AnchorFreeDetector
    assert not found.training
    kept, again = model.state_dict(), found.state_dict()
    assert kept.keys() == again.keys()
    assert all(kept[key].equal(again[key]) for key in kept)
    for one, other in zip(model.detect(image), found.detect(image), strict=True):
        assert one["labels"].equal(other["labels"])
        torch.testing.assert_close(one["boxes"], other["boxes"])  # the layout in memory may differ, and with it the order of a sum


@torch.no_grad()
def test_half_precision_detects_in_float32(tmp_path):
    model, image = plant(small_detector(), *scene_of_two()), torch.rand(1, 3, 64, 64)
    (found,) = model.bfloat16().detect(image)
    assert found["boxes"].dtype == torch.float32
    torch.testing.assert_close(found["boxes"], torch.tensor([[20.0, 12, 40, 44], [44, 30, 60, 62]]), atol=0.3, rtol=0)
    small_detector().save_pretrained(tmp_path)
    assert load_anchor_free_detector(str(tmp_path), dtype="bfloat16").dtype == torch.bfloat16


def test_any_backbone_of_transformers_will_do(tmp_path):
    backbone = transformers.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage1", "stage2"])
    config = AnchorFreeDetectorConfig(backbone_config=backbone, size_divisor=8, neck_channels=8, num_labels=3)
    model = AnchorFreeDetector(config).eval()
    model.save_pretrained(tmp_path)
    found, image = load_anchor_free_detector(str(tmp_path)), torch.rand(1, 3, 40, 40)
    assert found.config.backbone_config.model_type == "convnext"
    assert found(image).heatmap.shape == (1, 3, 10, 10)
    assert found(image).heatmap.equal(model(image).heatmap)


def test_what_does_not_fit_the_detector_is_named():
    model = small_detector()
    with pytest.raises(ValueError, match=r"images are \(B, 3, H, W\); found \(2, 1, 64, 64\)"):
        model(torch.rand(2, 1, 64, 64))
    for name, value in (("score_threshold", -0.1), ("iou_threshold", 1.1)):
        with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\]; found {value}"):
            model.detect(torch.rand(1, 3, 64, 64), **{name: value})
    with pytest.raises(ValueError, match="max_detections must be at least 1; found 0"):
        model.detect(torch.rand(1, 3, 64, 64), max_detections=0)
    with pytest.raises(ValueError, match=r"stride 8 and size_divisor 16 do not fit the backbone, whose finest level has \(16, 16\) cells"):
        AnchorFreeDetector(AnchorFreeDetectorConfig(stride=8))(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1; found 0"),
        ({"hidden_sizes": [8, 0], "depths": [1, 1]}, r"hidden_sizes must be at least 1; found \[8, 0\]"),
        ({"hidden_sizes": [], "depths": []}, r"hidden_sizes must be at least 1; found \[\]"),
        ({"neck_channels": -1}, "neck_channels must be at least 1; found -1"),
        ({"depths": [1]}, r"hidden_sizes and depths are lists of one length; found \[32, 64, 96\] and \[1\]"),
        ({"image_mean": [0.5]}, r"image_mean and image_std are lists of one length; found \[0.5\] and"),
        ({"image_mean": [1.5] * 3}, r"image_mean is in \[0, 1\] and image_std above 0, one for each channel; found \[1.5, 1.5, 1.5\]"),
        ({"image_std": [0.0] * 3}, r"image_std above 0, one for each channel; found .* and \[0.0, 0.0, 0.0\]"),
    ],
)
def test_bad_parameters_of_the_detector_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        anchor_free_detector(**parameters)


def test_a_folder_without_a_whole_detector_is_refused(tmp_path):
    with pytest.raises(GraftworkError, match="there is no folder"):
        load_anchor_free_detector(str(tmp_path / "none"))
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    transformers.ResNetModel(config).save_pretrained(tmp_path / "resnet")
    with pytest.raises(GraftworkError, match="is a ResNetModel, not an AnchorFreeDetector"):
        load_anchor_free_detector(str(tmp_path / "resnet"))
    model = small_detector()
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("regressor.1")}
    model.save_pretrained(tmp_path / "part", state_dict=state)
    with pytest.raises(GraftworkError, match=r"has no weights for regressor.1.bias, regressor.1.weight"):
        load_anchor_free_detector(str(tmp_path / "part"))


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    spec = importlib.util.spec_from_file_location("detector_alone", module.__file__)
    with pytest.raises(GraftworkError, match=r'pip install "graftwork-testbed\[zoo\]"'):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# -- the objective -------------------------------------------------------------------------------------------------------------


def batch_of(boxes, labels, size=64):
    return {"train": {"image": torch.rand(len(boxes), 3, size, size, generator=drawn()), "boxes": boxes, "labels": labels}}


def test_the_loss_is_of_both_maps_with_its_weight():
    model = small_detector(num_classes=3)
    boxes, labels = random_boxes(4, 2, generator=drawn(), size=40.0), torch.tensor([[0, 1], [2, 2], [1, 0], [0, 0]])
    batches = batch_of(boxes, labels)
    loss = AnchorFreeDetection(box_weight=2.5)(model, batches, 0.0)
    maps, targets = model(batches["train"]["image"]), map_targets(pad_objects(boxes, labels, 3), 3, (16, 16), 4)
    chosen = targets.positive.nonzero().unbind(1)
    of_box = 1 - library_giou(maps.boxes.movedim(1, -1)[chosen], targets.boxes.movedim(1, -1)[chosen]).diagonal().mean()
    assert loss.parts["box"].item() == pytest.approx(of_box.item(), rel=1e-4)
    assert loss.parts["class"].item() == pytest.approx(heatmap_focal_loss(maps.heatmap, targets.heatmap).item(), rel=1e-4)
    assert loss.total.item() == pytest.approx(loss.parts["class"].item() + 2.5 * of_box.item(), rel=1e-4)


@pytest.mark.parametrize("boxes", [torch.zeros(2, 0, 4), [torch.zeros(0, 4), torch.tensor([[8.0, 8, 30, 30]])]])
def test_scenes_without_boxes_train_the_background_and_give_no_nan(boxes):
    model = small_detector(num_classes=3)
    loss = AnchorFreeDetection()(model, batch_of(boxes, [torch.zeros(len(each), dtype=torch.long) for each in boxes]), 0.0)
    loss.total.backward()
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    assert loss.total.isfinite()
    assert all(each.isfinite().all() for each in gradients)
    assert model.classifier[-1].bias.grad.abs().sum() > 0
    assert (loss.parts["box"] == 0) == isinstance(boxes, torch.Tensor)


def test_maps_that_are_right_cost_nothing():
    box = torch.tensor([[20.0, 12.0, 40.0, 44.0]])
    targets = map_targets(pad_objects([box], [torch.tensor([3])], 10), 10, (16, 16), 4)
    points = 4 * torch.arange(16) + 2.0
    centres = torch.stack(torch.meshgrid(points, points, indexing="xy"))
    inside = torch.cat([centres - targets.boxes[0, :2], targets.boxes[0, 2:] - centres]).clamp(min=1e-3)
    model = plant(small_detector(), 20 * (2 * (targets.heatmap[0] == 1).float() - 1), inside)
    loss = AnchorFreeDetection()(model, batch_of([box], [torch.tensor([3])]), 0.0)
    assert loss.parts["class"].item() < 1e-6
    assert loss.parts["box"].item() == pytest.approx(0, abs=1e-5)


def squares(count=16):
    """Scenes of a bright square, red (0) or green (1), on grey noise; every second one has both."""
    generator = drawn(7)
    image = 0.4 + 0.2 * torch.rand(count, 3, 64, 64, generator=generator)
    boxes, labels = [], []
    for number in range(count):
        sides = torch.randint(12, 25, (2,), generator=generator).tolist()
        left = [int(torch.randint(1, 30 - side, (), generator=generator)) + 32 * half for half, side in enumerate(sides)]
        top = [int(torch.randint(1, 63 - side, (), generator=generator)) for side in sides]
        chosen = [0, 1] if number % 2 else [number // 2 % 2]
        for label in chosen:
            x, y, side = left[label], top[label], sides[label]
            image[number, :, y : y + side, x : x + side] = torch.eye(3)[label][:, None, None]
        boxes.append(torch.tensor([[left[c], top[c], left[c] + sides[c], top[c] + sides[c]] for c in chosen], dtype=torch.float32))
        labels.append(torch.tensor(chosen))
    samples = [
        {"image": one, "boxes": box, "labels": label, "index": torch.tensor(number)}
        for number, (one, box, label) in enumerate(zip(image, boxes, labels, strict=True))
    ]
    return Dataset({"train": samples}, DatasetInfo(("red", "green"), 3, (64, 64)))


def test_training_teaches_where_things_are_and_what_they_are():
    data, rows = squares(), []
    train = TrainConfig(steps=80, batch_size=8, log_every=20, optimizer={"use": "adamw", "lr": 0.01}, schedule={"use": "one-cycle"})
    model = small_detector(num_classes=2, neck_channels=24)
    model = Engine(model, AnchorFreeDetection(), data, train, device="cpu", log=lambda step, row: rows.append(row)).fit()
    assert rows[-1]["class"] < 0.3 * rows[0]["class"]
    assert rows[-1]["box"] < 0.5 * rows[0]["box"]
    report = gw.evaluator("detection-map", split="train").evaluate(model, data)
    assert report.metrics["map-50"] > 0.9
    assert model.config.id2label == {0: "red", 1: "green"}


def test_a_batch_of_real_scenes_trains_whether_their_counts_agree_or_not():
    data = digit_scenes(train=12, val=1, test=1)
    model, objective = small_detector(), AnchorFreeDetection()
    objective.setup(model, data)
    counts = data["train"].counts
    same = (counts == counts.mode().values).nonzero().flatten()
    for rows in (torch.arange(12), same):
        batch = data["train"].__getitems__(rows.tolist())
        assert isinstance(batch["boxes"], list) == (len(counts[rows].unique()) > 1)
        loss = objective(model, {"train": batch}, 0.0)
        assert loss.total.isfinite()
        assert loss.parts["box"] > 0
    assert model.config.id2label[7] == "7"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"box_weight": -1.0}, "box_weight must be at least 0; found -1.0"),
        ({"spread": 0.0}, "spread must be above 0; found 0.0"),
        ({"radius": -0.5}, "radius must be at least 0; found -0.5"),
        ({"alpha": -2.0}, "alpha must be at least 0; found -2.0"),
        ({"beta": -4.0}, "beta must be at least 0; found -4.0"),
    ],
)
def test_bad_parameters_of_the_objective_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        AnchorFreeDetection(**parameters)


def test_more_classes_than_the_detector_has_are_refused():
    data = Dataset({}, DatasetInfo(("red", "green", "blue")))
    with pytest.raises(InterfaceError, match="the dataset has 3 classes, AnchorFreeDetector only 2: build it with num_classes 3"):
        AnchorFreeDetection().setup(small_detector(num_classes=2), data)


# -- what is registered --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "metric", "loader"),
    [("scene-detector", "map-50", "anchor-free-detector"), ("scene-segmenter", "mean-iou", "transformers-segmenter")],
)
def test_a_recipe_runs_to_its_metric_and_leaves_what_loads_again(name, metric, loader, tmp_path):
    few = {"dataset.train": 8, "dataset.val": 1, "dataset.test": 8, "train.steps": 2, "train.batch_size": 4}
    overrides = [f"stages.{name}.{key}={value}" for key, value in few.items()]
    recipe = Path(module.__file__).parent / "recipes" / f"{name}.yaml"
    result = gw.Pipeline.from_yaml(recipe, overrides).run(tmp_path / "run", device="cpu")
    assert 0 <= result.metric(f"{name}/{metric}") <= 1
    found = gw.model(loader, name=str(tmp_path / "run" / "stages" / name / "model"))
    assert 200_000 < sum(each.numel() for each in found.parameters()) < 400_000
