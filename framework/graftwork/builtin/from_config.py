"""Untrained models of transformers, built from a configuration and given the surface that the loader of their family gives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn

from graftwork.builtin.dual_encoder import TransformersDualEncoder
from graftwork.builtin.hub import need
from graftwork.builtin.image_processor import ImagePreparation
from graftwork.builtin.language_models import TransformersCausalLM
from graftwork.builtin.segmenters import TransformersSegmenter
from graftwork.builtin.sequence_classifiers import TransformersReward, TransformersTextClassifier
from graftwork.builtin.tokenization import load_tokenizer
from graftwork.builtin.transformers_models import TransformersImageClassifier, TransformersTextEncoder
from graftwork.errors import ConfigError, nearest

__all__ = ["Architecture", "transformers_from_config"]

ImageClassifier: TypeAlias = Literal[
    "BeitForImageClassification",
    "ConvNextForImageClassification",
    "DeiTForImageClassification",
    "Dinov2ForImageClassification",
    "RegNetForImageClassification",
    "ResNetForImageClassification",
    "SwinForImageClassification",
    "ViTForImageClassification",
]
Segmenter: TypeAlias = Literal["SegformerForSemanticSegmentation"]
DualEncoder: TypeAlias = Literal["CLIPModel", "SiglipModel"]
CausalLM: TypeAlias = Literal[
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "OPTForCausalLM",
    "Qwen3ForCausalLM",
]
TextClassifier: TypeAlias = Literal[
    "BertForSequenceClassification",
    "DistilBertForSequenceClassification",
    "GPT2ForSequenceClassification",
    "LlamaForSequenceClassification",
    "RobertaForSequenceClassification",
]
TextEncoder: TypeAlias = Literal["BertModel", "DistilBertModel", "MPNetModel", "RobertaModel"]
Architecture: TypeAlias = Literal[ImageClassifier, Segmenter, DualEncoder, CausalLM, TextClassifier, TextEncoder]
"""Classes of transformers that can be built."""

TEXT = (TransformersCausalLM, TransformersTextClassifier, TransformersTextEncoder)
FAMILIES: dict[type[nn.Module], tuple[str, ...]] = {
    TransformersImageClassifier: get_args(ImageClassifier),
    TransformersSegmenter: get_args(Segmenter),
    TransformersDualEncoder: get_args(DualEncoder),
    TransformersCausalLM: get_args(CausalLM),
    TransformersTextClassifier: get_args(TextClassifier),
    TransformersTextEncoder: get_args(TextEncoder),
}
"""The surface that each class gets."""

FIXED = {"architectures", "dtype", "name_or_path", "return_dict", "self", "torch_dtype", "transformers_version"}
"""What a configuration says of itself and not of the network."""

PROCESSOR = {
    "do_center_crop": False,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": None,
    "image_std": None,
    "resample": 2,  # bilinear, as ImagePreparation does
    "rescale_factor": 1 / 255,
    "size": None,
}
"""An image processor's settings in transformers' terms; those that are None depend on the model."""


def transformers_from_config(
    architecture: Architecture,
    config: dict[str, Any] | None = None,
    tokenizer: str | None = None,
    processor: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> nn.Module:
    """An untrained model of transformers in float32, with the surface that the loader of its family gives.

    A causal language model comes as `transformers-causal-lm` gives it, an image classifier as `transformers-image-classifier`, and
    so on; a sequence classifier of one output is a `transformers-reward`. What `save_pretrained` writes, that loader reads. Weights
    are drawn from torch's global generator, which a run seeds.

    Args:
        architecture: class of transformers.
        config: parameters of that class's configuration, in its own terms, such as `n_layer` for GPT-2 and `num_labels` for
            classifiers; CLIP's are in `text_config` and `vision_config`. The vocabulary's size and the special tokens' ids are the
            tokenizer's where they are not given.
        tokenizer: Hugging Face id or folder; for models of text.
        processor: how images are prepared, for models of images: `image_mean` and `image_std` of each channel (0.5 each by
            default), `size` in pixels (one number or [height, width]; the model's by default).
        options: further parameters of the family's loader, such as `input` or `max_length`.

    Raises:
        ValueError: if a parameter is missing, unknown or does not fit the model.
        GraftworkError: if the tokenizer cannot be loaded.
    """
    family = next((family for family, names in FAMILIES.items() if architecture in names), None)
    if family is None:
        known = [name for names in FAMILIES.values() for name in names]
        raise ValueError(f'architecture "{architecture}" cannot be built{nearest(architecture, known)}; there are {", ".join(known)}')
    reads, sees = family in (*TEXT, TransformersDualEncoder), family not in TEXT
    if reads != (tokenizer is not None):
        raise ValueError(f"{architecture} {'needs a tokenizer' if reads else f'reads no text; found tokenizer {tokenizer}'}")
    if processor and not sees:
        raise ValueError(f"{architecture} sees no images; found processor {processor}")
    kind = getattr(need("transformers", "transformers"), architecture)
    settings, parts = dict(config or {}), []
    _check_keys("config", settings, kind.config_class)
    if tokenizer is not None:
        parts.append(load_tokenizer(tokenizer))
        _adopt_tokens(settings, kind.config_class, parts[0])
    network = _network(kind, settings)
    if sees:
        parts.append(ImagePreparation(_processor(processor or {}, network.config), network.config))
    if family is TransformersTextClassifier and network.config.num_labels == 1:
        family = TransformersReward
    wrap: Callable[..., nn.Module] = family.wrap  # type: ignore[attr-defined]
    taken = list(inspect.signature(wrap).parameters)[1 + len(parts) :]
    for name in options or {}:
        if name not in taken:
            raise ValueError(f'unknown option "{name}"{nearest(name, taken)}; {architecture} takes {", ".join(taken) or "none"}')
    return wrap(network, *parts, **(options or {}))


def _network(kind: Any, settings: Mapping[str, Any]) -> Any:
    """A model of a class of transformers, float32 whatever torch's default; ConfigError if its configuration is refused."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        return kind(kind.config_class(**settings)).eval()
    except Exception as error:  # huggingface_hub's own for a type, and whatever a layer says of sizes that do not go together
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"config does not make a {kind.__name__}: {said}") from error
    finally:
        torch.set_default_dtype(before)


