"""Faces, and patches that are none: the subset of "Labeled Faces in the Wild" that scikit-image ships in its wheel."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Literal, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from graftwork import DataError, Dataset, DatasetInfo, TensorSamples
from graftwork_testbed.splits import Fraction, Seed, stratified_split

__all__ = ["FACE_CLASSES", "FaceClass", "FaceSize", "faces", "load_faces"]

FACE_CLASSES = ("face", "non-face")
"""In the order of scikit-image's array: 100 faces, then 100 other patches of such photographs."""

FaceClass: TypeAlias = Literal["face", "non-face"]
"""A class of patch."""

FaceSize: TypeAlias = Annotated[int, Field(ge=8, le=128)]
"""Height and width of a patch in pixels; 25 are the original's."""

NATIVE = 25
"""Height and width of a patch as scikit-image ships it."""


def load_faces(size: int = 32) -> tuple[Tensor, Tensor]:
    """Every patch, in scikit-image's order.

    Args:
        size: height and width in pixels, 8 to 128. At 25 the patches are the original ones; others are resampled by bicubic
            interpolation, with a low-pass filter where they shrink.

    Returns:
        (200, size, size) float32 grey levels in [0, 1] and (200,) long labels: 0 face, 1 non-face.

    Raises:
        ValueError: if the size is out of range.
        DataError: if the installed scikit-image lacks the file, or it holds something else.
    """
    if not 8 <= size <= 128:
        raise ValueError(f"size must be 8 to 128 pixels; found {size}")
    try:
        with files("skimage").joinpath("data/lfw_subset.npy").open("rb") as file:
            table = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"the installed skimage has no readable data/lfw_subset.npy ({error}); reinstall it from its wheel") from None
    if table.shape != (200, NATIVE, NATIVE):
        raise DataError(f"skimage's data/lfw_subset.npy should hold 200 patches of 25x25; found {table.shape}")
    images = torch.from_numpy(table).float().unsqueeze(1)
    if size != NATIVE:
        images = interpolate(images, size=(size, size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    return images.squeeze(1), torch.arange(2).repeat_interleave(100)


def faces(
    size: FaceSize = 32,
    channels: Literal[1, 3] = 3,
    classes: list[FaceClass] | None = None,
    views: Literal["whole", "halves"] = "whole",
    val_fraction: Fraction = 0.15,
    test_fraction: Fraction = 0.25,
    seed: Seed = 0,
) -> Dataset:
    """100 faces and 100 other patches, grey, of 25x25 pixels, from "Labeled Faces in the Wild".

    Samples: `image` (channels, size, size) float32 in [0, 1], `label` (0 face, 1 non-face) and `index`, the row in
    scikit-image's array. With views "halves" `image` (channels, size, size // 2) is the left half of a patch and `view`, of the
    same shape, its right half: two views of one thing, for methods that relate them. An odd size leaves out the column between.

    Nobody is named: a person may be in several splits, with different photographs. Of the non-faces 65 show the black border of a
    straightened photograph, and some a part of a face. Huang, G. B., Ramesh, M., Berg, T.
    and Learned-Miller, E., "Labeled Faces in the Wild", University of Massachusetts, Amherst, Technical Report 07-49, 2007,
    http://vis-www.cs.umass.edu/lfw/; aligned by Huang, Mattar, Lee and Learned-Miller, "Learning to Align from Scratch", 2012.

    Args:
        size: height and width of a patch in pixels.
        channels: 3 repeats the grey image, so that networks for photographs take it.
        classes: which to keep, in the order of their labels; both by default.
        views: "whole" patches, or "halves".
        val_fraction: share of each class that goes to val.
        test_fraction: share of each class that goes to test.
        seed: of the split.

    Raises:
        ValueError: if a parameter is out of range.
        DataError: if the installed scikit-image lacks the file.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3; found {channels}")
    if views not in ("whole", "halves"):
        raise ValueError(f'views must be "whole" or "halves"; found "{views}"')
    chosen = list(FACE_CLASSES) if classes is None else list(classes)
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(FACE_CLASSES):
        raise ValueError(f"classes must name face, non-face or both, each once; found {chosen}")
    images, kinds = load_faces(size)
    images = images.unsqueeze(1).repeat(1, channels, 1, 1)
    labels = torch.tensor([chosen.index(name) if name in chosen else -1 for name in FACE_CLASSES])[kinds]
    rows = (labels >= 0).nonzero().squeeze(1)
    half = size // 2
    columns = {"image": images} if views == "whole" else {"image": images[..., :half], "view": images[..., size - half :]}
    everything = TensorSamples(**columns, label=labels, index=torch.arange(len(labels)))
    parts = stratified_split(labels[rows], val_fraction, test_fraction, seed)
    width = size if views == "whole" else half
    info = DatasetInfo(classes=tuple(chosen), channels=channels, size=(size, width), description="Faces and other patches of photographs")
    return Dataset({name: everything.select(rows[part]) for name, part in parts.items()}, info)
