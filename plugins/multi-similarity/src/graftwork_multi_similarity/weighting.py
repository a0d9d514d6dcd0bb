"""General pair weighting: losses over pairs as weightings of pairs (Wang et al., 2019, https://arxiv.org/abs/1904.06627, section 3).

The gradient of a loss L over similarities S is sum_ij (dL/dS_ij) dS_ij/dtheta. A sound loss pulls positives together and pushes
negatives apart, dL/dS_ij <= 0 on positives and >= 0 on negatives, so it is told by its weights w_ij = |dL/dS_ij|. Each loss here gives
both: `losses`, one for each anchor, and `weights`, in closed form.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from graftwork.errors import nearest
from graftwork_multi_similarity.pairs import full_precision

__all__ = [
    "PAIR_LOSSES",
    "BinomialDeviance",
    "Contrastive",
    "FunctionPairLoss",
    "LiftedStructure",
    "MultiSimilarityPairs",
    "PairLoss",
    "Triplet",
    "check_sound",
    "masked_logsumexp",
    "pair_loss",
    "surrogate_loss",
]


def surrogate_loss(similarity: Tensor, positive_weights: Tensor, negative_weights: Tensor) -> Tensor:
    """F = sum_i ( sum_{N_i} w_ij S_ij - sum_{P_i} w_ij S_ij ) at fixed weights: its gradient is that of the loss they came from.

    Args:
        similarity: (m, r).
        positive_weights: (m, r) w+, 0 off the positive pairs; detached here.
        negative_weights: (m, r) w-, 0 off the negative pairs; detached here.

    Returns:
        0-d. Only its gradient means something.
    """
    return (similarity * (negative_weights - positive_weights).detach()).sum()


def masked_logsumexp(values: Tensor, mask: Tensor, with_zero: bool = False) -> Tensor:
    """log of the sum of e^values over a mask, row by row, in at least float32.

    Args:
        values: (m, r).
        mask: (m, r), what is summed.
        with_zero: add one more term of e^0, the "1 +" of log(1 + sum).

    Returns:
        (m,). A row whose mask is empty gives 0, and no gradient.
    """
    values = full_precision(values).masked_fill(~mask, -math.inf)
    present = mask.any(dim=1)
    shift = torch.where(present, values.detach().amax(dim=1), 0.0)
    if with_zero:
        shift = shift.clamp(min=0)
    total = torch.exp(values - shift[:, None]).sum(dim=1)
    if with_zero:
        return torch.log1p(torch.expm1(-shift) + total) + shift
    return torch.log(torch.where(present, total, 1.0)) + shift


class PairLoss(ABC):
    """A loss over pairs. Anchor i's loss depends on its own row of S alone."""

    @abstractmethod
    def losses(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Each anchor's loss.

        Args:
            similarity: (m, r) S.
            positive: (m, r) mask of P_i.
            negative: (m, r) mask of N_i.

        Returns:
            (m,).
        """

    def loss(self, similarity: Tensor, positive: Tensor, negative: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
        """The anchors' losses, averaged or summed; arguments as for `losses`. 0-d."""
        losses = self.losses(similarity, positive, negative)
        return losses.mean() if reduction == "mean" else losses.sum()

    def weights(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """W+ and W-: |dL/dS| of the summed losses on positive and on negative pairs; arguments as for `losses`.

        Here by differentiation, which any loss allows; the losses of this module override it with their closed form.

        Returns:
            Two of (m, r), 0 off their pairs, and non-negative if the loss is sound (see `check_sound`).
        """
        with torch.enable_grad():
            leaf = full_precision(similarity.detach()).requires_grad_()
            (gradient,) = torch.autograd.grad(self.losses(leaf, positive, negative).sum(), leaf)
        return (-gradient).masked_fill(~positive, 0.0), gradient.masked_fill(~negative, 0.0)


def check_sound(positive_weights: Tensor, negative_weights: Tensor) -> None:
    """Raise if a weight is negative, which those of a function's own gradient may be. Waits for the device.

    Raises:
        ValueError: naming the side on which the loss is no sound pair loss.
    """
    for side, weights, wrong in (("positive", positive_weights, "rises"), ("negative", negative_weights, "falls")):
        if (weights < 0).any():
            raise ValueError(f"this is no sound pair loss: it {wrong} with the similarity of a {side} pair")


@dataclass(frozen=True)
class FunctionPairLoss(PairLoss):
    """A pair loss from a function; its weights follow by differentiation.

    Args:
        function: takes similarity (m, r) and the masks of positives and negatives (m, r); gives (m,).
    """

    function: Callable[[Tensor, Tensor, Tensor], Tensor]

    def losses(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """The function's value.

        Raises:
            ValueError: if it is not one number for each anchor.
        """
        found = self.function(similarity, positive, negative)
        if found.shape != similarity.shape[:1]:
            raise ValueError(f"a pair loss gives one number for each of {len(similarity)} anchors; found shape {tuple(found.shape)}")
        return found


def _number(default: float, description: str, positive: bool = False) -> float:
    return field(default=default, metadata={"description": description, "positive": positive})


@dataclass(frozen=True)
class _Parametric(PairLoss):
    """Checks the numbers that a loss is built with."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not math.isfinite(value) or (one.metadata["positive"] and value <= 0):
                raise ValueError(f"{one.name} of {type(self).__name__} is {one.metadata['description']}; found {value}")


@dataclass(frozen=True)
class Contrastive(_Parametric):
    """L_i = sum_{N_i} [S_ij - threshold]_+ - sum_{P_i} S_ij (Hadsell et al., 2006, on similarities).

    Every positive weighs 1, and every negative above the threshold.
    """

    threshold: float = _number(0.5, "the similarity above which negatives are pushed away, a finite number")

    def losses(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """(m,); as `PairLoss.losses`."""
        similarity = full_precision(similarity)
        pushed = functional.relu(similarity - self.threshold).masked_fill(~negative, 0.0)
        return pushed.sum(dim=1) - similarity.masked_fill(~positive, 0.0).sum(dim=1)

    def weights(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """1 on P_i; 1 on N_i where S_ij > threshold."""
        similarity = full_precision(similarity)
        return positive.to(similarity.dtype), (negative & (similarity > self.threshold)).to(similarity.dtype)


@dataclass(frozen=True)
class Triplet(_Parametric):
    """L_i = sum_{p, n} [S_in - S_ip + margin]_+ over all triplets of the anchor (Schroff et al., 2015, on similarities).

    A pair weighs as many as there are active triplets that it is in. The counts come from each row sorted, O(m r log r): no triplet is
    listed.
    """

    margin: float = _number(0.1, "how much nearer than a negative a positive has to be, a finite number")

    def losses(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """(m,); as `PairLoss.losses`. The weights are constant between the hinges, so the loss is linear in S at fixed weights."""
        similarity = full_precision(similarity)
        drawn, pushed = self.weights(similarity, positive, negative)
        return (similarity * (pushed - drawn)).sum(dim=1) + self.margin * drawn.sum(dim=1)

    @torch.no_grad()
    def weights(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Of a positive, how many negatives have S_in > S_ip - margin; of a negative, how many positives have S_ip < S_in + margin."""
        similarity = full_precision(similarity).contiguous()
        negatives = similarity.masked_fill(~negative, -math.inf).sort(dim=1).values
        below = torch.searchsorted(negatives, similarity - self.margin, right=True)
        positives = (similarity - self.margin).masked_fill(~positive, math.inf).sort(dim=1).values
        nearer = torch.searchsorted(positives, similarity, right=False)
        drawn = (similarity.shape[1] - below).to(similarity.dtype).masked_fill(~positive, 0.0)
        return drawn, nearer.to(similarity.dtype).masked_fill(~negative, 0.0)


@dataclass(frozen=True)
class LiftedStructure(_Parametric):
    """L_i = [ log sum_{P_i} e^{margin - S_ik} + log sum_{N_i} e^{S_ik} ]_+ (Oh Song et al., 2016; Hermans et al., 2017).

    Where the hinge is open each side's weights are a softmax over its pairs and sum to 1; else all are 0, as for an anchor that lacks
    either side.
    """

    margin: float = _number(1.0, "added to every positive's exponent, a finite number")

    def _hinge(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        both = positive.any(dim=1) & negative.any(dim=1)
        total = masked_logsumexp(self.margin - similarity, positive) + masked_logsumexp(similarity, negative)
        return functional.relu(total.masked_fill(~both, 0.0))

    def losses(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """(m,); as `PairLoss.losses`."""
        return self._hinge(full_precision(similarity), positive, negative)

    def weights(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """e^{margin - S_ij} / sum_{P_i} e^{margin - S_ik} and e^{S_ij} / sum_{N_i} e^{S_ik} where the hinge is open."""
        similarity = full_precision(similarity)
        opened = (self._hinge(similarity, positive, negative) > 0)[:, None]
        found = []
        for values, mask in ((self.margin - similarity, positive), (similarity, negative)):
            shares = torch.exp(values - masked_logsumexp(values, mask)[:, None])
            found.append(shares.masked_fill(~(mask & opened), 0.0))
        return found[0], found[1]


@dataclass(frozen=True)
class BinomialDeviance(_Parametric):
    """L_i = mean_{P_i} log(1 + e^{alpha (threshold - S_ij)}) + mean_{N_i} log(1 + e^{beta (S_ij - threshold)}) (Yi et al., 2014).

    A pair's weight follows from its own similarity, whatever its neighbours.
    """

    alpha: float = _number(2.0, "the scale of positive pairs, above 0", positive=True)
    beta: float = _number(50.0, "the scale of negative pairs, above 0", positive=True)
    threshold: float = _number(0.5, "the similarity at which a pair weighs half its most, a finite number")

    def losses(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """(m,); as `PairLoss.losses`."""
        similarity = full_precision(similarity)
        drawn = functional.softplus(self.alpha * (self.threshold - similarity)).masked_fill(~positive, 0.0)
        pushed = functional.softplus(self.beta * (similarity - self.threshold)).masked_fill(~negative, 0.0)
        return drawn.sum(dim=1) / _count(positive)[:, 0] + pushed.sum(dim=1) / _count(negative)[:, 0]

    def weights(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """alpha/|P_i| sigmoid(alpha (threshold - S_ij)) and beta/|N_i| sigmoid(beta (S_ij - threshold))."""
        similarity = full_precision(similarity)
        drawn = self.alpha * torch.sigmoid(self.alpha * (self.threshold - similarity)) / _count(positive)
        pushed = self.beta * torch.sigmoid(self.beta * (similarity - self.threshold)) / _count(negative)
        return drawn.masked_fill(~positive, 0.0), pushed.masked_fill(~negative, 0.0)


def _count(mask: Tensor) -> Tensor:
    return mask.sum(dim=1, keepdim=True).clamp(min=1)


@dataclass(frozen=True)
class MultiSimilarityPairs(_Parametric):
    """L_i = 1/alpha log(1 + sum_{P_i} e^{-alpha (S_ik - threshold)}) + 1/beta log(1 + sum_{N_i} e^{beta (S_ik - threshold)}).

    The weighting step of the multi-similarity method (equation 15) alone: put `MultiSimilarityMiner` before it for the whole. The
    one in each logarithm is what makes weights depend on the pair's own similarity; without it they would not change with the threshold.
    """

    alpha: float = _number(2.0, "the scale of positive pairs, above 0", positive=True)
    beta: float = _number(40.0, "the scale of negative pairs, above 0", positive=True)
    threshold: float = _number(0.5, "the offset of both sides, a finite number")

    def losses(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """(m,); as `PairLoss.losses`."""
        drawn, pushed = self._logits(similarity)
        return (
            masked_logsumexp(drawn, positive, with_zero=True) / self.alpha + masked_logsumexp(pushed, negative, with_zero=True) / self.beta
        )

    def weights(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """e^{-alpha (S_ij - threshold)} / (1 + sum_{P_i}) and e^{beta (S_ij - threshold)} / (1 + sum_{N_i}), sums as in the loss."""
        found = []
        for logits, mask in zip(self._logits(similarity), (positive, negative), strict=True):
            shares = torch.exp(logits - masked_logsumexp(logits, mask, with_zero=True)[:, None])
            found.append(shares.masked_fill(~mask, 0.0))
        return found[0], found[1]

    def _logits(self, similarity: Tensor) -> tuple[Tensor, Tensor]:
        offset = full_precision(similarity) - self.threshold
        return -self.alpha * offset, self.beta * offset


PAIR_LOSSES: dict[str, type[PairLoss]] = {
    "contrastive": Contrastive,
    "triplet": Triplet,
    "lifted-structure": LiftedStructure,
    "binomial-deviance": BinomialDeviance,
    "multi-similarity": MultiSimilarityPairs,
}
"""The losses by the names under which `pair-weighting` and `pair-weights` know them."""


def pair_loss(loss: str | PairLoss | Callable[[Tensor, Tensor, Tensor], Tensor], /, **parameters: float) -> PairLoss:
    """A pair loss by name, or from a function.

    Args:
        loss: a key of `PAIR_LOSSES`, a PairLoss, or a function for `FunctionPairLoss`.
        parameters: of the loss by name.

    Raises:
        ValueError: if there is no such loss, or it takes no such parameter.
    """
    if isinstance(loss, str):
        if loss not in PAIR_LOSSES:
            raise ValueError(f'there is no pair loss "{loss}"{nearest(loss, PAIR_LOSSES)}; there are {", ".join(PAIR_LOSSES)}')
        known = [one.name for one in fields(PAIR_LOSSES[loss])]
        for name in parameters:
            if name not in known:
                raise ValueError(f'{loss} takes no "{name}"{nearest(name, known)}; it takes {", ".join(known)}')
        return PAIR_LOSSES[loss](**parameters)
    if parameters:
        raise ValueError(f"parameters belong to a loss by name; a function has its own: {', '.join(parameters)}")
    return loss if isinstance(loss, PairLoss) else FunctionPairLoss(loss)
