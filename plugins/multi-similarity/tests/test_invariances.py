"""What the loss does not depend on, and what it tends to: order, rotation, length, margins, scales, precisions."""

from __future__ import annotations

import pytest
import torch

from graftwork_multi_similarity import (
    MultiSimilarityPairs,
    cosine_similarities,
    multi_similarity_loss,
    pair_masks,
)


def test_order_rotation_and_length_of_the_embeddings_do_not_matter(clustered) -> None:
    embeddings, labels = clustered()
    expected = multi_similarity_loss(embeddings, labels)
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(labels), generator=generator)
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=generator, dtype=torch.float64)).Q
    lengths = torch.rand(len(labels), 1, generator=generator, dtype=torch.float64) + 0.1
    torch.testing.assert_close(multi_similarity_loss(embeddings[order], labels[order]), expected)
    torch.testing.assert_close(multi_similarity_loss(embeddings @ rotation, labels), expected)
    torch.testing.assert_close(multi_similarity_loss(embeddings * lengths, labels), expected)


def test_a_large_margin_mines_every_pair(clustered, value_and_gradient) -> None:
    embeddings, labels = clustered()
    found, expected = (value_and_gradient(multi_similarity_loss, embeddings, labels, epsilon=epsilon) for epsilon in (10.0, None))
    torch.testing.assert_close(found, expected)


def test_a_margin_of_minus_three_mines_nothing_and_the_zero_stays_in_the_graph(clustered) -> None:
    embeddings, labels = clustered()
    leaf = embeddings.float().requires_grad_()
    loss = multi_similarity_loss(leaf, labels, epsilon=-3.0)
    assert (loss.item(), loss.dtype, loss.device) == (0, leaf.dtype, leaf.device)
    loss.backward()
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("beta", [1e2, 1e4, 1e6])
def test_a_large_beta_leaves_the_hardest_negative(beta, clustered) -> None:
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


def test_under_autocast_the_similarities_are_float32(clustered) -> None:
    embeddings, labels = clustered()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = multi_similarity_loss(embeddings.float(), labels)
    torch.testing.assert_close(found, multi_similarity_loss(embeddings.float(), labels), rtol=0, atol=0)
