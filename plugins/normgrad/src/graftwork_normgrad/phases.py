"""The two phases: extract each position's contribution to the gradient of a layer's weights, aggregate its channels to one number.

Rebuffi et al., "There and Back Again: Revisiting Backpropagation Saliency Methods", CVPR 2020, https://arxiv.org/abs/2004.02866. With x
what comes into a layer and g the gradient of the score at what goes out, the gradient of a convolution's weights is the sum over
positions u of g_u x_u^T; its summand at u is what that position contributes. Where a layer has no weights, an identity is imagined
behind it, whose weights have a gradient all the same.

Every extract is an outer product of what a window sees of x with g, within groups of channels, so that sums, norms and maxima over its
entries follow from those over the two factors: no product is formed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from graftwork_normgrad.windows import Window

__all__ = ["PHASE1", "PHASE2", "Contributions", "Phase1", "Phase2", "Term", "aggregate", "contribution_map", "extract", "saliency_of"]

Phase1: TypeAlias = Literal["bias", "scaling", "conv1x1", "conv3x3", "conv3x3-depthwise", "conv"]
"""Whose weights a position contributes to: an imagined identity of that kind behind the layer, or the layer's own convolution (`conv`)."""

Phase2: TypeAlias = Literal["sum", "norm", "filter-norm", "max", "abs-max", "none"]
"""How a contribution's entries become one number: their sum, L2 norm, L2 norm of the positive ones, maximum, largest magnitude."""

PHASE1: tuple[str, ...] = get_args(Phase1)
PHASE2: tuple[str, ...] = get_args(Phase2)

AT_ONCE = 2**24
"""Entries of contributions that are formed together where a closed form does not exist."""

Statistic: TypeAlias = Callable[[Tensor, int], Tensor]


def _sum(values: Tensor, dim: int) -> Tensor:
    return values.sum(dim)


def _squares(values: Tensor, dim: int) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(values, dim=dim)  # which holds no squares of all entries
    return length.square()


def _positive_squares(values: Tensor, dim: int) -> Tensor:
    return _squares(values.clamp(min=0), dim)


def _negative_squares(values: Tensor, dim: int) -> Tensor:
    return _squares(values.clamp(max=0), dim)


@dataclass(frozen=True)
class Term:
    """One outer product, of which a contribution is the sum.

    Args:
        activations: (B, K, H, W), what comes into the layer.
        gradients: (B, T, C, h, w) at what goes out of it, of T scores a sample.
        in_bias: whether the term belongs to a bias, on which activations have no influence.
    """

    activations: Tensor
    gradients: Tensor
    in_bias: bool = True


@dataclass(frozen=True)
class Contributions:
    """What the positions of a layer contribute to the gradient of its weights, as the factors that came out of the network.

    Args:
        terms: one, or one for each use of the weights: each run of a shared layer, each path through a meta-step.
        window: of the layer's own convolution, where that is asked for.
        groups: of that convolution.
    """

    terms: Sequence[Term]
    window: Window | None = None
    groups: int = 1


