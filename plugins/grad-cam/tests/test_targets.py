from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from graftwork.errors import ConfigError, DataError, GraftworkError, InterfaceError
from graftwork_grad_cam.grad_cam import grad_cam
from graftwork_grad_cam.targets import (
    TARGETS,
    CaptionTarget,
    ClassTarget,
    DetectionTarget,
    EmbeddingTarget,
    FunctionTarget,
    ImageTextTarget,
    QValueTarget,
    SegmentationTarget,
    VQAAnswerTarget,
    as_target,
    target_from_dict,
)


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16)


# -- what a person writes ----------------------------------------------------------------------------------------------------------


def test_targets_are_made_of_what_a_person_writes():
    assert as_target("predicted") == ClassTarget("predicted")
    assert as_target("top-5") == ClassTarget("top-5")
    assert as_target(3) == ClassTarget(3)
    assert as_target([1, 2]) == ClassTarget([1, 2])
    assert as_target("caption") == CaptionTarget()
    assert as_target({"name": "segmentation", "classes": 2}) == SegmentationTarget(2)
    assert isinstance(as_target(lambda out: out), FunctionTarget)
    assert as_target(QValueTarget()) == QValueTarget()


def test_every_kind_of_the_paper_has_a_name():
    wanted = {"class", "caption", "vqa-answer", "segmentation", "detection", "image-text", "embedding", "q-value"}
    assert set(TARGETS) == wanted


@pytest.mark.parametrize(
    "target",
    [
        ClassTarget("top-3"),
        ClassTarget(each=(1, 4)),
        CaptionTarget("a dog", word="dog"),
        CaptionTarget(positions=(0, 2), max_new_tokens=7),
        VQAAnswerTarget("yes"),
        SegmentationTarget(3, "mask", mask_offset=1),
        DetectionTarget([[1, 2, 3, 4]], 2, iou_weight=0.5, min_iou=0.3),
        ImageTextTarget(("a dog", "a cat")),
        EmbeddingTarget([1.0, 2.0], cosine=True),
        QValueTarget(2),
    ],
    ids=lambda target: target.name,
)
def test_targets_go_through_json_and_come_back(target):
    assert target_from_dict(json.loads(json.dumps(target.to_dict()))) == target


def test_tensors_in_targets_are_written_as_lists():
    assert EmbeddingTarget(torch.tensor([1.0, 2.0])).to_dict() == {"name": "embedding", "reference": [1.0, 2.0], "cosine": False}


def test_a_function_cannot_be_written_down():
    with pytest.raises(GraftworkError, match="a target that is a function cannot be written down"):
        FunctionTarget(lambda out: out).to_dict()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("predict", r'a class is "predicted", "top-N", "label" or an index; found "predict" \(did you mean "predicted"\?\)'),
        ({"name": "captions"}, r'no target "captions" \(did you mean "caption"\?\); there are class, caption, vqa-answer'),
        ({"name": "segmentation", "clas": 3}, "the target \"segmentation\" cannot be made of {'clas': 3}"),
        ({"name": "detection", "min_iou": 2}, r"min_iou be in \[0, 1\); found 1.0 and 2"),
        ({"name": "class", "each": []}, "each is empty"),
        ({"name": "q-value", "action": "best"}, 'an action is "greedy" or an index; found "best"'),
        ({"name": "segmentation", "region": "left"}, 'a region is "predicted", "mask", "image" or a mask; found "left"'),
        ({"name": "caption", "word": "a", "positions": [1]}, "give one"),
        (3.5, "a target is a class, a name, a mapping or a function; found 3.5"),
    ],
)
def test_what_makes_no_target_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        as_target(spec)


# -- classes -----------------------------------------------------------------------------------------------------------------------


