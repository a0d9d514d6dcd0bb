"""Drawing scenes: many at a time, from a layout, strokes and backgrounds to pixels, masks and boxes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, max_pool2d

__all__ = ["Canvas", "compose", "extents", "mute", "stroke_alphas"]

VISIBLE = 0.5
"""Opacity from which a pixel counts as the digit's, in masks and boxes."""

LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Canvas:
    """Drawn scenes.

    Args:
        image: (N, 3, H, W) uint8.
        instances: (N, H, W) uint8, 0 background, k the k-th digit.
        boxes: (N, 4, 4) float32 xyxy in pixels, tight around each digit's visible strokes; zeros beyond a scene's count.
    """

    image: Tensor
    instances: Tensor
    boxes: Tensor


def stroke_alphas(strokes: Tensor, centres: Tensor, sizes: Tensor, angles: Tensor, size: int) -> Tensor:
    """Opacity of each digit on the scene's canvas, by bilinear sampling.

    Args:
        strokes: (N, K, h, w) uint8, white on black.
        centres: (N, K, 2) in [0, 1], across and down.
        sizes: (N, K), side as a share of the canvas; 0 draws nothing.
        angles: (N, K) degrees.
        size: of the canvas in pixels.

    Returns:
        (N, K, size, size) float in [0, 1].
    """
    count, slots = sizes.shape
    radians = torch.deg2rad(angles)
    cosine, sine = (wave / sizes.clamp(min=1e-6) for wave in (radians.cos(), radians.sin()))
    x, y = (2 * centres - 1).unbind(-1)
    matrix = torch.stack([cosine, sine, -(cosine * x + sine * y), -sine, cosine, sine * x - cosine * y], dim=-1)
    grid = affine_grid(matrix.view(count * slots, 2, 3), [count * slots, 1, size, size], align_corners=False)
    drawn = grid_sample(strokes.reshape(count * slots, 1, *strokes.shape[2:]).float() / 255, grid, align_corners=False)
    return sharpen(drawn.view(count, slots, size, size)) * (sizes > 0)[..., None, None]


def sharpen(strokes: Tensor) -> Tensor:
    """Opacity of grey strokes: enlarged from 8x8 they fade over several pixels; a smooth step from 0.25 to 0.6 gives them an edge."""
    ramp = ((strokes - 0.25) / 0.35).clamp(0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def mute(patches: Tensor, strength: float) -> Tensor:
    """Pull photographs towards a dark grey, so that coloured digits stand out.

    Args:
        patches: (N, 3, H, W) float in [0, 1].
        strength: 0 leaves them as they are, 1 takes colour and a half of the brightness.
    """
    grey = torch.einsum("nchw,c->nhw", patches, torch.tensor(LUMA)).unsqueeze(1)
    return torch.lerp(patches, grey, strength) * (1 - 0.5 * strength)


def compose(alphas: Tensor, colours: Tensor, background: Tensor) -> Canvas:
    """Paint digits over a background, later ones over earlier ones, each with a dark rim.

    Args:
        alphas: (N, K, H, W) opacity of each digit.
        colours: (N, K, 3) float in [0, 1].
        background: (N, 3, H, W) float in [0, 1].
    """
    image = background
    instances = torch.zeros(alphas.shape[0], *alphas.shape[2:], dtype=torch.uint8)
    for slot in range(alphas.shape[1]):
        alpha = alphas[:, slot, None]
        rim = max_pool2d(alpha, 3, 1, 1)
        image = image * (1 - 0.55 * rim)
        image = image * (1 - alpha) + colours[:, slot, :, None, None] * alpha
        instances.masked_fill_(alphas[:, slot] > VISIBLE, slot + 1)
    return Canvas((image * 255).round().clamp(0, 255).byte(), instances, extents(alphas > VISIBLE))


def extents(visible: Tensor) -> Tensor:
    """Tight boxes around masks.

    Args:
        visible: (..., H, W) bool.

    Returns:
        (..., 4) float32 xyxy, the right and lower edges past the last pixel; zeros for an empty mask.
    """
    across, down = visible.any(-2), visible.any(-1)  # (..., W), (..., H)
    first, last = zip(
        *((line.float().argmax(-1), line.shape[-1] - line.flip(-1).float().argmax(-1)) for line in (across, down)), strict=True
    )
    boxes = torch.stack([first[0], first[1], last[0], last[1]], dim=-1).float()
    return boxes * across.any(-1, keepdim=True)
