"""Crops of four medical pictures that scikit-image ships in its wheel, to tell apart or to segment.

No expert has annotated them: each mask follows from the pixels by a published rule. For `ihc` and `cell` the rule defines what is
marked; for `retina` and `microaneurysms` it is a heuristic that looks for vessels, misses faint ones and marks some other edges.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from skimage.color import rgb2hed
from skimage.filters import apply_hysteresis_threshold, sato, threshold_otsu
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from graftwork import DataError, Dataset, DatasetInfo, TensorSamples
from graftwork.errors import nearest
from graftwork_testbed.photographs import BANDS, CropSize, read_image
from graftwork_testbed.splits import SPLITS, Seed

__all__ = [
    "PICTURES",
    "Picture",
    "bright_objects",
    "dark_ridges",
    "field_of_view",
    "load_picture",
    "medical_patches",
    "stained_tissue",
    "structure_mask",
]

Rectangle: TypeAlias = tuple[float, float, float, float]
"""(top, bottom, left, right), as shares of a picture's height and width."""

RIM = 12
"""Pixels between the edge of a fundus camera's field of view and the first crop: the edge itself looks like a vessel."""


def stained_tissue(image: Tensor) -> Tensor:
    """Where a brown stain (DAB) is: colour deconvolution (Ruifrok and Johnston, 2001) and Otsu's threshold of the stain's density.

    This is how the stained share of a slide is measured. Ruifrok, A. C. and Johnston, D. A., "Quantification of histochemical
    staining by color deconvolution", Analytical and Quantitative Cytology and Histology 23(4), 2001.

    Args:
        image: (3, H, W) uint8, stained with DAB and hematoxylin.

    Returns:
        (H, W) bool.
    """
    density = rgb2hed(image.permute(1, 2, 0).numpy())[..., 2]
    return torch.from_numpy(density > threshold_otsu(density))


def bright_objects(image: Tensor) -> Tensor:
    """Where the grey level lies above Otsu's threshold (1979, https://doi.org/10.1109/TSMC.1979.4310076).

    Args:
        image: (3, H, W) uint8, grey: the first channel is taken.

    Returns:
        (H, W) bool.
    """
    grey = image[0].numpy()
    return torch.from_numpy(grey > threshold_otsu(grey))


def dark_ridges(image: Tensor) -> Tensor:
    """Dark lines and spots in the green channel: ridge strength (Sato et al., 1998) above a threshold with hysteresis. A heuristic.

    Ridges are sought at widths of 1 to 3 pixels (standard deviation of the filter). A pixel is marked where its strength is above
    Otsu's threshold of the field of view and it is connected to one of twice that threshold. Sato, Y. et al., "Three-dimensional
    multi-scale line filter for segmentation and visualization of curvilinear structures in medical images", Medical Image
    Analysis 2(2), 1998.

    Args:
        image: (3, H, W) uint8, of the back of an eye.

    Returns:
        (H, W) bool; False outside the field of view.
    """
    strength = sato(image[1].numpy() / 255, sigmas=range(1, 4), black_ridges=True)
    inside = field_of_view(image)
    threshold = threshold_otsu(strength[inside.numpy()])
    return torch.from_numpy(apply_hysteresis_threshold(strength, threshold, 2 * threshold)) & inside


def field_of_view(image: Tensor) -> Tensor:
    """What a fundus camera sees, without the black around it and without a rim of `RIM` pixels.

    A picture of which less than a twentieth is black (red level under 20) has no such border, and all of it is seen.

    Args:
        image: (3, H, W) uint8.

    Returns:
        (H, W) bool.
    """
    red = image[0]
    if (red < 20).float().mean() < 0.05:
        return torch.ones_like(red, dtype=torch.bool)
    outside = (red <= threshold_otsu(red.numpy())).float()[None]
    widened = max_pool2d(outside, (1, 2 * RIM + 1), stride=1, padding=(0, RIM))  # in rows, then in columns: a square
    return max_pool2d(widened, (2 * RIM + 1, 1), stride=1, padding=(RIM, 0))[0] == 0


@dataclass(frozen=True)
class Picture:
    """A medical picture, what its mask marks, and which part of it belongs to which split.

    Args:
        path: inside the package skimage.
        structure: what the mask marks.
        rule: (3, H, W) uint8 -> (H, W) bool.
        heuristic: whether the rule only guesses at the structure.
        shrink: each shrink x shrink block of pixels becomes their mean before anything else.
        regions: split -> rectangle; those of different splits do not overlap.
    """

    path: str
    structure: str
    rule: Callable[[Tensor], Tensor]
    heuristic: bool = False
    shrink: int = 1
    regions: Mapping[str, Rectangle] = field(default_factory=lambda: {split: (0.0, 1.0, *columns) for split, columns in BANDS.items()})


