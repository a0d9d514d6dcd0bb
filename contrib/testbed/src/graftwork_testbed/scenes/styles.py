"""The same scene in another look: styles, degradations and maps, each a function of many drawn scenes at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad

from graftwork import DataError
from graftwork.errors import nearest

__all__ = ["DEGRADATIONS", "MAPS", "STYLES", "VIEWS", "Look", "View", "gaussian_blur", "render_view", "sobel_magnitude"]

Look: TypeAlias = Literal["photo", "sketch", "poster", "night", "watercolour", "blur", "noise", "low-resolution", "grey", "hole"]
"""A style or a degradation: a picture of the whole scene."""

View: TypeAlias = Literal[Look, "edges", "segments"]
"""How a scene is shown: a look, or a map of its structure."""

STYLES: tuple[Look, ...] = ("photo", "sketch", "poster", "night", "watercolour")
"""Looks in which a digit keeps the name of its colour."""

DEGRADATIONS: tuple[Look, ...] = ("blur", "noise", "low-resolution", "grey", "hole")
"""What a restoration undoes."""

MAPS: tuple[View, ...] = ("edges", "segments")
"""Pictures of the scene's structure alone."""

VIEWS: tuple[View, ...] = (*STYLES, *DEGRADATIONS, *MAPS)
"""Every way to show a scene."""

PALETTE = torch.tensor(
    [
        [20, 20, 24],
        [230, 25, 75],
        [60, 180, 75],
        [255, 225, 25],
        [0, 130, 200],
        [245, 130, 48],
        [145, 30, 180],
        [70, 240, 240],
        [240, 50, 230],
        [210, 245, 60],
        [250, 190, 212],
    ]
)
"""Colour of each semantic class, background first, for the view "segments"."""


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Blur (N, C, H, W) by a Gaussian of that deviation in pixels; edges are mirrored."""
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    flat = images.flatten(0, 1).unsqueeze(1)
    flat = conv2d(pad(flat, (radius, radius, 0, 0), mode="reflect"), kernel.unsqueeze(2))
    return conv2d(pad(flat, (0, 0, radius, radius), mode="reflect"), kernel.unsqueeze(3)).view(images.shape)


def sobel_magnitude(images: Tensor) -> Tensor:
    """Length of the Sobel gradient of each channel, largest over channels; a slope of s a pixel gives 2 s. Edges are repeated.

    Args:
        images: (N, C, H, W) float.

    Returns:
        (N, 1, H, W).
    """
    down = torch.tensor([[-1.0, -2.0, -1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 1.0]], dtype=images.dtype) / 4
    flat = pad(images.flatten(0, 1).unsqueeze(1), (1, 1, 1, 1), mode="replicate")
    gradient = conv2d(flat, torch.stack([down, down.T]).unsqueeze(1))
    return gradient.norm(dim=1).view(images.shape).amax(1, keepdim=True)


def sketch(images: Tensor, semantic: Tensor, generator: np.random.Generator) -> Tensor:
    """Coloured pencil on paper: the local colour along the edges, thin hatching inside."""
    lines = (2.2 * sobel_magnitude(gaussian_blur(images, 0.6))).clamp(0, 1)
    digit = (semantic > 0).unsqueeze(1)
    height, width = images.shape[-2:]
    hatch = ((torch.arange(height)[:, None] + torch.arange(width)) % 4 == 0).float() * 0.65
    ink = torch.maximum(lines * torch.where(digit, 1.0, 0.55), torch.where(digit, hatch.expand(len(images), 1, -1, -1), 0.0))
    paper = torch.tensor([0.97, 0.955, 0.92]).view(1, 3, 1, 1)
    grain = torch.from_numpy(generator.normal(0, 0.012, (len(images), 1, height, width))).float()
    return paper * (1 - ink) + images * ink + grain


def poster(images: Tensor, semantic: Tensor, generator: np.random.Generator) -> Tensor:
    """Flat, saturated print: a few levels of each channel."""
    grey = images.mean(1, keepdim=True)
    vivid = (grey + 1.7 * (gaussian_blur(images, 0.8) - grey)).clamp(0, 1)
    return (vivid * 3.999).floor() / 3


def night(images: Tensor, semantic: Tensor, generator: np.random.Generator) -> Tensor:
    """Dark and noisy; the surroundings turn blue, the digits glow faintly."""
    digit = gaussian_blur((semantic > 0).unsqueeze(1).float(), 1.0)
    dark = images.mean(1, keepdim=True) * torch.tensor([0.16, 0.2, 0.38]).view(1, 3, 1, 1)
    grain = torch.from_numpy(generator.normal(0, 0.03, tuple(images.shape))).float()
    return torch.lerp(dark, 0.6 * images, digit) + grain


def watercolour(images: Tensor, semantic: Tensor, generator: np.random.Generator) -> Tensor:
    """Pale washes that run into one another, with darker rims, on rough paper."""
    height, width = images.shape[-2:]
    wash = gaussian_blur(images, 1.1)
    rims = (1.2 * sobel_magnitude(wash)).clamp(0, 0.35)
    rough = torch.from_numpy(generator.normal(0, 1, (len(images), 1, height // 2, width // 2))).float()
    rough = interpolate(rough, size=(height, width), mode="bicubic", align_corners=False)
    digit = gaussian_blur((semantic > 0).unsqueeze(1).float(), 0.8)
    pale = torch.lerp(0.55 + 0.45 * wash, 0.12 + 0.88 * wash, digit)
    return pale * (1 - 0.5 * rims) + 0.02 * rough


def blur(images: Tensor, semantic: Tensor, generator: np.random.Generator) -> Tensor:
    """A Gaussian blur of 1.5 pixels at a side of 64, in proportion at others."""
    return gaussian_blur(images, 1.5 * images.shape[-2] / 64)


def noise(images: Tensor, semantic: Tensor, generator: np.random.Generator) -> Tensor:
    """Gaussian noise of deviation 0.15."""
    return images + torch.from_numpy(generator.normal(0, 0.15, tuple(images.shape))).float()


def low_resolution(images: Tensor, semantic: Tensor, generator: np.random.Generator) -> Tensor:
    """A fourth of the resolution: means of 4x4 blocks, enlarged bicubically."""
    height, width = images.shape[-2:]
    small = avg_pool2d(images, 4, ceil_mode=True)
    return interpolate(small, size=(height, width), mode="bicubic", align_corners=False)


def grey(images: Tensor, semantic: Tensor, generator: np.random.Generator) -> Tensor:
    """Luminance alone, in three equal channels (ITU-R BT.601)."""
    return torch.einsum("nchw,c->nhw", images, torch.tensor([0.299, 0.587, 0.114])).unsqueeze(1).expand(-1, 3, -1, -1)


def hole(images: Tensor, semantic: Tensor, generator: np.random.Generator) -> Tensor:
    """A black square, somewhere; its area is a sixth of the picture's height squared."""
    count, _, height, width = images.shape
    side = round((height * height / 6) ** 0.5)
    top = torch.from_numpy(generator.integers(0, height - side + 1, count)).view(-1, 1, 1)
    left = torch.from_numpy(generator.integers(0, width - side + 1, count)).view(-1, 1, 1)
    rows, columns = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    return images.masked_fill(inside.unsqueeze(1), 0.0)


