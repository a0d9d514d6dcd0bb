"""Pairs of embeddings: their similarities, which are positive and which negative, and what is counted of them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from graftwork import DataError

__all__ = [
    "PairTally",
    "check_batch",
    "check_finite",
    "cosine_similarities",
    "drop_duplicates",
    "full_precision",
    "pair_masks",
    "unit_length",
]


def full_precision(values: Tensor) -> Tensor:
    """float16 and bfloat16 as float32; float32 and float64 as they are."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def unit_length(embeddings: Tensor) -> Tensor:
    """(m, d) rows divided by their Euclidean length, in at least float32, also under autocast."""
    return functional.normalize(full_precision(embeddings), dim=1)


def cosine_similarities(embeddings: Tensor, ref_emb: Tensor | None = None) -> Tensor:
    """S = X R^T of rows brought to unit length, in at least float32, also under autocast.

    Args:
        embeddings: (m, d).
        ref_emb: (r, d); the embeddings themselves by default.

    Returns:
        (m, r), in [-1, 1] but for rounding.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        rows = unit_length(embeddings)
        return rows @ (rows if ref_emb is None else unit_length(ref_emb)).T


def pair_masks(labels: Tensor, ref_labels: Tensor | None = None, self_index: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which pairs (i, j) are positive, j in P_i, and which negative, j in N_i. A sample makes no pair with itself.

    Args:
        labels: (m,) of the anchors.
        ref_labels: (r,) of the references; the anchors themselves by default.
        self_index: (m,) long, where each anchor stands among the references; None if it is not among them.

    Returns:
        Two (m, r) boolean masks. The pair of an anchor with itself is in neither.
    """
    same = labels[:, None].eq(labels if ref_labels is None else ref_labels)
    negative = ~same
    if ref_labels is None:
        same.fill_diagonal_(False)
    elif self_index is not None:
        itself = self_index[:, None]
        same.scatter_(1, itself, False)
        negative.scatter_(1, itself, False)
    return same, negative


def drop_duplicates(positive: Tensor, similarity: Tensor, tolerance: float | None) -> Tensor:
    """The positive mask without pairs of similarity 1 - tolerance or more, as the official code has it; None keeps them all."""
    return positive if tolerance is None else positive & (similarity < 1 - tolerance)


def check_batch(embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None, self_index: Tensor | None) -> None:
    """Hold the shapes of a batch and its references against each other; looks at no value.

    Raises:
        ValueError: naming the two shapes that do not fit.
    """
    if (ref_emb is None) != (ref_labels is None):
        raise ValueError("ref_emb and ref_labels are given together, or neither")
    if self_index is not None and ref_emb is None:
        raise ValueError("self_index says where the embeddings stand in ref_emb, which is not given; without it self-pairs are left out")
    if not len(embeddings):
        raise ValueError("there are no embeddings: the batch is empty")
    for title, name, rows, column in (("embeddings", "labels", embeddings, labels), ("ref_emb", "ref_labels", ref_emb, ref_labels)):
        if rows is None or column is None:
            continue
        if rows.ndim != 2 or column.ndim != 1:
            found = f"{tuple(rows.shape)} and {tuple(column.shape)}"
            raise ValueError(f"{title} are (rows, dimensions) and {name} (rows,); found {found}")
        if len(rows) != len(column):
            raise ValueError(f"{title} and {name} differ in length: {len(rows)} and {len(column)}")
    if ref_emb is not None and ref_emb.shape[1] != embeddings.shape[1]:
        raise ValueError(f"embeddings have {embeddings.shape[1]} dimensions, ref_emb has {ref_emb.shape[1]}")
    if self_index is not None and self_index.shape != labels.shape:
        raise ValueError(f"self_index holds one position for each of {len(labels)} embeddings; found {tuple(self_index.shape)}")


def check_finite(embeddings: Tensor, name: str = "embeddings") -> None:
    """Raise unless every value is finite. Waits for the device.

    Raises:
        DataError: naming the first row with a value that is not.
    """
    broken = ~embeddings.isfinite()
    if broken.any():
        row = int(broken.any(dim=1).nonzero()[0])
        raise DataError(f"{int(broken.sum())} values of {name} are not finite, first in row {row}: lower the learning rate, or clip")


