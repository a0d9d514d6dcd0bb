"""CLIP and SigLIP, and what a dual encoder is measured by, against transformers, closed forms and plain loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

import graftwork as gw
from graftwork.builtin import image_text
from graftwork.builtin.dual_encoder import TransformersDualEncoder
from graftwork.builtin.from_config import transformers_from_config
from graftwork.builtin.image_text import ImageTextRetrieval, ZeroShotClassification, negatives_ahead
from graftwork.interfaces import DualEncoder, Embedder, TextEncoder, classify, embed, missing_members

transformers = pytest.importorskip("transformers")

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
CONFIG = {"text_config": {**LAYERS, "max_position_embeddings": 12}, "vision_config": {**LAYERS, "image_size": 32, "patch_size": 8}}
WIDTHS = {"CLIPModel": 24, "SiglipModel": 32}
TEXTS = ["a red three", "seven left of a blue three", "a"]


def make(architecture: str, words: str, **options: Any) -> TransformersDualEncoder:
    torch.manual_seed(0)
    config = {**CONFIG, **({"projection_dim": 24, "initializer_factor": 5.0} if architecture == "CLIPModel" else {})}
    processor = {"image_mean": MEAN, "image_std": STD}
    return transformers_from_config(architecture, config, words, processor, options).eval()


def normalised(image: torch.Tensor) -> torch.Tensor:
    return (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def image_of(count: int = 3, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


# -- the model ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", WIDTHS)
@torch.no_grad()
def test_embeddings_and_logits_are_the_librarys_own(architecture: str, words: str) -> None:
    model, image = make(architecture, words), image_of()
    assert isinstance(model, DualEncoder) and isinstance(model, TextEncoder) and isinstance(model, Embedder)  # noqa: PT018
    padding = "max_length" if architecture == "SiglipModel" else True
    tokens = model.tokenizer(TEXTS, padding=padding, truncation=True, max_length=12, return_tensors="pt")
    given = {"input_ids": tokens["input_ids"], **({} if architecture == "SiglipModel" else {"attention_mask": tokens["attention_mask"]})}
    own = model.model(pixel_values=normalised(image), **given)
    images, texts = model.encode_image(image), model.encode(TEXTS)
    assert images.shape == texts.shape == (3, WIDTHS[architecture]) == (3, model.embedding_dim)
    torch.testing.assert_close(normalize(images), own.image_embeds)
    torch.testing.assert_close(normalize(texts), own.text_embeds)
    torch.testing.assert_close(model.encode_text(tokens["input_ids"], tokens["attention_mask"]), texts)
    torch.testing.assert_close(model(image, **tokens), own.logits_per_image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(classify(model, {"image": image, **tokens}), own.logits_per_image, rtol=1e-4, atol=1e-5)
    assert model.logit_scale is model.model.logit_scale


@torch.no_grad()
def test_embeddings_are_not_normalised(words: str) -> None:
    model = make("CLIPModel", words)
    for embeddings in (model.encode_image(image_of()), model.encode(TEXTS)):
        assert (embeddings.norm(dim=1) - 1).abs().min() > 0.05


@pytest.mark.parametrize("architecture", WIDTHS)
@torch.no_grad()
def test_a_text_is_embedded_the_same_alone_and_in_a_batch(architecture: str, words: str) -> None:
    model = make(architecture, words)
    together = model.encode(TEXTS)
    for text, found in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(model.encode([text])[0], found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.encode(["a " * 50]), model.encode(["a " * 10]))  # cut to 12 tokens, its end among them


@torch.no_grad()
def test_images_are_prepared_as_the_librarys_own_processor_does(words: str, tmp_path: Path) -> None:
    if not hasattr(transformers, "CLIPImageProcessorPil"):
        pytest.skip("this transformers has no image processor that does without torchvision")
    model = make("CLIPModel", words)
    model.save_pretrained(tmp_path)
    pixels = numpy.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=numpy.uint8)
    processed = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path)(pixels, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(model.prepare(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255), processed, rtol=1e-4, atol=1e-5)
    assert model.encode_image(image_of(2, 48)).shape == (2, 24)  # resized


@pytest.mark.parametrize(
    ("input", "keys"),
    [
        ("pairs", ("image", "input_ids", "attention_mask")),
        ("image", ("image",)),
        ("text", ("text",)),
        ("input_ids", ("input_ids", "attention_mask")),
    ],
)
@torch.no_grad()
def test_a_probe_embeds_the_side_that_it_is_told(input: str, keys: tuple[str, ...], words: str) -> None:
    model = make("CLIPModel", words, input=input)
    assert model.inputs == keys
    batch = {"image": image_of(), "text": TEXTS, **model.tokenizer(TEXTS, padding=True, return_tensors="pt")}
    expected = model.encode_image(batch["image"]) if "image" in keys else model.encode(TEXTS)
    torch.testing.assert_close(embed(model, batch), expected)


def test_half_precision_is_read_as_float32_and_gradients_reach_both_sides(words: str, tmp_path: Path) -> None:
    make("CLIPModel", words).half().save_pretrained(tmp_path)
    model = TransformersDualEncoder(str(tmp_path))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    tokens = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    model(image_of(), **tokens).diagonal().sum().backward()
    for projection in (model.model.visual_projection, model.model.text_projection):
        assert projection.weight.grad.abs().sum() > 0
    assert TransformersDualEncoder(str(tmp_path), dtype="bfloat16").encode_image(image_of()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("specials", "frame", "message"),
    [
        (("[PAD]", "[UNK]", "[BOS]", "[EOS]"), "[BOS] $A", "CLIP reads a text's embedding at its end-of-text token, but the tokenizer"),
        (("[PAD]", "[UNK]", "[EOS]", "[BOS]"), "[BOS] $A [EOS]", "to CLIP eos_token_id 2 means that a text ends at its greatest id"),
    ],
)
def test_a_tokenizer_by_which_clip_would_miss_the_end_of_a_text_is_refused(
    specials: tuple[str, ...], frame: str, message: str, save_tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(gw.InterfaceError, match=message):
        make("CLIPModel", save_tokenizer(tmp_path, specials=specials, frame=frame))


@torch.no_grad()
def test_the_first_checkpoints_of_clip_end_a_text_at_the_greatest_id(save_tokenizer: Any, tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "old", specials=("[PAD]", "[UNK]", "[BOS]"), words=("a", "red", "[EOS]"))
    torch.manual_seed(0)
    model = transformers_from_config("CLIPModel", {**CONFIG, "text_config": {**CONFIG["text_config"], "eos_token_id": 2}}, folder).eval()
    alone, padded = model.encode(["a"]), model.encode(["a", "red a red"])
    torch.testing.assert_close(alone[0], padded[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(gw.InterfaceError, match="the tokenizer ends texts with token 5, but the model's eos_token_id is 4"):
        transformers_from_config("CLIPModel", {**CONFIG, "text_config": {**CONFIG["text_config"], "eos_token_id": 4}}, folder)


def test_what_is_no_dual_encoder_or_lacks_weights_is_refused(words: str, tmp_path: Path) -> None:
    model = make("CLIPModel", words)
    model.save_pretrained(tmp_path / "whole")
    with pytest.raises(gw.GraftworkError, match=f'dual encoder "{tmp_path}/none": there is no folder'):
        TransformersDualEncoder(f"{tmp_path}/none")
    settings = json.loads((tmp_path / "whole/config.json").read_text())
    settings["text_config"]["num_hidden_layers"] = 3
    (tmp_path / "whole/config.json").write_text(json.dumps(settings))
    with pytest.raises(gw.GraftworkError, match=r'dual encoder ".*whole" has no weights for text_model\.encoder\.layers\.2'):
        TransformersDualEncoder(str(tmp_path / "whole"))
    transformers_from_config("BertModel", LAYERS, words).save_pretrained(tmp_path / "bert")
    with pytest.raises(gw.InterfaceError, match=r'bert" is a BertModel, which does not embed both images and texts'):
        TransformersDualEncoder(str(tmp_path / "bert"))


# -- retrieval ----------------------------------------------------------------------------------------------------------------


class Planted(nn.Module):
    """Embeds an image as its first pixels and a text by a table: of its first token, or of the words themselves."""

    inputs = ("image", "input_ids", "attention_mask")

    def __init__(self, table: torch.Tensor, names: list[str] | None = None):
        super().__init__()
        self.table, self.names, self.asked = nn.Parameter(table), names or [], []

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return image.flatten(1)[:, : self.table.shape[1]]

    def encode_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return self.table[input_ids[:, 0]]

    def encode(self, texts: list[str]) -> torch.Tensor:
        self.asked.append(list(texts))
        return self.table[[self.names.index(text) for text in texts]]


def planted(count: int = 60, captions: int = 14, noise: float = 1.2) -> tuple[Planted, torch.Tensor, torch.Tensor]:
    """A model, images (count, 3, 2, 2) near their captions, and the number of each one's caption."""
    generator = torch.Generator().manual_seed(5)
    table = torch.randn(captions, 6, generator=generator)
    place = torch.randint(captions, (count,), generator=generator)
    image = torch.zeros(count, 3, 2, 2)
    image.view(count, -1)[:, :6] = table[place] + noise * torch.randn(count, 6, generator=generator)
    return Planted(table, [f"text {i}" for i in range(captions)]), image, place


