"""Expected empirical predictions and the transferability scores made of them: LEEP, MS-LEEP, E-LEEP."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from graftwork_osborn.transport import precise

__all__ = ["e_leep", "empirical_conditional", "expected_empirical_prediction", "label_likelihoods", "leep", "ms_leep"]


def empirical_conditional(joint: Tensor) -> Tensor:
    """P(y | z) of a joint P(y, z); 0 for a source class that is never predicted.

    Args:
        joint: (C_target, C_source), non-negative.
    """
    total = joint.sum(dim=0)
    return joint / total.where(total > 0, 1)


def expected_empirical_prediction(probabilities: Tensor, labels: Tensor, target_classes: int | None = None) -> Tensor:
    """EEP(y | x) = sum_z P(y | z) theta(x)_z, what the source classes say of the target's (Nguyen et al., 2020, section 3).

    P(y, z) is the mean over samples of class y of the source probabilities theta(x)_z, times their share.

    Args:
        probabilities: (n, C_source), each row summing to 1.
        labels: (n,) long, from 0.
        target_classes: C_target; by default as many as occur.

    Returns:
        (n, C_target), rows summing to 1; float64 where the device has it.

    Raises:
        ValueError: if the shapes do not fit, or there is no sample.
    """
    if probabilities.dim() != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(
            f"probabilities are (n, C_source) and labels (n,), n at least 1; found {tuple(probabilities.shape)}, {tuple(labels.shape)}"
        )
    probabilities = precise(probabilities)
    joint = probabilities.new_zeros(target_classes or int(labels.max()) + 1, probabilities.shape[1])
    joint.index_add_(0, labels, probabilities).div_(len(labels))
    return probabilities @ empirical_conditional(joint).T


def label_likelihoods(probabilities: Tensor, labels: Tensor) -> Tensor:
    """EEP(y_i | x_i) of each sample's own label: (n,) in (0, 1].

    Args:
        probabilities: (n, C_source).
        labels: (n,) long, from 0.

    Raises:
        ValueError: as `expected_empirical_prediction`.
    """
    return expected_empirical_prediction(probabilities, labels).gather(1, labels[:, None])[:, 0].clamp(max=1)


def leep(probabilities: Tensor, labels: Tensor) -> Tensor:
    """LEEP = 1/n sum_i log EEP(y_i | x_i) (Nguyen et al., 2020, https://arxiv.org/abs/2002.12462); higher is better.

    Args:
        probabilities: (n, C_source), the source classifier's softmax on target samples.
        labels: (n,) long, the target's.

    Returns:
        0-d, at most 0.

    Raises:
        ValueError: as `expected_empirical_prediction`.
    """
    return label_likelihoods(probabilities, labels).log().mean()


def ms_leep(probabilities: Sequence[Tensor], labels: Tensor) -> Tensor:
    """MS-LEEP: the sum of the members' LEEPs (Agostinelli et al., 2022, https://arxiv.org/abs/2111.13011); higher is better.

    Args:
        probabilities: M times (n, C_m), numbers of classes of their own.
        labels: (n,) long.

    Returns:
        0-d, at most 0.

    Raises:
        ValueError: if there is no member, or as `expected_empirical_prediction`.
    """
    return _likelihoods(probabilities, labels).log().mean(dim=1).sum()


def e_leep(probabilities: Sequence[Tensor], labels: Tensor) -> Tensor:
    """E-LEEP: 1/n sum_i log of the members' mean EEP(y_i | x_i) (Agostinelli et al., 2022); higher is better.

    Args:
        probabilities: M times (n, C_m), numbers of classes of their own.
        labels: (n,) long.

    Returns:
        0-d, at most 0, and at least MS-LEEP / M.

    Raises:
        ValueError: if there is no member, or as `expected_empirical_prediction`.
    """
    found = _likelihoods(probabilities, labels)
    return (found.log().logsumexp(dim=0) - math.log(len(found))).mean()


def _likelihoods(probabilities: Sequence[Tensor], labels: Tensor) -> Tensor:
    if not len(probabilities):
        raise ValueError("probabilities are of at least one model; found none")
    return torch.stack([label_likelihoods(one, labels) for one in probabilities])
