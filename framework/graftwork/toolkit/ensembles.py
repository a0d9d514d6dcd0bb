"""Several classifiers' predictions as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from graftwork.errors import DataError

__all__ = ["ensemble_log_probabilities"]


def ensemble_log_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """log 1/M sum_m softmax(logits_m), in float32: the logarithm of the mean of probabilities, not the mean of logarithms.

    Args:
        logits: M times (N, C).

    Returns:
        (N, C); may be used as logits.

    Raises:
        DataError: if the models' numbers of classes differ.
    """
    if len({one.shape for one in logits}) > 1:
        raise DataError(
            f"the models of an ensemble tell {', '.join(str(one.shape[1]) for one in logits)} classes apart; they need the same"
        )
    return torch.stack([one.float().log_softmax(dim=1) for one in logits]).logsumexp(dim=0) - math.log(len(logits))
