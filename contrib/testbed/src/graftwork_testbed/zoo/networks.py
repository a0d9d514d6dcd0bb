"""The trained networks: folders in the formats of diffusers and transformers, and how each is loaded."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from graftwork import GraftworkError
from graftwork.builtin.dual_encoder import TransformersDualEncoder
from graftwork.builtin.hub import Precision, diffusers_pipeline, load, need
from graftwork.builtin.language_models import TransformersCausalLM
from graftwork.builtin.segmenters import TransformersSegmenter
from graftwork.builtin.sequence_classifiers import TransformersReward
from graftwork.builtin.transformers_models import TransformersImageClassifier
from graftwork.errors import nearest
from graftwork_testbed.zoo.catalogue import CARDS, PLACES, VARIANTS, LanguageVariant, SourceVariant

__all__ = [
    "digit_source",
    "folder",
    "formality_reward",
    "scene_autoencoder",
    "scene_clip",
    "scene_colour",
    "scene_detector",
    "scene_diffusion",
    "scene_flow",
    "scene_resnet",
    "scene_segmenter",
    "scene_vit",
    "sentiment_reward",
    "tiny_lm",
]


def folder(name: str) -> Path:
    """Where a network of the zoo lies, for a library's own `from_pretrained`.

    Args:
        name: such as "scene-diffusion", or "digit-source/resnet-clean".

    Raises:
        GraftworkError: if there is no network of that name, or its files are not installed.
    """
    known = [*(one for one in CARDS if one not in VARIANTS), *(f"{one}/{variant}" for one in VARIANTS for variant in VARIANTS[one])]
    if name not in known:
        raise GraftworkError(f'the zoo has no "{name}"{nearest(name, known)}; it has {", ".join(known)}')
    path = Path(str(files("graftwork_testbed.zoo") / "networks" / PLACES.get(name, name)))
    if not any(path.rglob("*.safetensors")):
        raise GraftworkError(f'the weights of "{name}" are not in {path}: reinstall graftwork-testbed from its wheel')
    return path


def scene_autoencoder(dtype: Precision = "float32") -> nn.Module:
    """The autoencoder of scene-diffusion and scene-flow, a `diffusers.AutoencoderKL`: 64x64 pixels to 8 channels of 8x8.

    Args:
        dtype: of the weights.
    """
    kind = need("diffusers", "diffusers").AutoencoderKL
    where = str(folder("scene-autoencoder"))
    model: nn.Module = load(where, lambda source: kind.from_pretrained(source, use_safetensors=True), "autoencoder")
    return model.to(getattr(torch, dtype)).to(memory_format=torch.channels_last)


def scene_diffusion(dtype: Precision = "float32") -> Any:
    """Text to image at 64x64: a `diffusers.StableDiffusionPipeline` that knows the captions of digit-scenes.

    Args:
        dtype: of the weights.
    """
    return diffusers_pipeline(str(folder("scene-diffusion")), dtype)


def scene_flow(dtype: Precision = "float32") -> Any:
    """Text to image at 64x64 by flow matching: a `diffusers.FluxPipeline` with prompts of 24 tokens; guide it by `true_cfg_scale`.

    `FluxPipeline.from_pretrained` on the folder gives the same weights; there, ask for `height=64, width=64,
    max_sequence_length=24`.

    Args:
        dtype: of the weights.
    """
    from graftwork_testbed.zoo.flow import short_prompt_pipeline

    where = str(folder("scene-flow"))
    settings = {"torch_dtype": getattr(torch, dtype), "use_safetensors": True}
    pipeline = load(where, lambda source: short_prompt_pipeline().from_pretrained(source, **settings), "pipeline")  # type: ignore[attr-defined]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(getattr(torch, dtype))


def scene_clip(input: Literal["pairs", "image", "text", "input_ids"] = "pairs", dtype: Precision = "float32") -> TransformersDualEncoder:
    """A `transformers.CLIPModel` of scenes and captions, as a DualEncoder.

    Args:
        input: what it embeds where one kind of input is asked for.
        dtype: of the weights.
    """
    return TransformersDualEncoder(str(folder("scene-clip")), input, dtype=dtype)


def scene_resnet(dtype: Precision = "float32") -> TransformersImageClassifier:
    """A ResNet that says which digit a scene of one shows.

    Args:
        dtype: of the weights.
    """
    return TransformersImageClassifier(str(folder("scene-resnet")), dtype=dtype)


def scene_vit(dtype: Precision = "float32") -> TransformersImageClassifier:
    """A vision transformer that says which digit a scene of one shows.

    Args:
        dtype: of the weights.
    """
    return TransformersImageClassifier(str(folder("scene-vit")), dtype=dtype)


def scene_colour(dtype: Precision = "float32") -> TransformersImageClassifier:
    """A ResNet that says in which of eight colours a scene's one digit is.

    Args:
        dtype: of the weights.
    """
    return TransformersImageClassifier(str(folder("scene-colour")), dtype=dtype)


def digit_source(variant: SourceVariant = "resnet-clean", dtype: Precision = "float32") -> TransformersImageClassifier:
    """One of a pool of small classifiers of 32x32 digits that differ in architecture, domain and seed.

    Args:
        variant: which.
        dtype: of the weights.
    """
    return TransformersImageClassifier(str(folder(f"digit-source/{variant}")), dtype=dtype)


def tiny_lm(variant: LanguageVariant = "base", dtype: Precision = "float32") -> TransformersCausalLM:
    """A GPT-2 of a million parameters with its tokenizer, trained on CPython's help texts and the grammars of the test bed.

    Args:
        variant: "sft" is tuned further on the grammars' sentences alone.
        dtype: of the weights.
    """
    return TransformersCausalLM(str(folder(f"tiny-lm/{variant}")), dtype=dtype)


def sentiment_reward(dtype: Precision = "float32") -> TransformersReward:
    """Scores text: the more positive, the higher.

    Args:
        dtype: of the weights.
    """
    return TransformersReward(str(folder("sentiment-reward")), dtype=dtype)


def formality_reward(dtype: Precision = "float32") -> TransformersReward:
    """Scores text: the more formal, the higher.

    Args:
        dtype: of the weights.
    """
    return TransformersReward(str(folder("formality-reward")), dtype=dtype)


def scene_segmenter(dtype: Precision = "float32") -> TransformersSegmenter:
    """A SegFormer of scenes: background and ten digits.

    Args:
        dtype: of the weights.
    """
    return TransformersSegmenter(str(folder("scene-segmenter")), dtype=dtype)


def scene_detector(dtype: Precision = "float32") -> Any:
    """An anchor-free detector of the digits of scenes.

    Args:
        dtype: of the weights.
    """
    from graftwork_testbed.zoo.detector import load_anchor_free_detector

    return load_anchor_free_detector(str(folder("scene-detector")), dtype)
