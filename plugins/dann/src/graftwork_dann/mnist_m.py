"""MNIST-M's recipe for any digits and any photographs: the absolute difference of a binarised digit and a random patch.

From "Domain-Adversarial Training of Neural Networks" (Ganin et al., 2016), section 5.2.3, https://arxiv.org/abs/1505.07818.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from graftwork import DataError, Dataset, DatasetInfo, TensorSamples

__all__ = ["MnistM", "blend"]


def blend(digits: Tensor, photos: Tensor, threshold: float = 0.0) -> Tensor:
    """|photo - digit| per channel with the digit binarised: the photo off the digit, its negative on it.

    Signed in between, so that nothing wraps around.

    Args:
        digits: (N, C or 1, H, W) in [0, 1] or uint8, light on dark.
        photos: (N, 3, H, W) uint8.
        threshold: a pixel above it, as a share of white, belongs to the digit.

    Returns:
        (N, 3, H, W) uint8.

    Raises:
        ValueError: if photos are not uint8, or the sizes differ.
    """
    if photos.dtype != torch.uint8 or digits.shape[-2:] != photos.shape[-2:]:
        raise ValueError(f"photos are uint8 and of the digits' size; found {photos.dtype}, {tuple(photos.shape)} and {tuple(digits.shape)}")
    limit = threshold * (1 if digits.is_floating_point() else 255)
    white = 255 * (digits.amax(dim=1, keepdim=True) > limit).short()
    return (photos.short() - white).abs().byte()


class MnistM(Dataset):
    """Digits as they are, and the same digits blended into photographs, as two domains.

    Splits: "digits/train" and "mnist-m/train" for each split of the digits ("train" here). Those of a blended split come from the
    photographs' split of the same name, so that train and test share no photograph where the given sets do not. Images have three
    channels; `domain` is 0 for digits and 1 for blended ones, `index` the position in the digits' split.

    Args:
        digits: images, grey or in colour, light on dark, with labels.
        photos: images in colour, of any size from the digits' up.
        threshold: a pixel above it, as a share of white, belongs to the digit.
        seed: of the photographs and positions that are drawn.

    Raises:
        DataError: if the photographs lack a split of the digits, a sample lacks an image, or a photograph is too small.
    """

    def __init__(
        self,
        digits: Dataset,
        photos: Dataset,
        threshold: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        seed: Annotated[int, Field(ge=0)] = 0,
    ):
        if not 0 <= threshold < 1 or seed < 0:
            raise ValueError(f"threshold is in [0, 1) and the seed not negative; found {threshold} and {seed}")
        splits = {}
        for number, split in enumerate(digits):
            images, labels = _column(digits, split, "image"), _column(digits, split, "label")
            crops = _crops(photos, split, images, torch.Generator().manual_seed((seed << 8) + number))
            index = torch.arange(len(images))
            plain = (255 * images).round().byte()
            plain = plain.expand(-1, 3, -1, -1) if plain.shape[1] == 1 else plain
            for domain, (name, pixels) in enumerate((("digits", plain), ("mnist-m", blend(images, crops, threshold)))):
                splits[f"{name}/{split}"] = TensorSamples(image=pixels, label=labels, domain=torch.full_like(index, domain), index=index)
        info = DatasetInfo(
            classes=digits.info.classes,
            channels=3,
            size=digits.info.size,
            domains=("digits", "mnist-m"),
            description="Digits, and the same blended into photographs",
        )
        super().__init__(dict(sorted(splits.items())), info)


def _column(data: Dataset, split: str, key: str) -> Tensor:
    """One key of a split's samples, (N, ...)."""
    samples: Any = data[split]
    if not len(samples):
        raise DataError(f'split "{split}" is empty')
    if key not in samples[0]:
        raise DataError(f'mnist-m reads "{key}"; the samples of "{split}" have {", ".join(samples[0])}')
    values = data.collate([samples[position] for position in range(len(samples))])[key]
    if not isinstance(values, Tensor):
        raise DataError(f'the samples of "{split}" differ in the shape of "{key}": mnist-m needs digits of one size')
    return values


def _crops(photos: Dataset, split: str, images: Tensor, generator: torch.Generator) -> Tensor:
    """For each image a patch of its size out of a random photograph at a random place: (N, 3, H, W) uint8."""
    name = split.rpartition("/")[2]
    if name not in photos and split not in photos:
        raise DataError(f'the digits have a split "{split}", the photographs have none for it; they have {", ".join(photos)}')
    samples: Any = photos[split if split in photos else name]
    height, width = images.shape[-2:]
    chosen = torch.randint(len(samples), (len(images),), generator=generator)
    places = torch.rand(len(images), 2, generator=generator)
    crops = torch.empty(len(images), 3, height, width, dtype=torch.uint8)
    for position in chosen.unique().tolist():  # once a photograph, for all the digits that go into it
        photo = (255 * samples[position]["image"]).round().byte()
        if photo.shape[0] != 3 or photo.shape[1] < height or photo.shape[2] < width:
            raise DataError(f'photograph {position} of "{name}" is {tuple(photo.shape)}: 3 channels and {height}x{width} pixels are needed')
        rows = chosen == position
        room = torch.tensor([photo.shape[1] - height + 1, photo.shape[2] - width + 1])
        top, left = (places[rows] * room).long().unbind(dim=1)
        crops[rows] = photo.unfold(1, height, 1).unfold(2, width, 1)[:, top, left].transpose(0, 1)
    return crops
