"""The loss: against numbers worked out by hand, a plain loop over anchors, another library, and its own invariances and limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from graftwork import DataError
from graftwork_multi_similarity import (
    PRESETS,
    MultiSimilarityMiner,
    MultiSimilarityPairs,
    MultiSimilaritySettings,
    cosine_similarities,
    drop_duplicates,
    mine_and_weigh,
    multi_similarity_loss,
    pair_masks,
)


def on_circle(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def clustered(classes: int = 8, instances: int = 12, dim: int = 32, spread: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(classes * instances, dim, generator=generator, dtype=torch.float64)
    labels = torch.arange(classes).repeat_interleave(instances)
    order = torch.randperm(len(labels), generator=generator)
    return (centres[labels] + spread * noise)[order], labels[order]


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


def value_and_gradient(function, embeddings: Tensor, *arguments, **options) -> tuple[Tensor, Tensor]:
    leaf = embeddings.clone().requires_grad_()
    loss = function(leaf, *arguments, **options)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


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
def test_value_and_gradient_equal_a_loop_over_anchors(options, spread) -> None:
    embeddings, labels = clustered(5, 4, 8, spread)
    found, expected = (value_and_gradient(function, embeddings, labels, **options) for function in (multi_similarity_loss, loop))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_references_give_what_a_loop_over_anchors_gives() -> None:
    embeddings, labels = clustered(5, 4, 8)
    ref_emb, ref_labels = clustered(5, 7, 8, seed=1)
    found, expected = (value_and_gradient(f, embeddings, labels, ref_emb, ref_labels) for f in (multi_similarity_loss, loop))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_gradients_reach_the_references() -> None:
    embeddings, labels = clustered(5, 4, 8)
    ref_emb, ref_labels = clustered(5, 7, 8, seed=1)
    leaf, other = (ref_emb.clone().requires_grad_() for _ in range(2))
    multi_similarity_loss(embeddings, labels, leaf, ref_labels).backward()
    loop(embeddings, labels, other, ref_labels).backward()
    assert leaf.grad.abs().max() > 0
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-10, atol=1e-13)


def test_anchors_among_the_references_make_no_pair_with_themselves() -> None:
    embeddings, labels = clustered(5, 4, 8)
    place = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
    options = {"epsilon": None, "duplicate_tol": None}
    found = multi_similarity_loss(embeddings, labels, embeddings[place], labels[place], self_index=place.argsort(), **options)
    torch.testing.assert_close(found, multi_similarity_loss(embeddings, labels, **options))
    with_itself = multi_similarity_loss(embeddings, labels, embeddings[place], labels[place], **options)
    assert with_itself > found + 0.01


@pytest.mark.parametrize("with_references", [False, True])
def test_value_and_gradient_equal_pytorch_metric_learning(with_references) -> None:
    losses, miners = (pytest.importorskip(f"pytorch_metric_learning.{part}") for part in ("losses", "miners"))
    loss, miner = losses.MultiSimilarityLoss(2, 40, 0.5), miners.MultiSimilarityMiner(0.1)
    embeddings, labels = clustered(8, 12, 32)
    references = clustered(8, 10, 32, seed=1) if with_references else (None, None)

    def peer(leaf, labels, ref_emb, ref_labels):
        return loss(leaf, labels, miner(leaf, labels, ref_emb, ref_labels), ref_emb=ref_emb, ref_labels=ref_labels)

    found = value_and_gradient(multi_similarity_loss, embeddings, labels, *references)
    torch.testing.assert_close(found, value_and_gradient(peer, embeddings, labels, *references), rtol=1e-9, atol=1e-12)
    assert found[1].abs().max() > 0


def test_the_gradient_passes_gradcheck() -> None:
    embeddings, labels = clustered(3, 3, 4)
    ref_emb, ref_labels = clustered(3, 4, 4, seed=2)
    leaves = embeddings.requires_grad_(), ref_emb.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: multi_similarity_loss(a, labels, block_rows=2), leaves[:1])
    assert torch.autograd.gradcheck(lambda a, r: multi_similarity_loss(a, labels, r, ref_labels, block_rows=2), leaves)


# -- invariances and limits ----------------------------------------------------------------------------------------------------


def test_order_rotation_and_length_of_the_embeddings_do_not_matter() -> None:
    embeddings, labels = clustered()
    expected = multi_similarity_loss(embeddings, labels)
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(labels), generator=generator)
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=generator, dtype=torch.float64)).Q
    lengths = torch.rand(len(labels), 1, generator=generator, dtype=torch.float64) + 0.1
    torch.testing.assert_close(multi_similarity_loss(embeddings[order], labels[order]), expected)
    torch.testing.assert_close(multi_similarity_loss(embeddings @ rotation, labels), expected)
    torch.testing.assert_close(multi_similarity_loss(embeddings * lengths, labels), expected)


def test_a_large_margin_mines_every_pair() -> None:
    embeddings, labels = clustered()
    found, expected = (value_and_gradient(multi_similarity_loss, embeddings, labels, epsilon=epsilon) for epsilon in (10.0, None))
    torch.testing.assert_close(found, expected)


def test_a_margin_of_minus_three_mines_nothing_and_the_zero_stays_in_the_graph() -> None:
    embeddings, labels = clustered()
    leaf = embeddings.float().requires_grad_()
    loss = multi_similarity_loss(leaf, labels, epsilon=-3.0)
    assert (loss.item(), loss.dtype, loss.device) == (0, leaf.dtype, leaf.device)
    loss.backward()
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("beta", [1e2, 1e4, 1e6])
def test_a_large_beta_leaves_the_hardest_negative(beta) -> None:
    embeddings, labels = clustered(spread=0.7)
    similarity, (positive, negative) = cosine_similarities(embeddings), pair_masks(labels)
    threshold = 0.1
    none = torch.zeros_like(positive)
    term = MultiSimilarityPairs(2.0, beta, threshold).losses(similarity, none, negative)
    hinge = (similarity.masked_fill(~negative, -1).amax(dim=1) - threshold).clamp(min=0)
    bound = (1 + negative.sum(dim=1)).log() / beta
    assert ((term - hinge) >= -1e-12).all()
    assert ((term - hinge) <= bound + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow_where_the_exponential_would(dtype) -> None:
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], dtype=dtype).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1])  # negatives with S = 1
    loss = multi_similarity_loss(embeddings, labels, beta=50.0, threshold=0.0)
    assert torch.exp(torch.tensor(50.0, dtype=torch.float16)).isinf()
    expected = multi_similarity_loss(embeddings.detach().double(), labels, beta=50.0, threshold=0.0)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    loss.backward()
    assert embeddings.grad.dtype == dtype
    assert embeddings.grad.isfinite().all()


def test_large_scales_do_not_overflow_float32() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    loss = multi_similarity_loss(embeddings, torch.tensor([0, 0, 1, 1]), alpha=300.0, beta=300.0, threshold=0.0)  # exponents of 300
    assert loss.item() == pytest.approx(2.0)  # each anchor has its positive at -1 and one negative at 1
    loss.backward()
    assert embeddings.grad.isfinite().all()


def test_under_autocast_the_similarities_are_float32() -> None:
    embeddings, labels = clustered()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = multi_similarity_loss(embeddings.float(), labels)
    torch.testing.assert_close(found, multi_similarity_loss(embeddings.float(), labels), rtol=0, atol=0)


# -- blocks --------------------------------------------------------------------------------------------------------------------


def dense(embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None) -> Tensor:
    """The same by plain autograd over whole matrices."""
    similarity = cosine_similarities(embeddings, ref_emb)
    positive, negative = pair_masks(labels, ref_labels)
    kept = MultiSimilarityMiner(0.1)(similarity, drop_duplicates(positive, similarity, 1e-5), negative)
    return MultiSimilarityPairs().loss(similarity, *kept)


@pytest.mark.parametrize("block_rows", [1, 7, 96, 1000, None])
@pytest.mark.parametrize("with_references", [False, True])
def test_blocks_of_rows_equal_the_dense_form(block_rows, with_references) -> None:
    embeddings, labels = clustered()
    references = clustered(8, 10, 32, seed=1) if with_references else (None, None)
    found = value_and_gradient(multi_similarity_loss, embeddings, labels, *references, block_rows=block_rows)
    torch.testing.assert_close(found, value_and_gradient(dense, embeddings, labels, *references), rtol=1e-10, atol=1e-13)


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation gives."""

    entries = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.entries = max(self.entries, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_forward_and_backward_hold_no_more_than_a_block_of_the_matrix() -> None:
    embeddings, labels = torch.randn(600, 8, requires_grad=True), torch.arange(600) // 4
    with LargestTensor() as seen:
        multi_similarity_loss(embeddings, labels, block_rows=16).backward()
    assert seen.entries == 16 * 600
    with LargestTensor() as seen:
        dense(embeddings, labels).backward()
    assert seen.entries == 600 * 600


def test_figures_do_not_depend_on_the_blocks() -> None:
    embeddings, labels = clustered()
    whole, parts = (mine_and_weigh(embeddings, labels, settings=MultiSimilaritySettings(), block_rows=rows)[1] for rows in (96, 7))
    torch.testing.assert_close(whole.figures(), parts.figures())


@pytest.mark.slow
def test_compiled_blocks_give_the_same_numbers() -> None:
    embeddings, labels = clustered()
    found, expected = (value_and_gradient(multi_similarity_loss, embeddings, labels, compile=compiled) for compiled in (True, False))
    torch.testing.assert_close(found, expected)


# -- what is left out, counted, refused ----------------------------------------------------------------------------------------


def test_exact_duplicates_are_left_out_unless_kept() -> None:
    embeddings, labels = clustered(4, 4, 8)
    embeddings = torch.cat([embeddings, embeddings[:2]])
    labels = torch.cat([labels, labels[:2]])
    left_out, kept = (value_and_gradient(multi_similarity_loss, embeddings, labels, duplicate_tol=tol) for tol in (1e-5, None))
    torch.testing.assert_close(left_out, value_and_gradient(loop, embeddings, labels))
    torch.testing.assert_close(kept, value_and_gradient(loop, embeddings, labels, duplicate_tol=None), rtol=1e-9, atol=1e-12)
    unmined = [multi_similarity_loss(embeddings, labels, epsilon=None, duplicate_tol=tol) for tol in (1e-5, None)]
    assert unmined[0] < unmined[1]


def test_a_class_of_one_is_skipped_counted_and_still_divides() -> None:
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


def test_embeddings_that_are_not_finite_are_refused_or_make_the_loss_nan() -> None:
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


def test_a_self_index_without_references_or_of_another_length_is_refused() -> None:
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
def test_a_gpu_gives_the_same_numbers_without_waiting_for_it() -> None:
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
