"""Drawing scenes: many at a time, from a layout, strokes and backgrounds to pixels, masks and boxes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

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
        angles: (N, K) degrees, clockwise.
        size: of the canvas in pixels.

    Returns:
        (N, K, size, size) float in [0, 1].
    """
    present = sizes > 0  # the others are not worth their drawing: (M) of (N, K)
    radians = torch.deg2rad(angles[present])
    cosine, sine = (wave / sizes[present] for wave in (radians.cos(), radians.sin()))
    x, y = (2 * centres[present] - 1).unbind(-1)
    matrix = torch.stack([cosine, sine, -(cosine * x + sine * y), -sine, cosine, sine * x - cosine * y], dim=-1)
    grid = affine_grid(matrix.view(-1, 2, 3), [len(matrix), 1, size, size], align_corners=False)
    drawn = grid_sample(strokes[present].unsqueeze(1).float() / 255, grid, align_corners=False)
    return spread(sharpen(drawn.squeeze(1)), present)


def spread(drawn: Tensor, present: Tensor) -> Tensor:
    """Pictures (M, H, W) of what is present, at their places (N, K) of which M are true; zeros elsewhere: (N, K, H, W)."""
    placed = drawn.new_zeros(*present.shape, *drawn.shape[1:])
    placed[present] = drawn
    return placed


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
    image, visible = background.clone(), alphas > VISIBLE
    instances = torch.zeros(alphas.shape[0], *alphas.shape[2:], dtype=torch.uint8)
    for slot in range(alphas.shape[1]):
        drawn = alphas[:, slot].flatten(1).amax(1).nonzero()[:, 0]  # scenes that have this digit
        alpha = alphas[drawn, slot].unsqueeze(1)
        under = image[drawn].mul_(1 - 0.55 * widened(alpha)).mul_(1 - alpha)
        image[drawn] = under.add_(colours[drawn, slot, :, None, None] * alpha)
        instances.masked_fill_(visible[:, slot], slot + 1)
    return Canvas((image * 255).round().clamp(0, 255).byte(), instances, extents(visible))


def widened(alphas: Tensor) -> Tensor:
    """The largest opacity within a pixel of each, diagonally too: (N, 1, H, W), as a 3x3 maximum pooling gives, in a tenth of the time."""
    for axis in (-1, -2):
        length, near = alphas.shape[axis], alphas.clone()
        for start in (0, 1):  # the neighbour before, the neighbour after
            here, there = near.narrow(axis, 1 - start, length - 1), alphas.narrow(axis, start, length - 1)
            torch.maximum(here, there, out=here)
        alphas = near
    return alphas


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
