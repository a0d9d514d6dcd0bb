"""Local features: where they are and what they look like. Harris corners in torch, SIFT and ORB of scikit-image, or anybody's."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, grid_sample, interpolate, max_pool2d, normalize, pad

from graftwork import DataError
from graftwork_google_landmarks.extras import need
from graftwork_google_landmarks.ids import image_path

__all__ = [
    "PROVIDERS",
    "FeatureName",
    "FeatureStore",
    "LocalFeatures",
    "Provider",
    "harris_features",
    "orb_features",
    "provider_of",
    "sift_features",
]

FeatureName: TypeAlias = Literal["harris", "sift", "orb"]


class LocalFeatures(NamedTuple):
    """The local features of one image.

    Args:
        locations: (n, 2) float32, (x, y) in pixels of the image that was given.
        descriptors: (n, d) float32, of unit length.
    """

    locations: Tensor
    descriptors: Tensor


class Provider(Protocol):
    """Gives an image's local features; DELF or SuperPoint fit as a function of this form. `name` tells cached features apart."""

    def __call__(self, image: Tensor, /) -> LocalFeatures:
        """(3, H, W) float32 in [0, 1] to features."""
        ...


def _grey(image: Tensor) -> Tensor:
    """(H, W) luma of (C, H, W)."""
    if image.shape[0] == 1:
        return image[0]
    return (image[:3] * image.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=0)


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (1, C, H, W), separable, edges replicated."""
    radius = max(1, math.ceil(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = (-(offsets**2) / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum()).expand(image.shape[1], 1, -1)
    wide = conv2d(pad(image, (radius, radius, 0, 0), mode="replicate"), kernel[:, :, None, :], groups=image.shape[1])
    return conv2d(pad(wide, (0, 0, radius, radius), mode="replicate"), kernel[:, :, :, None], groups=image.shape[1])


def harris_features(image: Tensor, most: int = 300, levels: int = 3, factor: float = 0.7071, border: int = 6) -> LocalFeatures:
    """Harris corners at several scales with upright histograms of gradients, all in torch, on any device.

    Corners are maxima over 5x5 pixels of det - 0.05 trace^2 of the smoothed structure tensor (Harris and Stephens, 1988). A
    descriptor is SIFT's without its rotation (Lowe, 2004, section 6): 4x4 cells of a window of 20 pixels of its level, 8 directions
    each, weighed by a Gaussian, then square roots of the L1-normalised histogram (Arandjelovic and Zisserman, 2012).

    Args:
        image: (C, H, W) float32 in [0, 1].
        most: features of all levels together; the strongest are kept, in proportion to the levels' areas.
        levels: of the pyramid.
        factor: of size from level to level.
        border: pixels along the edge of a level without corners.

    Returns:
        Locations in pixels of `image`, and descriptors (n, 128).
    """
    grey = _grey(image.float())
    locations, descriptors = [], []
    areas = [factor ** (2 * level) for level in range(levels)]
    for level, area in enumerate(areas):
        size = [max(1, round(side * factor**level)) for side in grey.shape]
        if min(size) < 2 * border + 8:
            break
        shown = grey[None, None] if level == 0 else interpolate(grey[None, None], size=size, mode="bilinear", antialias=True)
        at, described = _level(shown, max(1, round(most * area / sum(areas))), border)
        scale = at.new_tensor([grey.shape[1] / size[1], grey.shape[0] / size[0]])
        locations.append((at + 0.5) * scale - 0.5)
        descriptors.append(described)
    if not locations:
        return LocalFeatures(grey.new_zeros(0, 2), grey.new_zeros(0, 128))
    return LocalFeatures(torch.cat(locations), torch.cat(descriptors))


def _level(image: Tensor, most: int, border: int) -> tuple[Tensor, Tensor]:
    """Corners (n, 2) as (x, y) and descriptors (n, 128) of one level (1, 1, H, W)."""
    smooth = _blurred(image, 0.8)
    across = (pad(smooth, (0, 2, 0, 0), mode="replicate") - pad(smooth, (2, 0, 0, 0), mode="replicate"))[..., 1:-1] / 2
    down = (pad(smooth, (0, 0, 0, 2), mode="replicate") - pad(smooth, (0, 0, 2, 0), mode="replicate"))[..., 1:-1, :] / 2
    tensor = _blurred(torch.cat([across * across, down * down, across * down], dim=1), 1.5)[0]
    response = tensor[0] * tensor[1] - tensor[2] ** 2 - 0.05 * (tensor[0] + tensor[1]) ** 2
    peaks = (response == max_pool2d(response[None, None], 5, stride=1, padding=2)[0, 0]) & (response > 1e-9)
    inside = torch.zeros_like(peaks)
    inside[border:-border, border:-border] = True
    height, width = response.shape
    strength, at = response.masked_fill(~(peaks & inside), 0).flatten().topk(min(most, height * width))
    at = at[strength > 0]
    corners = torch.stack([at % width, at // width], dim=1).float()
    return corners, _histograms(torch.cat([across, down], dim=1), corners)


def _histograms(gradients: Tensor, corners: Tensor) -> Tensor:
    """Upright gradient histograms (n, 128) at corners (n, 2) of gradients (1, 2, H, W)."""
    n, (height, width) = len(corners), gradients.shape[2:]
    if not n:
        return gradients.new_zeros(0, 128)
    steps = torch.arange(20, device=gradients.device, dtype=gradients.dtype) - 9.5
    offsets = torch.stack([steps.repeat(20), steps.repeat_interleave(20)], dim=1)  # (400, 2) as (x, y), rows first
    places = corners[:, None] + offsets
    extent = places.new_tensor([width - 1, height - 1]).clamp(min=1)
    sampled = grid_sample(gradients, (2 * places / extent - 1)[None], align_corners=True, padding_mode="border")[0]  # (2, n, 400)
    weight = (-(offsets**2).sum(dim=1) / (2 * 10.0**2)).exp()
    strength = sampled.square().sum(dim=0).sqrt() * weight
    angle = torch.atan2(sampled[1], sampled[0]) * (8 / (2 * math.pi)) % 8
    lower = angle.floor()
    share = angle - lower
    bins = strength.new_zeros(n, 8, 400)
    bins.scatter_add_(1, (lower.long() % 8)[:, None], (strength * (1 - share))[:, None])
    bins.scatter_add_(1, ((lower.long() + 1) % 8)[:, None], (strength * share)[:, None])
    cells = avg_pool2d(bins.view(n, 8, 20, 20), 5)  # (n, 8, 4, 4)
    flat = cells.flatten(1)
    return normalize((flat / flat.sum(dim=1, keepdim=True).clamp(min=1e-12)).sqrt(), dim=1)


def sift_features(image: Tensor, most: int = 300, upsampling: Literal[1, 2, 4] = 1) -> LocalFeatures:
    """scikit-image's SIFT, as square roots of the L1-normalised histograms.

    Args:
        image: (C, H, W) float32 in [0, 1].
        most: features; the first ones found are kept.
        upsampling: of the image before the first octave.

    Raises:
        GraftworkError: if scikit-image is not installed.
    """
    library = need("skimage.feature", "local-features")
    detector = library.SIFT(upsampling=upsampling)
    return _detected(detector, image, most, lambda found: np.sqrt(found / np.maximum(found.sum(axis=1, keepdims=True), 1e-12)))


def orb_features(image: Tensor, most: int = 300, fast_threshold: float = 0.02) -> LocalFeatures:
    """scikit-image's ORB; its 256 bits become +-1/16, so that the L2 distance is sqrt(Hamming distance / 64).

    Args:
        image: (C, H, W) float32 in [0, 1].
        most: features.
        fast_threshold: contrast of a FAST corner.

    Raises:
        GraftworkError: if scikit-image is not installed.
    """
    library = need("skimage.feature", "local-features")
    detector = library.ORB(n_keypoints=most, fast_threshold=fast_threshold)
    return _detected(detector, image, most, lambda found: (2.0 * found - 1) / 16)


def _detected(detector: Any, image: Tensor, most: int, unit: Callable[[Any], Any]) -> LocalFeatures:
    """What one of scikit-image's detectors finds; it raises where there is nothing to be found."""
    width = 256 if type(detector).__name__ == "ORB" else 128
    try:
        detector.detect_and_extract(_grey(image.float()).cpu().numpy().astype(np.float64))
    except (RuntimeError, ValueError, IndexError):
        return LocalFeatures(torch.zeros(0, 2), torch.zeros(0, width))
    at = torch.from_numpy(np.ascontiguousarray(detector.keypoints[:most, ::-1])).float()  # theirs are (row, column)
    return LocalFeatures(at, torch.from_numpy(unit(detector.descriptors[:most].astype(np.float64))).float())