@dataclass(frozen=True)
class _Outer:
    """Grouped outer products: what a window sees of `left` (B, K, H, W) times `right` (B, T, C, h, w), summed over terms."""

    terms: list[tuple[Tensor, Tensor]]
    window: Window
    groups: int

    def left(self, values: Tensor, statistic: Statistic) -> Tensor:
        """A statistic that adds up, over each group's window: (B, 1, G, h, w)."""
        return self.window.total(statistic(torch.unflatten(values, 1, (self.groups, -1)), 2)).unsqueeze(1)

    def left_extremes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Maximum and minimum over each group's window: (B, 1, G, h, w)."""
        grouped = torch.unflatten(values, 1, (self.groups, -1))
        return self.window.highest(grouped.amax(dim=2)).unsqueeze(1), -self.window.highest(-grouped.amin(dim=2)).unsqueeze(1)

    def right(self, values: Tensor, statistic: Statistic) -> Tensor:
        """A statistic over each group's channels: (B, T, G, h, w)."""
        return statistic(torch.unflatten(values, 2, (self.groups, -1)), 3)

    def right_extremes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Maximum and minimum over each group's channels: (B, T, G, h, w)."""
        grouped = torch.unflatten(values, 2, (self.groups, -1))
        return grouped.amax(dim=3), grouped.amin(dim=3)

    def formed(self, rows: slice = slice(None)) -> Tensor:
        """The products themselves: (B, T, G, P, Q, h, w) for P entries of a group's window (or `rows` of them) and Q channels."""
        total: Tensor | None = None
        for left, right in self.terms:
            patches = torch.unflatten(self.window.patches(left), 1, (self.groups, -1)).flatten(2, 3)[:, :, rows]  # (B, G, P, h, w)
            product = patches[:, None, :, :, None] * torch.unflatten(right, 2, (self.groups, -1))[:, :, :, None]
            total = product if total is None else total + product
        assert total is not None
        return total

    def piecewise(self) -> list[Tensor]:
        """The products a part at a time, each (B, T, entries, h, w), as large as memory should bear."""
        left, right = self.terms[0]
        entries = left.shape[1] // self.groups * self.window.kernel[0] * self.window.kernel[1]
        step = max(1, AT_ONCE // max(1, right.numel()))
        return [self.formed(slice(start, start + step)).flatten(2, 4) for start in range(0, entries, step)]


def _check(name: str, found: str, choices: Sequence[str]) -> None:
    if found not in choices:
        raise ValueError(f'{name} is one of {", ".join(choices)}; found "{found}"')


def _outer(contributions: Contributions, phase1: Phase1) -> _Outer:
    _check("phase1", phase1, PHASE1)
    terms = [(term.activations, term.gradients) for term in contributions.terms]
    if phase1 == "conv":
        if contributions.window is None:
            raise ValueError('phase1 "conv" is the layer\'s own convolution: its window is needed')
        return _Outer(terms, contributions.window, contributions.groups)
    for left, right in terms:
        if left.shape != right[:, 0].shape:
            raise ValueError(f"activations {tuple(left.shape)} and gradients {tuple(right.shape)} do not go together")
    if phase1 == "bias":
        kept = [(left, right) for (left, right), term in zip(terms, contributions.terms, strict=True) if term.in_bias]
        return _Outer([(torch.ones_like(left[:, :1]), right) for left, right in kept], Window(), 1)
    window = Window((3, 3), padding=(1, 1, 1, 1)) if phase1.startswith("conv3x3") else Window()
    return _Outer(terms, window, terms[0][0].shape[1] if phase1 in ("scaling", "conv3x3-depthwise") else 1)


def _single(activations: Tensor, gradients: Tensor) -> tuple[Contributions, bool]:
    several = gradients.dim() == 5
    return Contributions([Term(activations, gradients if several else gradients.unsqueeze(1))]), several


def extract(activations: Tensor, gradients: Tensor, phase1: Phase1 = "conv1x1", window: Window | None = None, groups: int = 1) -> Tensor:
    """Phase 1: each position's contribution to the gradient of the weights, formed. K^2 channels for `conv1x1`, 9 K^2 for `conv3x3`.

    Args:
        activations: x, (B, K, h, w); for `conv` (B, K, H, W), the convolution's input.
        gradients: g, (B, K, h, w), or (B, T, K, h, w) of T scores a sample.
        phase1: whose weights.
        window: of the convolution, for `conv`.
        groups: of the convolution, for `conv`.

    Returns:
        (B, [T,] C', h, w): `bias` g; `scaling` x g; the others by group, entry of the window (channel, then place), channel of g. Summed
        over positions it is the gradient of the weights.

    Raises:
        ValueError: if there is no such phase, or the shapes do not go together.
    """
    contributions, several = _single(activations, gradients)
    formed = _outer(Contributions(contributions.terms, window, groups), phase1).formed().flatten(2, 4)
    return formed if several else formed[:, 0]


def aggregate(extracted: Tensor, phase2: Phase2 = "norm", dim: int = -3) -> Tensor:
    """Phase 2: contributions to one number a position.

    Args:
        extracted: (..., C', h, w).
        phase2: how.
        dim: of the channels.

    Returns:
        (..., 1, h, w); `none` gives what came in.

    Raises:
        ValueError: if there is no such phase.
    """
    _check("phase2", phase2, PHASE2)
    if phase2 == "none":
        return extracted
    if phase2 == "sum":
        return extracted.sum(dim=dim, keepdim=True)
    if phase2 == "max":
        return extracted.amax(dim=dim, keepdim=True)
    if phase2 == "abs-max":
        return extracted.abs().amax(dim=dim, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(extracted.clamp(min=0) if phase2 == "filter-norm" else extracted, dim=dim, keepdim=True)
    return norm


def contribution_map(
    activations: Tensor, gradients: Tensor, phase1: Phase1 = "conv1x1", phase2: Phase2 = "norm", *, naive: bool = False
) -> Tensor:
    """Both phases in closed form: O(B K h w), where forming the contributions takes K or 9 K times as much.

    For `conv1x1`: sum (sum_k x)(sum_k g); norm |x| |g|; filter-norm sqrt(|x+|^2 |g+|^2 + |x-|^2 |g-|^2); max the largest of the products of
    {min x, max x} with {min g, max g}. For the 3x3 windows the same with sums and maxima over the window.

    Args:
        activations: x, (B, K, h, w).
        gradients: g, (B, K, h, w), or (B, T, K, h, w) of T scores a sample.
        phase1: whose weights.
        phase2: how a contribution becomes a number.
        naive: form the contributions, as the authors' scripts do.

    Returns:
        (B, 1, h, w), or (B, T, h, w) for T scores; for `none` (B, [T,] C', h, w).

    Raises:
        ValueError: if there is no such phase, or the shapes differ.
    """
    contributions, several = _single(activations, gradients)
    found = saliency_of(contributions, phase1, phase2, naive=naive)
    return found if phase2 != "none" or several else found[:, 0]


def saliency_of(contributions: Contributions, phase1: Phase1, phase2: Phase2, *, naive: bool = False) -> Tensor:
    """Both phases, for any number of terms: (B, T, h, w), or (B, T, C', h, w) for `none`."""
    outer = _outer(contributions, phase1)
    _check("phase2", phase2, PHASE2)
    if naive or phase2 == "none":
        found = aggregate(outer.formed().flatten(2, 4), phase2)
        return found if phase2 == "none" else found.squeeze(2)
    if phase2 == "sum":
        parts = [outer.left(left, _sum) * outer.right(right, _sum) for left, right in outer.terms]
        return torch.stack(parts).sum(dim=0).sum(dim=2)
    if phase2 == "norm" and len(outer.terms) > 1:
        return _gram(outer).clamp(min=0).sqrt()
    if len(outer.terms) > 1:
        return _in_parts(outer, phase2)
    return _closed(outer, *outer.terms[0], phase2)


def _closed(outer: _Outer, left: Tensor, right: Tensor, phase2: Phase2) -> Tensor:
    if phase2 in ("norm", "filter-norm"):
        # the roots are multiplied, not the squares: those of two small numbers vanish in float32
        parts = (_squares,) if phase2 == "norm" else (_positive_squares, _negative_squares)
        lengths = [outer.left(left, each).sqrt() * outer.right(right, each).sqrt() for each in parts]
        return aggregate(functools.reduce(torch.hypot, lengths), "norm").squeeze(2)
    lefts, rights = outer.left_extremes(left), outer.right_extremes(right)
    if phase2 == "abs-max":
        return (torch.maximum(*map(torch.abs, lefts)) * torch.maximum(*map(torch.abs, rights))).amax(dim=2)
    return functools.reduce(torch.maximum, (a * b for a in lefts for b in rights)).amax(dim=2)


def _gram(outer: _Outer) -> Tensor:
    """|sum_r x_r g_r^T|^2 = sum over r, s of (x_r . x_s)(g_r . g_s)."""
    pairs = [outer.left(x_r * x_s, _sum) * outer.right(g_r * g_s, _sum) for x_r, g_r in outer.terms for x_s, g_s in outer.terms]
    return torch.stack(pairs).sum(dim=0).sum(dim=2)


def _in_parts(outer: _Outer, phase2: Phase2) -> Tensor:
    if phase2 == "filter-norm":
        squares = [part.clamp(min=0).square().sum(dim=2) for part in outer.piecewise()]
        return torch.stack(squares).sum(dim=0).sqrt()
    return torch.stack([aggregate(part, phase2).squeeze(2) for part in outer.piecewise()]).amax(dim=0)
