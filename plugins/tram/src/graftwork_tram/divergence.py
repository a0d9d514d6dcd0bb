"""How far two sets of predictions are apart: Kullback-Leibler divergence, L2 distance, maximum mean discrepancy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor

__all__ = [
    "BANDWIDTHS",
    "Divergence",
    "DivergenceName",
    "KLType",
    "Kernel",
    "Reduction",
    "class_axis",
    "kl_divergence",
    "kl_rows",
    "l2_distance",
    "mmd",
]

KLType: TypeAlias = Literal["forward", "reverse", "symmetric"]
Kernel: TypeAlias = Literal["imq", "imq2", "imq3", "rbf"]
Reduction: TypeAlias = Literal["batchmean", "code"]
DivergenceName: TypeAlias = Literal["forward-kl", "reverse-kl", "symmetric-kl", "l2", "mmd"]

BANDWIDTHS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Over which the kernels of `mmd` are summed."""

KERNELS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "imq": lambda squared, width: width / (width + squared),
    "imq2": lambda squared, width: (width**2 + squared).rsqrt(),
    "imq3": lambda squared, width: width**2 / (width**2 + squared),
    "rbf": lambda squared, width: (-0.5 * squared / width).exp(),
}
"""Inverse multiquadrics of three kinds, and the Gaussian; each of a squared distance and a bandwidth."""


