"""The step up the loss: norms and perturbations of SAM, ASAM and Fisher-SAM, whose radius TRAM replaces by a divergence.

SAM: Foret et al., 2021, https://arxiv.org/abs/2010.01412; ASAM: Kwon et al., 2021, https://arxiv.org/abs/2102.11600;
Fisher-SAM: Kim et al., 2022, https://arxiv.org/abs/2206.04920.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from graftwork_tram.two_pass import swapped_tensors, trained_parameters

__all__ = ["GUARD", "NO_GRADIENT", "Ascent", "Metric", "ascend", "ascended", "check_metric", "gradient_cosine", "gradient_norm"]

Metric: TypeAlias = Literal["euclidean", "adaptive", "fisher"]

GUARD = 1e-12
"""Added to a norm before it divides."""

NO_GRADIENT = "no trainable parameter received a gradient"
"""The message where there is nothing to climb by."""


@dataclass
class Ascent:
    """What one step up the loss was.

    Args:
        parameters: those that move, with a gradient each.
        gradients: at w, as many.
        perturbed: w + e, as many.
        radius: 0-d float32, of the ball.
        gradient_norm: 0-d float32: ||g||; of the adaptive metric || |w| g ||, of Fisher's sqrt(g^T F^-1 g).
        perturbation_norm: 0-d float32, ||e||_2.
    """

    parameters: list[nn.Parameter]
    gradients: list[Tensor]
    perturbed: list[Tensor]
    radius: Tensor
    gradient_norm: Tensor
    perturbation_norm: Tensor

    def cosine(self) -> Tensor:
        """Cosine between the gradients at w and those that the parameters hold now; 0-d, 0 where either is 0."""
        return gradient_cosine(self.gradients, [parameter.grad for parameter in self.parameters])


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all tensors together, 0-d float32 on the first one's device (float64 for float64 gradients).

    Args:
        gradients: at least one tensor; they may lie on several devices.

    Raises:
        ValueError: if there is none.
    """
    if not gradients:
        raise ValueError(NO_GRADIENT)
    norm: Tensor = torch.linalg.vector_norm(_norms(gradients, 2))
    return norm


