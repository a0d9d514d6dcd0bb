"""Views of pictures that scikit-image and scikit-learn ship: what a camera would take of the same place again and again."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from graftwork_google_landmarks.extras import need

__all__ = ["PICTURES", "Picture", "collage", "distractors", "load_picture", "tiles", "views"]


class Picture(NamedTuple):
    """A picture whose tiles are landmarks.

    Args:
        package: import name of the distribution that ships it.
        path: inside the package.
        kind: supercategory.
        made: "natural" or "human-made".
        author: who made it.
        license: terms, as the package states them.
        shrink: each so many pixels squared become their mean.
    """

    package: str
    path: str
    kind: str
    made: str
    author: str
    license: str
    shrink: int = 1


FREE, CC0 = "no known copyright restrictions", "CC0"
PICTURES = {
    "astronaut": Picture("skimage", "data/astronaut.png", "person", "human-made", "NASA", "public domain"),
    "brick": Picture("skimage", "data/brick.png", "surface", "human-made", "CC0Textures", CC0),
    "camera": Picture("skimage", "data/camera.png", "person", "human-made", "Lav Varshney", CC0),
    "chelsea": Picture("skimage", "data/chelsea.png", "animal", "natural", "Stefan van der Walt", CC0),
    "china": Picture("sklearn", "datasets/images/china.jpg", "building", "human-made", "danielbuechele", "CC BY 2.0"),
    "coffee": Picture("skimage", "data/coffee.png", "object", "human-made", "Rachel Michetti", CC0),
    "coins": Picture("skimage", "data/coins.png", "object", "human-made", "Brooklyn Museum", FREE),
    "flower": Picture("sklearn", "datasets/images/flower.jpg", "plant", "natural", "vultilion", "CC BY 2.0"),
    "galaxies": Picture("skimage", "data/hubble_deep_field.jpg", "sky", "natural", "NASA", "public domain", 2),
    "grass": Picture("skimage", "data/grass.png", "surface", "natural", "DeepTexture", CC0),
    "gravel": Picture("skimage", "data/gravel.png", "surface", "natural", "CC0Textures", CC0),
    "moon": Picture("skimage", "data/moon.png", "sky", "natural", "NASA", "public domain"),
    "motorcycle": Picture("skimage", "data/motorcycle_left.png", "object", "human-made", "Middlebury stereo", "as scikit-image states"),
    "page": Picture("skimage", "data/page.png", "document", "human-made", "scikit-image", "as scikit-image states"),
    "retina": Picture("skimage", "data/retina.jpg", "tissue", "natural", "Mikael Haggstrom", CC0, 3),
    "rocket": Picture("skimage", "data/rocket.jpg", "object", "human-made", "SpaceX", "public domain"),
    "tissue": Picture("skimage", "data/ihc.png", "tissue", "natural", "CMMI", FREE),
}
"""Name -> picture, with what scikit-image and scikit-learn say of its author and terms."""

AUTHORS_URL = {
    "skimage": "https://scikit-image.org/docs/stable/api/skimage.data.html",
    "sklearn": "https://scikit-learn.org/stable/datasets.html",
}
"""Where the packages state the terms."""


def load_picture(name: str) -> Tensor:
    """A whole picture, (3, H, W) float32 in [0, 1].

    Raises:
        DataError: if the installed package lacks it.
        GraftworkError: if graftwork-testbed is not installed.
    """
    picture = PICTURES[name]
    read = need("graftwork_testbed.photographs", "photos").read_image
    return read(picture.package, picture.path, shrink=picture.shrink).float() / 255  # type: ignore[no-any-return]


def tiles(picture: Tensor, grid: int) -> list[Tensor]:
    """The grid x grid parts of a picture (3, H, W), row by row, that do not overlap."""
    rows = torch.tensor_split(picture, grid, dim=1)
    return [tile.contiguous() for row in rows for tile in torch.tensor_split(row, grid, dim=2)]


def views(tile: Tensor, count: int, size: int, generator: np.random.Generator) -> Tensor:
    """Photographs of one place: random perspective, light, colour, blur and noise.

    A view's frame is a quadrilateral inside the tile: a square of 65 to 95 % of its shorter side, turned by up to 12 degrees, each
    corner moved by up to 6 % of the side.

    Args:
        tile: (3, H, W) float32 in [0, 1].
        count: how many.
        size: height and width of a view in pixels.
        generator: of all draws.

    Returns:
        (count, 3, size, size) float32 in [0, 1].
    """
    height, width = tile.shape[1:]
    side = min(height, width) * generator.uniform(0.65, 0.95, count)
    angle = np.deg2rad(generator.uniform(-12, 12, count))
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2 + generator.uniform(-0.06, 0.06, (count, 4, 2))
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(-1, 2, 2)
    frame = np.einsum("nij,nkj->nki", turn, square) * side[:, None, None]
    reach = np.abs(frame).max(axis=1)
    extent = np.array([width, height])
    slack = np.maximum(extent / 2 - reach, 0)
    frame = frame + extent[None, None] / 2 + (generator.uniform(-1, 1, (count, 2)) * slack)[:, None]
    grid = _projective_grid(frame, size) / extent * 2 - 1
    source = tile[None].expand(count, -1, -1, -1)
    seen = grid_sample(source, torch.from_numpy(grid).float(), align_corners=False, padding_mode="reflection")
    return _taken(seen, generator)


def _projective_grid(corners: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Where each pixel's centre of a (size, size) view falls, (n, size, size, 2), by the homography onto corners (n, 4, 2)."""
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    n = len(corners)
    system = np.zeros((n, 8, 8))
    ones = np.column_stack([unit, np.ones(4)])
    system[:, :4, :3], system[:, 4:, 3:6] = ones, ones
    system[:, :4, 6:] = -unit * corners[:, :, :1]
    system[:, 4:, 6:] = -unit * corners[:, :, 1:]
    solved = np.linalg.solve(system, np.concatenate([corners[..., 0], corners[..., 1]], axis=1)[..., None])[..., 0]
    maps = np.concatenate([solved, np.ones((n, 1))], axis=1).reshape(n, 3, 3)
    centres = (np.arange(size) + 0.5) / size
    pixels = np.stack([*np.meshgrid(centres, centres), np.ones((size, size))], axis=-1)  # (size, size, 3)
    moved = np.einsum("nij,hwj->nhwi", maps, pixels)
    return np.asarray(moved[..., :2] / moved[..., 2:])


