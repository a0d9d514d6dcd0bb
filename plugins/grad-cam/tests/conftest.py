"""Small networks: plain ones with closed forms, and tiny transformers models built from a configuration, saved and loaded again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork_grad_cam.testing import TINY_SWIN, Colours, coloured_scenes, save_tiny_transformer


class Gap(nn.Module):
    """Convolution, ReLU, global average pooling, one linear layer."""

    def __init__(self, channels: int = 6, classes: int = 5):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, channels, 3, stride=2, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


class Flat(nn.Module):
    """Convolution, then a linear head on the flattened map."""

    def __init__(self, size: int = 4, channels: int = 3, classes: int = 2):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.head = nn.Linear(channels * size * size, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def random_images(count: int = 4, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(count, 3, height, width)


@pytest.fixture
def images() -> Callable[..., Tensor]:
    return random_images


@pytest.fixture
def gap() -> Gap:
    return Gap().eval()


@pytest.fixture
def flat() -> Flat:
    return Flat().eval()


VISION = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 16}
TEXT = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 2}
ZOO: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTConfig", "ViTForImageClassification", {**VISION, "image_size": (64, 96), "num_labels": 4}),
    "registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersForImageClassification", {**VISION, "image_size": 64, "num_labels": 4}),
    "swin": TINY_SWIN,
    "convnext": (
        "ConvNextConfig",
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "num_labels": 4, "layer_scale_init_value": 1.0},
    ),
    "resnet": (
        "ResNetConfig",
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 4},
    ),
    "blip": (
        "BlipConfig",
        "BlipForConditionalGeneration",
        {
            "text_config": {**TEXT, **WORDS, "encoder_hidden_size": 16, "max_position_embeddings": 32},
            "vision_config": {**VISION, "image_size": 64},
            "projection_dim": 16,
        },
    ),
    "vilt": (
        "ViltConfig",
        "ViltForQuestionAnswering",
        {**VISION, "vocab_size": 50, "image_size": 64, "max_position_embeddings": 16, "id2label": {0: "yes", 1: "no", 2: "two", 3: "red"}},
    ),
    "segformer": (
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        {
            "depths": [1, 1],
            "num_encoder_blocks": 2,
            "hidden_sizes": [8, 16],
            "num_attention_heads": [1, 2],
            "sr_ratios": [2, 1],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 16,
            "num_labels": 4,
        },
    ),
    "yolos": ("YolosConfig", "YolosForObjectDetection", {**VISION, "image_size": [64, 96], "num_detection_tokens": 5, "num_labels": 4}),
    "detr": (
        "DetrConfig",
        "DetrForObjectDetection",
        {
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "backbone_config": {
                "model_type": "resnet",
                "embedding_size": 8,
                "hidden_sizes": [8, 16],
                "depths": [1, 1],
                "layer_type": "basic",
                "out_features": ["stage2"],
            },
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "num_queries": 5,
            "num_labels": 4,
        },
    ),
    "clip": (
        "CLIPConfig",
        "CLIPModel",
        {
            "text_config": {**TEXT, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2},
            "vision_config": {**VISION, "image_size": 64},
            "projection_dim": 8,
        },
    ),
}


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """stored("vit"): the folder of a tiny model with random weights, as `save_pretrained` leaves it."""
    pytest.importorskip("transformers")

    @functools.cache
    def save(name: str) -> Path:
        torch.manual_seed(1)
        return save_tiny_transformer(tmp_path_factory.mktemp(name), *ZOO[name])

    return save


@pytest.fixture
def loaded(stored: Callable[[str], Path]) -> Callable[[str], nn.Module]:
    """loaded("vit"): the same, read back by transformers."""
    import transformers

    return lambda name: getattr(transformers, ZOO[name][1]).from_pretrained(stored(name)).eval()


@pytest.fixture
def colours() -> Colours:
    return Colours().eval()


@pytest.fixture
def scenes():
    from graftwork import Dataset, DatasetInfo

    return Dataset({"test": coloured_scenes()}, DatasetInfo(classes=("red", "green", "blue"), channels=3, size=(32, 32)))


def without(data, *keys):
    from graftwork import Dataset

    return Dataset(
        {name: [{k: v for k, v in sample.items() if k not in keys} for sample in split] for name, split in data.items()}, data.info
    )


@pytest.fixture
def drop() -> Callable:
    """drop(data, "mask"): the same data without a key."""
    return without
