"""The handwritten digits in six domains: clean, photo, inverted, rotated, noisy, edges.

The photo domain follows MNIST-M (Ganin et al., "Domain-Adversarial Training of Neural Networks", 2016,
https://arxiv.org/abs/1505.07818): the absolute difference, per channel, of a digit and a random patch of a photograph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, pad

from graftwork import DataError, Dataset, DatasetInfo, TensorSamples
from graftwork.errors import nearest
from graftwork_testbed.handwriting import CLASSES, ImageSize, load_digit_images
from graftwork_testbed.photographs import PHOTOS, photo_patches
from graftwork_testbed.splits import Fraction, Seed, stratified_split

__all__ = ["DOMAINS", "Domain", "add_noise", "blend", "digit_domains", "invert", "rotate", "trace_edges"]

Domain: TypeAlias = Literal["clean", "photo", "inverted", "rotated", "noisy", "edges"]
"""Name of a domain."""

DOMAINS: tuple[Domain, ...] = ("clean", "photo", "inverted", "rotated", "noisy", "edges")


def blend(images: Tensor, patches: Tensor) -> Tensor:
    """|patch - digit| per channel, the formula of MNIST-M; signed in between, so that nothing wraps around.

    Args:
        images: (N, H, W) uint8, white digits on black.
        patches: (N, 3, H, W) uint8, of photographs.

    Returns:
        (N, 3, H, W) uint8: the patch where the digit is black, its negative where the digit is white.
    """
    return (patches.short() - images.short().unsqueeze(1)).abs().byte()


def invert(images: Tensor) -> Tensor:
    """Black digits on white: 255 - image, uint8."""
    return 255 - images


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate images about their centre, counter-clockwise, by bilinear interpolation; what comes in from outside is black.

    Args:
        images: (N, H, W) uint8.
        degrees: (N,) angles.

    Returns:
        (N, H, W) uint8.
    """
    radians = torch.deg2rad(degrees.float())
    cosine, sine, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    inverse = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)  # output to input; y points down
    source = images.unsqueeze(1).float()
    grid = affine_grid(inverse, list(source.shape), align_corners=False)
    return grid_sample(source, grid, padding_mode="zeros", align_corners=False).squeeze(1).round().clamp(0, 255).byte()


def add_noise(images: Tensor, deviation: float, generator: np.random.Generator) -> Tensor:
    """Add Gaussian noise and clip.

    Args:
        images: (N, H, W) uint8.
        deviation: standard deviation, as a share of the range from black to white.
        generator: draws the noise.
    """
    noise = torch.from_numpy(generator.standard_normal(tuple(images.shape), dtype=np.float32))
    return (images.float() + 255 * deviation * noise).round().clamp(0, 255).byte()


def trace_edges(images: Tensor) -> Tensor:
    """Magnitude of the Sobel gradient, scaled so that the strongest edge of each image is white.

    Args:
        images: (N, H, W) uint8.
    """
    down = torch.tensor([[-1.0, -2.0, -1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 1.0]])
    framed = pad(images.unsqueeze(1).float(), (1, 1, 1, 1), mode="replicate")
    vertical, horizontal = conv2d(framed, torch.stack([down, down.T]).unsqueeze(1)).unbind(1)
    magnitude = torch.hypot(vertical, horizontal)
    return (255 * magnitude / magnitude.amax((1, 2), keepdim=True).clamp(min=1)).round().byte()


