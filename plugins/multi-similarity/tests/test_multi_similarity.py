"""The loss: against numbers worked out by hand, a plain loop over anchors, another library; what is left out, counted and refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from graftwork import DataError
from graftwork_multi_similarity import (
    PRESETS,
    MultiSimilarityMiner,
    MultiSimilarityPairs,
    MultiSimilaritySettings,
    cosine_similarities,
    mine_and_weigh,
    multi_similarity_loss,
    pair_masks,
)


def on_circle(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def loop(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    alpha: float = 2.0,
    beta: float = 40.0,
    threshold: float = 0.5,
    epsilon: float | None = 0.1,
    duplicate_tol: float | None = 1e-5,
) -> Tensor:
    """The method, one anchor and one pair at a time."""
    alone = ref_emb is None
    references, other = (embeddings, labels) if alone else (ref_emb, ref_labels)
    rows, columns = normalize(embeddings, dim=1), normalize(references, dim=1)
    total = rows.new_zeros(())
    for i in range(len(rows)):
        pairs = [(rows[i] @ columns[j], labels[i] == other[j]) for j in range(len(columns)) if not (alone and i == j)]
        positives = [s for s, same in pairs if same and (duplicate_tol is None or s < 1 - duplicate_tol)]
        negatives = [s for s, same in pairs if not same]
        if epsilon is not None:
            if not positives or not negatives:
                continue
            low, high = min(positives) - epsilon, max(negatives) + epsilon
            positives, negatives = [s for s in positives if s < high], [s for s in negatives if s > low]
        total = total + torch.log(1 + sum((torch.exp(-alpha * (s - threshold)) for s in positives), torch.zeros(()))) / alpha
        total = total + torch.log(1 + sum((torch.exp(beta * (s - threshold)) for s in negatives), torch.zeros(()))) / beta
    return total / len(rows)


# -- numbers -------------------------------------------------------------------------------------------------------------------

FOUR, FOUR_LABELS = on_circle(0, 30, 45, 120), torch.tensor([0, 0, 1, 1])
SIX, SIX_LABELS = on_circle(0, 20, 35, 90, 100, 170), torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize(
    ("embeddings", "labels", "options", "expected"),
    [
        (FOUR, FOUR_LABELS, {}, 0.4024380204),
        (FOUR, FOUR_LABELS, PRESETS["paper"], 0.3170578631),
        (FOUR, FOUR_LABELS, {"epsilon": None}, 0.6236912011),
        (SIX, SIX_LABELS, {}, 0.5215279913),
        (SIX, SIX_LABELS, PRESETS["paper"], 0.3973874518),
        (SIX, SIX_LABELS, {"epsilon": None}, 0.6756125748),
    ],
)
def test_points_on_a_circle_cost_what_was_worked_out_in_float64(embeddings, labels, options, expected) -> None:
    assert multi_similarity_loss(embeddings, labels, **options).item() == pytest.approx(expected, abs=1e-10)


def test_each_anchor_on_the_circle_costs_what_was_worked_out() -> None:
    similarity = cosine_similarities(FOUR)
    kept = MultiSimilarityMiner(0.1)(similarity, *pair_masks(FOUR_LABELS))
    losses = MultiSimilarityPairs().losses(similarity, *kept)
    assert losses.tolist() == pytest.approx([0, 0.6622581587, 0.9474939229, 0], abs=1e-10)


def test_the_paper_preset_is_two_fifty_one_and_a_tenth() -> None:
    assert PRESETS["paper"] == {"alpha": 2, "beta": 50, "threshold": 1, "epsilon": 0.1}
    assert PRESETS["code"] == {"alpha": 2, "beta": 40, "threshold": 0.5, "epsilon": 0.1}


@pytest.mark.parametrize("options", [{}, PRESETS["paper"], {"epsilon": None}, {"epsilon": 0.4, "alpha": 0.7, "beta": 3.0}])
@pytest.mark.parametrize("spread", [0.7, 1.5])
def test_value_and_gradient_equal_a_loop_over_anchors(options, spread, clustered, value_and_gradient) -> None:
    embeddings, labels = clustered(5, 4, 8, spread)
    found, expected = (value_and_gradient(function, embeddings, labels, **options) for function in (multi_similarity_loss, loop))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_references_give_what_a_loop_over_anchors_gives(clustered, value_and_gradient) -> None:
    embeddings, labels = clustered(5, 4, 8)
    ref_emb, ref_labels = clustered(5, 7, 8, seed=1)
    found, expected = (value_and_gradient(f, embeddings, labels, ref_emb, ref_labels) for f in (multi_similarity_loss, loop))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_gradients_reach_the_references(clustered) -> None:
    embeddings, labels = clustered(5, 4, 8)
    ref_emb, ref_labels = clustered(5, 7, 8, seed=1)
    leaf, other = (ref_emb.clone().requires_grad_() for _ in range(2))
    multi_similarity_loss(embeddings, labels, leaf, ref_labels).backward()
    loop(embeddings, labels, other, ref_labels).backward()
    assert leaf.grad.abs().max() > 0
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-10, atol=1e-13)


def test_anchors_among_the_references_make_no_pair_with_themselves(clustered) -> None:
    embeddings, labels = clustered(5, 4, 8)
    place = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    options = {"epsilon": None, "duplicate_tol": None}
    found = multi_similarity_loss(embeddings, labels, embeddings[place], labels[place], self_index=place.argsort(), **options)
    torch.testing.assert_close(found, multi_similarity_loss(embeddings, labels, **options))
    with_itself = multi_similarity_loss(embeddings, labels, embeddings[place], labels[place], **options)
    assert with_itself > found + 0.01


@pytest.mark.parametrize("with_references", [False, True])
def test_value_and_gradient_equal_pytorch_metric_learning(with_references, clustered, value_and_gradient) -> None:
    losses, miners = (pytest.importorskip(f"pytorch_metric_learning.{part}") for part in ("losses", "miners"))
    loss, miner = losses.MultiSimilarityLoss(2, 40, 0.5), miners.MultiSimilarityMiner(0.1)
    embeddings, labels = clustered(8, 12, 32)
    references = clustered(8, 10, 32, seed=1) if with_references else (None, None)

    def peer(leaf, labels, ref_emb, ref_labels):
        return loss(leaf, labels, miner(leaf, labels, ref_emb, ref_labels), ref_emb=ref_emb, ref_labels=ref_labels)

    found = value_and_gradient(multi_similarity_loss, embeddings, labels, *references)
    torch.testing.assert_close(found, value_and_gradient(peer, embeddings, labels, *references), rtol=1e-9, atol=1e-12)
    assert found[1].abs().max() > 0


def test_the_gradient_passes_gradcheck(clustered) -> None:
    embeddings, labels = clustered(3, 3, 4)
    ref_emb, ref_labels = clustered(3, 4, 4, seed=2)
    leaves = embeddings.requires_grad_(), ref_emb.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: multi_similarity_loss(a, labels, block_rows=2), leaves[:1])
    assert torch.autograd.gradcheck(lambda a, r: multi_similarity_loss(a, labels, r, ref_labels, block_rows=2), leaves)


# -- what is left out, counted, refused ----------------------------------------------------------------------------------------


def test_exact_duplicates_are_left_out_unless_kept(clustered, value_and_gradient) -> None:
    embeddings, labels = clustered(4, 4, 8)
    embeddings = torch.cat([embeddings, embeddings[:2]])
    labels = torch.cat([labels, labels[:2]])
    left_out, kept = (value_and_gradient(multi_similarity_loss, embeddings, labels, duplicate_tol=tol) for tol in (1e-5, None))
    torch.testing.assert_close(left_out, value_and_gradient(loop, embeddings, labels))
    torch.testing.assert_close(kept, value_and_gradient(loop, embeddings, labels, duplicate_tol=None), rtol=1e-9, atol=1e-12)
    unmined = [multi_similarity_loss(embeddings, labels, epsilon=None, duplicate_tol=tol) for tol in (1e-5, None)]
    assert unmined[0] < unmined[1]


def test_a_class_of_one_is_skipped_counted_and_still_divides(clustered) -> None:
    embeddings, labels = clustered(4, 4, 8)
    embeddings, labels = torch.cat([embeddings, -embeddings[:1]]), torch.cat([labels, torch.tensor([9])])
    loss, tally = mine_and_weigh(embeddings, labels, settings=MultiSimilaritySettings())
    torch.testing.assert_close(loss, loop(embeddings, labels))
    assert tally.figures()["anchors_unpaired"] == 1
    assert tally.anchors == 17


def test_figures_count_what_a_loop_counts() -> None:
    _, tally = mine_and_weigh(FOUR, FOUR_LABELS, settings=MultiSimilaritySettings())
    figures = {name: value.item() for name, value in tally.figures().items()}
    similarity = cosine_similarities(FOUR)
    assert figures["positives_kept"] == 2 / 4
    assert figures["negatives_kept"] == 3 / 8
    assert (figures["anchors_skipped"], figures["anchors_unpaired"]) == (2, 0)
    assert figures["hardest_positive"] == pytest.approx(similarity[[0, 1, 2, 3], [1, 0, 3, 2]].mean().item())
    assert figures["hardest_negative"] == pytest.approx(similarity[[0, 1, 2, 3], [2, 2, 1, 1]].mean().item())
    kept = MultiSimilarityMiner(0.1)(similarity, *pair_masks(FOUR_LABELS))
    weights = MultiSimilarityPairs().weights(similarity, *kept)
    assert figures["positive_weight"] == pytest.approx(weights[0].sum().item() / 2)
    assert figures["negative_weight"] == pytest.approx(weights[1].sum().item() / 3)


def test_a_batch_of_one_class_has_no_negative_pairs() -> None:
    embeddings = torch.randn(6, 4, requires_grad=True)
    with pytest.raises(DataError, match=r"the 6 embeddings make no negative pair \(all labels are the same\): .*class-balanced-batches"):
        multi_similarity_loss(embeddings, torch.zeros(6, dtype=torch.long))
    loss = multi_similarity_loss(embeddings, torch.zeros(6, dtype=torch.long), allow_empty=True)
    loss.backward()
    assert loss == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


def test_a_batch_of_distinct_classes_has_no_positive_pairs() -> None:
    with pytest.raises(DataError, match=r"make no positive pair \(no label occurs twice\)"):
        multi_similarity_loss(torch.randn(6, 4), torch.arange(6))
    assert multi_similarity_loss(torch.randn(6, 4), torch.arange(6), allow_empty=True) == 0
    with pytest.raises(DataError, match=r"no positive pair .* and no negative pair"):
        multi_similarity_loss(torch.randn(1, 4), torch.zeros(1))


def test_embeddings_that_are_not_finite_are_refused_or_make_the_loss_nan(clustered) -> None:
    embeddings, labels = clustered()
    embeddings[5, 3] = math.inf
    with pytest.raises(DataError, match="1 values of embeddings are not finite, first in row 5"):
        multi_similarity_loss(embeddings, labels)
    assert multi_similarity_loss(embeddings, labels, check=False).isnan()
    with pytest.raises(DataError, match="ref_emb are not finite"):
        multi_similarity_loss(*clustered(seed=1), embeddings, labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.randn(6, 4), torch.zeros(5)), "embeddings and labels differ in length: 6 and 5"),
        ((torch.randn(6), torch.zeros(6)), r"embeddings are \(rows, dimensions\) and labels \(rows,\); found \(6,\) and \(6,\)"),
        ((torch.randn(6, 4), torch.zeros(6), torch.randn(3, 4)), "ref_emb and ref_labels are given together"),
        ((torch.randn(6, 4), torch.zeros(6), torch.randn(3, 4), torch.zeros(2)), "ref_emb and ref_labels differ in length: 3 and 2"),
        ((torch.randn(6, 4), torch.zeros(6), torch.randn(3, 5), torch.zeros(3)), "embeddings have 4 dimensions, ref_emb has 5"),
        ((torch.randn(0, 4), torch.zeros(0)), "there are no embeddings"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        multi_similarity_loss(*arguments)


def test_a_self_index_without_references_or_of_another_length_is_refused(clustered) -> None:
    embeddings, labels = clustered(3, 3, 4)
    with pytest.raises(ValueError, match="self_index says where the embeddings stand in ref_emb, which is not given"):
        multi_similarity_loss(embeddings, labels, self_index=torch.arange(9))
    with pytest.raises(ValueError, match=r"one position for each of 9 embeddings; found \(4,\)"):
        multi_similarity_loss(embeddings, labels, embeddings, labels, self_index=torch.arange(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, "alpha is a scale above 0; found 0.0"),
        ({"beta": -1.0}, "beta is a scale above 0; found -1.0"),
        ({"beta": math.inf}, "beta is a scale above 0; found inf"),
        ({"epsilon": math.nan}, "epsilon is finite; found nan"),
        ({"threshold": math.inf}, "threshold is finite; found inf"),
        ({"duplicate_tol": -1.0}, r"duplicate_tol is in \[0, 2\), or None"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        multi_similarity_loss(FOUR, FOUR_LABELS, **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_numbers_without_waiting_for_it(clustered, value_and_gradient) -> None:
    embeddings, labels = clustered()
    expected = value_and_gradient(multi_similarity_loss, embeddings, labels)
    found = value_and_gradient(multi_similarity_loss, embeddings.cuda(), labels.cuda())
    torch.testing.assert_close([one.cpu() for one in found], list(expected), rtol=1e-9, atol=1e-12)
    leaf, labels = embeddings.cuda().requires_grad_(), labels.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, tally = mine_and_weigh(leaf, labels, settings=MultiSimilaritySettings())
        tally.figures()
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
