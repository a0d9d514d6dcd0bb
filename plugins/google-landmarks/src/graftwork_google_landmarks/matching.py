"""Geometric verification of many image pairs at once: nearest descriptors, then affine RANSAC over all pairs and hypotheses together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from graftwork_google_landmarks.checks import above, at_least
from graftwork_google_landmarks.local_features import FeatureName, FeatureStore, provider_of

__all__ = ["AS_PUBLISHED", "Matches", "Verification", "affine_inliers", "match_descriptors", "verify_pairs"]

ENTRIES = 2**23
"""Residuals, or distances, held at once."""


@dataclass(frozen=True)
class Verification:
    """How a pair of images is verified. The numbers are those of the 2019 winners' matching_localfeatures.py.

    Args:
        features: local features: "harris" (torch), "sift" or "orb" (scikit-image).
        distance: descriptors further apart, by L2, do not match.
        residual: pixels by which an inlier may lie off; 20 are for images of some 800 pixels.
        trials: affine hypotheses a pair.
        seed: of the samples that hypotheses are made from, the same for every pair.
        folder: where local features are kept; by default the data set's own, which photo-landmarks has.

    Raises:
        ValueError: if one is out of range.
    """

    features: FeatureName = "harris"
    distance: Annotated[float, Field(gt=0)] = 0.8
    residual: Annotated[float, Field(gt=0)] = 20.0
    trials: Annotated[int, Field(ge=1)] = 1000
    seed: Annotated[int, Field(ge=0)] = 0
    folder: str | None = None

    def __post_init__(self) -> None:
        provider_of(self.features)
        above(0, distance=self.distance, residual=self.residual)
        at_least(1, trials=self.trials)
        at_least(0, seed=self.seed)


AS_PUBLISHED = Verification()
"""The public code's own settings."""


class Matches(NamedTuple):
    """Matched locations, padded.

    Args:
        source: (P, M, 2).
        target: (P, M, 2).
        counts: (P,) how many of the M are there.
    """

    source: Tensor
    target: Tensor
    counts: Tensor


def match_descriptors(first: tuple[Tensor, Tensor, Tensor], second: tuple[Tensor, Tensor, Tensor], distance: float = 0.8) -> Matches:
    """For each feature of the second image its nearest of the first, if it is near enough.

    Several features may match the same one. Among equally near ones the first is taken.

    Args:
        first: locations (P, n, 2), descriptors (P, n, d) and counts (P,) of one image of each pair, padded.
        second: the same of the other, (P, m, ...).
        distance: the largest L2 distance of a match.

    Returns:
        Matches from the first image to the second, as many as the pair with the most has.
    """
    (here, ours, ours_n), (there, theirs, theirs_n) = first, second
    squared = ours.square().sum(dim=2)[:, :, None] + theirs.square().sum(dim=2)[:, None] - 2 * ours @ theirs.transpose(1, 2)  # (P, n, m)
    absent = torch.arange(ours.shape[1], device=ours.device) >= ours_n[:, None]
    nearest, at = squared.masked_fill(absent[:, :, None], torch.inf).min(dim=1)  # (P, m)
    found = (nearest <= distance**2) & (torch.arange(theirs.shape[1], device=ours.device) < theirs_n[:, None])
    order = (~found).to(torch.uint8).argsort(dim=1, stable=True)  # matches first, in the order of the second image's features
    counts = found.sum(dim=1)
    width = max(3, int(counts.max())) if len(counts) else 3
    order = torch.nn.functional.pad(order, (0, max(0, width - order.shape[1])))[:, :width]
    source = here.gather(1, at.gather(1, order)[:, :, None].expand(-1, -1, 2))
    return Matches(source, there.gather(1, order[:, :, None].expand(-1, -1, 2)), counts)