def gradient_cosine(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> Tensor:
    """Cosine between two gradients over all tensors together; a missing tensor counts as 0, and so does a zero gradient.

    Args:
        first: one tensor a parameter, or None.
        second: as many, of the same shapes.
    """
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not pairs:
        raise ValueError(NO_GRADIENT)
    inner = torch.stack([_inner(a, b).to(pairs[0][0].device) for a, b in pairs]).sum()
    norms = gradient_norm([a for a in first if a is not None]) * gradient_norm([b for b in second if b is not None])
    return inner / norms.clamp(min=torch.finfo(norms.dtype).tiny)


def ascend(
    parameters: Iterable[Any],
    radius: Tensor | float,
    metric: Metric = "euclidean",
    *,
    fisher: Sequence[Tensor] | None = None,
    eta: float = 1.0,
    workspace: list[Tensor] | None = None,
) -> Ascent:
    """The worst point of a ball around the weights, to first order. No weight changes.

    With radius d and gradient g: e = d g / ||g|| (euclidean, SAM); e = d w^2 g / || |w| g || (adaptive, ASAM);
    e = d F^-1 g / sqrt(g^T F^-1 g) with F^-1 = 1 / (1 + eta f) (fisher, Fisher-SAM).

    Args:
        parameters: with their gradients, or an optimiser's groups; those without a gradient are left out.
        radius: d >= 0; a 0-d tensor stays on its device.
        metric: of the ball.
        fisher: f, a squared gradient for each parameter with a gradient; by default that of the loss, g^2.
        eta: weight of f, at least 0.
        workspace: a list that keeps the memory of w + e from step to step, which a CPU is slow to give anew; filled at first use.

    Raises:
        ValueError: if no parameter has a gradient, the metric is unknown, eta is negative, or `fisher` does not fit.
    """
    chosen = trained_parameters(parameters)
    check_metric(metric, eta)
    if not chosen:
        raise ValueError(NO_GRADIENT)
    weights, gradients = [one.detach() for one in chosen], [_dense(one) for one in chosen]
    if fisher is not None and [f.shape for f in fisher] != [g.shape for g in gradients]:
        raise ValueError("fisher holds one tensor of the gradient's shape for each parameter with a gradient")
    held = [] if workspace is None else workspace
    if [(one.shape, one.dtype, one.device) for one in held] != [(w.shape, w.dtype, w.device) for w in weights]:
        held[:] = [torch.empty_like(w) for w in weights]
    direction = gradients
    if metric == "euclidean":
        norm = gradient_norm(gradients)
    elif metric == "adaptive":
        direction = _multiplied(weights, gradients, held)
        norm = gradient_norm(direction)
        torch._foreach_mul_(direction, weights)
    else:
        squared = torch._foreach_mul(gradients, gradients) if fisher is None else list(fisher)
        direction = list(torch._foreach_div(gradients, torch._foreach_add(torch._foreach_mul(squared, eta), 1.0)))
        products = torch._foreach_mul(gradients, direction)  # not negative, so their sum is the 1-norm
        norm = _norms(products, 1).sum().sqrt()
    size = torch.as_tensor(radius, dtype=norm.dtype, device=norm.device).detach()
    scale = size / (norm + GUARD)
    reach = norm if metric == "euclidean" else gradient_norm(direction)
    return Ascent(chosen, gradients, _stepped(weights, direction, scale, held), size, norm, scale * reach)


@contextmanager
def ascended(
    parameters: Iterable[Any],
    radius: Tensor | float,
    metric: Metric = "euclidean",
    *,
    fisher: Sequence[Tensor] | None = None,
    eta: float = 1.0,
    workspace: list[Tensor] | None = None,
) -> Iterator[Ascent]:
    """Hold parameters at w + e, with no gradients, for a second pass; then they are w again, to the bit, with that pass's gradients.

        loss(model, batch).backward()
        with ascended(model.parameters(), radius=0.05):
            loss(model, batch).backward()
        optimizer.step()

    Args and errors are those of `ascend`.
    """
    found = ascend(parameters, radius, metric, fisher=fisher, eta=eta, workspace=workspace)
    for parameter in found.parameters:
        parameter.grad = None
    with swapped_tensors(found.parameters, found.perturbed):
        yield found
    found.perturbed = []


def check_metric(metric: str, eta: float) -> None:
    """Raise ValueError unless the metric is known and eta is not negative."""
    if metric not in get_args(Metric):
        raise ValueError(f'metric is one of {", ".join(get_args(Metric))}; found "{metric}"')
    if not eta >= 0:
        raise ValueError(f"eta is at least 0; found {eta}")


def _multiplied(first: Sequence[Tensor], second: Sequence[Tensor], out: list[Tensor]) -> list[Tensor]:
    """first * second into `out`: on a CPU one pass over memory each, on an accelerator two launches for all."""
    if out[0].device.type == "cpu":
        return [torch.mul(a, b, out=held) for a, b, held in zip(first, second, out, strict=True)]
    torch._foreach_copy_(out, list(first))
    torch._foreach_mul_(out, list(second))
    return out


def _stepped(weights: Sequence[Tensor], direction: Sequence[Tensor], scale: Tensor, out: list[Tensor]) -> list[Tensor]:
    """weights + scale * direction into `out`, which may be the direction; as `_multiplied`."""
    if out[0].device.type == "cpu":
        return [torch.addcmul(w, d, scale.to(w), out=held) for w, d, held in zip(weights, direction, out, strict=True)]
    if direction is not out:
        torch._foreach_copy_(out, list(direction))
    for group in _alike(out):
        torch._foreach_mul_([out[i] for i in group], scale.to(out[group[0]]))
    torch._foreach_add_(out, list(weights))
    return out


def _norms(tensors: Sequence[Tensor], order: int) -> Tensor:
    """The norm of each tensor, in at least float32, on the first one's device."""
    wide = functools.reduce(torch.promote_types, {tensor.dtype for tensor in tensors}, torch.float32)
    found = [norm for group in _alike(tensors) for norm in torch._foreach_norm([tensors[i] for i in group], order, dtype=wide)]
    return torch.stack([norm.to(tensors[0].device) for norm in found])


def _alike(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Places of tensors of one device and dtype, group by group."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(place)
    return list(groups.values())


def _inner(first: Tensor, second: Tensor) -> Tensor:
    wide = torch.promote_types(first.dtype, torch.float32)
    return torch.dot(first.flatten().to(wide), second.flatten().to(wide))


def _dense(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    if parameter.grad.is_sparse:
        raise ValueError(f"a parameter {tuple(parameter.shape)} has a sparse gradient: build its embedding with sparse=False")
    return parameter.grad
