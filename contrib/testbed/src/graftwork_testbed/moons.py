"""Twin moons whose target domain is rotated: the toy problem of "Domain-Adversarial Training of Neural Networks", section 5.1.1.

https://arxiv.org/abs/1505.07818; the numbers are those of the authors' own script, `experiments_moons.py`.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from sklearn.datasets import make_moons
from torch import Tensor

from graftwork import Dataset, DatasetInfo, TensorSamples
from graftwork_testbed.splits import SPLITS, Seed

__all__ = ["rotate_points", "shifted_moons"]


def rotate_points(points: Tensor, degrees: float) -> Tensor:
    """Rotate points (N, 2) about the origin, counter-clockwise."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return points @ torch.tensor([[cosine, sine], [-sine, cosine]], dtype=points.dtype)


def shifted_moons(
    samples: Annotated[int, Field(ge=4, le=1_000_000)] = 300,
    angle: Annotated[float, Field(ge=-180, le=180)] = 35.0,
    noise: Annotated[float, Field(ge=0, le=1)] = 0.05,
    seed: Seed = 0,
) -> Dataset:
    """Two interleaved half circles as the source domain; independent draws of the same, rotated, as the target.

    Every split is drawn on its own, moved by the mean of "source/train", scaled by 2, and, in the target, rotated. Samples:
    `features` (2,) float32, `label`, `domain` (0 source, 1 target) and `index` (position in the split). Splits: "source/train",
    "source/val", "source/test", "target/train", ...

    Args:
        samples: points in each split, half of them in each class.
        angle: degrees by which the target is rotated, counter-clockwise. The authors' script rotates by 35 in this sense: it
            negates its angle and then applies the transposed rotation.
        noise: standard deviation of the Gaussian noise, before scaling.
        seed: of the points.

    Raises:
        ValueError: if a parameter is out of range.
    """
    if not 4 <= samples <= 1_000_000:
        raise ValueError(f"samples must be 4 to 1,000,000; found {samples}")
    if not -180 <= angle <= 180:
        raise ValueError(f"angle must be -180 to 180 degrees; found {angle}")
    if not 0 <= noise <= 1:
        raise ValueError(f"noise must be 0 to 1; found {noise}")
    if seed < 0:
        raise ValueError(f"the seed must not be negative; found {seed}")
    streams = np.random.SeedSequence(seed).generate_state(6)
    domains = ("source", "target")
    drawn = {}
    for state, (domain, split) in zip(streams.tolist(), ((domain, split) for domain in domains for split in SPLITS), strict=True):
        points, labels = make_moons(samples, noise=noise, random_state=state)
        drawn[domain, split] = torch.from_numpy(points), torch.from_numpy(labels).long()
    centre = drawn["source", "train"][0].mean(0)
    splits = {}
    for (domain, split), (points, labels) in drawn.items():
        moved = rotate_points(2 * (points - centre), angle if domain == "target" else 0.0).float()
        number = torch.full_like(labels, domains.index(domain))
        splits[f"{domain}/{split}"] = TensorSamples(features=moved, label=labels, domain=number, index=torch.arange(samples))
    info = DatasetInfo(classes=("upper", "lower"), domains=domains, features=2, description="Twin moons and the same rotated")
    return Dataset(splits, info)