def digit_domains(
    domains: Annotated[list[Domain], Field(min_length=1)] | None = None,
    size: ImageSize = 32,
    binarise: Annotated[float, Field(ge=0, lt=1)] | None = None,
    rotation: Annotated[float, Field(gt=0, le=180)] = 45.0,
    noise: Annotated[float, Field(gt=0, le=2)] = 0.4,
    val_fraction: Fraction = 0.1,
    test_fraction: Fraction = 0.25,
    seed: Seed = 0,
) -> Dataset:
    """The handwritten digits in up to six domains, as splits "clean/train", "clean/val", "clean/test", "photo/train", ...

    Samples: `image` (3, size, size) float32 in [0, 1], `label`, `domain` (position in `domains`) and `index`, the digit's row in
    scikit-learn's table. A digit is in the same split of every domain, so that `index` pairs its versions, and train, val and test
    share neither digits nor, in the photo domain, photographs. A domain's images do not depend on which other domains are asked
    for.

    Args:
        domains: which domains, in the order of `domain`; all six by default.
        size: height and width in pixels.
        binarise: the photo domain first makes a digit white where it is brighter than this share of white and black elsewhere;
            None blends its greys, as the formula stands. A public script that makes MNIST-M uses 0, which thickens these
            digits more than MNIST's, since they are enlarged from 8x8; 0.5 keeps the width of their strokes.
        rotation: the rotated domain draws its angles uniformly up to this many degrees to either side.
        noise: standard deviation of the noisy domain's Gaussian noise, as a share of the range from black to white.
        val_fraction: share of each class that goes to val.
        test_fraction: share of each class that goes to test.
        seed: of the split, the photographs' patches, the angles and the noise.

    Raises:
        ValueError: if a parameter is out of range or a domain is named twice.
        DataError: if there is no domain of a name.
    """
    chosen = DOMAINS if domains is None else tuple(domains)
    _check(chosen, binarise, rotation, noise)
    images, labels = load_digit_images(size)
    parts = stratified_split(labels, val_fraction, test_fraction, seed)
    splits = {}
    for position, domain in enumerate(chosen):
        generator = np.random.default_rng([seed, DOMAINS.index(domain)])
        if domain == "photo":
            strokes = images if binarise is None else 255 * (images > 255 * binarise).byte()
            shown = blend(strokes, _patches(parts, size, generator))
        else:
            shown = _in_grey(domain, images, rotation, noise, generator).unsqueeze(1)
        for split, part in parts.items():
            rendered = shown[part].expand(-1, 3, -1, -1)  # the channels of a grey domain share their memory
            number = torch.full_like(part, position)
            splits[f"{domain}/{split}"] = TensorSamples(image=rendered, label=labels[part], domain=number, index=part)
    info = DatasetInfo(classes=CLASSES, channels=3, size=(size, size), domains=chosen, description="Handwritten digits in several domains")
    return Dataset(splits, info)


def _patches(parts: Mapping[str, Tensor], size: int, generator: np.random.Generator) -> Tensor:
    """A patch for each digit from the photographs of its split: (N, 3, size, size) uint8."""
    patches = torch.empty(sum(len(part) for part in parts.values()), 3, size, size, dtype=torch.uint8)
    for split, part in parts.items():
        names = [name for name, photo in PHOTOS.items() if photo.split == split]
        patches[part] = photo_patches(names, len(part), size, generator)
    return patches


def _in_grey(domain: Domain, images: Tensor, rotation: float, noise: float, generator: np.random.Generator) -> Tensor:
    """The digits (N, H, W) as a domain without colour shows them."""
    if domain == "inverted":
        return invert(images)
    if domain == "rotated":
        return rotate(images, torch.from_numpy(generator.uniform(-rotation, rotation, len(images))))
    if domain == "noisy":
        return add_noise(images, noise, generator)
    return trace_edges(images) if domain == "edges" else images


def _check(domains: Sequence[Domain], binarise: float | None, rotation: float, noise: float) -> None:
    if not domains:
        raise ValueError(f"domains is empty: name at least one of {', '.join(DOMAINS)}")
    for domain in domains:
        if domain not in DOMAINS:
            raise DataError(f'no domain "{domain}"{nearest(domain, DOMAINS)}; there are {", ".join(DOMAINS)}')
    if len(set(domains)) != len(domains):
        raise ValueError(f"a domain is named twice: {', '.join(domains)}")
    if binarise is not None and not 0 <= binarise < 1:
        raise ValueError(f"binarise must be at least 0 and below 1; found {binarise}")
    if not 0 < rotation <= 180:
        raise ValueError(f"rotation must be above 0 and at most 180 degrees; found {rotation}")
    if not 0 < noise <= 2:
        raise ValueError(f"noise must be above 0 and at most 2; found {noise}")
