"""Scenes all around: digits on a sphere in a room of six photographs, as equirectangular frames.

Column and row of a frame are longitude and latitude: a pixel shows the direction
(cos(lat) sin(lon), sin(lat), cos(lat) cos(lon)), with lon from -pi to pi and lat from pi/2 (top) to -pi/2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from graftwork_testbed.scenes.layout import AT_ONCE, CANDIDATES, DOUBT, MOST
from graftwork_testbed.scenes.render import sharpen, spread

__all__ = ["directions", "distortion", "place_around", "room", "sphere_alphas"]

SHRINK = 0.5
"""A digit that takes a share s of a flat scene's side spans an angle of s pi times this around."""

STEEPEST = math.radians(50)
"""Largest latitude of a digit's centre."""


def directions(size: int) -> Tensor:
    """Unit directions (size, 2 size, 3) that the pixels of a frame show; x right, y up, z ahead."""
    latitude = (0.5 - (torch.arange(size) + 0.5) / size) * math.pi
    longitude = ((torch.arange(2 * size) + 0.5) / size - 1) * math.pi
    latitude, longitude = torch.meshgrid(latitude, longitude, indexing="ij")
    return torch.stack([latitude.cos() * longitude.sin(), latitude.sin(), latitude.cos() * longitude.cos()], dim=-1)


def distortion(size: int) -> Tensor:
    """How many times wider than high a small disc on the sphere appears at each pixel: 1 / cos(latitude), (size, 2 size) float."""
    latitude = (0.5 - (torch.arange(size) + 0.5) / size) * math.pi
    return (1 / latitude.cos()).unsqueeze(1).repeat(1, 2 * size)


def place_around(sizes: Tensor, counts: Tensor, generator: np.random.Generator) -> Tensor:
    """Longitude and latitude of each digit's centre: apart from one another, off the poles and off the seam behind.

    Args:
        sizes: (N, 4), as a layout has them.
        counts: (N,) digits a scene.
        generator: draws the positions.

    Returns:
        (N, 4, 2) float, longitude and latitude in radians.
    """
    radii = (sizes * math.pi * SHRINK / 2 * math.sqrt(2)).numpy()  # half the diagonal of a digit's square
    present = np.arange(MOST) < counts.numpy()[:, None]
    centres = np.zeros((*radii.shape, 2))
    waiting = np.arange(len(radii))
    for _ in range(40):
        if not len(waiting):
            break
        shape = (len(waiting), CANDIDATES, MOST)
        longitude, latitude = generator.uniform(-math.pi, math.pi, shape), generator.uniform(-STEEPEST, STEEPEST, shape)
        parts = [slice(start, start + AT_ONCE) for start in range(0, len(waiting), AT_ONCE)]
        fits = np.concatenate(
            [_fits_around(longitude[part], latitude[part], radii[waiting[part], None], present[waiting[part]]) for part in parts]
        )
        first, found = fits.argmax(1), fits.any(1)
        tried = np.stack([longitude, latitude], -1)
        centres[waiting[found]] = tried[np.arange(len(waiting)), first][found]
        waiting = waiting[~found]
    if len(waiting):  # a quarter of the horizon each
        centres[waiting] = np.array([[-2.2, 0.1], [-0.7, -0.1], [0.75, 0.12], [2.2, -0.12]])
    return torch.from_numpy(centres * present[..., None]).float()


def _fits_around(longitude: Any, latitude: Any, radii: Any, present: Any) -> Any:
    """Whether candidates (W, K, 4) keep digits apart, off the seam, and the first relation plain: (W, K)."""
    width = np.arcsin(np.clip(np.sin(radii) / np.cos(latitude), 0, 1))  # half of what a disc spans in longitude
    inside = (np.abs(longitude) + width < math.pi) & (np.abs(latitude) + radii < math.radians(80))
    ahead = [np.cos(latitude) * np.sin(longitude), np.sin(latitude), np.cos(latitude) * np.cos(longitude)]
    cosine = sum(axis[..., :, None] * axis[..., None, :] for axis in ahead)
    apart = np.arccos(np.clip(cosine, -1, 1)) > radii[..., :, None] + radii[..., None, :]
    pairs = present[:, None, :, None] & present[:, None, None] & ~np.eye(MOST, dtype=bool)
    offsets = np.abs(longitude[..., 0] - longitude[..., 1]) / 2 - np.abs(latitude[..., 0] - latitude[..., 1])
    plain = np.abs(offsets) > DOUBT * math.pi
    return (inside | ~present[:, None]).all(-1) & (apart | ~pairs).all((2, 3)) & (plain | ~present[:, None, 1])