def by_loop(images: torch.Tensor, texts: torch.Tensor, belongs: list[set[int]], ks: list[int]) -> dict[str, float]:
    """Recalls in both directions, a query and a rank at a time, in float64."""
    images, texts = (normalize(side.double()) for side in (images, texts))
    cosines, metrics = images @ texts.T, {}
    for way, matrix, own in (
        ("image-to-text", cosines, belongs),
        ("text-to-image", cosines.T, [{i for i, mine in enumerate(belongs) if j in mine} for j in range(len(texts))]),
    ):
        hits = dict.fromkeys(ks, 0)
        for query, scores in enumerate(matrix):
            ranked = sorted(range(len(scores)), key=lambda other: -float(scores[other]))
            for k in ks:
                hits[k] += any(other in own[query] for other in ranked[:k])
        metrics |= {f"{way}-recall@{k}": hits[k] / len(matrix) for k in ks}
    return {**metrics, "rsum": 100 * sum(metrics.values())}


@pytest.mark.parametrize("distinct", [None, 5])
@pytest.mark.parametrize("captions", ["input_ids", "caption"])
@pytest.mark.parametrize("batch_size", [7, 128])
def test_recall_both_ways_equals_a_loop_where_images_share_captions(
    captions: str, distinct: int | None, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_text, "CHUNK", 100)
    model, image, place = planted()
    ids = torch.stack([place, torch.ones_like(place)], dim=1)
    texts = [model.names[at] for at in place]
    data = gw.Dataset({"test": gw.TensorSamples(image=image, input_ids=ids, attention_mask=torch.ones_like(ids), caption=texts)})
    evaluator = ImageTextRetrieval(captions=captions, distinct=distinct, recall_at=[1, 3], batch_size=batch_size)
    found = evaluator.evaluate(model.train(), data).metrics
    order = list(dict.fromkeys(place.tolist()))[:distinct]
    kept = [i for i, at in enumerate(place.tolist()) if at in order]
    expected = by_loop(image.flatten(1)[kept, :6], model.table.detach()[order], [{order.index(place[i])} for i in kept], [1, 3])
    assert found == pytest.approx(expected, abs=1e-9)
    assert 0.1 < found["image-to-text-recall@1"] < 0.95  # neither trivial nor hopeless
    assert model.training
    if captions == "caption":
        assert sorted(text for texts in model.asked for text in texts) == sorted(
            model.names[at] for at in order
        )  # each caption is encoded once


