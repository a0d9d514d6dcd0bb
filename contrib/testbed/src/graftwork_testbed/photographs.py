"""Natural photographs that scikit-image and scikit-learn ship inside their wheels, read from the installed packages.

Nothing is fetched: a photograph that an installation lacks is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from graftwork import DataError, Dataset, DatasetInfo, TensorSamples
from graftwork.errors import nearest
from graftwork_testbed.splits import SPLITS, Seed

__all__ = ["BANDS", "PHOTOS", "CropSize", "Photo", "band", "load_photo", "photo_patches", "photos", "random_crops", "read_image"]

CropSize: TypeAlias = Annotated[int, Field(ge=8, le=256)]
"""Height and width of a crop in pixels."""

BANDS = {"train": (0.0, 0.6), "val": (0.6, 0.75), "test": (0.75, 1.0)}
"""Split -> the share of an image's width that its crops come from, where splits share images."""


@dataclass(frozen=True)
class Photo:
    """Where a photograph lies and which split it belongs to.

    Args:
        package: distribution's import name.
        path: inside the package.
        split: "train", "val" or "test".
    """

    package: str
    path: str
    split: str


PHOTOS: Mapping[str, Photo] = {
    "astronaut": Photo("skimage", "data/astronaut.png", "train"),
    "china": Photo("sklearn", "datasets/images/china.jpg", "train"),
    "coins": Photo("skimage", "data/coins.png", "train"),
    "motorcycle": Photo("skimage", "data/motorcycle_left.png", "train"),
    "camera": Photo("skimage", "data/camera.png", "val"),
    "rocket": Photo("skimage", "data/rocket.jpg", "val"),
    "chelsea": Photo("skimage", "data/chelsea.png", "test"),
    "coffee": Photo("skimage", "data/coffee.png", "test"),
    "flower": Photo("sklearn", "datasets/images/flower.jpg", "test"),
}
"""Name -> photograph."""


def read_image(package: str, path: str, mode: Literal["L", "RGB"] = "RGB", shrink: int = 1) -> Tensor:
    """An image file of an installed package.

    Args:
        package: import name.
        path: inside the package.
        mode: "L" for one grey channel, "RGB" for three.
        shrink: each shrink x shrink block of pixels becomes their mean.

    Returns:
        (C, H, W) uint8.

    Raises:
        DataError: if the package lacks the file.
    """
    try:
        with files(package).joinpath(path).open("rb") as file:
            image = Image.open(file).convert(mode).reduce(shrink)
    except OSError as error:
        raise DataError(f"the installed {package} has no {path} ({error}); reinstall it from its wheel") from None
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def load_photo(name: str, shrink: int = 1) -> Tensor:
    """A whole photograph, (3, H, W) uint8; grey ones have three equal channels.

    Args:
        name: one of `PHOTOS`.
        shrink: each shrink x shrink block of pixels becomes their mean.

    Raises:
        DataError: if there is no photograph of that name.
    """
    if name not in PHOTOS:
        raise DataError(f'no photograph "{name}"{nearest(name, PHOTOS)}; there are {", ".join(PHOTOS)}')
    return read_image(PHOTOS[name].package, PHOTOS[name].path, shrink=shrink)


def random_crops(image: Tensor, count: int, size: int, generator: np.random.Generator) -> Tensor:
    """Square crops at positions drawn uniformly.

    Args:
        image: (C, H, W).
        count: how many.
        size: height and width of a crop.
        generator: draws the positions.

    Returns:
        (count, C, size, size), of the image's dtype.

    Raises:
        ValueError: if the image is smaller than a crop.
    """
    height, width = image.shape[1:]
    if size > min(height, width):
        raise ValueError(f"a crop of {size} pixels does not fit an image of {height}x{width}")
    top = torch.from_numpy(generator.integers(0, height - size + 1, count))
    left = torch.from_numpy(generator.integers(0, width - size + 1, count))
    windows = image.unfold(1, size, 1).unfold(2, size, 1)  # (C, H - size + 1, W - size + 1, size, size), a view
    return windows[:, top, left].transpose(0, 1).contiguous()


def band(image: Tensor, split: str) -> Tensor:
    """The columns of an image (C, H, W) that belong to a split, by `BANDS`; those of different splits do not overlap."""
    low, high = BANDS[split]
    width = image.shape[2]
    return image[:, :, round(low * width) : round(high * width)]