def test_scores_are_logits_before_any_softmax(gap):
    x = images()
    logits = gap(x).detach()
    assert torch.equal(grad_cam(gap, x, 2).scores[:, 0], logits[:, 2])
    assert torch.equal(grad_cam(gap, x, "predicted").scores[:, 0], logits.max(dim=1).values)
    assert torch.equal(grad_cam(gap, x, "top-3").scores, logits.topk(3, dim=1).values)
    assert torch.equal(grad_cam(gap, x, [[0, 1], [1, 2], [2, 3], [3, 4]]).scores, torch.stack([logits[i, i : i + 2] for i in range(4)]))


def test_the_label_is_read_from_the_batch(gap):
    x, label = images(), torch.tensor([1, 0, 4, 2])
    assert torch.equal(grad_cam(gap, {"image": x, "label": label}, "label").maps, grad_cam(gap, x, label).maps)
    assert as_target("label").keys == ("label",)
    assert as_target("predicted").keys == ()
    with pytest.raises(DataError, match='the target "label" reads the key label; the batch has image'):
        grad_cam(gap, x, "label")


def test_as_many_classes_as_samples_are_needed(gap):
    with pytest.raises(DataError, match=r"\(3,\) class indices are given for 4 samples: give one for all, one a sample"):
        grad_cam(gap, images(), [0, 1, 2])


def test_a_class_is_not_asked_of_pixels():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with pytest.raises(
        InterfaceError, match=r"reads \(batch, class\) scores; the model gives \(4, 2, 14, 14\).*segmentation, detection or caption"
    ):
        grad_cam(model, images(), 0, "1")


def test_a_segmentation_is_not_asked_of_a_classifier(gap):
    with pytest.raises(InterfaceError, match=r"a segmentation target reads logits \(batch, class, h, w\); the model gives \(4, 5\)"):
        grad_cam(gap, images(), "segmentation", "features")


def test_detections_boxes_masks_and_texts_must_be_there(gap):
    with pytest.raises(DataError, match="reads the key boxes unless boxes are given; the batch has image"):
        grad_cam(gap, images(), "detection", "features")
    with pytest.raises(InterfaceError, match="reads `logits` and `pred_boxes`, or a list of `boxes`, `labels`, `scores`; found Tensor"):
        grad_cam(gap, images(), {"name": "detection", "boxes": [[1, 2, 3, 4]]}, "features")
    with pytest.raises(DataError, match="with region mask reads the key mask"):
        grad_cam(gap, images(), {"name": "segmentation", "region": "mask"}, "features")
    with pytest.raises(DataError, match="reads input_ids or text unless texts are given"):
        grad_cam(gap, images(), "image-text", "features")
    with pytest.raises(InterfaceError, match="needs a model with encode_image and encode_text; Gap has neither"):
        grad_cam(gap, {"image": images(), "input_ids": torch.ones(4, 3, dtype=torch.long)}, "image-text", "features")


# -- actions, embeddings, functions ------------------------------------------------------------------------------------------------


def test_a_q_value_is_that_of_an_action(gap):
    x = images()
    values = gap(x).detach()
    assert torch.equal(grad_cam(gap, x, QValueTarget(3)).scores[:, 0], values[:, 3])
    assert torch.equal(grad_cam(gap, x, "q-value").scores[:, 0], values.max(dim=1).values)
    assert torch.equal(grad_cam(gap, x, QValueTarget([0, 1, 2, 3])).scores[:, 0], values.diagonal())
    with pytest.raises(InterfaceError, match="action 9 is asked for, but the model has 5 actions, 0 to 4"):
        grad_cam(gap, x, QValueTarget(9))


