"""The loss a block of rows at a time: the same numbers as over whole matrices, and the memory of a block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from graftwork_multi_similarity import (
    MultiSimilarityMiner,
    MultiSimilarityPairs,
    MultiSimilaritySettings,
    cosine_similarities,
    drop_duplicates,
    mine_and_weigh,
    multi_similarity_loss,
    pair_masks,
)


def dense(embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None) -> Tensor:
    """The same by plain autograd over whole matrices."""
    similarity = cosine_similarities(embeddings, ref_emb)
    positive, negative = pair_masks(labels, ref_labels)
    kept = MultiSimilarityMiner(0.1)(similarity, drop_duplicates(positive, similarity, 1e-5), negative)
    return MultiSimilarityPairs().loss(similarity, *kept)


@pytest.mark.parametrize("block_rows", [1, 7, 96, 1000, None])
@pytest.mark.parametrize("with_references", [False, True])
def test_blocks_of_rows_equal_the_dense_form(block_rows, with_references, clustered, value_and_gradient) -> None:
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


def test_figures_do_not_depend_on_the_blocks(clustered) -> None:
    embeddings, labels = clustered()
    whole, parts = (mine_and_weigh(embeddings, labels, settings=MultiSimilaritySettings(), block_rows=rows)[1] for rows in (96, 7))
    torch.testing.assert_close(whole.figures(), parts.figures())


@pytest.mark.slow
def test_compiled_blocks_give_the_same_numbers(clustered, value_and_gradient) -> None:
    embeddings, labels = clustered()
    found, expected = (value_and_gradient(multi_similarity_loss, embeddings, labels, compile=compiled) for compiled in (True, False))
    torch.testing.assert_close(found, expected)