PICTURES: Mapping[str, Picture] = {
    "retina": Picture("data/retina.jpg", "vessels", dark_ridges, heuristic=True, shrink=3),
    "ihc": Picture("data/ihc.png", "stained tissue", stained_tissue),
    # There is one cell: train has its upper half, val and test a lower quarter each.
    "cell": Picture(
        "data/cell.png",
        "cell",
        bright_objects,
        regions={"train": (0.0, 0.567, 0.0, 1.0), "val": (0.567, 1.0, 0.778, 1.0), "test": (0.567, 1.0, 0.0, 0.778)},
    ),
    # A quarter of 102 columns would be too narrow to crop from.
    "microaneurysms": Picture(
        "data/microaneurysms.png",
        "vessels and lesions",
        dark_ridges,
        heuristic=True,
        regions={"train": (0.0, 1.0, 0.0, 0.6), "val": (0.0, 0.4, 0.6, 1.0), "test": (0.4, 1.0, 0.6, 1.0)},
    ),
}
"""Name -> picture: a fundus photograph, stained tissue of the colon, the phase image of a cell, and a detail of a diseased fundus."""


def load_picture(name: str) -> Tensor:
    """A whole picture, (3, H, W) uint8, shrunk as `PICTURES` says; grey ones have three equal channels.

    Raises:
        DataError: if there is no picture of that name.
    """
    if name not in PICTURES:
        raise DataError(f'no medical picture "{name}"{nearest(name, PICTURES)}; there are {", ".join(PICTURES)}')
    return read_image("skimage", PICTURES[name].path, shrink=PICTURES[name].shrink)


def structure_mask(name: str) -> Tensor:
    """The structure of a whole picture by its rule, (H, W) bool.

    Raises:
        DataError: if there is no picture of that name.
    """
    image = load_picture(name)
    return PICTURES[name].rule(image)


@functools.cache
def _picture_and_mask(name: str) -> tuple[Tensor, Tensor]:
    """As `load_picture` and `structure_mask`, once in a process; to be read only."""
    image = load_picture(name)
    return image, PICTURES[name].rule(image)


def medical_patches(
    task: Literal["classify", "segment"] = "classify",
    size: CropSize = 32,
    crops: Annotated[int, Field(ge=1, le=4096)] = 128,
    channels: Literal[1, 3] = 3,
    classes: list[str] | None = None,
    structure_share: Annotated[float, Field(ge=0, le=1)] = 0.5,
    seed: Seed = 0,
) -> Dataset:
    """Square crops of a retina, of stained tissue (ihc), of a cell in a phase image, and of a retina with microaneurysms.

    Samples: `image` (channels, size, size) float32 in [0, 1], `label` (which picture) and `index` (position in the split); to
    segment also `mask` (size, size) long: 0 is the background, label + 1 the picture's structure. Both tasks have the same crops.

    Masks follow from the pixels; nobody drew them. `ihc`: stained tissue (`stained_tissue`); `cell`: the cell (`bright_objects`).
    Both rules look at one pixel at a time, so colours alone give these masks away: an easy task, harder for `ihc` in one channel.
    Those of `retina` (vessels) and `microaneurysms` (vessels and two lesions) are a heuristic (`dark_ridges`), and are left out
    of the task "segment" unless `classes` names them.

    Train, val and test come from regions of each picture that do not overlap (`PICTURES`), and of the retina only from inside the
    camera's field of view. There is but one cell, and each split sees a part of it: this tests a method, not a diagnosis.

    Args:
        task: "classify" has all four pictures; "segment" adds masks and has `ihc` and `cell`.
        size: height and width of a crop in pixels; the narrowest region has room for 41, and without `microaneurysms` for 70.
        crops: of each picture, in each split.
        channels: 3, or 1 for grey levels.
        classes: pictures to use, in the order of their labels.
        structure_share: share of the crops that lie on the structure: a pixel of it is drawn, then a crop around the pixel, as
            nnU-Net does for a third (Isensee et al., 2021, https://doi.org/10.1038/s41592-020-01008-z). The others lie anywhere.
        seed: of the positions.

    Raises:
        ValueError: if a parameter is out of range, or a crop does not fit its region.
        DataError: if there is no picture of a name.
    """
    if task not in ("classify", "segment"):
        raise ValueError(f'task must be "classify" or "segment"; found "{task}"')
    _check(size, crops, channels, structure_share, seed)
    trusted = [name for name, picture in PICTURES.items() if task == "classify" or not picture.heuristic]
    chosen = trusted if classes is None else list(classes)
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"classes must name at least one picture, and each once; found {chosen}")
    labels = torch.arange(len(chosen)).repeat_interleave(crops)
    splits = {}
    for split in SPLITS:
        drawn = [_crops(name, split, size, crops, structure_share, seed) for name in chosen]
        images = torch.cat([image for image, _ in drawn])
        columns = {"image": _grey(images) if channels == 1 else images, "label": labels, "index": torch.arange(len(labels))}
        if task == "segment":
            columns["mask"] = torch.cat([mask for _, mask in drawn]) * (labels + 1).view(-1, 1, 1)
        splits[split] = TensorSamples(**columns)
    described = "Crops of medical pictures" + (", with masks by rule" if task == "segment" else "")
    return Dataset(splits, DatasetInfo(classes=tuple(chosen), channels=channels, size=(size, size), description=described))


