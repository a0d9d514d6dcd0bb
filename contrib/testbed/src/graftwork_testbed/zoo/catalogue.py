"""What the zoo holds: of each network a title, the library that loads it, and how. Plain data; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

__all__ = ["CARDS", "PLACES", "VARIANTS", "Card", "LanguageVariant", "SourceVariant"]


@dataclass(frozen=True)
class Card:
    """What a model card says before anything is measured.

    Args:
        summary: one sentence.
        library: "diffusers", "transformers" or "graftwork-testbed".
        loader: the library's class whose `from_pretrained` loads the folder.
        task: Hugging Face's name of the task.
        recipe: name of the recipe, as `graft run` takes it.
        data: what it was trained on, in a sentence.
        limits: what it cannot do, in a sentence or two.
    """

    summary: str
    library: str
    loader: str
    task: str
    recipe: str
    data: str
    limits: str


SCENES = "digit-scenes (real handwritten digits, coloured, on photographs), its training split"
EASY_TO_HARD = "one digit in the centre of a dark ground, then anywhere on it, then scenes, weighted 8:2:1:1 towards few digits"
CARDS: Mapping[str, Card] = {
    "scene-diffusion": Card(
        "Text to image at 64x64: AutoencoderKL, UNet2DConditionModel that predicts the velocity, CLIPTextModel; 10 % of captions dropped.",
        "diffusers",
        "StableDiffusionPipeline",
        "text-to-image",
        "zoo/scene-diffusion",
        f"{SCENES}: {EASY_TO_HARD}; latents of scene-autoencoder",
        "It knows the captions of the grammar and no other words. Its text encoder is as it was initialised: it tells words apart and "
        "knows nothing of them. It was trained on scenes of one digit above all, and measured on those.",
    ),
    "scene-autoencoder": Card(
        "Images of 64x64 pixels to latents of 8x8 with eight channels, and back: the AutoencoderKL of scene-diffusion and scene-flow.",
        "diffusers",
        "AutoencoderKL",
        "image-to-image",
        "zoo/scene-autoencoder",
        f"{SCENES}, weighted 4:3:2:2 towards few digits",
        "Backgrounds come out soft.",
    ),
    "scene-flow": Card(
        "Text to image at 64x64 by flow matching: FluxTransformer2DModel (rotary positions, joint attention, no distilled guidance).",
        "diffusers",
        "FluxPipeline",
        "text-to-image",
        "zoo/scene-flow",
        f"{SCENES}: {EASY_TO_HARD}; latents of scene-autoencoder",
        "It misses the digit it is asked for once in seven times. Its text encoders are as they were initialised. Ask the plain "
        "FluxPipeline for height=64, width=64, max_sequence_length=24; guide by true_cfg_scale and an empty negative prompt.",
    ),
    "scene-clip": Card(
        "Images and captions in one space of 96 dimensions: a CLIPModel.",
        "transformers",
        "CLIPModel",
        "zero-shot-image-classification",
        "zoo/scene-clip",
        f"{SCENES}, with its captions",
        "It knows the captions of the grammar and no other words.",
    ),
    "scene-resnet": Card(
        "Which digit a scene of one digit shows: a ResNetForImageClassification.",
        "transformers",
        "ResNetForImageClassification",
        "image-classification",
        "zoo/scene-classifiers",
        f"{SCENES}, scenes of one digit",
        "One digit, as digit-scenes draws it.",
    ),
    "scene-vit": Card(
        "Which digit a scene of one digit shows: a ViTForImageClassification.",
        "transformers",
        "ViTForImageClassification",
        "image-classification",
        "zoo/scene-classifiers",
        f"{SCENES}, scenes of one digit",
        "One digit, as digit-scenes draws it.",
    ),
    "scene-colour": Card(
        "In which of eight colours the one digit of a scene is: a ResNetForImageClassification.",
        "transformers",
        "ResNetForImageClassification",
        "image-classification",
        "zoo/scene-classifiers",
        f"{SCENES}, scenes of one digit",
        "The eight colours of digit-scenes, on muted backgrounds.",
    ),
    "digit-source": Card(
        "One of ten small classifiers of 32x32 digits that differ in architecture, domain and seed.",
        "transformers",
        "AutoModelForImageClassification",
        "image-classification",
        "zoo/digit-source",
        "one domain of digit-domains, its training split of 1,168 digits",
        "Each is best on its own domain and worse on others, and vit-photo is weak on its own: that is what a pool is for.",
    ),
    "tiny-lm": Card(
        "A GPT2LMHeadModel with a byte-pair tokenizer.",
        "transformers",
        "GPT2LMHeadModel",
        "text-generation",
        "zoo/tiny-lm",
        "pydoc-text (CPython's help topics) and template-text (sentences of a grammar), training splits",
        "It imitates the tone of its texts and knows nothing.",
    ),
    "sentiment-reward": Card(
        "How positive a text is: a sequence classifier with one output.",
        "transformers",
        "AutoModelForSequenceClassification",
        "text-classification",
        "zoo/text-rewards",
        "template-text, its training split, labelled by sentiment",
        "It has seen the sentences of one grammar.",
    ),
    "formality-reward": Card(
        "How formal a text is: a sequence classifier with one output.",
        "transformers",
        "AutoModelForSequenceClassification",
        "text-classification",
        "zoo/text-rewards",
        "template-text, its training split, labelled by formality",
        "It has seen the sentences of one grammar.",
    ),
    "scene-segmenter": Card(
        "Background and ten digits, a class a pixel: a SegformerForSemanticSegmentation.",
        "transformers",
        "SegformerForSemanticSegmentation",
        "image-segmentation",
        "zoo/scene-segmenter",
        f"{SCENES}, with its masks",
        "Digits as digit-scenes draws them.",
    ),
    "scene-detector": Card(
        "Boxes and classes of the digits of a scene: an anchor-free detector.",
        "graftwork-testbed",
        "graftwork_testbed.zoo.detector.AnchorFreeDetector",
        "object-detection",
        "zoo/scene-detector",
        f"{SCENES}, with its boxes",
        "Digits as digit-scenes draws them.",
    ),
}
"""Name -> card."""

SourceVariant: TypeAlias = Literal[
    "resnet-clean",
    "resnet-photo",
    "resnet-inverted",
    "resnet-rotated",
    "resnet-noisy",
    "resnet-edges",
    "resnet-clean-1",
    "vit-clean",
    "vit-photo",
    "vit-clean-1",
]
"""Architecture and domain of a `digit-source`; a number behind is another seed."""

LanguageVariant: TypeAlias = Literal["base", "sft"]
"""Of `tiny-lm`."""

VARIANTS: Mapping[str, tuple[str, ...]] = {"digit-source": get_args(SourceVariant), "tiny-lm": get_args(LanguageVariant)}
"""Networks that come in several variants, each in a folder of its own."""

PLACES: Mapping[str, str] = {"scene-autoencoder": "scene-diffusion/vae"}
"""Networks that lie inside another's folder."""
