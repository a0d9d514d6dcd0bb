"""Exact nearest neighbours against a full sort in float64."""

from __future__ import annotations

import pytest
import torch

from graftwork_google_landmarks import exact_topk


def drawn(rows: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def sorted_outright(queries, gallery, metric):
    queries, gallery = queries.double(), gallery.double()
    if metric == "cosine":
        queries, gallery = (torch.nn.functional.normalize(each, dim=1) for each in (queries, gallery))
    scores = -(torch.cdist(queries, gallery) ** 2) if metric == "l2" else queries @ gallery.T
    return scores.sort(dim=1, descending=True, stable=True)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("k", [1, 7, 100])
def test_the_nearest_are_those_of_a_full_sort(metric: str, k: int) -> None:
    queries, gallery = drawn(20), drawn(5000, seed=1)
    found = exact_topk(queries, gallery, k, metric)
    scores, order = sorted_outright(queries, gallery, metric)
    torch.testing.assert_close(found.scores.double(), scores[:, :k], rtol=1e-5, atol=1e-4)
    assert (found.indices == order[:, :k]).float().mean() > 0.999  # scores that float32 cannot tell apart


def test_equal_scores_go_to_the_earlier_row_whatever_the_chunks() -> None:
    """Small integers are exact in float32, so that ties are ties; every value occurs hundreds of times."""
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randint(-1, 2, (rows, 4), generator=generator).float() for rows in (30, 6000))
    expected = (queries @ gallery.T).sort(dim=1, descending=True, stable=True).indices[:, :50]
    for query_chunk, gallery_chunk in ((None, None), (7, 1500), (1, 10**6)):
        assert torch.equal(exact_topk(queries, gallery, 50, "dot", "float32", query_chunk, gallery_chunk).indices, expected)


def test_a_gallery_in_ascending_order_is_the_worst_case_and_right() -> None:
    gallery = torch.arange(4000.0)[:, None]
    assert exact_topk(torch.ones(1, 1), gallery, 5, "dot").indices.tolist() == [[3999, 3998, 3997, 3996, 3995]]


def test_a_smaller_gallery_gives_all_of_itself() -> None:
    assert exact_topk(drawn(3), drawn(4), 10).indices.sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * 3
    assert exact_topk(drawn(0), drawn(4), 10).indices.shape == (0, 4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_finds_nearly_the_same(precision: str) -> None:
    queries, gallery = drawn(50), drawn(3000, seed=1)
    ours, exact = exact_topk(queries, gallery, 10, precision=precision), exact_topk(queries, gallery, 10)
    assert ours.scores.dtype == torch.float32
    torch.testing.assert_close(ours.scores, exact.scores, rtol=0, atol=2e-2)
    shared = sum(len(set(a) & set(b)) for a, b in zip(ours.indices.tolist(), exact.indices.tolist(), strict=True))
    assert shared > 0.9 * 500


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((drawn(2), drawn(3), 0), "k is at least 1; found 0"),
        ((drawn(2), drawn(3, 8), 1), r"found \(2, 16\) and \(3, 8\)"),
        ((drawn(2), drawn(3) * torch.nan, 1), r"similarities that are not numbers"),
        ((drawn(2), drawn(0), 1), r"not empty are wanted; found \(2, 16\) and \(0, 16\)"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        exact_topk(*arguments)


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_finds() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    queries, gallery = drawn(100, 64), drawn(20000, 64, 1)
    found = exact_topk(queries.cuda(), gallery, 100)
    assert (found.indices.cpu() == exact_topk(queries, gallery, 100).indices).float().mean() > 0.999


def test_zeros_of_both_signs_are_equal_and_scores_survive_the_packing() -> None:
    gallery = torch.tensor([[0.0], [-1.0], [-0.0], [2.0], [0.0], [-3e38]])
    found = exact_topk(torch.tensor([[1.0], [-1.0]]), gallery, 6, "dot")
    assert found.indices.tolist() == [[3, 0, 2, 4, 1, 5], [5, 1, 0, 2, 4, 3]]
    assert torch.equal(found.scores[0], torch.tensor([2.0, 0.0, 0.0, 0.0, -1.0, -3e38]))


@pytest.mark.parametrize("rows", [100, 333, 3200, 10_000])
def test_groups_that_do_not_fill_a_chunk_lose_no_row(rows: int) -> None:
    queries, gallery = drawn(9), drawn(7001, seed=1)
    scores, order = (queries @ gallery.T).topk(30, dim=1)
    found = exact_topk(queries, gallery, 30, "dot", gallery_chunk=rows)
    torch.testing.assert_close(found.scores, scores)
    assert (found.indices == order).float().mean() > 0.99