def _taken(seen: Tensor, generator: np.random.Generator) -> Tensor:
    """Light, colour, blur and noise of a camera."""
    n = len(seen)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(generator.uniform(low, high, (n, *shape))).float()

    lit = seen.clamp(1e-4, 1) ** draw(0.7, 1.4, 1, 1, 1) * draw(0.75, 1.15, 1, 1, 1) * draw(0.92, 1.08, 3, 1, 1)
    soft = interpolate(interpolate(lit, scale_factor=0.6, mode="bilinear", antialias=True), size=lit.shape[-2:], mode="bilinear")
    lit = torch.where(draw(0, 1, 1, 1, 1) < 0.25, soft, lit)
    noise = torch.from_numpy(generator.standard_normal(lit.shape, np.float32)) * draw(0.0, 0.03, 1, 1, 1)
    return (lit + noise).clamp(0, 1)


def collage(parts: Tensor) -> Tensor:
    """Four views (4, 3, size, size) side by side in one, (3, size, size)."""
    small = interpolate(parts, scale_factor=0.5, mode="bilinear", antialias=True)
    top, bottom = torch.cat([small[0], small[1]], dim=2), torch.cat([small[2], small[3]], dim=2)
    return torch.cat([top, bottom], dim=1)


def distractors(count: int, size: int, generator: np.random.Generator) -> Tensor:
    """Photographs of no landmark: one to three handwritten digits in colour before clouds, (count, 3, size, size) in [0, 1].

    Raises:
        GraftworkError: if graftwork-testbed is not installed.
    """
    digits, _ = need("graftwork_testbed.handwriting", "photos").load_digit_images(32)
    coarse = torch.from_numpy(generator.uniform(0, 1, (count, 3, 5, 5))).float()
    fine = torch.from_numpy(generator.uniform(0, 1, (count, 3, 20, 20))).float()
    clouds = [interpolate(each, size=(size, size), mode="bicubic", align_corners=False) for each in (coarse, fine)]
    shown = (0.75 * clouds[0] + 0.25 * clouds[1]).clamp(0, 1)
    for row in range(count):
        for _ in range(int(generator.integers(1, 4))):
            side = int(generator.integers(size // 4, size * 3 // 4))
            stroke = digits[int(generator.integers(len(digits)))].float()[None, None] / 255
            stroke = interpolate(stroke, size=(side, side), mode="bilinear", antialias=True)[0]
            top, left = generator.integers(0, size - side + 1, 2).tolist()
            colour = torch.from_numpy(generator.uniform(0, 1, (3, 1, 1))).float()
            place = shown[row, :, top : top + side, left : left + side]
            place.copy_(place * (1 - stroke) + colour * stroke)
    return _taken(shown, generator)