def affine_inliers(matches: Matches, residual: float = 20.0, trials: int = 1000, seed: int = 0) -> Tensor:
    """The most matches that one affine map explains, by RANSAC (Fischler and Bolles, 1981).

    Each hypothesis is the affine map through three matches drawn at random, the same draw for every pair, so that a pair's count
    does not depend on which others it is verified with. A sample whose source points lie on a line is passed over. All pairs and
    hypotheses are solved and counted together, in blocks of bounded size.

    Args:
        matches: source and target locations, padded, and their counts.
        residual: an inlier's target is less than so many pixels from where the map puts its source.
        trials: hypotheses a pair.
        seed: of the draw.

    Returns:
        (P,) long: inliers of the best hypothesis; 0 for a pair with fewer than three matches, or with none that makes a map.
    """
    device = matches.source.device
    draws = torch.rand(trials, 3, generator=torch.Generator().manual_seed(seed)).to(device)
    best = torch.zeros(len(matches.counts), dtype=torch.long, device=device)
    enough = (matches.counts >= 3).nonzero()[:, 0]
    enough = enough[matches.counts[enough].argsort()]  # alike ones together: less padding
    at = 0
    while at < len(enough):
        size = max(1, ENTRIES // (trials * max(3, int(matches.counts[enough[min(at + 255, len(enough) - 1)]]))))
        rows = enough[at : at + min(size, 256)]
        width = int(matches.counts[rows].max())
        best[rows] = _count(matches.source[rows, :width], matches.target[rows, :width], matches.counts[rows], draws, residual)
        at += len(rows)
    return best


def _count(source: Tensor, target: Tensor, counts: Tensor, draws: Tensor, residual: float) -> Tensor:
    """Inliers of the best hypothesis for pairs (P, M, 2) that all have three matches."""
    sample = _distinct(draws, counts)  # (P, T, 3)
    pick = sample.flatten(1)[:, :, None].expand(-1, -1, 2)
    # in float64 where that is cheap: three points close together make a map that magnifies rounding
    wide = torch.float64 if source.device.type == "cpu" else torch.float32
    a, b = (points.gather(1, pick).view(*sample.shape, 2).to(wide) for points in (source, target))  # (P, T, 3, 2)
    sides, moved = a[:, :, 1:] - a[:, :, :1], b[:, :, 1:] - b[:, :, :1]  # (P, T, 2, 2), rows are edges
    determinant = sides[..., 0, 0] * sides[..., 1, 1] - sides[..., 0, 1] * sides[..., 1, 0]
    flat = determinant.abs() < 1e-6 * sides.square().sum(dim=(2, 3)).clamp(min=1e-12)
    divisor = torch.where(flat, 1.0, determinant)
    inverse = torch.stack([sides[..., 1, 1], -sides[..., 0, 1], -sides[..., 1, 0], sides[..., 0, 0]], dim=-1).view_as(sides)
    linear = (inverse / divisor[..., None, None]) @ moved  # (P, T, 2, 2): target - target_0 = (source - source_0) @ linear
    shift = b[:, :, 0] - (a[:, :, :1] @ linear)[:, :, 0]
    weights = torch.cat([linear, shift[:, :, None]], dim=2).float()  # (P, T, 3, 2)
    ones = torch.cat([source, torch.ones_like(source[..., :1])], dim=2).transpose(1, 2)  # (P, 3, M)
    absent = torch.arange(source.shape[1], device=source.device) >= counts[:, None]
    wanted = target.masked_fill(absent[:, :, None], torch.inf)  # padding is never near
    off = torch.baddbmm(wanted[:, None, :, 0], weights[..., 0], ones, beta=-1).square_()  # (P, T, M)
    down = torch.baddbmm(wanted[:, None, :, 1], weights[..., 1], ones, beta=-1)
    inliers = (off.addcmul_(down, down) < residual**2).sum(dim=2)
    return inliers.masked_fill(flat, 0).amax(dim=1)


def _distinct(draws: Tensor, counts: Tensor) -> Tensor:
    """Three different positions below each count (P,), from uniform draws (T, 3): (P, T, 3) long."""
    below = counts[:, None, None] - torch.arange(3, device=counts.device)  # n, n - 1, n - 2 that are left
    drawn = torch.minimum((draws * below).long(), below - 1)
    first = drawn[..., 0]
    second = drawn[..., 1] + (drawn[..., 1] >= first)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    third = drawn[..., 2] + (drawn[..., 2] >= low)
    third = third + (third >= high)
    return torch.stack([first, second, third], dim=2)


def verify_pairs(
    pairs: Iterable[tuple[str, str]],
    first: FeatureStore,
    second: FeatureStore,
    settings: Verification = AS_PUBLISHED,
    device: torch.device | str = "cpu",
    block: int = 128,
) -> Tensor:
    """Inliers of many pairs of images.

    Args:
        pairs: (image id, image id); sorted by either, features are fetched fewer times.
        first: features of the first images.
        second: features of the second ones; the same store where they are of one split.
        settings: distance, residual, trials and seed; where features come from is the stores' affair.
        device: where pairs are matched.
        block: pairs at once, the last block as short as it comes.

    Returns:
        (P,) long, on the CPU.
    """
    every = list(pairs)
    found = []
    for start in range(0, len(every), block):
        left, right = zip(*every[start : start + block], strict=True)
        ours, theirs = (tuple(each.to(device) for each in store.padded(ids)) for store, ids in ((first, left), (second, right)))
        matches = match_descriptors(ours, theirs, settings.distance)  # type: ignore[arg-type]
        found.append(affine_inliers(matches, settings.residual, settings.trials, settings.seed).cpu())
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)
