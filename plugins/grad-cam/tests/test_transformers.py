"""Targets of every kind, end to end on tiny transformers models with random weights, saved and loaded again."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from graftwork.errors import DataError, InterfaceError
from graftwork_grad_cam.cam import cam
from graftwork_grad_cam.evidence import observe
from graftwork_grad_cam.grad_cam import grad_cam
from graftwork_grad_cam.guided_grad_cam import guided_grad_cam
from graftwork_grad_cam.targets import CaptionTarget, ImageTextTarget, VQAAnswerTarget

pytest.importorskip("transformers")


def images(width: int = 96) -> torch.Tensor:
    return torch.rand(2, 3, 64, width)


class Tokenizer:
    """A stand-in for a tokenizer: words of a small vocabulary, framed by beginning and end."""

    words = ("a", "dog", "on", "grass", "cat")

    def __call__(self, texts, padding=False, return_tensors=None, add_special_tokens=True):
        if isinstance(texts, str):
            return {"input_ids": [10 + self.words.index(word) for word in texts.split()]}
        rows = [[1, *(10 + self.words.index(word) for word in text.split()), 2] for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}

    def batch_decode(self, ids, skip_special_tokens=True):
        return [" ".join(self.words[i - 10] for i in row if 10 <= i < 15) for row in ids.tolist()]


# -- classifiers -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "resnet"])
def test_classifiers_give_maps_of_every_class(loaded, name):
    model, x = loaded(name), images()
    found = grad_cam(model, x, "top-4")
    assert found.maps.shape == (2, 4, 64, 96)
    assert (found.maps >= 0).all()
    assert found.maps.isfinite().all()
    assert found.maps.amax() > 0
    torch.testing.assert_close(found.scores, model(x).logits.sort(dim=1, descending=True).values)
    assert guided_grad_cam(model, x, 1).raw["image"].shape == (2, 1, 3, 64, 96)


@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "resnet"])
def test_a_batch_of_a_transformers_classifier_equals_single_runs(loaded, name):
    model, x = loaded(name), images()
    together = grad_cam(model, x, [2, 0]).maps
    for index, wanted in enumerate([2, 0]):
        torch.testing.assert_close(together[index], grad_cam(model, x[index : index + 1], wanted).maps[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "resnet"])
def test_a_wrapped_classifier_gives_the_maps_of_the_raw_one(loaded, stored, name):
    import graftwork as gw

    raw, wrapped = loaded(name), gw.model("transformers-image-classifier", name=str(stored(name)), resize=False)
    x = images()
    inside, outside = grad_cam(raw, (x - 0.5) / 0.5, 1), grad_cam(wrapped, x, 1)
    assert [f"model.{layer}" for layer in inside.raw] == list(outside.raw)
    torch.testing.assert_close(outside.maps, inside.maps, rtol=1e-4, atol=1e-6)


def test_a_wrapped_classifier_that_resizes_gives_a_map_of_the_image_it_got(stored):
    import graftwork as gw

    wrapped = gw.model("transformers-image-classifier", name=str(stored("vit")))
    found = grad_cam(wrapped, torch.rand(2, 3, 40, 50), "predicted")
    assert found.maps.shape == (2, 1, 40, 50)
    assert next(iter(found.raw.values())).shape == (2, 1, 4, 6)


def test_cam_explains_a_transformers_resnet_and_grad_cam_agrees(loaded):
    model, x = loaded("resnet"), images()
    reference, found = cam(model, x, "top-4"), grad_cam(model, x, "top-4")
    (raw,), (plain,) = found.raw.values(), reference.raw.values()
    torch.testing.assert_close(raw * raw.shape[-1] * raw.shape[-2], plain.relu(), rtol=1e-4, atol=1e-5)


def test_cam_refuses_a_transformer(loaded):
    with pytest.raises(InterfaceError, match="CAM needs logits that are a linear layer of a spatial mean"):
        cam(loaded("vit"), images(), 0, "vit.layernorm")


# -- captions ----------------------------------------------------------------------------------------------------------------------


def test_a_captions_score_is_the_sum_of_its_words_log_probabilities(loaded):
    model, x = loaded("blip"), images(64)
    ids = torch.tensor([[1, 10, 11, 12, 2], [1, 10, 14, 2, 0]])
    mask = (ids != 0).long()
    found = grad_cam(model, {"image": x, "input_ids": ids, "attention_mask": mask}, "caption")
    log_p = model(pixel_values=x, input_ids=ids, attention_mask=mask).logits.log_softmax(dim=-1)
    expected = [sum(log_p[0, t - 1, ids[0, t]] for t in (1, 2, 3)), sum(log_p[1, t - 1, ids[1, t]] for t in (1, 2))]
    torch.testing.assert_close(found.scores[:, 0], torch.stack(expected).detach())
    assert found.maps.shape == (2, 1, 64, 64)
    assert found.maps.amax(dim=(1, 2, 3)).gt(0).any()


def test_without_a_caption_the_model_writes_it(loaded):
    model, x = loaded("blip"), images(64)
    written = model.generate(pixel_values=x, max_new_tokens=6)
    found = grad_cam(model, x, CaptionTarget(max_new_tokens=6))
    assert torch.equal(found.batch["target caption"], written)
    torch.testing.assert_close(found.maps, grad_cam(model, {"image": x, "input_ids": written}, "caption").maps)


def test_a_caption_in_words_needs_a_tokenizer(loaded):
    model, x = loaded("blip"), images(64)
    with pytest.raises(InterfaceError, match=r"carries no tokenizer: set model.tokenizer"):
        grad_cam(model, x, CaptionTarget("a dog"))
    model.tokenizer = Tokenizer()
    together = grad_cam(model, x, CaptionTarget(("a dog on grass", "a cat")))
    torch.testing.assert_close(together.scores[1], grad_cam(model, x[1:], CaptionTarget("a cat")).scores[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.scores, grad_cam(model, {"image": x, "text": ["a dog on grass", "a cat"]}, "caption").scores)


def test_one_words_log_probability_grounds_the_word(loaded):
    model, x = loaded("blip"), images(64)
    words = CaptionTarget("a dog on grass", tokenizer=Tokenizer())
    whole = grad_cam(model, x, words)
    parts = [grad_cam(model, x, CaptionTarget("a dog on grass", positions=(index,), tokenizer=Tokenizer())) for index in range(4)]
    torch.testing.assert_close(sum(part.scores for part in parts), whole.scores)
    dog = grad_cam(model, x, CaptionTarget("a dog on grass", word="dog", tokenizer=Tokenizer()))
    assert torch.equal(dog.scores, parts[1].scores)
    assert torch.equal(dog.maps, parts[1].maps)
    assert not torch.allclose(dog.scores, whole.scores)


def test_a_word_that_the_caption_lacks_is_refused(loaded):
    model, x = loaded("blip"), images(64)
    with pytest.raises(DataError, match='the word "cat" does not stand in every caption'):
        grad_cam(model, x, CaptionTarget("a dog", word="cat", tokenizer=Tokenizer()))
    with pytest.raises(DataError, match=r"positions \[7\] are asked for, but a caption has 2 words"):
        grad_cam(model, x, CaptionTarget("a dog", positions=(7,), tokenizer=Tokenizer()))
    with pytest.raises(DataError, match="3 captions are given for 2 images"):
        grad_cam(model, x, CaptionTarget(("a", "a", "a"), tokenizer=Tokenizer()))


def test_a_layer_that_a_captioner_runs_twice_wants_a_choice(loaded):
    model, batch = loaded("blip"), {"image": images(64), "input_ids": torch.tensor([[1, 10, 11, 2]] * 2)}
    with pytest.raises(InterfaceError, match="ran 2 times"):
        grad_cam(model, batch, "caption", "vision_model.post_layernorm")
    assert grad_cam(model, batch, "caption", "vision_model.post_layernorm", repeats="first").maps.shape == (2, 1, 64, 64)


def test_a_classifier_cannot_write_a_caption(gap):
    with pytest.raises(InterfaceError, match="no caption is given, and the Gap cannot write one"):
        grad_cam(gap, torch.rand(2, 3, 16, 16), "caption")


# -- questions ---------------------------------------------------------------------------------------------------------------------


def question() -> dict[str, torch.Tensor]:
    return {"image": images(), "input_ids": torch.randint(3, 50, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.long)}


def test_an_answers_score_is_its_logit_given_image_and_question(loaded):
    model, batch = loaded("vilt"), question()
    logits = model(pixel_values=batch["image"], input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    found = grad_cam(model, batch, VQAAnswerTarget(("two", "yes")))
    torch.testing.assert_close(found.scores[:, 0], logits[[0, 1], [2, 0]].detach(), rtol=1e-4, atol=1e-5)
    assert found.maps.shape == (2, 1, 64, 96)
    layout = observe(model, batch, VQAAnswerTarget("two")).layers["vilt.encoder.layer.1.layernorm_before"][0].layout
    assert (layout.grid, layout.prefix) == ((4, 6), 7)  # six words and a class token stand before the patches


def test_another_question_gives_another_map(loaded):
    model, batch = loaded("vilt"), question()
    other = {**batch, "input_ids": batch["input_ids"].flip(1)}
    assert not torch.allclose(grad_cam(model, batch, VQAAnswerTarget("red")).maps, grad_cam(model, other, VQAAnswerTarget("red")).maps)


def test_the_patches_of_a_vilt_stay_where_they_are(loaded):
    model, batch = loaded("vilt"), question()
    changed = batch["image"].clone()
    changed[:, :, 16:32, 64:80] += 1
    tokens = [
        observe(model, {**batch, "image": x}, VQAAnswerTarget("red"), "vilt.embeddings").layers["vilt.embeddings"][0]
        for x in (batch["image"], changed)
    ]
    moved = (tokens[0].activations - tokens[1].activations).abs().amax(dim=1) > 1e-6
    assert moved.nonzero().tolist() == [[0, 1, 4], [1, 1, 4]]
    with pytest.raises(DataError, match="ViLT fills padded images up with patches drawn at random"):
        grad_cam(model, {**batch, "pixel_mask": torch.zeros(2, 64, 96, dtype=torch.long)}, "vqa-answer")


def test_an_unknown_answer_falls_back_to_the_predicted_one_with_a_warning(loaded):
    model, batch = loaded("vilt"), question()
    with pytest.warns(UserWarning, match="the model knows no answer purple: what it predicts is explained instead"):
        found = grad_cam(model, batch, VQAAnswerTarget("purple"))
    assert torch.equal(found.maps, grad_cam(model, batch, "vqa-answer").maps)


# -- pixels and boxes --------------------------------------------------------------------------------------------------------------


def test_a_segmentation_score_sums_logits_over_the_pixels_of_the_class(loaded):
    model, x = loaded("segformer"), images()
    logits = model(pixel_values=x).logits
    wanted = int(logits[0].argmax(dim=0).mode().values.mode().values)
    found = grad_cam(model, x, {"name": "segmentation", "classes": wanted})
    expected = (logits[:, wanted] * (logits.argmax(dim=1) == wanted)).sum(dim=(1, 2))
    torch.testing.assert_close(found.scores[:, 0], expected.detach(), rtol=1e-4, atol=1e-3)
    assert found.maps.shape == (2, 1, 64, 96)
    assert found.maps[0].max() > 0


def test_a_region_can_be_given_or_read_from_the_samples_mask(loaded):
    model, x = loaded("segformer"), images()
    mask = torch.zeros(2, 64, 96, dtype=torch.long)
    mask[:, 10:30, 20:60] = 3
    logits = torch.nn.functional.interpolate(model(pixel_values=x).logits, size=(64, 96), mode="bilinear", align_corners=False)
    expected = (logits[:, 3] * (mask == 3)).sum(dim=(1, 2)).detach()
    read = grad_cam(model, {"image": x, "mask": mask}, {"name": "segmentation", "classes": 3, "region": "mask"})
    given = grad_cam(model, x, {"name": "segmentation", "classes": 3, "region": (mask == 3)[0].tolist()})
    shifted = grad_cam(model, {"image": x, "mask": mask}, {"name": "segmentation", "classes": 2, "region": "mask", "mask_offset": 1})
    for found in (read, given):
        torch.testing.assert_close(found.scores[:, 0], expected, rtol=1e-3, atol=1e-2)
    assert not torch.allclose(shifted.scores, read.scores)
    assert torch.equal(read.maps, given.maps)


def test_a_class_without_pixels_has_an_empty_map(loaded):
    model, x = loaded("segformer"), images()
    found = grad_cam(
        model, {"image": x, "mask": torch.zeros(2, 64, 96, dtype=torch.long)}, {"name": "segmentation", "classes": 3, "region": "mask"}
    )
    assert not found.maps.any()
    assert not found.scores.any()


def test_a_detection_score_is_the_best_matching_boxes_logit_plus_its_overlap(loaded):
    model, x = loaded("yolos"), images()
    output = model(pixel_values=x)
    centre, size = output.pred_boxes[..., :2], output.pred_boxes[..., 2:]
    corners = torch.cat([centre - size / 2, centre + size / 2], dim=-1) * torch.tensor([96.0, 64, 96, 64])
    wanted = corners[:, [1, 3]].detach()
    found = grad_cam(model, {"image": x, "boxes": list(wanted), "labels": [torch.tensor([2, 0])] * 2}, "detection")
    assert found.maps.shape == (2, 2, 64, 96)
    torch.testing.assert_close(found.scores, output.logits[:, [1, 3], [2, 0]].detach() + 1, rtol=1e-3, atol=1e-3)
    best = output.logits[..., :4].max(dim=2).values[:, [1, 3]].detach()
    free = grad_cam(model, {"image": x, "boxes": list(wanted)}, {"name": "detection", "iou_weight": 0.0})
    torch.testing.assert_close(free.scores, best, rtol=1e-3, atol=1e-3)


def test_a_detector_on_a_convolutional_backbone_runs(loaded):
    found = grad_cam(loaded("detr"), {"image": images(), "boxes": [torch.tensor([[1.0, 2, 50, 60]])] * 2}, "detection")
    assert found.maps.shape == (2, 1, 64, 96)
    assert found.raw["model.input_projection"].shape == (2, 1, 8, 12)
    assert found.maps.amax() > 0


def test_a_box_that_nothing_overlaps_enough_scores_nothing(loaded):
    found = grad_cam(loaded("yolos"), images(), {"name": "detection", "boxes": [[0, 0, 2, 2]], "min_iou": 0.5})
    assert not found.scores.any()
    assert not found.maps.any()


def test_samples_with_unequal_numbers_of_boxes_are_padded(loaded):
    boxes = [torch.tensor([[1.0, 2, 50, 60]]), torch.tensor([[1.0, 2, 50, 60], [20.0, 10, 90, 50]])]
    found = grad_cam(loaded("yolos"), {"image": images(), "boxes": boxes}, "detection")
    assert found.scores.shape == (2, 2)
    assert found.scores[0, 1] == 0
    assert found.scores[1, 1] != 0
    (evidence,) = next(iter(observe(loaded("yolos"), {"image": images(), "boxes": boxes}, "detection").layers.values()))
    assert evidence.gradients.flatten(2).any(dim=2).tolist() == [[True, False], [True, True]]


def test_a_detectors_patches_stand_between_its_class_and_its_detection_tokens(loaded):
    (evidence,) = next(iter(observe(loaded("yolos"), images(), {"name": "detection", "boxes": [[1, 2, 30, 40]]}).layers.values()))
    assert (evidence.layout.grid, evidence.layout.prefix, evidence.layout.suffix) == ((4, 6), 1, 5)


# -- images and texts --------------------------------------------------------------------------------------------------------------


def test_an_image_text_score_is_their_cosine(loaded):
    model, x, ids = loaded("clip"), images(64), torch.tensor([[1, 10, 11, 2], [1, 14, 12, 2]])
    output = model(pixel_values=x, input_ids=ids)
    found = grad_cam(model, {"image": x, "input_ids": ids}, "image-text")
    torch.testing.assert_close(
        found.scores[:, 0], cosine_similarity(output.image_embeds, output.text_embeds).detach(), rtol=1e-4, atol=1e-5
    )
    other_side = grad_cam(model, {"image": x, "input_ids": ids}, "image-text", counterfactual=True)
    assert found.maps.shape == (2, 1, 64, 64)
    assert (found.maps + other_side.maps).amax(dim=(1, 2, 3)).gt(0).all()


def test_texts_that_are_given_have_a_map_each_for_every_image(loaded):
    model, x = loaded("clip"), images(64)
    found = grad_cam(model, x, ImageTextTarget(("a dog", "a cat", "grass"), tokenizer=Tokenizer()))
    assert found.maps.shape == (2, 3, 64, 64)
    single = grad_cam(model, x, ImageTextTarget("a cat", tokenizer=Tokenizer()))
    torch.testing.assert_close(found.scores[:, 1], single.scores[:, 0], rtol=1e-3, atol=1e-4)


def test_an_embeddings_score_is_its_dot_product_with_the_reference(loaded):
    model, x, reference = loaded("clip"), images(64), torch.randn(8)
    features = model.get_image_features(pixel_values=x).pooler_output
    torch.testing.assert_close(
        grad_cam(model, x, {"name": "embedding", "reference": reference.tolist()}).scores[:, 0], (features @ reference).detach()
    )
    cosine = grad_cam(model, x, {"name": "embedding", "reference": reference, "cosine": True}).scores[:, 0]
    torch.testing.assert_close(cosine, cosine_similarity(features, reference[None]).detach())
    with pytest.raises(InterfaceError, match=r"the reference is \(1, 3\), but the model's embeddings are \(1, 8\)"):
        grad_cam(model, x, {"name": "embedding", "reference": [1.0, 2, 3]})


def test_half_precision_transformers_take_float32_images(loaded):
    found = grad_cam(loaded("vit").bfloat16(), images(), 1)
    assert found.maps.dtype == torch.float32
    assert found.maps.max() > 0