def test_an_image_may_have_several_captions() -> None:
    model, image, place = planted(20, 9)
    several = [sorted({int(at), (int(at) + 4) % 9}) for at in place]
    rows = [{"image": image[i], "caption": [model.names[at] for at in several[i]]} for i in range(20)]
    found = ImageTextRetrieval(captions="caption", recall_at=[1, 2]).evaluate(model, gw.Dataset({"test": rows})).metrics
    assert found == pytest.approx(by_loop(image.flatten(1)[:, :6], model.table.detach(), [set(mine) for mine in several], [1, 2]), abs=1e-9)


def test_padding_does_not_make_a_caption_another() -> None:
    model, image, _ = planted(4)
    ids = torch.tensor([[1, 2, 0], [1, 2, 9], [3, 0, 0], [3, 0, 0]])
    data = gw.Dataset({"test": gw.TensorSamples(image=image, input_ids=ids, attention_mask=torch.tensor([[1, 1, 0]] * 4))})
    rows = ImageTextRetrieval(recall_at=[1]).evaluate(model, data).tables["ranks"].rows
    assert [row[1] for row in rows] == [4, 2]  # four images, two captions


def test_a_perfect_model_has_the_greatest_rsum() -> None:
    model, image, place = planted(noise=0.0)
    data = gw.Dataset({"test": gw.TensorSamples(image=image, text=[model.names[at] for at in place])})
    report = ImageTextRetrieval(captions="text").evaluate(model, data)
    assert report.metrics["rsum"] == pytest.approx(600)
    assert [row[2:] for row in report.tables["ranks"].rows] == [[1, 1.0], [1, 1.0]]