def edges(images: Tensor, semantic: Tensor, generator: np.random.Generator) -> Tensor:
    """White edges on black: where the Sobel gradient of the slightly blurred picture is longer than 0.18."""
    return (sobel_magnitude(gaussian_blur(images, 0.8)) > 0.18).float().expand(-1, 3, -1, -1)


def segments(images: Tensor, semantic: Tensor, generator: np.random.Generator) -> Tensor:
    """The semantic mask, a colour a class."""
    return PALETTE[semantic.long()].permute(0, 3, 1, 2).float() / 255


RENDERERS: Mapping[str, Callable[[Tensor, Tensor, np.random.Generator], Tensor]] = {
    "sketch": sketch,
    "poster": poster,
    "night": night,
    "watercolour": watercolour,
    "blur": blur,
    "noise": noise,
    "low-resolution": low_resolution,
    "grey": grey,
    "hole": hole,
    "edges": edges,
    "segments": segments,
}


def render_view(view: str, images: Tensor, semantic: Tensor, generator: np.random.Generator) -> Tensor:
    """Scenes in another look.

    Args:
        view: one of `VIEWS`.
        images: (N, 3, H, W) uint8, as drawn.
        semantic: (N, H, W) uint8 class masks, 0 background.
        generator: draws grain, noise and holes.

    Returns:
        (N, 3, H, W) uint8; "photo" gives the images themselves.

    Raises:
        DataError: if there is no such view.
    """
    if view not in VIEWS:
        raise DataError(f'no view "{view}"{nearest(view, VIEWS)}; there are {", ".join(VIEWS)}')
    if view == "photo":
        return images
    shown = torch.empty_like(images)
    for start in range(0, len(images), 512):  # bounds the memory of the float copies
        part = slice(start, start + 512)
        drawn = RENDERERS[view](images[part].float() / 255, semantic[part], generator)
        shown[part] = (drawn * 255).round().clamp(0, 255).byte()
    return shown
