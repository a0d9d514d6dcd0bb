"""Segmenters, their objective and mean IoU, against transformers, torchmetrics, closed forms and loops."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional

import graftwork as gw
from graftwork.builtin.from_config import transformers_from_config
from graftwork.builtin.segmentation import MeanIoU, SegmentationCrossEntropy, dice_loss, intersection_over_union, pixel_cross_entropy
from graftwork.builtin.segmenters import TransformersSegmenter
from graftwork.interfaces import Segmenter

transformers = pytest.importorskip("transformers")

PYRAMID = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_encoder_blocks": 2, "num_attention_heads": [1, 2], "sr_ratios": [2, 1]}
CONFIG = {**PYRAMID, "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 16, "num_labels": 4}


def segformer(size: int = 32, **config: Any) -> TransformersSegmenter:
    torch.manual_seed(0)
    return transformers_from_config("SegformerForSemanticSegmentation", {**CONFIG, **config}, processor={"size": size}).eval()


def pixels(classes: int = 4, size: int = 6, count: int = 3, ignored: float = 0.2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (count, classes, size, size) in float64, and a mask of which a share is 255."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, size, size, generator=generator, dtype=torch.float64)
    mask = torch.randint(classes, (count, size, size), generator=generator)
    return logits, mask.masked_fill(torch.rand(mask.shape, generator=generator) < ignored, 255)


class Painted(nn.Module):
    """Segments an image by its own channels."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.drop = nn.Parameter(torch.ones(())), nn.Dropout(0.9)

    def segment(self, image: torch.Tensor) -> torch.Tensor:
        return self.drop(self.gain * image)


# -- the model ----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_are_the_librarys_own_at_the_images_size() -> None:
    model, image = segformer(), torch.rand(2, 3, 32, 32)
    assert isinstance(model, Segmenter)
    assert model.num_classes == 4
    own = model.model(pixel_values=(image - 0.5) / 0.5).logits
    assert own.shape == (2, 4, 16, 16)
    torch.testing.assert_close(model.segment(image), functional.interpolate(own, size=(32, 32), mode="bilinear", align_corners=False))
    assert torch.equal(model(image), model.segment(image))
    assert model.segment(torch.rand(2, 3, 40, 24)).shape == (2, 4, 40, 24)


def test_a_new_head_keeps_the_trunk_and_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    model = segformer()
    model.half().save_pretrained(tmp_path)
    again = TransformersSegmenter(str(tmp_path), num_classes=7)
    assert again.segment(torch.rand(1, 3, 32, 32)).shape == (1, 7, 32, 32)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    trunk = dict(model.model.segformer.named_parameters())
    assert all(torch.equal(trunk[name].float(), value) for name, value in again.model.segformer.named_parameters())


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    segformer().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["depths"] = [1, 2]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(gw.GraftworkError, match=r'segmenter ".*" has no weights for segformer\..*; for a new head give num_classes'):
        TransformersSegmenter(str(tmp_path))
    with pytest.raises(gw.GraftworkError, match="has no weights for segformer"):
        TransformersSegmenter(str(tmp_path), num_classes=7)


# -- the objective ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.0, 0.5]])
def test_cross_entropy_equals_a_loop_over_pixels(weights: list[float] | None) -> None:
    logits, mask = pixels()
    total = count = 0.0
    for b, y, x in (mask != 255).nonzero().tolist():
        scores, label = logits[b, :, y, x].tolist(), int(mask[b, y, x])
        weight = 1.0 if weights is None else weights[label]
        total += weight * (math.log(sum(map(math.exp, scores))) - scores[label])
        count += weight
    found = pixel_cross_entropy(logits, mask, class_weights=None if weights is None else torch.tensor(weights))
    assert found.item() == pytest.approx(total / count, rel=1e-12)


def test_dice_equals_the_papers_formula_a_class_at_a_time() -> None:
    logits, mask = pixels()
    mask[mask == 2] = 1  # class 2 is not there
    shares, counted = logits.softmax(1).movedim(1, -1).numpy(), (mask != 255).numpy()
    losses = []
    for label in (0, 1, 3):
        p, g = shares[..., label][counted], (mask.numpy() == label)[counted].astype(float)
        losses.append(1 - 2 * (p * g).sum() / ((p**2).sum() + (g**2).sum()))
    assert dice_loss(logits, mask).item() == pytest.approx(numpy.mean(losses), rel=1e-12)


def test_a_certain_and_right_prediction_costs_nothing() -> None:
    _, mask = pixels(ignored=0.0)
    logits = 1000 * functional.one_hot(mask, 4).movedim(-1, 1).float()
    assert pixel_cross_entropy(logits, mask) == 0
    assert dice_loss(logits, mask).item() == pytest.approx(0)