PROVIDERS: dict[str, Provider] = {"harris": harris_features, "sift": sift_features, "orb": orb_features}
"""Name -> function."""


def provider_of(features: FeatureName | Provider) -> tuple[str, Provider]:
    """A provider and what its cached features are called; "" for a function without a `name`, whose features are not kept on disk.

    Raises:
        ValueError: if there is none of that name.
    """
    if not isinstance(features, str):
        return str(getattr(features, "name", "")), features
    if features not in PROVIDERS:
        raise ValueError(f'features is one of {", ".join(PROVIDERS)}, or a function of an image; found "{features}"')
    return features, PROVIDERS[features]


class FeatureStore:
    """Local features of images by id, computed once, descriptors rounded to float16, at most `capacity` images' in memory.

    Args:
        provider: by name, or a function of an image (3, H, W) in [0, 1].
        picture: gives the image of an id.
        folder: where features are kept, a file an image under a/b/c/ as the images themselves; None keeps none.
        capacity: images whose features stay in memory.
    """

    def __init__(
        self,
        provider: FeatureName | Provider,
        picture: Callable[[str], Tensor],
        folder: Path | str | None = None,
        capacity: int = 2048,
    ):
        name, self._provide = provider_of(provider)
        self._picture, self._capacity = picture, capacity
        self._folder = Path(folder).expanduser() / name if folder is not None and name else None
        self._held: OrderedDict[str, LocalFeatures] = OrderedDict()

    def __call__(self, image_id: str) -> LocalFeatures:
        """The features of one image."""
        if image_id in self._held:
            self._held.move_to_end(image_id)
            return self._held[image_id]
        found = self._load(image_id) or self._make(image_id)
        self._held[image_id] = found
        if len(self._held) > self._capacity:
            self._held.popitem(last=False)
        return found

    def padded(self, image_ids: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Features of several images: locations (B, n, 2), descriptors (B, n, d), and how many each has (B,)."""
        found = [self(image_id) for image_id in image_ids]
        counts = torch.tensor([len(one.locations) for one in found])
        longest = max(1, int(counts.max())) if len(found) else 1
        locations = torch.zeros(len(found), longest, 2)
        descriptors = torch.zeros(len(found), longest, found[0].descriptors.shape[1] if found else 1)
        for row, one in enumerate(found):
            locations[row, : len(one.locations)] = one.locations
            descriptors[row, : len(one.locations)] = one.descriptors
        return locations, descriptors, counts

    def _make(self, image_id: str) -> LocalFeatures:
        made = self._provide(self._picture(image_id))
        locations, descriptors = made
        if locations.ndim != 2 or locations.shape[1] != 2 or descriptors.ndim != 2 or len(locations) != len(descriptors):
            raise DataError(
                f"local features are locations (n, 2) and descriptors (n, d); image {image_id} has "
                f"{tuple(locations.shape)} and {tuple(descriptors.shape)}"
            )
        half = descriptors.detach().half().cpu()  # as they are kept on disk, so that what is found does not depend on a folder
        found = LocalFeatures(locations.detach().float().cpu(), half.float())
        if self._folder is not None:
            path = (self._folder / image_path(image_id)).with_suffix(".safetensors")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                beside = path.with_suffix(".part")
                save_file({"locations": found.locations.contiguous(), "descriptors": half.contiguous()}, beside)
                beside.replace(path)
            except (OSError, SafetensorError):
                self._folder = None  # a folder that cannot be written keeps nothing
        return found

    def _load(self, image_id: str) -> LocalFeatures | None:
        if self._folder is None:
            return None
        try:
            kept = load_file((self._folder / image_path(image_id)).with_suffix(".safetensors"))
            return LocalFeatures(kept["locations"], kept["descriptors"].float())
        except (OSError, SafetensorError, KeyError):
            return None
