"""Batch norm's running statistics for merged weights: those of the target belong to the target's activations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from graftwork import DataError
from graftwork.interfaces import device_of
from graftwork.kinds.dataset import to_device
from graftwork.kinds.evaluator import evaluating
from graftwork_fisher_merging.capture import Batch, Forward
from graftwork_fisher_merging.fisher import outputs_of

__all__ = ["reestimate_batch_norm"]


def reestimate_batch_norm(model: nn.Module, batches: Iterable[Batch], forward: Forward = outputs_of) -> Any:
    """Set the running mean and variance of every batch norm to the plain average over batches.

    As `torch.optim.swa_utils.update_bn`, but all other layers are in eval mode, so that dropout does not disturb what is measured.

    Args:
        model: changed in place; its modes come back.
        batches: to measure on; those of the training data.
        forward: runs the model on a batch.

    Returns:
        The model.

    Raises:
        DataError: if there are batch norms and no batch.
    """
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.running_mean is not None]
    if not norms:
        return model
    momenta = [one.momentum for one in norms]
    count = 0
    with evaluating(model):
        for one in norms:
            one.reset_running_stats()
            one.momentum, one.training = None, True  # None averages over all batches
        try:
            for count, batch in enumerate(batches, start=1):  # noqa: B007
                forward(model, to_device(dict(batch), device_of(model)))
        finally:
            for one, momentum in zip(norms, momenta, strict=True):
                one.momentum = momentum
    if not count:
        raise DataError("there is no batch to re-estimate batch norm's statistics on")
    return model
