"""General pair weighting: closed-form weights against autograd, losses against their definitions one pair at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from graftwork_multi_similarity import (
    PAIR_LOSSES,
    BinomialDeviance,
    Contrastive,
    FunctionPairLoss,
    LiftedStructure,
    MultiSimilarityMiner,
    MultiSimilarityPairs,
    Triplet,
    cosine_similarities,
    pair_loss,
    pair_masks,
    surrogate_loss,
)
from graftwork_multi_similarity.weighting import check_sound, masked_logsumexp

LOSSES = [*(kind() for kind in PAIR_LOSSES.values()), LiftedStructure(margin=-2.5), Triplet(margin=0.5), MultiSimilarityPairs(3, 50, 1)]


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings and S (20, 20) with its masks; classes of 7, 6, 4, 2 and 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor([7, 6, 4, 2, 1]))
    embeddings = torch.randn(5, 6, generator=generator, dtype=torch.float64)[labels]
    embeddings = embeddings + torch.randn(20, 6, generator=generator, dtype=torch.float64)
    return embeddings, cosine_similarities(embeddings), *pair_masks(labels)


@pytest.mark.parametrize("mined", [False, True])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_closed_form_weights_are_the_gradient_with_its_sign(loss, mined) -> None:
    _, similarity, *pairs = batch()
    if mined:
        pairs = MultiSimilarityMiner(0.1)(similarity, *pairs)
    leaf = similarity.clone().requires_grad_()
    loss.loss(leaf, *pairs, reduction="sum").backward()
    positive_weights, negative_weights = loss.weights(similarity, *pairs)
    torch.testing.assert_close(leaf.grad, negative_weights - positive_weights, rtol=1e-6, atol=1e-12)
    assert (positive_weights >= 0).all()
    assert (negative_weights >= 0).all()
    assert not positive_weights[~pairs[0]].any()
    assert not negative_weights[~pairs[1]].any()
    assert positive_weights.any() or isinstance(loss, LiftedStructure)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_the_surrogate_at_fixed_weights_has_the_gradient_of_the_loss(loss) -> None:
    embeddings, _, *pairs = batch()
    leaf, other = (embeddings.clone().requires_grad_() for _ in range(2))
    loss.loss(cosine_similarities(leaf), *pairs, reduction="sum").backward()
    similarity = cosine_similarities(other)
    surrogate_loss(similarity, *loss.weights(similarity, *pairs)).backward()
    torch.testing.assert_close(other.grad, leaf.grad, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_the_mean_over_anchors_divides_by_all_of_them(loss) -> None:
    _, similarity, *pairs = batch()
    torch.testing.assert_close(loss.loss(similarity, *pairs) * 20, loss.loss(similarity, *pairs, reduction="sum"))


# -- each loss against its definition ------------------------------------------------------------------------------------------


def rows(similarity: Tensor, positive: Tensor, negative: Tensor):
    for i in range(len(similarity)):
        yield similarity[i][positive[i]].tolist(), similarity[i][negative[i]].tolist()


def contrastive(p, n) -> float:
    return sum(max(s - 0.5, 0) for s in n) - sum(p)


def triplet(p, n) -> float:
    return sum(max(b - a + 0.1, 0) for a in p for b in n)


def lifted(p, n) -> float:
    if not p or not n:
        return 0.0
    return max(math.log(sum(math.exp(1 - s) for s in p)) + math.log(sum(math.exp(s) for s in n)), 0)


def binomial(p, n) -> float:
    drawn, pushed = [math.log(1 + math.exp(2 * (0.5 - s))) for s in p], [math.log(1 + math.exp(50 * (s - 0.5))) for s in n]
    return sum(drawn) / max(1, len(p)) + sum(pushed) / max(1, len(n))


def multi_similarity(p, n) -> float:
    return math.log(1 + sum(math.exp(-2 * (s - 0.5)) for s in p)) / 2 + math.log(1 + sum(math.exp(40 * (s - 0.5)) for s in n)) / 40


@pytest.mark.parametrize(
    ("name", "definition"),
    [
        ("contrastive", contrastive),
        ("triplet", triplet),
        ("lifted-structure", lifted),
        ("binomial-deviance", binomial),
        ("multi-similarity", multi_similarity),
    ],
)
def test_each_loss_equals_its_definition_one_pair_at_a_time(name, definition) -> None:
    _, similarity, *pairs = batch(1)
    found = pair_loss(name).losses(similarity, *pairs)
    assert found.tolist() == pytest.approx([definition(p, n) for p, n in rows(similarity, *pairs)], rel=1e-12)


def test_triplet_weights_count_the_active_triplets() -> None:
    _, similarity, positive, negative = batch()
    active = positive[:, :, None] & negative[:, None, :] & (similarity[:, None, :] > similarity[:, :, None] - 0.1)
    drawn, pushed = Triplet(0.1).weights(similarity, positive, negative)
    assert torch.equal(drawn, active.sum(dim=2).double())
    assert torch.equal(pushed, active.sum(dim=1).double())


def test_a_triplet_at_its_hinge_weighs_nothing() -> None:
    similarity = torch.tensor([[0.5, 0.25, 0.0]])
    positive = torch.tensor([[True, False, False]])
    assert not any(weights.any() for weights in Triplet(0.25).weights(similarity, positive, ~positive))
    assert [weights.sum().item() for weights in Triplet(0.3).weights(similarity, positive, ~positive)] == [1, 1]


def test_lifted_weights_of_a_row_sum_to_one_while_its_hinge_is_open_and_to_zero_when_closed() -> None:
    _, similarity, positive, negative = batch()
    both = (positive.any(dim=1) & negative.any(dim=1)).double()
    for weights in LiftedStructure(1.0).weights(similarity, positive, negative):
        torch.testing.assert_close(weights.sum(dim=1), both)
    for weights in LiftedStructure(-9.0).weights(similarity, positive, negative):
        assert not weights.any()


def test_lifted_structure_equals_pytorch_metric_learning() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    embeddings, similarity, *pairs = batch()
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor([7, 6, 4, 2, 1]))
    peer = losses.GeneralizedLiftedStructureLoss(neg_margin=0, pos_margin=1, distance=distances.CosineSimilarity())
    kept = slice(0, 19)  # the peer counts an anchor without a positive in its own way
    found = LiftedStructure(1.0).loss(similarity[kept, kept], *(mask[kept, kept] for mask in pairs))
    torch.testing.assert_close(found, peer(embeddings[kept], labels[kept]))


def test_triplet_equals_pytorch_metric_learning() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    distances, reducers = (pytest.importorskip(f"pytorch_metric_learning.{part}") for part in ("distances", "reducers"))
    embeddings, similarity, *pairs = batch()
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor([7, 6, 4, 2, 1]))
    peer = losses.TripletMarginLoss(margin=0.1, distance=distances.CosineSimilarity(), reducer=reducers.SumReducer())
    torch.testing.assert_close(Triplet(0.1).loss(similarity, *pairs, reduction="sum"), peer(embeddings, labels))


# -- the three similarities ----------------------------------------------------------------------------------------------------


def negative_weight(loss, row: Tensor) -> float:
    """w- of pair 2 of an anchor with positives 0, 1 and negatives 2, 3, 4."""
    positive = torch.tensor([[True, True, False, False, False]])
    return loss.weights(row[None].double(), positive, ~positive)[1][0, 2].item()


ROW = torch.tensor([0.6, 0.7, 0.52, 0.4, 0.3])


@pytest.mark.parametrize(
    ("loss", "reacts"), [(MultiSimilarityPairs(), True), (LiftedStructure(), True), (BinomialDeviance(), False), (Contrastive(), False)]
)
def test_another_negative_moves_the_weight_only_of_losses_that_compare_negatives(loss, reacts) -> None:
    moved = ROW.clone()
    moved[3] += 0.08
    assert (abs(negative_weight(loss, moved) - negative_weight(loss, ROW)) > 1e-4) == reacts


@pytest.mark.parametrize(("loss", "reacts"), [(MultiSimilarityPairs(), True), (LiftedStructure(), False), (Triplet(), False)])
def test_moving_the_whole_row_moves_the_weight_only_of_losses_that_see_the_similarity_itself(loss, reacts) -> None:
    assert (abs(negative_weight(loss, ROW + 0.1) - negative_weight(loss, ROW)) > 1e-4) == reacts


def test_without_the_one_in_the_logarithm_the_threshold_would_not_matter() -> None:
    weights = [negative_weight(MultiSimilarityPairs(threshold=threshold), ROW) for threshold in (0.5, 0.7)]
    assert weights[0] != pytest.approx(weights[1], rel=0.1)
    shares = [torch.softmax(40 * (ROW[2:] - threshold), dim=0)[0].item() for threshold in (0.5, 0.7)]  # the log-sum-exp alone
    assert shares[0] == pytest.approx(shares[1], rel=1e-5)


def test_the_two_printed_forms_of_the_negative_weight_agree() -> None:
    others = torch.exp(40 * (ROW[2:].double() - ROW[2].double())).sum()
    assert negative_weight(MultiSimilarityPairs(), ROW) == pytest.approx((1 / (torch.exp(40 * (0.5 - ROW[2].double())) + others)).item())


# -- functions and names -------------------------------------------------------------------------------------------------------


def test_a_function_gets_the_weights_of_its_own_gradient() -> None:
    _, similarity, *pairs = batch()
    closed = BinomialDeviance()
    by_gradient = FunctionPairLoss(closed.losses)
    torch.testing.assert_close(by_gradient.weights(similarity, *pairs), closed.weights(similarity, *pairs), rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        assert by_gradient.weights(similarity, *pairs)[0].any()


def test_a_function_that_draws_negatives_nearer_is_no_sound_pair_loss() -> None:
    _, similarity, *pairs = batch()
    backwards = FunctionPairLoss(lambda s, p, n: -Contrastive().losses(s, p, n))
    with pytest.raises(ValueError, match="no sound pair loss: it rises with the similarity of a positive pair"):
        check_sound(*backwards.weights(similarity, *pairs))


def test_a_function_gives_one_number_for_each_anchor() -> None:
    _, similarity, *pairs = batch()
    with pytest.raises(ValueError, match=r"one number for each of 20 anchors; found shape \(\)"):
        FunctionPairLoss(lambda s, p, n: s.sum()).losses(similarity, *pairs)


@pytest.mark.parametrize(
    ("loss", "parameters", "message"),
    [
        ("tripplet", {}, r'no pair loss "tripplet" \(did you mean "triplet"\?\); there are contrastive, triplet'),
        ("triplet", {"marjin": 1.0}, r'triplet takes no "marjin" \(did you mean "margin"\?\); it takes margin'),
        ("binomial-deviance", {"alpha": 0.0}, "alpha of BinomialDeviance is the scale of positive pairs, above 0; found 0.0"),
        ("contrastive", {"threshold": math.nan}, "found nan"),
        (lambda s, p, n: s.sum(dim=1), {"alpha": 1.0}, "parameters belong to a loss by name"),
    ],
)
def test_unknown_losses_and_parameters_out_of_range_are_refused(loss, parameters, message) -> None:
    with pytest.raises(ValueError, match=message):
        pair_loss(loss, **parameters)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_half_precision_similarities_stay_finite(loss, dtype) -> None:
    labels = torch.tensor([0, 0, 1, 1])
    similarity = torch.ones(4, 4, dtype=dtype).requires_grad_()
    value = loss.loss(similarity, *pair_masks(labels))
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert similarity.grad.isfinite().all()


def test_an_empty_row_gives_zero_and_no_gradient() -> None:
    values, mask = torch.randn(2, 3, requires_grad=True), torch.tensor([[False] * 3, [True] * 3])
    total = masked_logsumexp(values, mask)
    total.sum().backward()
    assert total[0] == 0
    assert torch.equal(values.grad[0], torch.zeros(3))
    torch.testing.assert_close(total[1], values[1].logsumexp(0))
