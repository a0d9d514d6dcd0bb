"""Random crops of a batch, on its own device: the training crop of DELG's Google Landmarks pipeline."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

__all__ = ["random_crops"]

ATTEMPTS = 10
"""Boxes drawn for each image, of which the first that fits is taken; the whole image where none does."""


def random_crops(
    images: Tensor,
    size: int,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Cut a random box out of each image and resize it, bilinearly (Szegedy et al., 2015; the ranges of DELG's googlelandmarks.py).

    All images are cut by one sampling, without a loop or a wait for the device. A box that is shrunk much is sampled, not averaged.

    Args:
        images: (B, C, H, W).
        size: height and width of a crop.
        area: of the box, as a share of the image, uniform.
        ratio: of the box's width to its height, uniform.
        generator: of the boxes, on the images' device; the global one by default.

    Returns:
        (B, C, size, size).

    Raises:
        ValueError: if a range is empty or out of (0, 1], or (0, inf) for the ratio, or the size is not positive.
    """
    if size < 1:
        raise ValueError(f"size is at least 1; found {size}")
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"area is a range within (0, 1]; found {area}")
    if not 0 < ratio[0] <= ratio[1] < math.inf:
        raise ValueError(f"ratio is a range above 0; found {ratio}")
    count, _, height, width = images.shape
    drawn = torch.rand(4, count, ATTEMPTS, generator=generator, device=images.device)
    share, aspect = (low + (high - low) * part for (low, high), part in zip((area, ratio), drawn[:2], strict=True))
    across = (share * aspect * height / width).sqrt()  # of the image's width, as `down` is of its height
    down = (share / aspect * width / height).sqrt()
    fits = (across <= 1) & (down <= 1)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    none = ~fits.any(dim=1)
    sides = [torch.where(none, 1.0, side.gather(1, first)[:, 0]) for side in (across, down)]
    starts = [(1 - side) * place.gather(1, first)[:, 0] for side, place in zip(sides, drawn[2:], strict=True)]
    steps = (torch.arange(size, device=images.device) + 0.5) / size
    x, y = (2 * (start[:, None] + side[:, None] * steps) - 1 for start, side in zip(starts, sides, strict=True))
    grid = torch.stack([x[:, None].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1)
    return grid_sample(images, grid.to(images.dtype), align_corners=False, padding_mode="border")
