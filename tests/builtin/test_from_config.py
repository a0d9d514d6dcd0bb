"""Every class of transformers that can be built: untrained, saved, and read again by the loader of its family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork.builtin.from_config import FAMILIES, TEXT, Architecture, transformers_from_config
from graftwork.builtin.image_processor import ImagePreparation
from graftwork.builtin.transformers_models import TransformersImageClassifier
from graftwork.interfaces import Backbone, CausalLM, DualEncoder, Reward, Segmenter, TextEncoder

transformers = pytest.importorskip("transformers")

LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
PATCHES = {**LAYERS, "image_size": 32, "patch_size": 8}
TOKENS = {**LAYERS, "max_position_embeddings": 16}
GROUPED = {**TOKENS, "num_key_value_heads": 2}
STAGES = {"hidden_sizes": [16, 32], "depths": [1, 1]}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 16}
PYRAMID = {**STAGES, "num_encoder_blocks": 2, "num_attention_heads": [1, 2], "sr_ratios": [2, 1], "decoder_hidden_size": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "BeitForImageClassification": PATCHES,
    "ConvNextForImageClassification": {"num_stages": 2, "image_size": 32, **STAGES},
    "DeiTForImageClassification": PATCHES,
    "Dinov2ForImageClassification": {key: value for key, value in PATCHES.items() if key != "intermediate_size"},
    "RegNetForImageClassification": {"embedding_size": 8, "groups_width": 4, **STAGES},
    "ResNetForImageClassification": {"embedding_size": 8, "layer_type": "basic", **STAGES},
    "SwinForImageClassification": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 4,
    },
    "ViTForImageClassification": PATCHES,
    "SegformerForSemanticSegmentation": {**PYRAMID, "patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2]},
    "CLIPModel": {"projection_dim": 24, "text_config": TOKENS, "vision_config": PATCHES},
    "SiglipModel": {"text_config": TOKENS, "vision_config": PATCHES},
    "GPT2LMHeadModel": GPT2,
    "GPTNeoXForCausalLM": TOKENS,
    "LlamaForCausalLM": TOKENS,
    "MistralForCausalLM": GROUPED,
    "OPTForCausalLM": {**TOKENS, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "Qwen3ForCausalLM": {**GROUPED, "head_dim": 16},
    "BertForSequenceClassification": TOKENS,
    "DistilBertForSequenceClassification": DISTIL,
    "GPT2ForSequenceClassification": GPT2,
    "LlamaForSequenceClassification": TOKENS,
    "RobertaForSequenceClassification": TOKENS,
    "BertModel": TOKENS,
    "DistilBertModel": DISTIL,
    "MPNetModel": TOKENS,
    "RobertaModel": TOKENS,
}
CONFIGS["OPTForCausalLM"].pop("intermediate_size")
OFFERS = {
    "ViTForImageClassification": Backbone,
    "SegformerForSemanticSegmentation": Segmenter,
    "CLIPModel": DualEncoder,
    "GPT2LMHeadModel": CausalLM,
    "BertModel": TextEncoder,
}
TEXTS = ["a red three", "seven left of a blue three left of a red seven left of a blue three"]


def family_of(architecture: str) -> type[nn.Module]:
    return next(family for family, names in FAMILIES.items() if architecture in names)


def fresh(architecture: str, words: str, seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    sees_only = family_of(architecture) not in TEXT and "text_config" not in CONFIGS[architecture]
    return transformers_from_config(architecture, settings.pop("config", CONFIGS[architecture]), None if sees_only else words, **settings)


def outputs(model: Any) -> torch.Tensor:
    """What a model gives, for images or texts of its own kind."""
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, 32, 32, generator=generator)
    if not hasattr(model, "tokenizer"):
        return model(image)
    tokens = model.tokenizer(TEXTS, padding=True, truncation=True, max_length=model.max_length, return_tensors="pt")
    ids = [tokens[key] for key in ("input_ids", "attention_mask")]
    return model(image, *ids) if hasattr(model, "encode_image") else model(*ids)


def test_every_class_on_the_list_is_tried_here() -> None:
    assert sorted(CONFIGS) == sorted(get_args(Architecture)) == sorted(name for names in FAMILIES.values() for name in names)


@pytest.mark.parametrize("architecture", CONFIGS)
@torch.no_grad()
def test_what_is_saved_is_read_bit_by_bit_by_the_loader_of_the_family(architecture: str, words: str, tmp_path: Path) -> None:
    model = fresh(architecture, words)
    assert type(model) is family_of(architecture)
    model.save_pretrained(tmp_path)
    again = type(model)(str(tmp_path))
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert not [key for key in mine if not torch.equal(mine[key], theirs[key])]
    assert {value.dtype for value in mine.values() if value.is_floating_point()} == {torch.float32}
    torch.testing.assert_close(outputs(model), outputs(again))  # kernels round by where the weights lie in memory
    own = getattr(transformers, architecture).from_pretrained(tmp_path)  # the folder is the library's own format
    assert all(torch.equal(value, model.model.state_dict()[key]) for key, value in own.state_dict().items())


@pytest.mark.parametrize(("architecture", "interface"), OFFERS.items(), ids=list(OFFERS))
def test_each_family_offers_its_interface(architecture: str, interface: type, words: str) -> None:
    assert isinstance(fresh(architecture, words), interface)


def test_a_sequence_classifier_of_one_output_is_a_reward(words: str, tmp_path: Path) -> None:
    model = fresh("BertForSequenceClassification", words, config={**TOKENS, "num_labels": 1})
    assert isinstance(model, Reward)
    model.save_pretrained(tmp_path)
    again = gw.model("transformers-reward", name=str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(model.score(TEXTS), again.score(TEXTS))


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "ResNetForImageClassification", "CLIPModel"])
def test_the_seed_of_the_global_generator_decides_the_weights(architecture: str, words: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        return nn.utils.parameters_to_vector(fresh(architecture, words, seed).parameters()).detach()

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_weights_are_float32_whatever_the_default_type(words: str) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert fresh("GPT2LMHeadModel", words).model.dtype == torch.float32
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_vocabulary_and_special_tokens_are_the_tokenizers_unless_given(words: str) -> None:
    plain = fresh("GPT2LMHeadModel", words).model.config
    assert (plain.vocab_size, plain.bos_token_id, plain.eos_token_id, plain.pad_token_id) == (11, 2, 3, 0)
    text = fresh("CLIPModel", words).model.config.text_config
    assert (text.vocab_size, text.bos_token_id, text.eos_token_id, text.pad_token_id) == (11, 2, 3, 0)
    assert fresh("GPT2LMHeadModel", words, config={**GPT2, "vocab_size": 64}).model.config.vocab_size == 64
    with pytest.raises(ValueError, match="vocab_size is 10, but the tokenizer has 11 tokens"):
        fresh("GPT2LMHeadModel", words, config={**GPT2, "vocab_size": 10})


def test_the_processor_is_what_the_model_applies_and_saves(tmp_path: Path) -> None:
    given = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "size": [24, 40]}
    model = transformers_from_config("ResNetForImageClassification", CONFIGS["ResNetForImageClassification"], processor=given)
    image = torch.rand(2, 3, 24, 40)
    expected = (image - torch.tensor(given["image_mean"]).view(3, 1, 1)) / torch.tensor(given["image_std"]).view(3, 1, 1)
    torch.testing.assert_close(model.prepare(image), expected)
    assert model.prepare(torch.rand(2, 3, 32, 32)).shape == (2, 3, 24, 40)
    model.save_pretrained(tmp_path)
    again = ImagePreparation.load(str(tmp_path), model.model.config)
    assert again.size == (24, 40)
    assert torch.equal(again(image), model.prepare(image))
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert (list(theirs.image_mean), list(theirs.image_std)) == (given["image_mean"], given["image_std"])
    assert (theirs.size["height"], theirs.size["width"]) == (24, 40)


def test_the_size_is_the_models_and_grey_images_have_one_level() -> None:
    model = transformers_from_config("ViTForImageClassification", {**PATCHES, "num_channels": 1, "num_labels": 3})
    assert model.size == (32, 32)
    assert model.mean.flatten().tolist() == [0.5]
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 3)


def test_options_are_the_loaders_further_parameters(words: str) -> None:
    assert fresh("BertForSequenceClassification", words, options={"input": "input_ids", "max_length": 5}).max_length == 5
    assert fresh("CLIPModel", words, options={"input": "image"}).inputs == ("image",)
    with pytest.raises(ValueError, match=r'unknown option "inputs" \(did you mean "input"\?\); CLIPModel takes input, max_length'):
        fresh("CLIPModel", words, options={"inputs": "image"})


@pytest.mark.parametrize(
    ("architecture", "settings", "message"),
    [
        ("GPT2LMHead", {}, r'architecture "GPT2LMHead" cannot be built \(did you mean "GPT2LMHeadModel"\?\); there are BeitFor'),
        ("GPT2LMHeadModel", {}, "GPT2LMHeadModel needs a tokenizer"),
        ("ViTForImageClassification", {"tokenizer": "x"}, "ViTForImageClassification reads no text; found tokenizer x"),
        ("BertModel", {"tokenizer": "x", "processor": {"size": 8}}, r"BertModel sees no images; found processor \{'size': 8\}"),
        (
            "ViTForImageClassification",
            {"config": {"hiden_size": 3}},
            r'unknown key "hiden_size" in config \(did you mean "hidden_size"\?\); ViTConfig takes .*hidden_size',
        ),
        ("CLIPModel", {"tokenizer": "x", "config": {"text_config": {"hidden_sise": 3}}}, 'unknown key "hidden_sise" in config.text_config'),
        ("CLIPModel", {"tokenizer": "x", "config": {"text_config": 3}}, "config.text_config is a mapping; found 3"),
        ("ViTForImageClassification", {"config": {"dtype": "float16"}}, 'unknown key "dtype" in config'),
        (
            "ViTForImageClassification",
            {"config": PATCHES, "processor": {"mean": [0.5]}},
            'unknown key "mean" in processor.*; it takes do_center_crop',
        ),
        (
            "ViTForImageClassification",
            {"config": PATCHES, "processor": {"image_mean": [0.5]}},
            r"image_mean has a number for each of 3 channels.*\[0.5\]",
        ),
        ("ViTForImageClassification", {"config": PATCHES, "processor": {"size": [8]}}, r"size is a number of pixels.*; found \[8\]"),
        ("ViTForImageClassification", {"config": PATCHES, "processor": {"size": {"shortest_edge": 8}}}, "size is .*; found {'short"),
        (
            "ViTForImageClassification",
            {"config": PATCHES, "processor": {"image_std": [0, 1, 1]}},
            r"image_std .* a deviation above 0; found \[0, 1, 1\]",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(architecture: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transformers_from_config(architecture, **settings)


@pytest.mark.parametrize(
    ("config", "said"),
    [({**GPT2, "n_head": 3}, "must be divisible by num_heads"), ({**GPT2, "n_embd": "wide"}, "'n_embd' expected int, got str")],
)
def test_the_librarys_refusal_of_a_configuration_is_passed_on(config: dict[str, Any], said: str, words: str) -> None:
    with pytest.raises(gw.ConfigError, match=f"config does not make a GPT2LMHeadModel: .*{said}"):
        fresh("GPT2LMHeadModel", words, config=config)


def test_the_component_reports_mistakes_as_configuration_errors() -> None:
    with pytest.raises(gw.ConfigError, match="architecture: input should be 'BeitForImageClassification'"):
        gw.model("transformers-from-config", architecture="Nothing")
    with pytest.raises(gw.ConfigError, match='model "transformers-from-config" cannot be built: unknown key "hiden_size" in config'):
        gw.model("transformers-from-config", architecture="ViTForImageClassification", config={"hiden_size": 3})


@pytest.mark.parametrize("architecture", ["ViTForImageClassification", "BertModel"])
def test_half_precision_is_read_as_float32_unless_asked_for(architecture: str, words: str, tmp_path: Path) -> None:
    model = fresh(architecture, words)
    model.half().save_pretrained(tmp_path)
    again = type(model)(str(tmp_path))
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert all(torch.equal(p.float(), q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert {p.dtype for p in type(model)(str(tmp_path), dtype="bfloat16").parameters()} == {torch.bfloat16}


def test_mean_and_deviation_are_given_together(tmp_path: Path) -> None:
    fresh("ViTForImageClassification", "").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"mean and std are given together; found mean \[0.5\] and std None"):
        TransformersImageClassifier(str(tmp_path), mean=[0.5])


def test_a_text_encoder_without_all_its_weights_is_refused_but_for_the_pooler(words: str, tmp_path: Path) -> None:
    model = fresh("BertModel", words)
    model.model.pooler = None
    model.save_pretrained(tmp_path)
    assert type(model)(str(tmp_path)).encode(TEXTS).shape == (2, 32)
    settings = json.loads((tmp_path / "config.json").read_text()) | {"num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(gw.GraftworkError, match=r'text encoder ".*" has no weights for encoder\.layer\.2'):
        type(model)(str(tmp_path))


@torch.no_grad()
def test_roberta_cuts_texts_where_its_positions_end(words: str) -> None:
    model = fresh("RobertaModel", words)
    assert model.max_length == 15  # of 16 positions the padding's and those before it are never used: [PAD] is 0
    assert model.encode(["a " * 50]).shape == (1, 32)


@pytest.mark.parametrize("architecture", ["CLIPModel", "SiglipModel"])
def test_an_engine_trains_one_that_is_saved_and_loads(architecture: str, words: str, tmp_path: Path) -> None:
    tokens = torch.cat([torch.randint(4, 11, (8, 5)), torch.full((8, 1), 3)], dim=1)  # each ends with the end-of-text token
    samples = gw.TensorSamples(image=torch.rand(8, 3, 32, 32), input_ids=tokens, attention_mask=torch.ones_like(tokens))
    engine = gw.Engine(
        gw.model("transformers-from-config", architecture=architecture, config=CONFIGS[architecture], tokenizer=words),
        gw.objective("info-nce"),
        gw.Dataset({"train": samples}),
        gw.TrainConfig(steps=2, batch_size=4),
        device="cpu",
    )
    trained = engine.fit()
    trained.save_pretrained(tmp_path)
    again = gw.model("transformers-dual-encoder", name=str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(outputs(again), outputs(trained.eval()))
