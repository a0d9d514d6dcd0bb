"""Tensors of many kinds as pixels to draw: images, label maps laid over them, fields of numbers."""

from __future__ import annotations

from typing import Any

import matplotlib
import torch
from matplotlib.colors import to_rgb
from torch import Tensor
from torch.nn.functional import interpolate

from graftwork_testbed.sheets.paper import COLOURS

__all__ = ["IGNORED", "field", "fit", "is_image", "is_map", "overlay", "rgb"]

IGNORED = (-100, -1, 255)
"""Values of a label map that usually mean "no label"."""


def is_image(value: Any) -> bool:
    """Whether this is (C, H, W) with 1 or 3 channels."""
    return isinstance(value, Tensor) and value.ndim == 3 and value.shape[0] in (1, 3) and value.shape[1] * value.shape[2] > 0


def is_map(value: Any, image: Tensor) -> bool:
    """Whether this is (H, W), of the image's height and width."""
    return isinstance(value, Tensor) and value.shape == image.shape[1:]


def rgb(image: Tensor) -> Tensor:
    """(C, H, W) in [0, 1], or uint8, as (3, H, W) float32 in [0, 1]; what is no number is white."""
    scaled = image.float() / 255 if image.dtype == torch.uint8 else image.detach().float()
    return scaled.nan_to_num(1.0, 1.0, 0.0).clamp(0, 1).expand(3, -1, -1)


def fit(image: Tensor, height: int, width: int) -> Tensor:
    """An image (3, H, W) in the middle of white paper of that height and width; made smaller, in proportion, where it is larger."""
    scale = min(height / image.shape[1], width / image.shape[2], 1.0)
    if scale < 1:
        small = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[2] * scale)))
        image = interpolate(image[None], size=small, mode="bilinear", antialias=True)[0]
    paper = torch.ones(3, height, width)
    top, left = (height - image.shape[1]) // 2, (width - image.shape[2]) // 2
    paper[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    return paper


def overlay(image: Tensor, labels: Tensor, opacity: float = 0.6, ignored: tuple[int, ...] = IGNORED) -> Tensor:
    """Label k > 0 in the colour k - 1 over the image in grey, with an opaque outline.

    Args:
        image: (3, H, W) in [0, 1].
        labels: (H, W), 0 the background.
        opacity: of the colours.
        ignored: labels that are light grey.

    Returns:
        (3, H, W).
    """
    labels = labels.long()
    palette = torch.tensor([to_rgb(name) for name in COLOURS])
    colours = palette[(labels - 1) % len(COLOURS)].permute(2, 0, 1)  # (3, H, W)
    colours = torch.where(torch.isin(labels, torch.tensor(ignored, dtype=torch.long)), torch.tensor(0.8), colours)
    edge = torch.zeros_like(labels, dtype=torch.bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    share = torch.where(labels == 0, 0.0, torch.where(edge, 1.0, opacity))
    faded = 0.25 + 0.75 * image.mean(0, keepdim=True)
    return torch.lerp(faded.expand(3, -1, -1), colours, share.expand(3, -1, -1))


def field(values: Tensor) -> Tensor:
    """Numbers (H, W) from dark (least) to yellow (greatest), (3, H, W); what is no number is white.

    The scale is logarithmic where all are positive and the greatest is more than ten times the least.
    """
    values = values.detach().double()
    known = values.isfinite()
    low, high = (values[known].min(), values[known].max()) if known.any() else (torch.tensor(0.0), torch.tensor(1.0))
    if low > 0 and high > 10 * low:
        values, low, high = values.log(), low.log(), high.log()
    scaled = (values - low) / (high - low).clamp(min=1e-12)
    shown = torch.from_numpy(matplotlib.colormaps["viridis"](scaled.nan_to_num(0.0).numpy())[..., :3]).float().permute(2, 0, 1)
    return torch.where(known, shown, torch.tensor(1.0))