def test_q_values_are_found_in_a_mapping():
    class Agent(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return {"value": x.mean(), "q_values": self.conv(x).mean(dim=(2, 3))}

    assert grad_cam(Agent().eval(), images(), "q-value", "conv").scores.shape == (4, 1)


def test_an_embedding_is_the_pre_logits_of_a_backbone():
    from graftwork.builtin.networks import SmallCNN

    model, reference = SmallCNN(grid=1).eval(), torch.randn(4, 48)
    x = torch.rand(4, 3, 32, 32)
    found = grad_cam(model, x, EmbeddingTarget(reference))
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(found.scores[:, 0], (features * reference).sum(dim=1).detach())
    with pytest.raises(DataError, match=r"a reference is \(D,\), or \(B, D\) for 4 samples; found \(3, 48\)"):
        grad_cam(model, x, EmbeddingTarget(reference[:3]))


def test_a_dual_encoder_of_ones_own_has_image_text_scores():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.words = nn.Conv2d(3, 6, 3), nn.Embedding(20, 6)

        def encode_image(self, image):
            return self.conv(image).relu().mean(dim=(2, 3))

        def encode_text(self, input_ids, attention_mask=None):
            return self.words(input_ids).mean(dim=1)

        def forward(self, image):
            return self.encode_image(image)

    model, batch = Pair().eval(), {"image": images(), "input_ids": torch.randint(0, 20, (4, 3))}
    expected = nn.functional.cosine_similarity(model.encode_image(batch["image"]), model.encode_text(batch["input_ids"]))
    torch.testing.assert_close(grad_cam(model, batch, "image-text").scores[:, 0], expected.detach())


def test_a_function_may_give_one_score_several_or_a_scalar(gap):
    x = images()
    one, several = grad_cam(gap, x, lambda out: out[:, 1]), grad_cam(gap, x, lambda out: out[:, :2])
    scalar = grad_cam(gap, x, lambda out: out[:, 1].sum())
    torch.testing.assert_close(several.maps[:, 1], one.maps[:, 0])
    torch.testing.assert_close(scalar.maps, one.maps)
    with pytest.raises(InterfaceError, match="the target is not differentiable: its function gave a float"):
        grad_cam(gap, x, lambda out: float(out[0, 0].detach()))


def test_detections_of_torchvision_are_a_list_and_only_a_boxs_own_class_matches():
    class Detector(nn.Module):
        """Two fixed boxes an image, whose scores the image decides."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3, padding=1)

        def forward(self, x):
            scores = self.conv(x).relu().mean(dim=(2, 3)).sigmoid()
            boxes = torch.tensor([[0.0, 0, 8, 8], [0.0, 0, 8, 9]])
            return [{"boxes": boxes, "labels": torch.tensor([3, 1]), "scores": row} for row in scores]

    model, x = Detector().eval(), images()
    scores = torch.stack([found["scores"] for found in model(x)]).detach()
    first = grad_cam(model, x, DetectionTarget([[0, 0, 8, 8]], 3))
    torch.testing.assert_close(first.scores[:, 0], scores[:, 0] + 1)
    other = grad_cam(model, x, DetectionTarget([[0, 0, 8, 8]], 1))
    torch.testing.assert_close(other.scores[:, 0], scores[:, 1] + 8 / 9)
    free = grad_cam(model, x, DetectionTarget([[0, 0, 8, 8]], iou_weight=0))
    torch.testing.assert_close(free.scores[:, 0], scores[:, 0])
    absent = grad_cam(model, x, DetectionTarget([[0, 0, 8, 8]], 2))
    assert not absent.scores.any()
    assert not absent.maps.any()


def test_captions_of_a_small_model_of_ones_own():
    class Captioner(nn.Module):
        inputs = ("image", "input_ids")

        def __init__(self):
            super().__init__()
            self.conv, self.words, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Embedding(12, 8), nn.Linear(8, 12)

        def forward(self, image, input_ids):
            seen = self.conv(image).relu().mean(dim=(2, 3))
            return self.out(self.words(input_ids).cumsum(dim=1) + seen[:, None])

    model, ids = Captioner().eval(), torch.randint(0, 12, (4, 5))
    x = images()
    found = grad_cam(model, {"image": x, "input_ids": ids}, "caption")
    expected = model(x, ids)[:, :-1].log_softmax(dim=-1).gather(2, ids[:, 1:, None]).sum(dim=(1, 2))
    torch.testing.assert_close(found.scores[:, 0], expected.detach())
    assert found.maps.shape == (4, 1, 16, 16)
