"""One step of gradient descent on a model's parameters, of which the model itself sees nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from graftwork.errors import InterfaceError
from graftwork.kinds.dataset import Batch
from graftwork_grad_cam.capture import capturing
from graftwork_grad_cam.evidence import full_precision
from graftwork_grad_cam.forward import batch_length, logits_of, rows
from graftwork_grad_cam.targets import Target

__all__ = ["Parameters", "SampleLoss", "class_loss", "gradient_step", "inner_gradients", "per_sample_gradients"]

Parameters: TypeAlias = dict[str, Tensor]
SampleLoss: TypeAlias = Callable[[Any, Mapping[str, Any]], Tensor]
"""From a model's output and the batch to a scalar."""

NUMBERS_AT_ONCE = {"cpu": 2**24, "accelerator": 2**27}
"""Entries of per-sample gradients that are held together: 64 and 512 MiB in float32. On a CPU a large network gains nothing by company."""

SAMPLES_AT_ONCE = {"cpu": 8, "accelerator": 256}


class Call(nn.Module):
    """A model called by a target, as a module, so that `functional_call` can give it other parameters."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, target: Target, batch: Mapping[str, Any]) -> Any:
        """What the target makes of the model and the batch."""
        return target.forward(self.model, batch)

    def with_parameters(self, parameters: Parameters, target: Target, batch: Mapping[str, Any]) -> Any:
        """The same under other parameters, named as in the model."""
        return functional_call(self, {f"model.{name}": tensor for name, tensor in parameters.items()}, (target, batch))


def class_loss(classes: Tensor) -> SampleLoss:
    """Cross-entropy with given classes (B,), averaged over the batch; of a map of logits each position is a row.

    Args:
        classes: (B,) long.
    """

    def loss(output: Any, batch: Mapping[str, Any]) -> Tensor:
        logits = full_precision(logits_of(output))
        if logits.dim() == 4:
            wanted = classes[:, None].expand(-1, logits.shape[2] * logits.shape[3]).reshape(-1)
            return cross_entropy(logits.permute(0, 2, 3, 1).flatten(0, 2), wanted)
        if logits.dim() != 2:
            raise InterfaceError(f"the inner step's loss reads logits (batch, class[, h, w]); the model gives {tuple(logits.shape)}")
        return cross_entropy(logits, classes)

    return loss


def leaves(model: nn.Module) -> Parameters:
    """A model's parameters of floats as leaves of their own that share its memory and require gradients."""
    return {name: each.detach().requires_grad_() for name, each in model.named_parameters() if each.is_floating_point()}


def inner_gradients(model: nn.Module, batch: Batch, target: Target, loss: SampleLoss) -> Parameters:
    """The gradient of a loss of the whole batch with respect to every parameter, in eval mode; one that has no part in it is left out.

    Args:
        model: left as it was; also parameters that are frozen have a gradient.
        batch: with the target's choices bound to it.
        target: that calls the model.
        loss: of its output.
    """
    with capturing(model):
        point = leaves(model)
        value = loss(Call(model).with_parameters(point, target, batch), batch)
        found = torch.autograd.grad(value, list(point.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(point, found, strict=True) if gradient is not None}


def per_sample_gradients(
    model: nn.Module, batch: Batch, target: Target, losses: Callable[[Tensor], SampleLoss], classes: Tensor, chunk: int | None = None
) -> Iterator[Parameters]:
    """Each sample's own gradient, one after the other; several are computed together where memory allows (vmap of grad).

    A model whose control flow depends on its values cannot be mapped over; then one sample is computed at a time.

    Args:
        model: left as it was.
        batch: with the target's choices bound to it.
        target: that calls the model.
        losses: from classes (1,) to a loss of one sample.
        classes: (B,).
        chunk: samples together; by default as many as fit in 64 MiB of gradients on a CPU, 512 MiB on an accelerator.

    Yields:
        name -> gradient, of the first sample, the second, ...
    """
    count = batch_length(model, batch)
    size, kind = sum(each.numel() for each in model.parameters()), "cpu" if classes.device.type == "cpu" else "accelerator"
    together = chunk or min(SAMPLES_AT_ONCE[kind], max(1, NUMBERS_AT_ONCE[kind] // max(1, size)))
    start = 0
    while start < count:
        stop = min(start + together, count)
        part, asked = rows(batch, count, slice(start, stop)), classes[start:stop]
        if stop - start == 1:
            yield inner_gradients(model, part, target, losses(asked))
        else:
            try:
                stacked = _mapped(model, part, target, losses, asked)
            except RuntimeError as error:
                if "vmap" not in str(error):
                    raise
                together = 1
                continue
            for index in range(stop - start):
                yield {name: each[index] for name, each in stacked.items()}
        start = stop


def _mapped(model: nn.Module, batch: Batch, target: Target, losses: Callable[[Tensor], SampleLoss], classes: Tensor) -> Parameters:
    sampled = {key: value for key, value in batch.items() if isinstance(value, Tensor) and value.dim() and len(value) == len(classes)}
    shared = {key: value for key, value in batch.items() if key not in sampled}
    call = Call(model)

    def loss(parameters: Parameters, sample: Parameters, wanted: Tensor) -> Tensor:
        one = {**shared, **{key: value.unsqueeze(0) for key, value in sample.items()}}
        return losses(wanted.unsqueeze(0))(call.with_parameters(parameters, target, one), one)

    with capturing(model), sdpa_kernel(SDPBackend.MATH):  # the others have no rule for batching
        point = {name: each.detach() for name, each in leaves(model).items()}
        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(point, sampled, classes)  # type: ignore[no-any-return]


def gradient_step(model: nn.Module, gradients: Parameters, lr: float, negate_loss: bool = False) -> Parameters:
    """Parameters after one plain step: theta - lr g, or theta + lr g for the negated loss.

    Args:
        model: whose parameters are read.
        gradients: of the loss.
        lr: size of the step.
        negate_loss: whether the loss is to grow.

    Raises:
        ValueError: if the rate is negative.
    """
    if lr < 0:
        raise ValueError(f"lr must not be negative; found {lr}: for the other direction set negate_loss")
    parameters, sign = dict(model.named_parameters()), 1.0 if negate_loss else -1.0
    return {name: parameters[name].detach() + sign * lr * gradient for name, gradient in gradients.items()}