def kl_divergence(
    target_logits: Tensor,
    logits: Tensor,
    type: KLType = "forward",
    *,
    reduction: Reduction = "batchmean",
    mask: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    """KL(target || model), the sum over classes averaged over samples or tokens; at least in float32, from log-softmax.

    Args:
        target_logits: (..., C), what is compared with.
        logits: (..., C), the model's.
        type: "forward" is KL(target || model), "reverse" KL(model || target), "symmetric" their sum.
        reduction: "code" also divides by the number of classes and by the batch size B, as the authors' code does.
        mask: logits' shape without the classes, 1 where a token counts; None counts all.
        dim: axis of the classes.

    Returns:
        0-d, not negative: what rounding leaves below 0 is 0.

    Raises:
        ValueError: if shapes differ, or `type` or `reduction` is unknown.
    """
    _check(target_logits, logits, mask, reduction, dim)
    return _reduced(kl_rows(target_logits, logits, type, dim=dim), mask, reduction, logits.shape[dim]).clamp(min=0)


def kl_rows(target_logits: Tensor, logits: Tensor, type: KLType = "forward", *, dim: int = -1) -> Tensor:
    """KL of each sample or token, the sum over classes; at least in float32, from log-softmax.

    Args:
        target_logits: (..., C), what is compared with.
        logits: (..., C), the model's.
        type: as `kl_divergence` takes it.
        dim: axis of the classes.

    Returns:
        Logits' shape without the classes; rounding may leave values a little below 0.

    Raises:
        ValueError: if shapes differ, or `type` is unknown.
    """
    _check(target_logits, logits, None, "batchmean", dim)
    if type not in get_args(KLType):
        raise ValueError(f'type is one of {", ".join(get_args(KLType))}; found "{type}"')
    target, model = (_precise(one).log_softmax(dim=dim) for one in (target_logits, logits))
    if type == "symmetric":
        return _relative_entropy(target, model, dim) + _relative_entropy(model, target, dim)
    return _relative_entropy(target, model, dim) if type == "forward" else _relative_entropy(model, target, dim)


def l2_distance(
    target_logits: Tensor, logits: Tensor, *, reduction: Reduction = "batchmean", mask: Tensor | None = None, dim: int = -1
) -> Tensor:
    """Euclidean distance of the logits, averaged over samples or tokens; at least in float32. Its gradient where they agree is 0.

    Args:
        target_logits: (..., C), what is compared with.
        logits: (..., C), the model's.
        reduction: "code" also divides by the batch size B, as the authors' code means to.
        mask: logits' shape without the classes, 1 where a token counts; None counts all.
        dim: axis of the classes.

    Returns:
        0-d, not negative.

    Raises:
        ValueError: if shapes differ, or `reduction` is unknown.
    """
    _check(target_logits, logits, mask, reduction, dim)
    rows = torch.linalg.vector_norm(_precise(logits) - _precise(target_logits), dim=dim)
    return _reduced(rows, mask, reduction, 1)


def mmd(
    target_logits: Tensor,
    logits: Tensor,
    kernel: Kernel = "imq2",
    *,
    bandwidths: Sequence[float] = BANDWIDTHS,
    reduction: Reduction = "batchmean",
    mask: Tensor | None = None,
    dim: int = -1,
) -> Tensor:
    """Squared maximum mean discrepancy of two sets of logits: the biased estimate, kernels summed over bandwidths (Gretton et al., 2012).

    The rows of each set are compared with all rows of both, so that which row belongs to which does not matter; memory is O(N^2) for
    N samples or tokens. At least in float32.

    Args:
        target_logits: (..., C), what is compared with.
        logits: (..., C), the model's.
        kernel: "imq", "imq2", "imq3" (inverse multiquadrics) or "rbf" (Gaussian), as in the authors' code.
        bandwidths: of the kernels, each above 0.
        reduction: "code" also divides by the batch size B, as the authors' code does.
        mask: logits' shape without the classes, 1 where a token counts; None counts all.
        dim: axis of the classes.

    Returns:
        0-d, not negative: what rounding leaves below 0 is 0.

    Raises:
        ValueError: if shapes differ, `kernel` or `reduction` is unknown, or a bandwidth is not above 0.
    """
    _check(target_logits, logits, mask, reduction, dim)
    if kernel not in KERNELS:
        raise ValueError(f'kernel is one of {", ".join(KERNELS)}; found "{kernel}"')
    if not bandwidths or min(bandwidths) <= 0:
        raise ValueError(f"bandwidths are one or more numbers above 0; found {list(bandwidths)}")
    target, model = (_precise(one).movedim(dim, -1).flatten(0, -2) for one in (target_logits, logits))
    centre = target.detach().mean(dim=0)  # distances do not change, and what cancels in them is smaller
    target, model = target - centre, model - centre
    weights = model.new_ones(len(model)) if mask is None else mask.flatten().to(model.dtype)
    weights = weights / weights.sum().clamp(min=1)

    def mean(first: Tensor, second: Tensor) -> Tensor:
        squared = first.square().sum(1)[:, None] + second.square().sum(1) - 2 * first @ second.T
        values = torch.stack([KERNELS[kernel](squared.clamp(min=0), width) for width in bandwidths]).sum(dim=0)
        return weights @ values @ weights

    found = (mean(target, target) + mean(model, model) - 2 * mean(target, model)).clamp(min=0)
    return found / len(logits) if reduction == "code" else found


@dataclass(frozen=True)
class Divergence:
    """One of the three, with its settings: called with target logits, logits and a mask.

    Args:
        name: which; a KL with its direction.
        reduction: as the functions take it.
        kernel: of `mmd`.
        scale: what the divergence is multiplied by.
        dim: axis of the classes; None is 1 for maps (B, C, H, W) and more, else the last.

    Raises:
        ValueError: if a setting is unknown, or scale is not above 0.
    """

    name: DivergenceName = "forward-kl"
    reduction: Reduction = "batchmean"
    kernel: Kernel = "imq2"
    scale: float = 1.0
    dim: int | None = None

    def __post_init__(self) -> None:
        for label, value, known in (
            ("divergence", self.name, get_args(DivergenceName)),
            ("reduction", self.reduction, get_args(Reduction)),
            ("kernel", self.kernel, get_args(Kernel)),
        ):
            if value not in known:
                raise ValueError(f'{label} is one of {", ".join(known)}; found "{value}"')
        if not self.scale > 0:
            raise ValueError(f"logit_scale is above 0; found {self.scale}")

    def __call__(self, target_logits: Tensor, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """The divergence, 0-d."""
        dim = class_axis(logits) if self.dim is None else self.dim
        if self.name == "l2":
            found = l2_distance(target_logits, logits, reduction=self.reduction, mask=mask, dim=dim)
        elif self.name == "mmd":
            found = mmd(target_logits, logits, self.kernel, reduction=self.reduction, mask=mask, dim=dim)
        else:
            kind = cast(KLType, self.name.removesuffix("-kl"))
            found = kl_divergence(target_logits, logits, kind, reduction=self.reduction, mask=mask, dim=dim)
        return self.scale * found


def class_axis(logits: Tensor) -> int:
    """Where the classes are: axis 1 of maps (B, C, H, W) and of what has more axes, else the last."""
    return 1 if logits.ndim >= 4 else -1


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _relative_entropy(log_p: Tensor, log_q: Tensor, dim: int) -> Tensor:
    p = log_p.exp()
    return (p * (log_p - log_q).masked_fill(p == 0, 0)).sum(dim=dim)  # a class that p rules out adds nothing, though log p is -inf


def _reduced(rows: Tensor, mask: Tensor | None, reduction: Reduction, classes: int) -> Tensor:
    mean = rows.mean() if mask is None else torch.where(mask.bool(), rows, 0).sum() / mask.bool().sum().clamp(min=1)
    return mean / (classes * len(rows)) if reduction == "code" else mean


def _check(target_logits: Tensor, logits: Tensor, mask: Tensor | None, reduction: str, dim: int) -> None:
    if target_logits.shape != logits.shape:
        raise ValueError(f"target logits {tuple(target_logits.shape)} and logits {tuple(logits.shape)} differ in shape")
    if logits.ndim < 2:
        raise ValueError(f"logits are (batch, ..., classes); found {tuple(logits.shape)}")
    rest = list(logits.shape)
    del rest[dim]
    if mask is not None and list(mask.shape) != rest:
        raise ValueError(f"mask {tuple(mask.shape)} is not logits {tuple(logits.shape)} without the classes")
    if reduction not in get_args(Reduction):
        raise ValueError(f'reduction is one of {", ".join(get_args(Reduction))}; found "{reduction}"')