@dataclass(frozen=True)
class PairTally:
    """Sums over the pairs of a batch, each a 0-d tensor, from which its figures follow. Tallies of two parts of a batch add up.

    Args:
        anchors: m.
        positives: positive pairs.
        negatives: negative pairs.
        kept_positives: of these, after mining.
        kept_negatives: of these, after mining.
        unpaired: anchors without a positive or without a negative.
        skipped: anchors of which nothing was kept, those without pairs included.
        hardest_positives: sum over paired anchors of the least similarity to a positive.
        hardest_negatives: sum over paired anchors of the greatest similarity to a negative.
        positive_weights: sum of w+.
        negative_weights: sum of w-.
    """

    anchors: Tensor
    positives: Tensor
    negatives: Tensor
    kept_positives: Tensor
    kept_negatives: Tensor
    unpaired: Tensor
    skipped: Tensor
    hardest_positives: Tensor
    hardest_negatives: Tensor
    positive_weights: Tensor
    negative_weights: Tensor

    def __add__(self, other: PairTally) -> PairTally:
        return PairTally(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @classmethod
    def of_rows(
        cls,
        counts: tuple[Tensor, Tensor, Tensor, Tensor],
        hardest_positive: Tensor,
        hardest_negative: Tensor,
        weights: tuple[Tensor, Tensor],
    ) -> PairTally:
        """Sum up some anchors.

        Args:
            counts: four of (c,): positives, negatives, kept positives, kept negatives of each anchor.
            hardest_positive: (c,) least similarity to a positive; +inf where there is none.
            hardest_negative: (c,) greatest similarity to a negative; -inf where there is none.
            weights: two of (c,): the sums of w+ and w- of each anchor.
        """
        kept = counts[2] + counts[3]
        paired = (counts[0] > 0) & (counts[1] > 0)
        return cls(
            hardest_positive.new_full((), len(hardest_positive)),
            *(count.sum() for count in counts),
            (~paired).sum(),
            (kept == 0).sum(),
            torch.where(paired, hardest_positive, 0.0).sum(),
            torch.where(paired, hardest_negative, 0.0).sum(),
            *(weight.sum() for weight in weights),
        )

    def figures(self) -> dict[str, Tensor]:
        """What is logged, as 0-d tensors: shares of positives and negatives kept, anchors skipped and without a pair, the mean over
        paired anchors of the hardest positive's and the hardest negative's similarity, and the mean weight of a kept pair."""
        paired = self.anchors - self.unpaired

        def mean(total: Tensor, count: Tensor) -> Tensor:
            return total / count.clamp(min=1)

        return {
            "positives_kept": mean(self.kept_positives, self.positives),
            "negatives_kept": mean(self.kept_negatives, self.negatives),
            "anchors_skipped": self.skipped.to(self.anchors.dtype),
            "anchors_unpaired": self.unpaired.to(self.anchors.dtype),
            "hardest_positive": mean(self.hardest_positives, paired),
            "hardest_negative": mean(self.hardest_negatives, paired),
            "positive_weight": mean(self.positive_weights, self.kept_positives),
            "negative_weight": mean(self.negative_weights, self.kept_negatives),
        }

    def check_sides(self, allow_empty: bool) -> None:
        """Raise if there is no positive or no negative pair at all. Waits for the device.

        Raises:
            DataError: naming the side that is empty.
        """
        if allow_empty:
            return
        sides = {"positive": int(self.positives), "negative": int(self.negatives)}
        reasons = {"positive": "no label occurs twice", "negative": "all labels are the same"}
        empty = [side for side, count in sides.items() if not count]
        if empty:
            why = " and ".join(f"no {side} pair ({reasons[side]})" for side in empty)
            raise DataError(
                f"the {int(self.anchors)} embeddings make {why}: batches need several classes with at least 2 samples each "
                "(class-balanced-batches draws them), or allow_empty=True for a loss of 0"
            )