def sphere_alphas(strokes: Tensor, places: Tensor, sizes: Tensor, angles: Tensor, size: int) -> Tensor:
    """Opacity of each digit on an equirectangular frame; a digit lies on the plane that touches the sphere at its centre (gnomonic).

    Args:
        strokes: (N, 4, h, w) uint8, white on black.
        places: (N, 4, 2) longitude and latitude of the centres.
        sizes: (N, 4), as a layout has them; 0 draws nothing.
        angles: (N, 4) degrees by which each digit is turned, clockwise.
        size: height of the frame in pixels; it is twice as wide.

    Returns:
        (N, 4, size, 2 size) float in [0, 1].
    """
    present = sizes > 0
    places, sizes, angles = places[present], sizes[present], angles[present]
    (sin_lon, sin_lat), (cos_lon, cos_lat) = places.sin().unbind(-1), places.cos().unbind(-1)
    ahead = torch.stack([cos_lat * sin_lon, sin_lat, cos_lat * cos_lon], -1)
    right = torch.stack([cos_lon, torch.zeros_like(cos_lon), -sin_lon], -1)
    up = torch.stack([-sin_lat * sin_lon, cos_lat, -sin_lat * cos_lon], -1)
    seen = directions(size)
    depth, x, y = (torch.einsum("hwd,md->mhw", seen, axis) for axis in (ahead, right, up))
    half = torch.tan(sizes * math.pi * SHRINK / 2)[..., None, None]
    x, y = (axis / depth.clamp(min=1e-6) / half for axis in (x, y))
    radians = torch.deg2rad(angles)[..., None, None]
    turned = torch.stack([radians.cos() * x - radians.sin() * y, -radians.sin() * x - radians.cos() * y], -1)  # rows run down
    grid = torch.where((depth > 0)[..., None], turned, 9.0)  # far outside, for what lies behind
    drawn = grid_sample(strokes[present].unsqueeze(1).float() / 255, grid, align_corners=False)
    return spread(sharpen(drawn.squeeze(1)), present)


def room(walls: Tensor) -> Tensor:
    """A room of six pictures, seen all around.

    Args:
        walls: (N, 6, 3, s, s) float: right, left, above, below, ahead, behind, each seen from inside.

    Returns:
        (N, 3, s, 2 s) float, bilinear.
    """
    side = walls.shape[-1]
    seen = directions(side)
    axis = seen.abs().argmax(-1)
    sign = torch.gather(seen, -1, axis.unsqueeze(-1)).squeeze(-1) < 0
    x, y, z = (seen / seen.abs().amax(-1, keepdim=True)).unbind(-1)
    frames = ((-z, -y), (z, -y), (x, z), (x, -z), (x, -y), (-x, -y))
    wall = 2 * axis + sign.long()
    across, down = (torch.stack([frame[end] for frame in frames]).gather(0, wall[None])[0] for end in (0, 1))
    column, row = (((end + 1) / 2 * side - 0.5).clamp(0, side - 1) for end in (across, down))
    left, top = column.floor().long(), row.floor().long()
    flat = walls.transpose(1, 2).flatten(2)  # (N, 3, 6 s s)
    shown = torch.zeros(walls.shape[0], 3, side, 2 * side)
    for step_down in (0, 1):
        for step_right in (0, 1):
            weight = (1 - (row - top - step_down).abs()).clamp(min=0) * (1 - (column - left - step_right).abs()).clamp(min=0)
            rows, columns = (top + step_down).clamp(max=side - 1), (left + step_right).clamp(max=side - 1)
            shown += weight * flat[..., (wall * side + rows) * side + columns]
    return shown
