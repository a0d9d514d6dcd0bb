"""Features of nodes that have none of their own, as the field makes them from the structure alone."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, get_args

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

__all__ = ["FeatureWidth", "Features", "check_features", "node_features"]

Features: TypeAlias = Literal["identity", "degree", "onehot-degree", "constant", "random", "none"]
"""What stands in for features: see `node_features`."""

FeatureWidth: TypeAlias = Annotated[int, Field(ge=1, le=10_000)]
"""Width of features that are drawn."""


def check_features(kind: str, width: int = 1) -> None:
    """Raise ValueError unless `kind` is one of `Features` and the width is in range."""
    if kind not in get_args(Features):
        raise ValueError(f"features must be one of {', '.join(get_args(Features))}; found {kind!r}")
    if not 1 <= width <= 10_000:
        raise ValueError(f"feature_width must be 1 to 10,000; found {width}")


def node_features(
    kind: Features, degree: Tensor, generator: torch.Generator, width: int = 16, max_degree: int | None = None
) -> Tensor | None:
    """Features of every node.

    - "identity": one column a node, as Kipf and Welling (https://arxiv.org/abs/1609.02907) give nodes that have no features;
    - "degree": the degree, one column;
    - "onehot-degree": its one-hot code, as Xu et al. (https://arxiv.org/abs/1810.00826) do for social networks; degrees above
      `max_degree` share the last column;
    - "constant": ones, one column;
    - "random": independent standard normal numbers, `width` columns;
    - "none": no features.

    Args:
        kind: one of these.
        degree: (N,) long.
        generator: draws the random features; nothing else is taken from it.
        width: of random features.
        max_degree: of the one-hot code; the largest degree by default.

    Returns:
        (N, width) float32, or None.

    Raises:
        ValueError: if there is no such kind, or the width is out of range.
    """
    check_features(kind, width)
    nodes = len(degree)
    if kind == "identity":
        return torch.eye(nodes)
    if kind == "degree":
        return degree.float().unsqueeze(1)
    if kind == "onehot-degree":
        largest = int(degree.max()) if max_degree is None else max_degree
        return functional.one_hot(degree.clamp(max=largest), largest + 1).float()
    if kind == "constant":
        return torch.ones(nodes, 1)
    return torch.randn(nodes, width, generator=generator) if kind == "random" else None
