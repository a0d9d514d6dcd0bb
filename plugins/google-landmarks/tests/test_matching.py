"""Local features, their matches, and affine RANSAC over many pairs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from graftwork import DataError, GraftworkError
from graftwork_google_landmarks import (
    FeatureStore,
    LocalFeatures,
    Matches,
    Verification,
    affine_inliers,
    harris_features,
    match_descriptors,
    orb_features,
    sift_features,
    verify_pairs,
)
from graftwork_google_landmarks.local_features import provider_of
from graftwork_google_landmarks.matching import _distinct


def scene(seed: int = 0, size: int = 96) -> Tensor:
    """Blobs and edges: noise at two scales."""
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.rand(1, 3, size // factor, size // factor, generator=generator) for factor in (16, 6)]
    return sum(interpolate(layer, size=(size, size), mode="nearest") for layer in layers)[0] / 2


def planted(inliers: int, outliers: int, seed: int = 0, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Matches of which some follow one affine map, in random order; outliers are far off."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.rand(inliers + outliers, 2, generator=generator) * 100
    turn = torch.tensor([[0.9, -0.3], [0.25, 1.1]])
    target = source @ turn.T + torch.tensor([5.0, -7.0]) + noise * torch.randn(source.shape, generator=generator)
    target[inliers:] += 200 + 900 * torch.rand(outliers, 2, generator=generator)
    order = torch.randperm(len(source), generator=generator)
    return source[order], target[order]


def padded(pairs: list[tuple[Tensor, Tensor]]) -> Matches:
    counts = torch.tensor([len(source) for source, _ in pairs])
    sides = [torch.nn.utils.rnn.pad_sequence([pair[side] for pair in pairs], batch_first=True) for side in (0, 1)]
    return Matches(*sides, counts)


@pytest.mark.parametrize(("inliers", "outliers"), [(3, 0), (12, 4), (30, 60), (40, 0)])
def test_ransac_counts_the_planted_inliers(inliers: int, outliers: int) -> None:
    assert affine_inliers(padded([planted(inliers, outliers)]), residual=2.0).tolist() == [inliers]


def test_a_pair_counts_the_same_alone_and_among_others() -> None:
    pairs = [planted(n, 3 * n, seed=n, noise=1.0) for n in (3, 9, 17, 25, 31)]
    together = affine_inliers(padded(pairs), 3.0, 200)
    assert together.tolist() == [int(affine_inliers(padded([pair]), 3.0, 200)) for pair in pairs]
    assert together.tolist() == affine_inliers(padded(pairs[::-1]), 3.0, 200).flip(0).tolist()


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_ransac_finds_about_what_scikit_image_finds(noise: float) -> None:
    measure = pytest.importorskip("skimage.measure", reason="needs scikit-image to compare with")
    transform = pytest.importorskip("skimage.transform")
    for seed in range(3):
        source, target = planted(25, 25, seed, noise)
        _, theirs = measure.ransac(
            (source.numpy(), target.numpy()), transform.AffineTransform, min_samples=3, residual_threshold=4, max_trials=300, rng=seed
        )
        assert abs(int(affine_inliers(padded([(source, target)]), 4.0, 300)) - int(theirs.sum())) <= 2


def test_fewer_than_three_matches_and_points_on_a_line_have_no_inliers() -> None:
    source, target = planted(2, 0)
    line = torch.arange(10.0)[:, None].expand(-1, 2)
    assert affine_inliers(padded([(source, target), (line, line)])).tolist() == [0, 0]


def test_every_sample_has_three_different_matches() -> None:
    drawn = _distinct(torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 4, 50]))
    assert drawn.min() == 0
    assert drawn.amax(dim=(1, 2)).tolist() == [2, 3, 49]
    ordered = drawn.sort(dim=2).values
    assert (ordered.diff(dim=2) > 0).all()
    quarter = torch.bincount(drawn[1].flatten(), minlength=4) / 12000
    torch.testing.assert_close(quarter, torch.full((4,), 0.25), atol=0.02, rtol=0)


def test_the_residual_decides_what_is_an_inlier() -> None:
    source, target = planted(20, 0, noise=3.0)
    strict, loose = (int(affine_inliers(padded([(source, target)]), residual)) for residual in (1.0, 30.0))
    assert strict < loose == 20


def test_matches_are_nearest_descriptors_within_the_distance() -> None:
    ours = torch.eye(4)[None]
    theirs = normalize(torch.tensor([[[0.0, 1, 0, 0], [0.9, 0.1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]]), dim=2)
    at = torch.arange(8.0).view(1, 4, 2)
    counts = torch.tensor([4]), torch.tensor([3])  # the last of theirs is padding
    found = match_descriptors((at, ours, counts[0]), (at + 100, theirs, counts[1]), 0.8)
    assert found.counts.tolist() == [2]
    assert found.source[0, :2].tolist() == [[2, 3], [0, 1]]
    assert found.target[0, :2].tolist() == [[100, 101], [102, 103]]
    assert match_descriptors((at, ours, counts[0]), (at, theirs, counts[1]), 1.1).counts.tolist() == [3]
    hidden = match_descriptors((at, ours, torch.tensor([1])), (at, theirs, counts[1]), 0.8)
    assert hidden.counts.tolist() == [1]


def test_corners_of_a_square_are_found_where_they_are() -> None:
    image = torch.zeros(1, 64, 64)
    image[:, 20:44, 20:44] = 1
    found = harris_features(image, most=40, levels=1)
    for corner in ((19.5, 19.5), (43.5, 19.5), (19.5, 43.5), (43.5, 43.5)):
        assert (found.locations - torch.tensor(corner)).norm(dim=1).min() < 3
    assert harris_features(torch.full((3, 64, 64), 0.5)).locations.shape == (0, 2)
    assert harris_features(torch.rand(3, 9, 9)).descriptors.shape == (0, 128)


@pytest.mark.parametrize("provider", [harris_features, sift_features, orb_features])
def test_features_follow_a_shifted_image_and_have_unit_length(provider) -> None:
    if provider is not harris_features:
        pytest.importorskip("skimage.feature", reason="needs scikit-image")
    large = scene(size=112)
    first, second = provider(large[:, :96, :96]), provider(large[:, 8:104, 12:108])
    torch.testing.assert_close(first.descriptors.norm(dim=1), torch.ones(len(first.descriptors)), atol=1e-4, rtol=0)
    ours, theirs = ((each.locations[None], each.descriptors[None], torch.tensor([len(each.locations)])) for each in (first, second))
    matches = match_descriptors(ours, theirs, 0.8)
    inliers = int(affine_inliers(matches, 2.0, 300))
    assert inliers >= 15
    shift = (matches.source - matches.target)[0, : matches.counts[0]].median(dim=0).values
    torch.testing.assert_close(shift, torch.tensor([12.0, 8.0]), atol=0.6, rtol=0)


@pytest.mark.parametrize("provider", [sift_features, orb_features])
def test_without_scikit_image_its_features_say_what_to_install(provider, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    with pytest.raises(GraftworkError, match=r'pip install "graftwork-google-landmarks\[local-features\]"'):
        provider(scene())


def test_distance_of_orb_descriptors_is_that_of_hamming() -> None:
    pytest.importorskip("skimage.feature", reason="needs scikit-image")
    found = orb_features(scene()).descriptors
    hamming = (found[0] * found[1] < 0).sum()
    torch.testing.assert_close((found[0] - found[1]).norm(), (hamming / 64).sqrt())


def test_two_views_are_verified_and_another_place_is_not() -> None:
    images = {"a": scene(1)[:, :90, :90], "b": scene(1)[:, 5:95, 3:93], "c": scene(2)[:, :90, :90]}
    store = FeatureStore("harris", images.__getitem__)
    same, other = verify_pairs([("a", "b"), ("a", "c")], store, store, Verification(residual=3.0)).tolist()
    assert same >= 30 > other


def test_blocks_of_pairs_leave_out_none() -> None:
    """The public code drops what is left of the last block of a thousand pairs."""
    store = FeatureStore("harris", lambda name: scene(int(name), 64))
    pairs = [("1", "1")] * 5 + [("1", "2")]
    whole = verify_pairs(pairs, store, store, block=100)
    assert len(whole) == 6
    assert torch.equal(whole, verify_pairs(pairs, store, store, block=4))
    assert len(verify_pairs([], store, store)) == 0


def test_features_are_computed_once_and_kept_on_disk(tmp_path: Path) -> None:
    seen = []
    names = ["0123456789abcdef", "0223456789abcdef"]

    def picture(name: str) -> Tensor:
        seen.append(name)
        return scene(1, 64)

    store = FeatureStore("harris", picture, tmp_path)
    first = store(names[0])
    assert store(names[0]) is first
    again = FeatureStore("harris", picture, tmp_path)(names[0])
    assert seen == names[:1]
    assert (tmp_path / "harris/0/1/2/0123456789abcdef.safetensors").is_file()
    assert torch.equal(again.locations, first.locations)
    assert torch.equal(again.descriptors, first.descriptors)
    (tmp_path / "harris/0/1/2/0123456789abcdef.safetensors").write_bytes(b"damaged")
    FeatureStore("harris", picture, tmp_path)(names[0])
    assert len(seen) == 2


def test_a_store_holds_no_more_than_its_capacity() -> None:
    seen = []
    store = FeatureStore("harris", lambda name: seen.append(name) or scene(1, 48), capacity=2)
    for name in ("a", "b", "a", "c", "a", "b"):
        store(name)
    assert seen == ["a", "b", "c", "b"]


def test_any_function_of_an_image_gives_features() -> None:
    store = FeatureStore(lambda image: LocalFeatures(torch.zeros(5, 2), torch.ones(5, 40)), lambda name: scene(1, 48))
    assert store.padded(["x", "y"])[1].shape == (2, 5, 40)
    odd = FeatureStore(lambda image: LocalFeatures(torch.zeros(5, 3), torch.ones(5, 40)), lambda name: scene(1, 48))
    with pytest.raises(DataError, match=r"locations \(n, 2\) and descriptors \(n, d\); image x has \(5, 3\) and \(5, 40\)"):
        odd("x")
    with pytest.raises(ValueError, match=r'features is one of harris, sift, orb, .*; found "surf"'):
        provider_of("surf")
