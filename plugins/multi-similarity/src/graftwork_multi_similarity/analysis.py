"""What a pair loss reacts to, found by moving similarities and watching its weights (Wang et al., 2019, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from graftwork_multi_similarity.mining import MultiSimilarityMiner
from graftwork_multi_similarity.pairs import full_precision
from graftwork_multi_similarity.weighting import PairLoss

__all__ = ["SIMILARITIES", "TARGETS", "Reaction", "Weighting", "reactions", "weight_curve"]

TARGETS = [step / 10 for step in range(-10, 11)]
"""Where a similarity is moved to."""

SPAN = 0.8
"""Of the similarities before any is moved: it leaves room to move them all."""

SIMILARITIES: dict[str, str] = {
    "own": "the pair's similarity alone is moved",
    "S": "all similarities of the anchor are moved by the same amount",
    "N": "the anchor's other negatives are moved",
    "P": "the anchor's other positives are moved",
}
"""Probe -> what it does. S is a pair's own similarity in itself, N and P are those relative to the neighbours."""

NOTICEABLE = 1e-3
"""A weight reacts if it moves by more than this share of the largest weight."""

Side = Literal["positive", "negative"]


@dataclass(frozen=True)
class Weighting:
    """A pair loss, and the miner before it if it has one.

    Args:
        loss: gives the weights.
        miner: picks the pairs; None leaves all.
    """

    loss: PairLoss
    miner: MultiSimilarityMiner | None = None

    def __call__(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """W+ and W-, each (m, r), of similarities (m, r) with the masks (m, r) of their pairs."""
        kept = (positive, negative) if self.miner is None else self.miner(similarity, positive, negative)
        return self.loss.weights(similarity, *kept)


@dataclass(frozen=True)
class Reaction:
    """How far the weights on one side moved under one probe.

    Args:
        side: of the pairs whose weights were watched.
        probe: a key of `SIMILARITIES`.
        change: the largest change of a weight, as a share of the largest weight before or after.
    """

    side: Side
    probe: str
    change: float

    @property
    def reacts(self) -> bool:
        """Whether that is more than rounding."""
        return self.change > NOTICEABLE


def reactions(weighting: Weighting, similarity: Tensor, positive: Tensor, negative: Tensor) -> list[Reaction]:
    """Move similarities of every anchor and see which weights follow. Nothing is known of the loss beforehand.

    The similarities are first stretched over [-SPAN, SPAN], so that what is found is of the loss, and not of embeddings that are all
    alike. The pair that is watched is each anchor's hardest of its side. Others are put, together, to values throughout [-1, 1]; for
    S all of the anchor's are shifted as far as they fit in there, and all are watched.

    Args:
        weighting: the loss, with its miner.
        similarity: (m, r); each anchor's weights follow from its own row.
        positive: (m, r) mask.
        negative: (m, r) mask.

    Returns:
        One for each side and probe.
    """
    pairs = positive | negative
    similarity = _stretched(full_precision(similarity), pairs)
    before = weighting(similarity, positive, negative)
    shifts = _shifts(similarity, pairs)
    found = []
    sides: tuple[tuple[Side, Tensor, Tensor], ...] = (("positive", positive, -similarity), ("negative", negative, similarity))
    for index, (side, mask, hardness) in enumerate(sides):
        watched = _largest(hardness, mask)
        probes = {
            "own": (_moves(similarity, watched), watched),
            "S": (shifts, mask),
            "N": (_moves(similarity, negative & ~watched), watched),
            "P": (_moves(similarity, positive & ~watched), watched),
        }
        for probe, (moves, seen) in probes.items():
            after = [weighting(moved, positive, negative)[index] for moved in moves]
            change = torch.stack([(weights - before[index]).abs().masked_fill(~seen, 0.0).max() for weights in after])
            largest = torch.stack([weights.max() for weights in (before[index], *after)]).max()
            found.append(Reaction(side, probe, float(change.max() / largest.clamp(min=torch.finfo(largest.dtype).tiny))))
    return found


def _stretched(similarity: Tensor, pairs: Tensor) -> Tensor:
    """The similarities of the pairs, linearly onto [-SPAN, SPAN]."""
    low, high = similarity[pairs].min(), similarity[pairs].max()
    share = (similarity - low) / (high - low).clamp(min=torch.finfo(similarity.dtype).tiny)
    return (SPAN * (2 * share - 1)).clamp(-SPAN, SPAN)


def _largest(values: Tensor, mask: Tensor) -> Tensor:
    """The mask reduced to the entry of each row whose value is largest."""
    first = torch.zeros_like(mask)
    first.scatter_(1, values.masked_fill(~mask, -torch.inf).argmax(dim=1, keepdim=True), True)
    return first & mask


def _moves(similarity: Tensor, moved: Tensor) -> list[Tensor]:
    """The similarities (m, r) with those moved put to each of `TARGETS`."""
    return [similarity.masked_fill(moved, target) for target in TARGETS]


def _shifts(similarity: Tensor, pairs: Tensor) -> list[Tensor]:
    """The similarities (m, r) with every row shifted up, and down, by half and by all of what keeps its pairs within [-1, 1]."""
    up = 1 - similarity.masked_fill(~pairs, -1.0).amax(dim=1, keepdim=True)
    down = 1 + similarity.masked_fill(~pairs, 1.0).amin(dim=1, keepdim=True)
    return [torch.where(pairs, similarity + shift, similarity) for shift in (up, up / 2, -down / 2, -down)]


def weight_curve(weighting: Weighting, similarity: Tensor, positive: Tensor, negative: Tensor, column: int, grid: Tensor) -> Tensor:
    """The weight of one pair of one anchor while its similarity runs over a grid and the anchor's other pairs stay.

    Args:
        weighting: the loss, with its miner.
        similarity: (r,) row of the anchor.
        positive: (r,) mask.
        negative: (r,) mask.
        column: the pair.
        grid: (g,) similarities.

    Returns:
        (g,).
    """
    rows = similarity.repeat(len(grid), 1)
    rows[:, column] = grid
    masks = [mask.repeat(len(grid), 1) for mask in (positive, negative)]
    weights = weighting(rows, masks[0], masks[1])
    return (weights[0] + weights[1])[:, column]
