"""Mining of informative pairs by relative similarity: step 1 of the multi-similarity method (Similarity-P)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MultiSimilarityMiner", "hardest_pairs", "mining_bounds"]


def hardest_pairs(similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Each anchor's hardest positive, min over P_i of S, and hardest negative, max over N_i of S.

    Args:
        similarity: (m, r).
        positive: (m, r) mask of P_i.
        negative: (m, r) mask of N_i.

    Returns:
        Two of (m, 1); +inf for an anchor without a positive, -inf for one without a negative.
    """
    hardest_positive = similarity.masked_fill(~positive, math.inf).amin(dim=1, keepdim=True)
    return hardest_positive, similarity.masked_fill(~negative, -math.inf).amax(dim=1, keepdim=True)


def mining_bounds(hardest_positive: Tensor, hardest_negative: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The bounds (low, high): negatives with S > low and positives with S < high are kept (Wang et al., 2019, section 4.1).

    low = min over P_i of S - epsilon, high = max over N_i of S + epsilon, both from the sets before filtering. Each condition holds
    for some pair iff the hardest positive and the hardest negative meet it, so an anchor keeps a positive iff it keeps a negative.
    Where rounding would part the two, neither is kept.

    Args:
        hardest_positive: (m, 1), +inf where there is none.
        hardest_negative: (m, 1), -inf where there is none.
        epsilon: the margin.

    Returns:
        Two of (m, 1); +inf and -inf for an anchor that keeps nothing.
    """
    low, high = hardest_positive - epsilon, hardest_negative + epsilon
    nothing = ~((hardest_negative > low) & (hardest_positive < high))
    return low.masked_fill(nothing, math.inf), high.masked_fill(nothing, -math.inf)


@dataclass(frozen=True)
class MultiSimilarityMiner:
    """Keeps, for each anchor, negatives more similar than its hardest positive less a margin, and positives less similar than its
    hardest negative plus that margin (Wang et al., 2019, equations 10 and 11). Works with any loss over pairs; has no gradient.

    Args:
        epsilon: the margin; large keeps every pair of an anchor that has both kinds, below -2 keeps none.

    Example:
        kept_positive, kept_negative = MultiSimilarityMiner(0.1)(similarity, positive, negative)
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        if not math.isfinite(self.epsilon):
            raise ValueError(f"epsilon is a finite margin; found {self.epsilon}")

    @torch.no_grad()
    def __call__(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Filter pairs.

        Args:
            similarity: (m, r).
            positive: (m, r) mask of P_i.
            negative: (m, r) mask of N_i.

        Returns:
            The two masks with the pairs that are kept.
        """
        low, high = mining_bounds(*hardest_pairs(similarity, positive, negative), self.epsilon)
        return positive & (similarity < high), negative & (similarity > low)