def test_a_negative_that_ties_with_the_best_is_not_ahead_of_it() -> None:
    same = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    assert negatives_ahead(same, same, torch.eye(2).bool()).tolist() == [0, 0]


def test_retrieval_names_what_does_not_fit() -> None:
    model, image, _ = planted(4)
    data = gw.Dataset({"test": gw.TensorSamples(image=image, caption=["text 1"] * 4)})
    with pytest.raises(gw.DataError, match='split "test" has 1 distinct captions; 2 are needed'):
        ImageTextRetrieval(captions="caption").evaluate(model, data)
    with pytest.raises(ValueError, match="distinct is at least 2; found 1"):
        ImageTextRetrieval(distinct=1)
    with pytest.raises(ValueError, match=r"recall_at holds numbers from 1 on; found \[0\]"):
        ImageTextRetrieval(recall_at=[0])
    assert missing_members(gw.model("small-cnn"), ImageTextRetrieval().needs) == ["encode_image", "encode_text"]
    assert missing_members(gw.model("small-cnn"), ImageTextRetrieval(captions="text").needs) == ["encode", "encode_image", "encode_text"]


# -- zero-shot classification -------------------------------------------------------------------------------------------------

TEMPLATES = ["a {}", "the {}."]


def described() -> tuple[Planted, torch.Tensor]:
    """A model that knows three classes by two templates each, and the classes' embeddings by the paper's recipe, in float64."""
    table = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)) * torch.tensor([1.0, 5.0, 1.0, 1.0, 0.2, 1.0])[:, None]
    names = [template.replace("{}", name) for name in ("ant", "bee", "cat") for template in TEMPLATES]
    each = table.double() / table.double().norm(dim=1, keepdim=True)
    mean = (each[0::2] + each[1::2]) / 2
    return Planted(table, names), mean / mean.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("batch_size", [4, 128])