def photo_patches(names: Sequence[str], count: int, size: int, generator: np.random.Generator) -> Tensor:
    """Crops, each of a photograph drawn uniformly.

    Args:
        names: of the photographs to draw from.
        count: how many crops.
        size: height and width of a crop.
        generator: draws photographs and positions.

    Returns:
        (count, 3, size, size) uint8.
    """
    drawn = torch.from_numpy(generator.integers(0, len(names), count))
    patches = torch.empty(count, 3, size, size, dtype=torch.uint8)
    for position, name in enumerate(names):
        chosen = drawn == position
        patches[chosen] = random_crops(load_photo(name), int(chosen.sum()), size, generator)
    return patches


def photos(
    size: CropSize = 32,
    crops: Annotated[int, Field(ge=1, le=4096)] = 128,
    shrink: Annotated[int, Field(ge=1, le=8)] = 1,
    names: list[str] | None = None,
    split_by: Literal["photo", "region"] = "photo",
    seed: Seed = 0,
) -> Dataset:
    """Square crops of nine natural photographs, in three channels.

    Samples: `image` (3, size, size) float32 in [0, 1], `label` (which photograph) and `index` (position in the split).

    Args:
        size: height and width of a crop in pixels.
        crops: drawn from each photograph, in each split that it belongs to.
        shrink: photographs are first made this many times smaller, so that a crop shows more of the scene.
        names: photographs to use, in the order of their labels; all by default.
        split_by: "photo" keeps whole photographs apart (`PHOTOS` says which is where); "region" cuts each of them in vertical
            bands, 60 % of the width for train, 15 % for val, 25 % for test, so that every photograph is in every split.
        seed: of the positions.

    Raises:
        ValueError: if a parameter is out of range, or a split is left without a photograph.
        DataError: if there is no photograph of a name.
    """
    chosen = list(PHOTOS) if names is None else list(names)
    if split_by not in ("photo", "region"):
        raise ValueError(f'split_by must be "photo" or "region"; found "{split_by}"')
    if not 1 <= shrink <= 8:
        raise ValueError(f"shrink must be 1 to 8; found {shrink}")
    whole = {name: load_photo(name, shrink) for name in chosen}
    sources: dict[str, dict[str, Tensor]] = {
        split: {
            name: image if split_by == "photo" else band(image, split)
            for name, image in whole.items()
            if split_by == "region" or PHOTOS[name].split == split
        }
        for split in SPLITS
    }
    empty = [split for split in SPLITS if not sources[split]]
    if empty:
        raise ValueError(f'{", ".join(chosen) or "no names"}: no photograph is left for {", ".join(empty)}; use split_by "region"')
    return cropped_dataset(sources, chosen, crops, size, seed, "Crops of natural photographs")


def cropped_dataset(
    sources: Mapping[str, Mapping[str, Tensor]], classes: Sequence[str], crops: int, size: int, seed: int, description: str
) -> Dataset:
    """Labelled random crops.

    Args:
        sources: split -> class -> image (C, H, W) uint8 to crop from.
        classes: in the order of their labels.
        crops: of each image, in each split.
        size: height and width of a crop.
        seed: non-negative; the crops of an image depend on nothing but the seed, its class and its split.
        description: one sentence.

    Raises:
        ValueError: if a parameter is out of range, a class is named twice, or an image is smaller than a crop.
    """
    if len(set(classes)) != len(classes):
        raise ValueError(f"{', '.join(classes)}: one is named twice")
    if not 8 <= size <= 256:
        raise ValueError(f"size must be 8 to 256 pixels; found {size}")
    if not 1 <= crops <= 4096:
        raise ValueError(f"crops must be 1 to 4096; found {crops}")
    if seed < 0:
        raise ValueError(f"the seed must not be negative; found {seed}")
    largest = min(min(image.shape[1:]) for images in sources.values() for image in images.values())
    if size > largest:
        raise ValueError(f"crops of {size} pixels do not fit: the smallest region has room for {largest}")
    splits = {}
    for number, (split, images) in enumerate(sources.items()):
        drawn = [random_crops(image, crops, size, np.random.default_rng([seed, number, *name.encode()])) for name, image in images.items()]
        labels = torch.tensor([classes.index(name) for name in images]).repeat_interleave(crops)
        splits[split] = TensorSamples(image=torch.cat(drawn), label=labels, index=torch.arange(len(labels)))
    channels = next(iter(sources["train"].values())).shape[0]
    return Dataset(splits, DatasetInfo(classes=tuple(classes), channels=channels, size=(size, size), description=description))
