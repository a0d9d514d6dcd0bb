"""The multi-similarity loss, mining and weighting in one pass over blocks of rows."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from graftwork_multi_similarity.mining import mining_bounds
from graftwork_multi_similarity.pairs import PairTally, check_batch, check_finite, unit_length

__all__ = ["PRESETS", "MultiSimilaritySettings", "mine_and_weigh", "multi_similarity_loss"]

PRESETS: dict[str, dict[str, float]] = {
    "code": {"alpha": 2.0, "beta": 40.0, "threshold": 0.5, "epsilon": 0.1},
    "paper": {"alpha": 2.0, "beta": 50.0, "threshold": 1.0, "epsilon": 0.1},
}
"""The authors' code and their paper differ in beta and the threshold."""

BLOCK = {"cpu": 2**18}
"""Entries of the similarity matrix that are held at once, by device type: what a core's cache holds."""

DEVICE_BLOCK = 2**26
"""The same, on every other device."""


@dataclass(frozen=True)
class MultiSimilaritySettings:
    """The hyperparameters of the loss.

    Args:
        alpha: scale of positive pairs, > 0.
        beta: scale of negative pairs, > 0.
        threshold: offset lambda of both.
        epsilon: mining margin; None keeps every pair.
        duplicate_tol: positives with S >= 1 - duplicate_tol are left out; None keeps them.

    Raises:
        ValueError: if one is out of range.
    """

    alpha: float = 2.0
    beta: float = 40.0
    threshold: float = 0.5
    epsilon: float | None = 0.1
    duplicate_tol: float | None = 1e-5

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is a scale above 0; found {value}")
        for name in ("threshold", "epsilon"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is finite; found {value}")
        if self.duplicate_tol is not None and not 0 <= self.duplicate_tol < 2:
            raise ValueError(f"duplicate_tol is in [0, 2), or None to keep duplicates; found {self.duplicate_tol}")


def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 40.0,
    threshold: float = 0.5,
    epsilon: float | None = 0.1,
    duplicate_tol: float | None = 1e-5,
    self_index: Tensor | None = None,
    allow_empty: bool = False,
    check: bool = True,
    block_rows: int | None = None,
    compile: bool = False,
) -> Tensor:
    """The multi-similarity loss with its mining (Wang et al., 2019, https://arxiv.org/abs/1904.06627, equations 10, 11 and 15).

    L = 1/m sum_i [ 1/alpha log(1 + sum_{P_i} e^{-alpha (S_ik - threshold)}) + 1/beta log(1 + sum_{N_i} e^{beta (S_ik - threshold)}) ]
    over the mined sets: negatives with S_ij > min_{P_i} S - epsilon, positives with S_ij < max_{N_i} S + epsilon. m is the number of
    anchors, those with nothing mined included, which add 0.

    Rows of S are made, used and dropped block by block, in at least float32. A block's gradient is known in closed form as soon as its
    weights are, so it is taken at once: memory is O(block x r), and backward only scales it. It cannot be differentiated twice; the
    losses of `weighting` can.

    Args:
        embeddings: (m, d) anchors; brought to unit length here.
        labels: (m,).
        ref_emb: (r, d) what the anchors are paired with (a memory bank, a gallery); the anchors themselves by default.
        ref_labels: (r,), with `ref_emb`.
        alpha: scale of positive pairs.
        beta: scale of negative pairs (the paper's 50 is 40 in the authors' code).
        threshold: offset lambda of both (the paper's 1 is 0.5 in the authors' code).
        epsilon: mining margin; None keeps every pair.
        duplicate_tol: positives with S >= 1 - duplicate_tol are left out, as in the authors' code; None keeps them. The pair of a sample
            with itself is always left out, by its position.
        self_index: (m,) long, where each anchor stands in `ref_emb`, so that it makes no pair with itself.
        allow_empty: give 0 for a batch without positive or without negative pairs, instead of an error.
        check: look at the values, which waits for the device. Unchecked, an embedding that is not finite makes the loss NaN.
        block_rows: rows of S held at once; by default as many as suit the device.
        compile: fuse the work on a block with torch.compile.

    Returns:
        0-d, non-negative, attached to the graph also when it is 0; float64 for float64 embeddings, else float32.

    Raises:
        ValueError: if shapes differ or a hyperparameter is out of range.
        DataError: with `check`, if an embedding is not finite, or one kind of pair is missing.
    """
    settings = MultiSimilaritySettings(alpha, beta, threshold, epsilon, duplicate_tol)
    check_batch(embeddings, labels, ref_emb, ref_labels, self_index)
    if check:
        check_finite(embeddings)
        if ref_emb is not None:
            check_finite(ref_emb, "ref_emb")
    loss, tally = mine_and_weigh(
        embeddings, labels, ref_emb, ref_labels, settings=settings, self_index=self_index, block_rows=block_rows, compile=compile
    )
    if check:
        tally.check_sides(allow_empty)
    return loss