def test_a_class_is_the_mean_of_its_normalised_prompts(batch_size: int) -> None:
    model, classes = described()
    image = torch.randn(50, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    label = torch.arange(50) % 3
    data = gw.Dataset({"test": gw.TensorSamples(image=image, label=label)}, gw.DatasetInfo(classes=("ant", "bee", "cat")))
    report = ZeroShotClassification(templates=TEMPLATES, top_k=2, batch_size=batch_size).evaluate(model, data)
    cosines = normalize(image.flatten(1).double()) @ classes.T
    ranked = cosines.argsort(dim=1, descending=True)
    assert report.metrics["zero-shot-accuracy"] == pytest.approx((ranked[:, 0] == label).double().mean().item())
    assert report.metrics["zero-shot-top-2-accuracy"] == pytest.approx((ranked[:, :2] == label[:, None]).any(1).double().mean().item())
    per_class = [(ranked[label == k, 0] == k).double().mean().item() for k in range(3)]
    assert report.metrics["zero-shot-macro-accuracy"] == pytest.approx(sum(per_class) / 3)
    assert [row[0] for row in report.tables["classes"].rows] == ["ant", "bee", "cat"]
    assert [row[2] for row in report.tables["classes"].rows] == pytest.approx(per_class)
    assert "confusion" in report.figures


def test_classes_may_be_named_in_place_of_the_datasets() -> None:
    model, _ = described()
    image = model.table.detach()[[4, 2]].view(2, 1, 2, 2)  # "a cat", "a bee"
    data = gw.Dataset({"test": gw.TensorSamples(image=image, label=torch.tensor([0, 1]))}, gw.DatasetInfo(classes=("0", "1")))
    found = ZeroShotClassification(classes=["cat", "bee"], templates=["a {}"]).evaluate(model, data)
    assert found.metrics["zero-shot-accuracy"] == 1.0
    assert ZeroShotClassification(classes=["bee", "cat"], templates=["a {}"]).evaluate(model, data).metrics["zero-shot-accuracy"] == 0.0


def test_zero_shot_classification_names_what_does_not_fit() -> None:
    model, _ = described()
    data = gw.Dataset({"test": gw.TensorSamples(image=torch.zeros(2, 1, 2, 2), label=torch.tensor([0, 2]))})
    with pytest.raises(gw.DataError, match="the dataset names no classes: say what they are called, with classes"):
        ZeroShotClassification().evaluate(model, data)
    with pytest.raises(gw.DataError, match='split "test" has labels 0 to 2, but the model has 2 outputs'):
        ZeroShotClassification(classes=["ant", "bee"], templates=["a {}"]).evaluate(model, data)
    empty = gw.Dataset({"test": gw.TensorSamples(image=torch.zeros(0, 1, 2, 2), label=torch.zeros(0).long())})
    with pytest.raises(gw.DataError, match='split "test" is empty'):
        ZeroShotClassification(classes=["ant", "bee"], templates=["a {}"]).evaluate(model, empty)
    with pytest.raises(ValueError, match=r"templates hold \{\} where the class goes; found \['a photo'\]"):
        ZeroShotClassification(templates=["a photo"])
    with pytest.raises(ValueError, match=r"classes are at least two; found \['ant'\]"):
        ZeroShotClassification(classes=["ant"])


@pytest.mark.parametrize("architecture", WIDTHS)
def test_both_evaluators_run_on_transformers_models(architecture: str, words: str) -> None:
    model = make(architecture, words)
    samples = gw.TensorSamples(image=image_of(6), text=[f"a {name}" for name in ("red", "blue", "three") * 2], label=torch.arange(6) % 3)
    data = gw.Dataset({"test": samples}, gw.DatasetInfo(classes=("red", "blue", "three")))
    report = ImageTextRetrieval(captions="text", recall_at=[1, 3]).evaluate(model, data)
    assert report.metrics["image-to-text-recall@3"] == 1.0  # there are three captions
    with torch.no_grad():
        cosines = normalize(model.encode_image(samples.columns["image"])) @ normalize(model.encode(["a red", "a blue", "a three"])).T
    expected = (cosines.argmax(dim=1) == samples.columns["label"]).float().mean().item()
    assert ZeroShotClassification(templates=["a {}"]).evaluate(model, data).metrics["zero-shot-accuracy"] == pytest.approx(expected)
