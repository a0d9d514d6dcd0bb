"""The miner, and the masks that it filters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork_multi_similarity import MultiSimilarityMiner, cosine_similarities, drop_duplicates, pair_masks

LABELS = torch.tensor([0, 0, 1, 1])
ANGLES = torch.tensor([0, 30, 45, 120], dtype=torch.float64) * math.pi / 180
CIRCLE = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)


def test_points_on_a_circle_keep_the_pairs_worked_out_by_hand() -> None:
    positive, negative = MultiSimilarityMiner(0.1)(cosine_similarities(CIRCLE), *pair_masks(LABELS))
    assert positive.nonzero().tolist() == [[1, 0], [2, 3]]
    assert negative.nonzero().tolist() == [[1, 2], [2, 0], [2, 1]]


def test_bounds_come_from_all_pairs_of_the_other_side() -> None:
    similarity = torch.tensor([[1.0, 0.2, 0.9, 0.5, 0.15, 0.05]])
    positive = torch.tensor([[False, True, True, False, False, False]])
    negative = torch.tensor([[False, False, False, True, True, True]])
    kept = MultiSimilarityMiner(0.1)(similarity, positive, negative)
    assert kept[0].nonzero()[:, 1].tolist() == [1]  # 0.2 < 0.5 + 0.1 <= 0.9
    assert kept[1].nonzero()[:, 1].tolist() == [3, 4]  # 0.05 <= 0.2 - 0.1 < 0.15


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**31 - 1),
    st.floats(-2.5, 2.5),
    st.integers(2, 5),
    st.sampled_from([torch.float32, torch.float64, torch.float16]),
)
def test_an_anchor_keeps_a_positive_if_and_only_if_it_keeps_a_negative(seed, epsilon, classes, dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (24,), generator=generator)
    similarity = (torch.randn(24, 24, generator=generator).tanh() * 8).round() / 8  # many ties, at the bounds too
    positive, negative = MultiSimilarityMiner(round(epsilon * 8) / 8)(similarity.to(dtype), *pair_masks(labels))
    assert torch.equal(positive.any(dim=1), negative.any(dim=1))


def test_rounding_at_the_bounds_parts_no_anchor() -> None:
    hardest_positive = torch.rand(20000, generator=torch.Generator().manual_seed(0)) - 0.5
    nearest = hardest_positive - 0.1
    for hardest_negative in (nearest, nearest.nextafter(torch.tensor(1.0)), nearest.nextafter(torch.tensor(-1.0))):
        similarity = torch.stack([hardest_positive, hardest_negative], dim=1)
        pairs = torch.tensor([[True, False]]).expand(20000, 2), torch.tensor([[False, True]]).expand(20000, 2)
        positive, negative = MultiSimilarityMiner(0.1)(similarity, *pairs)
        assert torch.equal(positive.any(dim=1), negative.any(dim=1))


def test_a_margin_below_minus_two_keeps_nothing_and_a_large_one_all_pairs() -> None:
    similarity, pairs = cosine_similarities(CIRCLE), pair_masks(LABELS)
    assert not any(mask.any() for mask in MultiSimilarityMiner(-3.0)(similarity, *pairs))
    assert all(torch.equal(kept, mask) for kept, mask in zip(MultiSimilarityMiner(3.0)(similarity, *pairs), pairs, strict=True))


def test_an_anchor_without_a_positive_keeps_nothing() -> None:
    positive, negative = MultiSimilarityMiner(3.0)(cosine_similarities(CIRCLE), *pair_masks(torch.tensor([0, 0, 1, 2])))
    assert positive.any(dim=1).tolist() == negative.any(dim=1).tolist() == [True, True, False, False]


def test_mining_has_no_gradient() -> None:
    similarity = cosine_similarities(CIRCLE.clone().requires_grad_())
    assert not any(mask.requires_grad for mask in MultiSimilarityMiner()(similarity, *pair_masks(LABELS)))


def test_a_margin_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="epsilon is a finite margin; found nan"):
        MultiSimilarityMiner(math.nan)


def test_masks_hold_every_pair_once_and_none_of_a_sample_with_itself() -> None:
    positive, negative = pair_masks(LABELS)
    assert not (positive & negative).any()
    assert torch.equal(positive | negative, ~torch.eye(4, dtype=torch.bool))


def test_masks_with_references_leave_out_the_anchors_own_place() -> None:
    ref_labels = torch.tensor([1, 0, 0, 1, 0])
    positive, negative = pair_masks(LABELS, ref_labels)
    assert torch.equal(positive, LABELS[:, None] == ref_labels)
    assert torch.equal(negative, ~positive)
    place = torch.tensor([1, 2, 0, 3])
    positive, negative = pair_masks(LABELS, ref_labels, place)
    assert not (positive | negative)[torch.arange(4), place].any()
    assert (positive | negative).sum() == 16


def test_duplicates_go_by_similarity() -> None:
    similarity, positive = torch.tensor([[0.5, 0.99999, 1.0]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    assert drop_duplicates(positive, similarity, 1e-4).tolist() == [[True, False, False]]
    assert drop_duplicates(positive, similarity, None).all()