def mine_and_weigh(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    settings: MultiSimilaritySettings,
    self_index: Tensor | None = None,
    block_rows: int | None = None,
    compile: bool = False,
) -> tuple[Tensor, PairTally]:
    """`multi_similarity_loss` of at least one anchor, with what was counted; checks nothing and never waits for the device.

    Returns:
        The loss, 0-d, and the tally of its pairs, without gradients.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        anchors = unit_length(embeddings)
        if ref_emb is None or ref_labels is None:
            references, ref_labels, self_index = anchors, labels, torch.arange(len(labels), device=labels.device)
        else:
            references = unit_length(ref_emb)
        if block_rows is None:
            block_rows = BLOCK.get(anchors.device.type, DEVICE_BLOCK) // max(1, len(references))
        rows = _compiled_rows() if compile else weigh_rows
        loss, *tally = _BlockedLoss.apply(anchors, references, labels, ref_labels, self_index, settings, max(1, block_rows), rows)
    return loss, PairTally(*tally)


class RowResult(NamedTuple):
    """What a block of c anchors gives.

    Args:
        losses: (c,).
        gradient: (c, r), dL_i/dS_ij: w- on kept negatives, -w+ on kept positives, 0 elsewhere.
        tally: of these anchors.
    """

    losses: Tensor
    gradient: Tensor
    tally: PairTally


def weigh_rows(similarity: Tensor, same: Tensor, itself: Tensor | None, settings: MultiSimilaritySettings) -> RowResult:
    """Mine and weigh the pairs of a block of anchors.

    The greatest logit of either side belongs to the hardest pair, which is kept whenever any is, so the shift that makes the
    log-sum-exps stable costs no pass of its own.

    Args:
        similarity: (c, r).
        same: (c, r) mask of equal labels.
        itself: (c, 1) position of each anchor among the references, or None.
        settings: the hyperparameters.
    """
    alpha, beta, threshold = settings.alpha, settings.beta, settings.threshold
    negatives = similarity.masked_fill(same, -math.inf)
    negative_count = same.shape[1] - same.sum(dim=1)
    positive = same if itself is None else same.scatter(1, itself, False)
    positive_count = positive.sum(dim=1)
    if settings.duplicate_tol is not None:
        positive = positive & (similarity < 1 - settings.duplicate_tol)
    positives = similarity.masked_fill(~positive, math.inf)
    hardest_positive, hardest_negative = positives.amin(dim=1, keepdim=True), negatives.amax(dim=1, keepdim=True)
    active = torch.ones_like(hardest_positive, dtype=torch.bool)
    if settings.epsilon is not None:
        low, high = mining_bounds(hardest_positive, hardest_negative, settings.epsilon)
        negatives = negatives.masked_fill_(negatives <= low, -math.inf)
        positives = positives.masked_fill_(positives >= high, math.inf)
        active = low < math.inf
    kept = (positives < math.inf).sum(dim=1), (negatives > -math.inf).sum(dim=1)
    positive_loss, positive_mass = _log_one_plus_sum(positives, -alpha, alpha * threshold, hardest_positive, active)
    negative_loss, negative_mass = _log_one_plus_sum(negatives, beta, -beta * threshold, hardest_negative, active)
    losses = (positive_loss / alpha + negative_loss / beta)[:, 0]
    tally = PairTally.of_rows(
        (positive_count, negative_count, *kept), hardest_positive[:, 0], hardest_negative[:, 0], (positive_mass[:, 0], negative_mass[:, 0])
    )
    return RowResult(losses, negatives.sub_(positives), tally)


def _log_one_plus_sum(similarity: Tensor, scale: float, offset: float, hardest: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """log(1 + sum_k e^(scale S_k + offset)) of each row, with a zero logit for the one.

    `similarity` (c, r) is overwritten with the softmax over its row and that zero; pairs to leave out have a logit of -inf.

    Returns:
        Two of (c, 1): the logarithms, and what of the softmax is on the pairs.
    """
    shift = torch.where(active, (scale * hardest + offset).clamp(min=0), 0.0)
    exponentials = similarity.mul_(scale).add_(offset - shift).exp_()
    total = exponentials.sum(dim=1, keepdim=True)
    one = torch.exp(-shift)
    exponentials.mul_(1 / (one + total))
    return torch.log1p(torch.expm1(-shift) + total) + shift, total / (one + total)


@functools.cache
def _compiled_rows() -> Callable[..., RowResult]:
    return torch.compile(weigh_rows, dynamic=True)


class _BlockedLoss(torch.autograd.Function):
    """The mean of `weigh_rows`' losses over blocks of rows; forward takes the gradients in anchors and references along the way."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        references: Tensor,
        labels: Tensor,
        ref_labels: Tensor,
        self_index: Tensor | None,
        settings: MultiSimilaritySettings,
        block_rows: int,
        rows: Callable[..., RowResult],
    ) -> tuple[Tensor, ...]:
        """Loss and tally of anchors (m, d) against references (r, d), both of unit length; they may be one tensor."""
        to_anchors = torch.empty_like(anchors) if ctx.needs_input_grad[0] else None
        to_references = torch.zeros_like(references) if ctx.needs_input_grad[1] else None
        losses, tallies = [], []
        for start in range(0, len(anchors), block_rows):
            block = slice(start, start + block_rows)
            itself = None if self_index is None else self_index[block, None]
            result = rows(anchors[block] @ references.T, labels[block, None] == ref_labels, itself, settings)
            losses.append(result.losses.sum())
            tallies.append(result.tally)
            if to_anchors is not None:
                torch.mm(result.gradient, references, out=to_anchors[block])
            if to_references is not None:
                to_references.addmm_(result.gradient.T, anchors[block])
        gradients = [None if gradient is None else gradient.div_(len(anchors)) for gradient in (to_anchors, to_references)]
        ctx.save_for_backward(*gradients)
        counted = vars(functools.reduce(operator.add, tallies)).values()
        ctx.mark_non_differentiable(*counted)
        return torch.stack(losses).sum() / len(anchors), *counted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what forward took."""
        scaled = [None if saved is None else gradient * saved for saved in ctx.saved_tensors]
        return (*scaled, None, None, None, None, None, None)
