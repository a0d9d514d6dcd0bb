"""How a checkpoint wants its images: the settings of its image processor, read as JSON and applied in torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from graftwork.builtin.hub import load, need
from graftwork.errors import GraftworkError

__all__ = ["ImagePreparation"]


class ImagePreparation(nn.Module):
    """Brings images in [0, 1] to the size and the range that a checkpoint takes, by tensors alone: differentiable, on any device.

    An image is resized to the checkpoint's size as a whole; nothing is cut off where its processor would crop.

    Args:
        settings: what preprocessor_config.json says: `image_mean`, `image_std`, and `size` or `crop_size`.
        config: the model's configuration, which knows the size where the settings do not.
        resize: whether images of another size are resized.

    Attributes:
        settings: as given.
        size: (height, width) in pixels.
    """

    def __init__(self, settings: dict[str, Any], config: Any, resize: bool = True):
        super().__init__()
        self.settings, self.resize, self.size = settings, resize, _size(settings, getattr(config, "vision_config", config))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(settings["image_mean"]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(settings["image_std"]).view(-1, 1, 1), persistent=False)

    @classmethod
    def load(
        cls, name: str, config: Any, resize: bool = True, mean: list[float] | None = None, std: list[float] | None = None
    ) -> ImagePreparation:
        """By Hugging Face id or folder; `mean` and `std` stand in place of the processor's.

        Raises:
            GraftworkError: if how images are normalised is not known.
            ValueError: if only one of `mean` and `std` is given.
        """
        if (mean is None) != (std is None):
            raise ValueError(f"mean and std are given together; found mean {mean} and std {std}")
        given = {} if mean is None else {"image_mean": mean, "image_std": std}
        return cls(load(name, lambda source: _settings(source, given), "image processor"), config, resize)

    def forward(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1], resized and normalised."""
        if self.resize and image.shape[-2:] != self.size:
            image = interpolate(image, size=self.size, mode="bilinear", antialias=True)
        return (image - self.mean) / self.std

    def example(self) -> Tensor:
        """A made-up image (1, C, height, width) in [0, 1], the same every time."""
        return torch.linspace(0, 40, len(self.mean) * self.size[0] * self.size[1]).sin().view(1, -1, *self.size) / 2 + 0.5

    def save_pretrained(self, folder: str | Path) -> None:
        """Write preprocessor_config.json."""
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(self.settings, indent=2))


def _settings(source: str, given: dict[str, Any]) -> dict[str, Any]:
    """An image processor's settings from its JSON, which asks for no torchvision as building one would."""
    try:
        found, _ = need("transformers.image_processing_base", "transformers").ImageProcessingMixin.get_image_processor_dict(source)
    except OSError:
        found = {}
        if not given:
            raise GraftworkError(f'"{source}" has no preprocessor_config.json: say how images are normalised with mean and std') from None
    odd = found.get("rescale_offset") or found.get("include_top") or not found.get("do_rescale", True)
    if odd and not given:
        raise GraftworkError(f'the image processor of "{source}" does not map images to [0, 1] before it normalises: give mean and std')
    plain = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3} if not found.get("do_normalize", True) else {}
    return {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **found, **plain, **given}


def _size(settings: dict[str, Any], config: Any) -> tuple[int, int]:
    """(height, width) that the checkpoint takes."""
    crop = settings.get("crop_size") if settings.get("do_center_crop", True) else None
    known: Any = crop or settings.get("size") or getattr(config, "image_size", None) or 224  # ConvNeXt's configuration just says 224
    if isinstance(known, dict):
        known = [known.get(side) or known.get("shortest_edge", 224) for side in ("height", "width")]
    return (known, known) if isinstance(known, int) else (int(known[0]), int(known[1]))
