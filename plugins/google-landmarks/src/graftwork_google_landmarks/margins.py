"""Cosine classifiers with a margin: ArcFace, CosFace, AdaCos."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["adacos_scale", "arcface_cosines", "cosface_cosines", "cosines"]

SINE_FLOOR = 1e-6
"""Least sine of an angle, whose root would have no gradient at 0."""


def cosines(embeddings: Tensor, weights: Tensor) -> Tensor:
    """Cosine of each embedding (B, D) with each class's weights (C, D), (B, C) float32 in [-1, 1]."""
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = torch.nn.functional.normalize
        return unit(embeddings.float(), dim=1) @ unit(weights.float(), dim=1).T


def arcface_cosines(cosine: Tensor, labels: Tensor, margin: float = 0.1) -> Tensor:
    """cos(theta + margin) at the label where theta <= pi - margin, elsewhere cos(theta) (Deng et al., 2019, eq. 3; DELG's condition).

    Beyond pi - margin the cosine of theta + margin rises again, and the margin would reward. The sum's cosine is expanded, cos theta
    cos m - sin theta sin m, with the sine held above 1e-6: no arc cosine is taken, and the gradient is finite also at +-1.

    Args:
        cosine: (B, C).
        labels: (B,) long.
        margin: m in [0, pi), radians; 0 changes nothing.

    Returns:
        (B, C).
    """
    if margin == 0:
        return cosine
    target = cosine.gather(1, labels[:, None])
    sine = (1 - target.square()).clamp(min=SINE_FLOOR**2).sqrt()
    moved = torch.where(target >= -math.cos(margin), target * math.cos(margin) - sine * math.sin(margin), target)
    return cosine.scatter(1, labels[:, None], moved)


def cosface_cosines(cosine: Tensor, labels: Tensor, margin: float = 0.4) -> Tensor:
    """cos(theta) - margin at the label (Wang et al., 2018, https://arxiv.org/abs/1801.09414, eq. 4).

    Args:
        cosine: (B, C).
        labels: (B,) long.
        margin: m >= 0.

    Returns:
        (B, C).
    """
    return cosine.scatter_add(1, labels[:, None], cosine.new_full((len(labels), 1), -margin))


def adacos_scale(cosine: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """AdaCos's scale of this step, log(B_avg) / cos(min(pi / 4, theta_med)) (Zhang et al., 2019, https://arxiv.org/abs/1905.00292).

    B_avg is the batch's mean of sum over wrong classes of exp(scale cos theta), and theta_med the median angle to the right class.
    The public implementation that the 2019 winners took has the median over all classes, which is near pi / 2 whatever was learned.

    Args:
        cosine: (B, C), C >= 2.
        labels: (B,) long.
        scale: 0-d, of the step before.

    Returns:
        0-d, without a gradient.
    """
    with torch.no_grad():
        wrong = (scale * cosine).scatter(1, labels[:, None], -torch.inf)
        log_average = wrong.flatten().logsumexp(dim=0) - math.log(len(labels))
        angle = cosine.gather(1, labels[:, None]).clamp(-1, 1).acos().median()
        return log_average / angle.clamp(max=math.pi / 4).cos()
