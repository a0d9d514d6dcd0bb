"""The cotangents whose squared vector-Jacobian products add up to a Fisher diagonal.

The gradient of log p(y|x) with respect to the logits is onehot(y) - p: whatever is put in for y makes another estimator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from graftwork import DataError
from graftwork_fisher_merging.capture import Batch

__all__ = ["ESTIMATORS", "Estimator", "Targets", "empirical", "exact", "regression", "sampled"]

Estimator: TypeAlias = Literal["exact", "sampled", "empirical", "regression"]
"""Names of the estimators."""

Targets: TypeAlias = Callable[[Tensor, Batch], tuple[Tensor, Tensor]]
"""(logits (N, T, V), batch) -> observed tokens (N, T) long, and which positions are predicted (N, T) bool."""

ESTIMATORS: tuple[Estimator, ...] = ("exact", "sampled", "empirical", "regression")


def exact(logits: Tensor) -> Iterator[Tensor]:
    """Expectation over the classes: sqrt(p_c) (onehot(c) - p) for every class c (Matena and Raffel, 2022, section 3).

    Args:
        logits: (N, C).

    Yields:
        C times (N, C), in the logits' type.

    Raises:
        DataError: if the logits are not (N, C) with at least 2 classes.
    """
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise DataError(_shape_problem(logits, "the exact expectation over classes"))
    probabilities = _probabilities(logits)
    for label in range(logits.shape[1]):
        chosen = functional.one_hot(torch.tensor(label, device=logits.device), logits.shape[1]).to(probabilities.dtype)
        yield ((chosen - probabilities) * probabilities[:, label, None].sqrt()).to(logits.dtype)


def sampled(logits: Tensor, draws: int, generator: torch.Generator, positions: Tensor | None = None) -> Iterator[Tensor]:
    """Labels, or whole token sequences, drawn from the model's own distribution.

    A sequence's log-likelihood is the sum over its predicted positions, each drawn given the tokens that the batch holds before it;
    its gradient is squared once a sequence.

    Args:
        logits: (N, C), or (N, T, V) of sequences.
        draws: S, labels or sequences a sample.
        generator: on the logits' device.
        positions: (N, T) bool, which are predicted; with sequences.

    Yields:
        S times the logits' shape, scaled by 1 / sqrt(S).

    Raises:
        DataError: if there are fewer than 2 classes, or sequences without positions.
    """
    if logits.dim() not in (2, 3) or logits.shape[-1] < 2 or (logits.dim() == 3) != (positions is not None):
        raise DataError(_shape_problem(logits, "drawing labels"))
    probabilities = _probabilities(logits)
    for _ in range(draws):
        labels = torch.multinomial(probabilities.flatten(0, -2), 1, generator=generator).reshape(logits.shape[:-1])
        yield _score(probabilities, labels, positions).div_(draws**0.5).to(logits.dtype)


def empirical(logits: Tensor, labels: Tensor, positions: Tensor | None = None) -> Iterator[Tensor]:
    """The observed labels in place of the model's own: not the Fisher information, and known to differ from it.

    Args:
        logits: (N, C), or (N, T, V).
        labels: (N,) or (N, T) long.
        positions: (N, T) bool, which are predicted; with sequences.

    Yields:
        Once the logits' shape.

    Raises:
        DataError: if a label has no output.
    """
    if logits.dim() not in (2, 3) or logits.shape[-1] < 2 or logits.shape[:-1] != labels.shape:
        raise DataError(f"{_shape_problem(logits, 'observed labels')}; the labels have shape {tuple(labels.shape)}")
    seen = labels if positions is None else labels[positions]
    if seen.numel() and (seen.min() < 0 or seen.max() >= logits.shape[-1]):
        raise DataError(f"labels go from {int(seen.min())} to {int(seen.max())}, but the model has {logits.shape[-1]} outputs")
    labels = labels if positions is None else labels.masked_fill(~positions, 0)
    yield _score(_probabilities(logits), labels, positions).to(logits.dtype)


def regression(outputs: Tensor) -> Iterator[Tensor]:
    """A normal likelihood with variance 1 around the outputs: the squared Jacobian, exactly.

    Args:
        outputs: (N,) or (N, D).

    Yields:
        D times the outputs' shape.

    Raises:
        DataError: if the outputs have another shape.
    """
    if outputs.dim() not in (1, 2):
        raise DataError(_shape_problem(outputs, "a regression"))
    for index in range(1 if outputs.dim() == 1 else outputs.shape[1]):
        vector = torch.zeros_like(outputs)
        vector[..., index] = 1
        yield torch.ones_like(outputs) if outputs.dim() == 1 else vector


def _probabilities(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)


def _score(probabilities: Tensor, labels: Tensor, positions: Tensor | None) -> Tensor:
    """onehot(y) - p, 0 where nothing is predicted."""
    score = (-probabilities).scatter_add_(-1, labels[..., None], torch.ones_like(probabilities[..., :1]))
    return score if positions is None else score.masked_fill_(~positions[..., None], 0.0)


def _shape_problem(outputs: Tensor, what: str) -> str:
    shape = tuple(outputs.shape)
    if outputs.dim() == 3:
        return f'{what} cannot do with outputs of shape {shape}: for sequences take estimator "sampled" and say what is predicted'
    if outputs.dim() == 1 or outputs.shape[-1] == 1:
        return f'{what} needs at least 2 classes; the outputs have shape {shape}: for a regression take estimator "regression"'
    return f"{what} cannot do with outputs of shape {shape}; logits are (N, C)"