@pytest.mark.parametrize("loss", [pixel_cross_entropy, dice_loss])
def test_gradients_are_those_of_float64_and_none_goes_to_ignored_pixels(loss: Any) -> None:
    logits, mask = pixels(size=3, count=2)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, mask), logits)
    (gradient,) = torch.autograd.grad(loss(logits, mask), logits)
    assert not gradient.movedim(1, -1)[mask == 255].any()
    assert gradient.movedim(1, -1)[mask != 255].abs().sum(dim=-1).min() > 0
    assert loss(logits.detach().half(), mask).dtype == torch.float32
    nothing = loss(logits, torch.full_like(mask, 255))
    assert nothing == 0
    assert not torch.autograd.grad(nothing, logits)[0].any()


def test_the_objective_adds_the_weighted_dice_term() -> None:
    logits, mask = pixels()
    batch = {"image": logits.float(), "mask": mask}
    model = Painted().eval()
    loss = SegmentationCrossEntropy(class_weights=[1.0, 2.0, 1.0, 1.0], dice=0.5)(model, {"train": batch}, 0.0)
    entropy, overlap = pixel_cross_entropy(logits, mask, 255, torch.tensor([1.0, 2, 1, 1])), dice_loss(logits, mask)
    assert loss.total.item() == pytest.approx((entropy + 0.5 * overlap).item(), rel=1e-5)
    assert (loss.parts["cross-entropy"].item(), loss.parts["dice"].item()) == pytest.approx((entropy.item(), overlap.item()), rel=1e-5)
    counted = mask != 255
    assert loss.parts["pixel-accuracy"].item() == pytest.approx((logits.argmax(1) == mask)[counted].double().mean().item(), rel=1e-6)
    assert set(SegmentationCrossEntropy()(model, {"train": batch}, 0.0).parts) == {"pixel-accuracy"}


def test_training_a_transformers_segmenter_learns_to_tell_bright_from_dark(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(8, 1, 4, 4, generator=generator) > 0.5).float()
    mask = functional.interpolate(mask, scale_factor=8, mode="nearest")
    data = gw.Dataset({"train": gw.TensorSamples(image=mask.expand(-1, 3, -1, -1) * 0.8 + 0.1, mask=mask[:, 0].long())})
    model = segformer(num_labels=2)
    config = gw.TrainConfig(steps=40, batch_size=8, optimizer={"use": "adamw", "lr": 1e-2})
    trained = gw.Engine(model, gw.objective("segmentation-cross-entropy", dice=1.0), data, config, device="cpu").fit()
    assert MeanIoU(split="train").evaluate(trained, data).metrics["pixel-accuracy"] > 0.9
    trained.save_pretrained(tmp_path)
    again = gw.model("transformers-segmenter", name=str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(again.segment(data["train"].columns["image"]), trained.segment(data["train"].columns["image"]))


def test_the_objective_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"logits are \(B, C, H, W\) and the mask \(B, H, W\); found \(2, 3, 4, 4\) and \(2, 4, 5\)"):
        pixel_cross_entropy(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 5).long())
    with pytest.raises(ValueError, match="dice is at least 0; found -1"):
        SegmentationCrossEntropy(dice=-1)
    with pytest.raises(ValueError, match=r"class_weights are at least 0, and one is above it; found \[0.0, 0.0\]"):
        SegmentationCrossEntropy(class_weights=[0.0, 0.0])
    named = gw.Dataset({}, gw.DatasetInfo(classes=tuple("abcde")))
    with pytest.raises(gw.InterfaceError, match="the dataset has 5 classes, TransformersSegmenter only 4 outputs: build it with 5"):
        SegmentationCrossEntropy().setup(segformer(), named)
    with pytest.raises(gw.InterfaceError, match="there are 2 class_weights, but TransformersSegmenter has 4 outputs"):
        SegmentationCrossEntropy(class_weights=[1.0, 1.0]).setup(segformer(), gw.Dataset({}))
    batch = {"image": torch.zeros(1, 3, 4, 4), "mask": torch.zeros(1, 4, 6).long()}
    with pytest.raises(gw.DataError, match=r"Painted segments to \(4, 4\) pixels where the masks have \(4, 6\)"):
        SegmentationCrossEntropy()(Painted(), {"train": batch}, 0.0)


# -- mean IoU -----------------------------------------------------------------------------------------------------------------


def of_split(logits: torch.Tensor, mask: torch.Tensor, **info: Any) -> gw.Dataset:
    return gw.Dataset({"test": gw.TensorSamples(image=logits.float(), mask=mask)}, gw.DatasetInfo(**info))


