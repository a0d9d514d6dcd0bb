"""A threshold for Adaptive Guidance, found on a model's own samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from graftwork import Artifact, ArtifactError
from graftwork_adaptive_guidance.similarity import Space

__all__ = ["TYPE", "choose_threshold", "guided_steps", "saved_share", "threshold_artifact", "threshold_of"]

TYPE = "guidance-threshold"
"""Type of the artifact."""


def guided_steps(similarities: Tensor, threshold: float, min_steps: int = 1) -> Tensor:
    """k, the steps that AG would guide, if gamma were what it is under guidance throughout.

    Up to the stop AG's samples are those of plain guidance, so this is exact.

    Args:
        similarities: gamma, (T, N).
        threshold: gamma-bar.
        min_steps: steps that are guided in any case.

    Returns:
        (N,) long, in 1..T.
    """
    steps = len(similarities)
    reached = similarities >= threshold
    reached[: min_steps - 1] = False
    first = torch.where(reached.any(0), reached.float().argmax(0), steps - 1)
    return first + 1


def saved_share(guided: Tensor, steps: int) -> Tensor:
    """Share of plain guidance's 2 T evaluations that T + k saves, of the same shape as k."""
    return (steps - guided).double() / (2 * steps)


def choose_threshold(similarities: Tensor, thresholds: Sequence[float], target: float, min_steps: int = 1) -> float | None:
    """The largest of some thresholds at which AG saves at least a share of the evaluations, in the mean of the samples.

    Args:
        similarities: gamma, (T, N).
        thresholds: to choose from.
        target: share to be saved.
        min_steps: as for AG.

    Returns:
        The threshold, or None where none saves as much.
    """
    steps = len(similarities)
    enough = [one for one in thresholds if saved_share(guided_steps(similarities, one, min_steps), steps).mean() >= target]
    return max(enough, default=None)


def threshold_artifact(threshold: float, space: Space, **data: Any) -> Artifact:
    """A threshold as what later stages take.

    Args:
        threshold: gamma-bar.
        space: that it is for.
        **data: how it was found.
    """
    return Artifact(TYPE, data={"threshold": threshold, "space": space, **data})


def threshold_of(artifact: Artifact) -> tuple[float, Space]:
    """The threshold in an artifact, and its space.

    Raises:
        ArtifactError: if it holds none.
    """
    artifact.check(TYPE)
    threshold, space = artifact.data.get("threshold"), artifact.data.get("space")
    if not isinstance(threshold, (int, float)) or space not in ("prediction", "x0"):
        raise ArtifactError(f"the artifact holds no threshold: found {threshold!r} in space {space!r}")
    return float(threshold), cast(Space, space)
