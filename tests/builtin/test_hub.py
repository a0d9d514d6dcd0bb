"""Tiny transformers and diffusers models, saved to a folder and loaded through the components; nothing is asked of the network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork import config
from graftwork.builtin.hub import diffusers_pipeline, need
from graftwork.builtin.hub import load as load_from
from graftwork.builtin.transformers_models import TransformersImageClassifier, TransformersTextEncoder
from graftwork.interfaces import Backbone, TextEncoder, classify, embed
from graftwork.interfaces import DiffusionPipeline as Pipeline

transformers = pytest.importorskip("transformers")

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
LAYERS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
FAMILIES: dict[str, tuple[dict[str, Any], int, int]] = {  # settings, rank of the features, width once pooled
    "ViT": (LAYERS, 3, 16),
    "DeiT": (LAYERS, 3, 16),
    "Beit": (LAYERS, 3, 16),
    "Dinov2": ({**LAYERS, "mlp_ratio": 1}, 3, 32),
    "Swin": ({"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}, 3, 16),
    "ResNet": ({"embedding_size": 8, "layer_type": "basic", **STAGES}, 4, 16),
    "RegNet": ({"embedding_size": 8, "groups_width": 4, **STAGES}, 4, 16),
    "ConvNext": ({"num_stages": 2, **STAGES}, 4, 16),
    "MobileNetV2": ({"depth_multiplier": 0.1, "image_size": 32}, 4, 1280),
}


def save_classifier(folder: Path, family: str = "ViT", labels: int = 3, processor: bool = True) -> Any:
    """A randomly initialised classifier with an image processor; its batch norms hold statistics that are not the default."""
    settings, _, _ = FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForImageClassification")(
        getattr(transformers, f"{family}Config")(**settings, num_labels=labels)
    ).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)
    model.save_pretrained(folder)
    if processor:
        written = {"image_mean": MEAN, "image_std": STD, "do_normalize": True, "size": {"height": 32, "width": 32}}
        (folder / "preprocessor_config.json").write_text(json.dumps(written))
    return model


# -- image classifiers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_backbone_surface_gives_the_models_own_logits(family: str, tmp_path: Path) -> None:
    _, rank, width = FAMILIES[family]
    own = save_classifier(tmp_path, family)
    model = TransformersImageClassifier(str(tmp_path)).eval()
    assert isinstance(model, Backbone)
    image = torch.rand(4, 3, 32, 32)
    normalised = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(classify(model, {"image": image}), own(pixel_values=normalised).logits)
        features = model.forward_features(image)
        pooled = embed(model, {"image": image})
    assert features.dim() == rank
    assert pooled.shape == (4, width) == (4, model.num_features)
    torch.testing.assert_close(model.forward_head(features), model.model.classifier(pooled))
    assert model.num_classes == 3


def test_images_are_normalised_as_the_librarys_own_processor_does(tmp_path: Path) -> None:
    if not hasattr(transformers, "ViTImageProcessorPil"):
        pytest.skip("this transformers has no image processor that does without torchvision")
    own = save_classifier(tmp_path)
    pixels = numpy.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=numpy.uint8)
    processed = transformers.ViTImageProcessorPil.from_pretrained(tmp_path)(pixels, return_tensors="pt")
    model = TransformersImageClassifier(str(tmp_path)).eval()
    with torch.no_grad():
        found = model(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
        torch.testing.assert_close(found, own(**processed).logits, rtol=1e-4, atol=1e-5)


def test_images_of_another_size_are_resized_unless_told_otherwise(tmp_path: Path) -> None:
    save_classifier(tmp_path, "ResNet")
    image = torch.rand(2, 3, 64, 48)
    assert TransformersImageClassifier(str(tmp_path)).forward_features(image).shape[-2:] == (4, 4)
    assert TransformersImageClassifier(str(tmp_path), resize=False).forward_features(image).shape[-2:] == (8, 6)


def test_a_new_head_keeps_the_trunk_and_trains(tmp_path: Path) -> None:
    own = save_classifier(tmp_path)
    model = TransformersImageClassifier(str(tmp_path), num_classes=7)
    image, label = torch.rand(8, 3, 32, 32), torch.arange(8) % 7
    assert model(image).shape == (8, 7)
    trunk = dict(own.base_model.named_parameters())
    assert all(torch.equal(trunk[name], value) for name, value in model.model.base_model.named_parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(model(image), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_saved_classifier_loads_here_and_in_transformers(tmp_path: Path) -> None:
    save_classifier(tmp_path / "a")
    model = TransformersImageClassifier(str(tmp_path / "a"), num_classes=5, mean=[0.1] * 3, std=[0.9] * 3).eval()
    model.save_pretrained(tmp_path / "b")
    image = torch.rand(2, 3, 32, 32)
    again = TransformersImageClassifier(str(tmp_path / "b")).eval()
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "b").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(image), model(image))
        torch.testing.assert_close(theirs(pixel_values=(image - 0.1) / 0.9).logits, model(image))


def test_building_one_leaves_the_random_state_and_the_models_mode(tmp_path: Path) -> None:
    save_classifier(tmp_path)
    model = TransformersImageClassifier(str(tmp_path))
    state = torch.get_rng_state()
    model.train()
    model._find_pooling()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.model.training


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    save_classifier(tmp_path).base_model.save_pretrained(tmp_path)  # no head any more
    with pytest.raises(gw.GraftworkError, match=r"has no weights for classifier\.(bias|weight).*; for a new head give num_classes"):
        TransformersImageClassifier(str(tmp_path))
    assert TransformersImageClassifier(str(tmp_path), num_classes=4).num_classes == 4


def test_how_images_are_normalised_is_never_guessed(tmp_path: Path) -> None:
    save_classifier(tmp_path, processor=False)
    with pytest.raises(gw.GraftworkError, match=r"has no preprocessor_config\.json: say how images are normalised with mean and std"):
        TransformersImageClassifier(str(tmp_path))
    assert TransformersImageClassifier(str(tmp_path), mean=MEAN, std=STD).mean.flatten().tolist() == pytest.approx(MEAN)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_rescale": False}))
    with pytest.raises(gw.GraftworkError, match="does not map images to"):
        TransformersImageClassifier(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "image_mean": MEAN}))
    assert TransformersImageClassifier(str(tmp_path)).mean.flatten().tolist() == [0.0] * 3


def test_a_head_of_unknown_shape_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_classifier(tmp_path)
    plain = transformers.ViTForImageClassification.forward

    def doubled(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = plain(self, *args, **kwargs)
        output.logits = 2 * output.logits
        return output

    monkeypatch.setattr(transformers.ViTForImageClassification, "forward", doubled)
    with pytest.raises(
        gw.InterfaceError, match=r"ViTForImageClassification has a head of no known shape: none of pooler, .* gives its logits"
    ):
        TransformersImageClassifier(str(tmp_path))


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    model = save_classifier(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(
        gw.GraftworkError, match=f'image classifier "{tmp_path}" cannot be loaded; tried the folder {tmp_path}: .*safetensors'
    ):
        TransformersImageClassifier(str(tmp_path))


def test_code_in_the_repository_is_not_run(tmp_path: Path) -> None:
    save_classifier(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForImageClassification": "mine.Mine"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    with pytest.raises(gw.GraftworkError, match="custom code"):
        TransformersImageClassifier(str(tmp_path))
    assert not (tmp_path / "ran").exists()


# -- text encoders ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a tokenizer of whole words."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "seven", "three"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 12}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_text_is_embedded_the_same_alone_and_padded(encoder: Path, pooling: str) -> None:
    model = TransformersTextEncoder(str(encoder), pooling=pooling).eval()
    assert isinstance(model, TextEncoder)
    texts = ["a red three", "seven", "a blue seven a red three"]
    with torch.no_grad():
        together = model.encode(texts)
        for text, found in zip(texts, together, strict=True):
            tokens = model.tokenizer(text, return_tensors="pt")
            hidden = model.model(**tokens).last_hidden_state[0]
            torch.testing.assert_close(found, hidden.mean(0) if pooling == "mean" else hidden[0], rtol=1e-4, atol=1e-5)
    assert together.shape == (3, model.embedding_dim)


def test_texts_and_tokens_go_the_same_way(encoder: Path) -> None:
    texts = ["a red three", "seven"]
    of_text = TransformersTextEncoder(str(encoder), normalize=True).eval()
    of_tokens = TransformersTextEncoder(str(encoder), normalize=True, input="input_ids").eval()
    tokens = dict(of_tokens.tokenizer(texts, padding=True, return_tensors="pt"))
    with torch.no_grad():
        expected = of_text.encode(texts)
        torch.testing.assert_close(embed(of_text, {"text": texts}), expected)
        torch.testing.assert_close(embed(of_tokens, tokens), expected)
    assert expected.norm(dim=1).tolist() == pytest.approx([1, 1])


def test_a_text_longer_than_the_model_takes_is_cut(encoder: Path) -> None:
    model = TransformersTextEncoder(str(encoder)).eval()
    assert model.max_length == 12
    assert model.encode(["seven " * 50]).shape == (1, 16)
    short = TransformersTextEncoder(str(encoder), max_length=3).eval()
    torch.testing.assert_close(short.encode(["seven three"]), short.encode(["seven blue"]))  # [CLS] seven [SEP]


def test_a_saved_encoder_loads_again(encoder: Path, tmp_path: Path) -> None:
    model = TransformersTextEncoder(str(encoder)).eval()
    model.save_pretrained(tmp_path)
    again = TransformersTextEncoder(str(tmp_path)).eval()
    torch.testing.assert_close(again.encode(["a red three"]), model.encode(["a red three"]))


def test_gradients_reach_the_encoder(encoder: Path) -> None:
    model = TransformersTextEncoder(str(encoder))
    model.encode(["a red three"]).sum().backward()
    assert model.model.embeddings.word_embeddings.weight.grad.abs().sum() > 0


# -- diffusion pipelines ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("ddpm")
    torch.manual_seed(0)
    blocks = {"block_out_channels": (8, 8), "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = diffusers.UNet2DModel(sample_size=8, layers_per_block=1, norm_num_groups=4, **blocks)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(num_train_timesteps=10)).save_pretrained(folder)
    return folder


def test_a_pipeline_runs_as_the_librarys_own_and_shows_no_bar(pipeline: Path, capfd: pytest.CaptureFixture[str]) -> None:
    diffusers = pytest.importorskip("diffusers")
    found = diffusers_pipeline(str(pipeline), device="cpu")
    quiet = diffusers.DDPMPipeline.from_pretrained(pipeline)
    quiet.set_progress_bar_config(disable=True)
    assert isinstance(found, Pipeline)
    capfd.readouterr()
    images = [one(generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="np").images for one in (found, quiet)]
    assert numpy.array_equal(*images)
    assert "%|" not in capfd.readouterr().err  # the second has none by its own option


def test_the_weights_come_in_the_type_asked_for(pipeline: Path) -> None:
    assert diffusers_pipeline(str(pipeline), dtype="bfloat16").unet.dtype == torch.bfloat16


def test_a_pipeline_folder_with_code_is_refused(pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text((pipeline / "model_index.json").read_text())
    (tmp_path / "pipeline.py").write_text("raise SystemExit")
    with pytest.raises(gw.GraftworkError, match="holds Python code, which is never run"):
        diffusers_pipeline(str(tmp_path))


# -- what cannot be had -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "what"),
    [(TransformersImageClassifier, "image classifier"), (TransformersTextEncoder, "text encoder"), (diffusers_pipeline, "pipeline")],
)
def test_a_model_that_is_nowhere_says_what_was_tried(build: Any, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(gw.GraftworkError, match=rf'{what} "{tmp_path}/none": there is no folder {tmp_path}/none; a Hugging Face id is'):
        build(f"{tmp_path}/none")
    with pytest.raises(
        gw.GraftworkError, match=rf'{what} "nobody/nothing" cannot be loaded; tried the Hugging Face Hub, as there is no folder .+: .'
    ):
        build("nobody/nothing")


def test_an_empty_folder_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(gw.GraftworkError, match=f"tried the folder {tmp_path}: "):
        TransformersImageClassifier(str(tmp_path))


def test_a_loaders_own_refusal_passes_as_it_is() -> None:
    def refuse(source: str) -> None:
        raise gw.InterfaceError("no")

    with pytest.raises(gw.InterfaceError, match=r"^no$"):
        load_from("owner/name", refuse, "model")


def test_a_missing_dependency_says_how_to_install_it() -> None:
    with pytest.raises(gw.GraftworkError, match=r'not_installed cannot be imported .*: pip install "graftwork\[transformers\]"'):
        need("not_installed", "transformers")
    with pytest.raises(gw.GraftworkError, match=r'pip install "graftwork-dann\[plots\]"'):
        need("not_installed", "plots", "graftwork-dann")


def test_the_builtin_components_are_listed_without_torch_and_all_load() -> None:
    code = (
        "import sys, graftwork.builtin.plugin; print([m for m in ('torch', 'transformers', 'diffusers', 'datasets') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    registry = gw.installed()
    builtin = [one for one in registry if one.plugin == "builtin"]
    assert len(builtin) == 34
    for one in builtin:
        undescribed = [name for name, parameter in config.parameters(one.load()).items() if not parameter.description]
        assert not undescribed, one.name