def _known(kind: Any) -> set[str]:
    """The keys that a configuration class takes, those of its bases among them."""
    declared = [each for base in kind.__mro__ for each in inspect.signature(base.__init__).parameters.values()]
    plain = {each.name.lstrip("_") for each in declared if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    return {*plain, *kind.attribute_map, "num_labels"} - FIXED


def _check_keys(path: str, settings: Mapping[str, Any], kind: Any) -> None:
    """Raise ValueError for a key that a configuration class does not take, at any depth."""
    known = sorted(_known(kind))
    for key, value in settings.items():
        if key not in known:
            raise ValueError(f'unknown key "{key}" in {path}{nearest(key, known)}; {kind.__name__} takes {", ".join(known)}')
        inner = kind.sub_configs.get(key)
        if inner is not None and not isinstance(value, Mapping):
            raise ValueError(f"{path}.{key} is a mapping; found {value!r}")
        if hasattr(inner, "attribute_map"):  # a sub-configuration of any class, as AutoConfig, has none
            _check_keys(f"{path}.{key}", value, inner)


def _adopt_tokens(settings: dict[str, Any], kind: Any, tokenizer: Any) -> None:
    """Put the vocabulary's size and the special tokens' ids where the configuration of the text has none of its own."""
    if "text_config" in kind.sub_configs:
        settings["text_config"] = dict(settings.get("text_config") or {})
        _adopt_tokens(settings["text_config"], kind.sub_configs["text_config"], tokenizer)
        return
    settings.setdefault("vocab_size", len(tokenizer))
    if settings["vocab_size"] < len(tokenizer):
        raise ValueError(f"vocab_size is {settings['vocab_size']}, but the tokenizer has {len(tokenizer)} tokens")
    for name in {"bos_token_id", "eos_token_id", "pad_token_id"} & _known(kind):
        settings.setdefault(name, getattr(tokenizer, name))


def _processor(given: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """An image processor's settings in transformers' terms."""
    for key in given:
        if key not in PROCESSOR:
            raise ValueError(f'unknown key "{key}" in processor{nearest(key, PROCESSOR)}; it takes {", ".join(PROCESSOR)}')
    vision = getattr(config, "vision_config", config)
    channels = int(getattr(vision, "num_channels", 3))
    size = _sides(given.get("size") or getattr(vision, "image_size", None) or 224)
    settings = {"image_mean": [0.5] * channels, "image_std": [0.5] * channels, **given, "size": size}
    for key in ("image_mean", "image_std"):
        if len(settings[key]) != channels or (key == "image_std" and min(settings[key]) <= 0):
            raise ValueError(f"{key} has a number for each of {channels} channels, a deviation above 0; found {settings[key]}")
    return {**PROCESSOR, **settings}


def _sides(size: Any) -> dict[str, int]:
    """Height and width from one number, a pair, or both by name."""
    pair: list[Any]
    if isinstance(size, Mapping):
        pair = [size.get(side) for side in ("height", "width")]
    else:
        pair = [size, size] if isinstance(size, int) else list(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"size is a number of pixels, or [height, width]; found {size}")
    return {"height": pair[0], "width": pair[1]}
