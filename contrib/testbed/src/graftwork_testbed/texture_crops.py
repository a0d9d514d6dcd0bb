"""Textures: photographs of one surface each, which scikit-image ships in its wheel, as labelled grey crops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from graftwork import DataError, Dataset
from graftwork.errors import nearest
from graftwork_testbed.photographs import BANDS, CropSize, band, cropped_dataset, read_image
from graftwork_testbed.splits import Seed

__all__ = ["TEXTURES", "textures"]

TEXTURES: Mapping[str, str] = {
    "brick": "data/brick.png",
    "grass": "data/grass.png",
    "gravel": "data/gravel.png",
    "regolith": "data/moon.png",
    "stars": "data/hubble_deep_field.jpg",
    "tissue": "data/ihc.png",
}
"""Class -> file of the package skimage."""


def textures(
    size: CropSize = 32,
    crops: Annotated[int, Field(ge=1, le=4096)] = 128,
    channels: Literal[1, 3] = 3,
    classes: list[str] | None = None,
    seed: Seed = 0,
) -> Dataset:
    """Square crops of six surfaces: brick, grass, gravel, regolith (the Moon), stars (a deep field), tissue (stained cells).

    All are grey, since colour alone would give some classes away. Train, val and test come from vertical bands of each photograph
    that do not overlap: 60 %, 15 % and 25 % of its width.

    Samples: `image` (channels, size, size) float32 in [0, 1], `label` and `index` (position in the split).

    Args:
        size: height and width of a crop in pixels; the narrowest band has room for 77.
        crops: of each surface, in each split.
        channels: 3 repeats the grey image, so that networks for photographs take it.
        classes: surfaces to use, in the order of their labels; all by default.
        seed: of the positions.

    Raises:
        ValueError: if a parameter is out of range, or a crop does not fit its band.
        DataError: if there is no surface of a name.
    """
    chosen = list(TEXTURES) if classes is None else list(classes)
    if not chosen:
        raise ValueError("classes is empty: name at least one surface")
    for name in chosen:
        if name not in TEXTURES:
            raise DataError(f'no texture "{name}"{nearest(name, TEXTURES)}; there are {", ".join(TEXTURES)}')
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3; found {channels}")
    whole = {name: read_image("skimage", TEXTURES[name], "L").repeat(channels, 1, 1) for name in chosen}
    sources = {split: {name: band(image, split) for name, image in whole.items()} for split in BANDS}
    return cropped_dataset(sources, chosen, crops, size, seed, "Grey crops of surfaces")