@pytest.mark.parametrize("batch_size", [2, 32])
@pytest.mark.parametrize("ignore_index", [255, 0, -100])
def test_iou_equals_a_count_of_pixels_and_torchmetrics(ignore_index: int, batch_size: int) -> None:
    classification = pytest.importorskip("torchmetrics.functional.classification")
    logits, mask = pixels(count=5)
    mask = mask.masked_fill(mask == 255, ignore_index)
    report = MeanIoU(ignore_index=ignore_index, batch_size=batch_size).evaluate(Painted().train(), of_split(logits, mask))
    guess, counted = logits.argmax(1), mask != ignore_index
    overlaps = []
    for label in range(4):
        one, other = ((each == label) & counted for each in (guess, mask))
        overlaps.append((one & other).sum().item() / (one | other).sum().item())
    assert [row[2] for row in report.tables["classes"].rows] == pytest.approx(overlaps)
    assert report.metrics["mean-iou"] == pytest.approx(numpy.mean(overlaps))
    assert report.metrics["pixel-accuracy"] == pytest.approx((guess == mask)[counted].double().mean().item())
    assert [row[1] for row in report.tables["classes"].rows] == [(mask[counted] == label).sum().item() for label in range(4)]
    theirs = classification.multiclass_jaccard_index(guess, mask, 4, average="none", ignore_index=ignore_index)
    shown = [label for label in range(4) if label != ignore_index]  # torchmetrics gives an ignored class 0 by fiat
    assert theirs[shown].tolist() == pytest.approx([overlaps[label] for label in shown])


def test_two_classes_by_hand_and_a_third_that_is_nowhere() -> None:
    mask = torch.tensor([[[0, 0], [1, 255]]])
    guess = torch.tensor([[[0, 1], [1, 0]]])
    logits = functional.one_hot(guess, 3).movedim(-1, 1)
    report = MeanIoU().evaluate(Painted(), of_split(logits, mask))
    assert report.metrics == pytest.approx({"mean-iou": 0.5, "pixel-accuracy": 2 / 3})  # 1/2 and 1/2
    assert report.tables["classes"].rows == [["0", 2, 0.5, 0.5], ["1", 1, 0.5, 1.0], ["2", 0, None, None]]
    assert intersection_over_union(torch.tensor([[1, 1], [0, 1]])).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("known", "given", "names"),
    [
        (("a", "b", "c", "d"), None, ["a", "b", "c", "d"]),
        (("a", "b", "c"), None, ["background", "a", "b", "c"]),
        (("a",), None, ["0", "1", "2", "3"]),
        (("a",), ["w", "x", "y", "z"], ["w", "x", "y", "z"]),
    ],
)
def test_classes_are_named_as_far_as_they_are_known(known: tuple[str, ...], given: list[str] | None, names: list[str]) -> None:
    report = MeanIoU(classes=given).evaluate(Painted(), of_split(*pixels(), classes=known))
    assert [row[0] for row in report.tables["classes"].rows] == names


def test_the_figure_shows_image_truth_and_prediction_in_one_colour_a_class() -> None:
    logits, mask = pixels(classes=3)
    figure = MeanIoU(examples=2).evaluate(Painted(), of_split(logits, mask)).figures["examples"].figure
    assert [axes.get_title() for axes in figure.axes] == ["image", "truth", "prediction", "", "", ""]
    truth, guess = (figure.axes[at].images[0].get_array() for at in (1, 2))
    same = ((logits.argmax(1) == mask)[0]).numpy()
    assert (truth[same] == guess[same]).all()
    assert (truth[(mask[0] != 255).numpy() & ~same] != guess[(mask[0] != 255).numpy() & ~same]).any(axis=1).all()
    assert not truth[(mask[0] == 255).numpy()].any()  # black
    assert not MeanIoU(examples=0).evaluate(Painted(), of_split(logits, mask)).figures


def test_the_model_keeps_its_mode_and_a_limit_is_kept() -> None:
    logits, mask = pixels(count=5)
    model = Painted().train()
    report = MeanIoU(limit=2).evaluate(model, of_split(logits, mask))
    assert sum(row[1] for row in report.tables["classes"].rows) == (mask[:2] != 255).sum()
    assert model.training
    assert model.drop.training


def test_mean_iou_names_what_does_not_fit() -> None:
    logits, mask = pixels()
    with pytest.raises(gw.DataError, match='split "test" has label 9 in a mask; the model has 4 outputs'):
        MeanIoU().evaluate(Painted(), of_split(logits, mask.masked_fill(mask == 3, 9)))
    with pytest.raises(gw.DataError, match='split "test" has no pixel that counts'):
        MeanIoU().evaluate(Painted(), of_split(logits, torch.full_like(mask, 255)))
    with pytest.raises(gw.DataError, match="there are 2 classes, but the model has 4 outputs"):
        MeanIoU(classes=["a", "b"]).evaluate(Painted(), of_split(logits, mask))
    with pytest.raises(ValueError, match="examples is 0 to 32; found 33"):
        MeanIoU(examples=33)
