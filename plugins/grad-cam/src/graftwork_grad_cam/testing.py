"""Networks and scenes whose evidence is known, and tiny transformers models, to try saliency methods on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["TINY_SWIN", "Colours", "coloured_scenes", "save_tiny_transformer"]

PROCESSOR = '{"image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'


TINY_SWIN: tuple[str, str, dict[str, Any]] = (
    "SwinConfig",
    "SwinForImageClassification",
    {"image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 2], "num_heads": [1, 2, 4], "window_size": 4, "num_labels": 4},
)
"""A Swin that merges its patches twice, for `save_tiny_transformer`."""


class Colours(nn.Module):
    """A classifier of red, green and blue whose evidence is known: each class's logit is the mean of its channel, times ten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 3, 1, bias=False), nn.ReLU()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None])
            self.head.weight.copy_(10 * torch.eye(3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, 3)."""
        logits: Tensor = self.head(self.pool(self.act(self.conv(x))).flatten(1))
        return logits


def coloured_scenes(count: int = 6, side: int = 32, noise: float = 0.0) -> list[dict[str, Any]]:
    """Two squares a scene, of different colours and brightness.

    Args:
        count: of scenes.
        side: of the image, 32 or more, in pixels.
        noise: highest value of the ground behind the squares.

    Returns:
        samples of image (3, side, side), mask (class + 1), boxes, labels, label (of the brighter square), index.
    """
    generator = torch.Generator().manual_seed(0)
    samples = []
    for index in range(count):
        image = noise * torch.rand(3, side, side, generator=generator) if noise else torch.zeros(3, side, side)
        mask = torch.zeros(side, side, dtype=torch.long)
        classes = torch.randperm(3, generator=generator)[:2]
        boxes = []
        for place, (colour, light) in enumerate(zip(classes.tolist(), (1.0, 0.6), strict=True)):
            x, y = int(torch.randint(0, 5, (1,), generator=generator)) + 17 * place, int(torch.randint(0, 20, (1,), generator=generator))
            image[colour, y : y + 10, x : x + 10] = light
            mask[y : y + 10, x : x + 10] = colour + 1
            boxes.append([x, y, x + 10, y + 10])
        known = {"boxes": torch.tensor(boxes).float(), "labels": classes, "label": int(classes[0])}
        samples.append({"image": image, "mask": mask, **known, "index": index})
    return samples


def save_tiny_transformer(folder: Path, config: str, model: str, settings: Mapping[str, Any]) -> Path:
    """Save a transformers model with random weights, as `save_pretrained` leaves it, with an image processor.

    Weights are drawn from torch's generator, as in any construction of a module.

    Args:
        folder: where to.
        config: name of the configuration's class.
        model: name of the model's class.
        settings: of the configuration.

    Returns:
        the folder.
    """
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    built = getattr(transformers, model)(getattr(transformers, config)(**settings))
    for parameter in built.parameters():  # the usual 0.02 leaves so small a model next to constant
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    built.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(PROCESSOR)
    return folder
