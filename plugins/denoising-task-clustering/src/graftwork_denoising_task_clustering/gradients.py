"""Gradients of several losses with respect to one set of parameters: apart as a matrix, as a Gram matrix, and back into `.grad`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["Backward", "Losses", "as_vector", "check_losses", "gradient_matrix", "gram_matrix", "task_gram"]


Losses: TypeAlias = Tensor | Sequence[Tensor]
"""k losses: one vector (k,), or k scalars. Scalars with graphs of their own stay apart; in a vector each would go back through all."""


def check_losses(losses: Losses) -> None:
    """Raise ValueError unless there are at least two losses: one vector, or as many scalars."""
    if isinstance(losses, Tensor) and (losses.ndim != 1 or len(losses) < 2):
        raise ValueError(f"at least 2 losses are needed, as one vector; found shape {tuple(losses.shape)}")
    if len(losses) < 2:
        raise ValueError(f"at least 2 losses are needed; found {len(losses)}")


def as_vector(losses: Losses) -> Tensor:
    """(k,) of a vector as it is, or float32 of k scalars."""
    return losses if isinstance(losses, Tensor) else torch.stack([loss.float() for loss in losses])


def gradient_matrix(losses: Losses, parameters: Sequence[Tensor], retain_graph: bool = True) -> Tensor:
    """(k, P) float32: the gradient of each loss, flat, in the order of the parameters; an unused parameter's entries are zero.

    One backward pass a loss; no parameter's `.grad` changes.

    Args:
        losses: k of them, in one graph or in graphs of their own.
        parameters: that require gradients; P is their size.
        retain_graph: keep the graph after the last loss.
    """
    sizes = [parameter.numel() for parameter in parameters]
    found = torch.zeros(len(losses), sum(sizes), device=losses[0].device, dtype=torch.float32)
    for index, loss in enumerate(losses):
        keep = retain_graph or index + 1 < len(losses)
        for place, gradient in zip(
            torch.split(found[index], sizes), torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True), strict=True
        ):
            if gradient is not None:
                place.copy_(gradient.flatten())
    return found


def gram_matrix(gradients: Tensor) -> Tensor:
    """(k, k) inner products of the rows of (k, P), accumulated in float32 at least."""
    wide = gradients if gradients.dtype == torch.float64 else gradients.float()
    return wide @ wide.T


def task_gram(losses: Losses, parameters: Sequence[Tensor], chunks: int = 1) -> Tensor:
    """(k, k) Gram matrix of the losses' gradients, with those of one chunk of layers held at a time; the graph is kept.

    Memory is k P / chunks. A chunk's backward pass stops at its lowest layer, so that all of them together take about
    (chunks + 1) / 2 of a full one each.

    Args:
        losses: k of them.
        parameters: as for `gradient_matrix`, in the order of the network.
        chunks: of about equal size.

    Raises:
        ValueError: if chunks is below 1.
    """
    if chunks < 1:
        raise ValueError(f"chunks is at least 1; found {chunks}")
    gram = torch.zeros(len(losses), len(losses), device=losses[0].device, dtype=torch.float32)
    for part in _chunks(parameters, chunks):
        gram += gram_matrix(gradient_matrix(losses, part))
    return gram


def _chunks(parameters: Sequence[Tensor], chunks: int) -> list[list[Tensor]]:
    total, seen = sum(parameter.numel() for parameter in parameters), 0
    found: list[list[Tensor]] = [[] for _ in range(chunks)]
    for parameter in parameters:
        found[min(chunks - 1, seen * chunks // max(1, total))].append(parameter)
        seen += parameter.numel()
    return [part for part in found if part]


class Backward:
    """How a step's losses are differentiated: plainly, or under a gradient scaler, several processes and accumulation.

    Args:
        parameters: what is trained; those that require no gradient are left out. Their order is that of the flat gradients.
        scaler: a `torch.amp.GradScaler`: gradients are unscaled before they are compared, and those in `.grad` are scaled, as the
            scaler's own step takes them.
        average: averages a tensor over processes; None for one process.
        backward: adds a loss's gradients to `.grad`; None is `loss.backward()` after scaling.
        micro_batches: how many make up one optimiser step.
        complete: whether this is the last of them.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor] | nn.Module,
        *,
        scaler: Any = None,
        average: Callable[[Tensor], Tensor] | None = None,
        backward: Callable[[Tensor], None] | None = None,
        micro_batches: int = 1,
        complete: bool = True,
    ):
        given = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
        self.parameters = [parameter for parameter in given if parameter.requires_grad]
        self.scaler, self.average, self._backward = scaler, average, backward
        self.micro_batches, self.complete = micro_batches, complete

    def matrix(self, losses: Losses) -> Tensor:
        """(k, P) gradients, unscaled and averaged over processes."""
        return self._mean(self._unscaled(gradient_matrix(self._scaled_all(losses), self.parameters, retain_graph=False)))

    def gram(self, losses: Losses, chunks: int = 1) -> Tensor:
        """(k, k) Gram matrix of the unscaled gradients; the graph is kept.

        Over several processes the gradients are averaged first, which holds them whole.
        """
        if self.average is not None:
            return gram_matrix(self._mean(self._unscaled(gradient_matrix(self._scaled_all(losses), self.parameters))))
        scaled = task_gram(self._scaled_all(losses), self.parameters, chunks)
        return scaled if self.scaler is None else scaled / self._scale(scaled).square()

    def add(self, loss: Tensor) -> None:
        """Add the gradients of a loss to `.grad`."""
        if self._backward is not None:
            self._backward(loss)
        else:
            (self._scaled(loss) / self.micro_batches).backward()  # type: ignore[no-untyped-call]

    def write(self, flat: Tensor) -> None:
        """Add a flat gradient (P,) to `.grad`."""
        scaled = flat if self.scaler is None else flat * self._scale(flat)
        for parameter, part in zip(self.parameters, torch.split(scaled, [parameter.numel() for parameter in self.parameters]), strict=True):
            gradient = part.view_as(parameter).to(parameter.dtype)
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self.scaler is None else self.scaler.scale(loss)

    def _scaled_all(self, losses: Losses) -> Losses:
        return self._scaled(losses) if isinstance(losses, Tensor) else [self._scaled(loss) for loss in losses]

    def _scale(self, like: Tensor) -> Tensor:
        scale: Tensor = self.scaler.scale(torch.ones((), device=like.device))  # on the device: get_scale() would wait for it
        return scale

    def _unscaled(self, gradients: Tensor) -> Tensor:
        return gradients if self.scaler is None else gradients / self._scale(gradients)

    def _mean(self, gradients: Tensor) -> Tensor:
        return gradients if self.average is None else self.average(gradients)