def _check(size: int, crops: int, channels: int, structure_share: float, seed: int) -> None:
    if not 8 <= size <= 256:
        raise ValueError(f"size must be 8 to 256 pixels; found {size}")
    if not 1 <= crops <= 4096:
        raise ValueError(f"crops must be 1 to 4096; found {crops}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3; found {channels}")
    if not 0 <= structure_share <= 1:
        raise ValueError(f"structure_share must be 0 to 1; found {structure_share}")
    if seed < 0:
        raise ValueError(f"the seed must not be negative; found {seed}")


def _crops(name: str, split: str, size: int, count: int, structure_share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Crops of a picture in a split, (N, 3, size, size) uint8, and where its structure is in them, (N, size, size) bool."""
    image, mask = _picture_and_mask(name)
    generator = np.random.default_rng([seed, SPLITS.index(split), *name.encode()])
    top, left = _positions(_region(image, name, split), mask, name, size, count, structure_share, generator)
    return _windows(image, top, left, size), _windows(mask[None], top, left, size)[:, 0]


def _region(image: Tensor, name: str, split: str) -> Tensor:
    """Pixels of a picture that belong to a split, (H, W) bool."""
    top, bottom, left, right = PICTURES[name].regions[split]
    height, width = image.shape[1:]
    region = torch.zeros(height, width, dtype=torch.bool)
    region[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
    return region & field_of_view(image)


def _positions(
    region: Tensor, mask: Tensor, name: str, size: int, crops: int, structure_share: float, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Top and left (crops,) of windows inside a region, in random order; a share of them lie on the mask.

    No window comes twice where there are enough of them.
    """
    inside = _sums(region, size) == size**2
    if not inside.any():
        room = bisect_left(range(1, min(region.shape) + 1), True, key=lambda side: not (_sums(region, side) == side**2).any())
        raise ValueError(f"crops of {size} pixels do not fit: {name} has room for {room}; ask for less, or leave it out of `classes`")
    windows = inside.nonzero()
    wanted = round(structure_share * crops)
    pixels = _sums(mask, size)[inside].double().numpy()  # drawing in proportion to it = drawing a pixel, then a window that holds it
    on_structure = _draw(pixels, wanted, generator)
    others = np.ones(len(windows))
    others[on_structure] = float(len(windows) < crops)
    chosen = generator.permutation(np.concatenate([on_structure, _draw(others, crops - wanted, generator)]))
    top, left = windows[torch.from_numpy(chosen)].T
    return top, left


def _draw(weights: NDArray[np.float64], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Positions in proportion to their weights, each at most once where enough of them have one."""
    if not count:
        return np.empty(0, dtype=np.int64)
    return generator.choice(len(weights), count, replace=np.count_nonzero(weights) < count, p=weights / weights.sum())


def _sums(mask: Tensor, size: int) -> Tensor:
    """How many pixels of a mask (H, W) each window holds, (H - size + 1, W - size + 1), by an integral image."""
    integral = pad(mask.long().cumsum(0).cumsum(1), (1, 0, 1, 0))
    return integral[size:, size:] - integral[:-size, size:] - integral[size:, :-size] + integral[:-size, :-size]


def _windows(image: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """(N, C, size, size) windows of an image (C, H, W)."""
    return image.unfold(1, size, 1).unfold(2, size, 1)[:, top, left].transpose(0, 1).contiguous()


def _grey(images: Tensor) -> Tensor:
    """(N, 1, H, W) uint8 luma of (N, 3, H, W) uint8 (ITU-R BT.601, as Pillow's "L")."""
    luma = torch.einsum("nchw,c->nhw", images.float(), torch.tensor([0.299, 0.587, 0.114]))
    return luma.round().byte().unsqueeze(1)
