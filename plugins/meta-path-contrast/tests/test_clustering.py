"""k-means: against scikit-learn, on the sphere, with every cluster kept, and bitwise the same under a seed."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from graftwork_meta_path_contrast import cluster_all, k_means


def blobs(each: int = 20, seed: int = 0) -> torch.Tensor:
    centres = torch.tensor([[4.0, 0, 0], [0, 4, 0], [0, 0, 4], [-4, -4, 0]])
    return centres.repeat_interleave(each, dim=0) + 0.3 * torch.randn(4 * each, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_groups_far_apart_are_found(metric) -> None:
    found = k_means(blobs(), 4, metric).assignments.view(4, 20)
    assert (found == found[:, :1]).all()
    assert len(found[:, 0].unique()) == 4


def test_euclidean_inertia_is_no_worse_than_scikit_learns() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    x = torch.rand(150, 5, generator=torch.Generator().manual_seed(0))
    theirs = cluster.KMeans(6, n_init=20, random_state=0).fit(x.numpy()).inertia_
    ours = -k_means(x, 6, "euclidean", iterations=30, restarts=20).affinity.sum().item()
    assert ours == pytest.approx(theirs, rel=0.02)


def test_spherical_centroids_are_normalised_means_of_their_points() -> None:
    found = k_means(blobs(), 4, "cosine")
    x = functional.normalize(blobs(), dim=1)
    means = torch.stack([x[found.assignments == m].mean(0) for m in range(4)])
    torch.testing.assert_close(found.centroids, functional.normalize(means, dim=1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.affinity, (x * found.centroids[found.assignments]).sum(1))


def test_as_many_clusters_as_points_are_singletons() -> None:
    found = k_means(blobs(3), 12)
    assert sorted(found.assignments.tolist()) == list(range(12))


def test_no_cluster_is_left_empty_where_points_coincide_with_the_start() -> None:
    x = torch.cat([torch.tensor([[1.0, 0]]).expand(10, 2), torch.tensor([[0.0, 1], [-1, 0], [0, -1]])])
    assert len(k_means(x, 4, iterations=20, restarts=1).assignments.unique()) == 4


def test_the_start_with_the_largest_sum_of_affinities_is_kept() -> None:
    x = torch.rand(80, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    sums = [k_means(x, 8, restarts=1, seed=seed).affinity.sum() for seed in range(1)]
    assert k_means(x, 8, restarts=6).affinity.sum() >= sums[0]


def test_a_warm_start_goes_on_from_its_centroids() -> None:
    first = k_means(blobs(), 4, iterations=20)
    again = k_means(blobs(), 4, iterations=1, start=first.centroids)
    assert torch.equal(again.assignments, first.assignments)


def test_a_seed_gives_the_same_bits_and_the_global_stream_is_left_alone() -> None:
    before = torch.get_rng_state()
    one, other = (cluster_all(blobs(), [3, 5]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a.centroids, b.centroids) for a, b in zip(one, other, strict=True))
    assert [len(each.centroids) for each in one] == [3, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clusters": 81}, "clusters must be 1 to 80, the number of points; found 81"),
        ({"iterations": 0}, "iterations must be at least 1; found 0"),
        ({"restarts": 0}, "restarts must be at least 1; found 0"),
        ({"start": torch.zeros(3, 3)}, r"start is \(4, 3\); found \(3, 3\)"),
    ],
)
def test_bad_numbers_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        k_means(blobs(), **{"clusters": 4, **arguments})
