"""Cleaning: the rules on small numbers, and on views of photographs with known mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import graftwork as gw
from graftwork_google_landmarks import (
    CandidatePairs,
    GoogleLandmarksV2,
    LandmarkCleanSet,
    Verification,
    cleaning_quality,
    read_clean,
    same_landmark_neighbours,
    select_clean,
)


def pairs_of(pairs: CandidatePairs) -> list[tuple[int, int]]:
    return list(zip(pairs.query.tolist(), pairs.neighbour.tolist(), strict=True))


def test_neighbours_are_the_nearest_of_the_same_landmark_without_the_image_itself() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [10.0], [0.5]])
    landmarks = torch.tensor([7, 7, 7, 7, 3])
    found = pairs_of(same_landmark_neighbours(points, landmarks, k=1000))
    assert found == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3), (2, 1), (2, 0), (2, 3), (3, 2), (3, 1), (3, 0)]


def test_the_k_nearest_are_looked_through_before_landmarks_are_compared() -> None:
    points, landmarks = torch.tensor([[0.0], [1.0], [2.0], [10.0], [0.5]]), torch.tensor([7, 7, 7, 7, 3])
    assert pairs_of(same_landmark_neighbours(points, landmarks, k=3)) == [(0, 1), (1, 0), (2, 1), (3, 2), (3, 1)]


def test_the_cap_counts_the_image_itself() -> None:
    points, landmarks = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.zeros(4, dtype=torch.long)
    assert pairs_of(same_landmark_neighbours(points, landmarks, same_label_cap=2)) == [(0, 1), (1, 0), (2, 1), (3, 2)]
    assert not len(same_landmark_neighbours(points, landmarks, same_label_cap=1).query)


def test_chunks_of_queries_give_the_same_pairs() -> None:
    points = torch.randn(70, 4, generator=torch.Generator().manual_seed(0))
    landmarks = torch.arange(70) % 5
    whole = same_landmark_neighbours(points, landmarks)
    assert pairs_of(same_landmark_neighbours(points, landmarks, query_chunk=9)) == pairs_of(whole)
    assert len(whole.query) == 70 * 13


def test_an_image_stays_with_enough_verified_neighbours_and_a_landmark_with_enough_images() -> None:
    landmarks = torch.tensor([1, 1, 1, 1, 2, 2, 2, 9])
    query = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 4, 5, 6])
    inliers = torch.tensor([30, 31, 99, 30, 30, 29, 50, 50, 90, 40, 40, 40, 10])
    pairs = CandidatePairs(query, torch.zeros_like(query))
    found = select_clean(landmarks, pairs, inliers, 30, frequency=2)
    assert found.verified.tolist() == [3, 2, 2, 1, 2, 1, 0, 0]
    assert found.kept.tolist() == [0, 1, 2]  # image 4 is verified twice, but alone under landmark 2
    assert select_clean(landmarks, pairs, inliers, 30, 1).kept.tolist() == [0, 1, 2, 3, 4, 5]
    assert select_clean(landmarks, pairs, inliers, 30, 2, min_images=1).kept.tolist() == [0, 1, 2, 4]
    assert select_clean(landmarks, pairs, inliers, 31, 2).kept.tolist() == [0, 2]


def test_what_does_not_fit_is_refused() -> None:
    points = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="3 descriptors and 2 landmarks differ"):
        same_landmark_neighbours(points, torch.zeros(2))
    with pytest.raises(ValueError, match="same_label_cap is at least 1; found 0"):
        same_landmark_neighbours(points, torch.zeros(3), same_label_cap=0)
    with pytest.raises(ValueError, match="k is at least 1; found 0"):
        same_landmark_neighbours(points, torch.zeros(3), k=0)
    pairs = CandidatePairs(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="frequency is at least 0; found -1"):
        select_clean(torch.zeros(3), pairs, torch.zeros(1), frequency=-1)
    with pytest.raises(ValueError, match="1 pairs and 2 numbers of inliers differ"):
        select_clean(torch.zeros(3), pairs, torch.zeros(2))


SETTINGS = Verification(residual=3.0, trials=200)


@pytest.fixture(scope="module")
def cleaned(photos, pixels, tmp_path_factory) -> tuple[LandmarkCleanSet, Path]:
    path = tmp_path_factory.mktemp("clean") / "train_clean.csv"
    return LandmarkCleanSet(photos, pixels, verification=SETTINGS, min_inliers=25, frequency=2, write=str(path)), path


def test_cleaning_tells_right_images_from_wrong_ones(photos, cleaned) -> None:
    data, _ = cleaned
    found = cleaning_quality(photos["train"], data["train_clean"])
    assert found["purity"] > 0.9 > found["random-purity"]
    assert found["dropped-wrong"] > 0.8
    assert found["kept-correct"] > 0.3


def test_the_cleaned_split_stands_beside_the_others_and_keeps_their_labels(photos, cleaned) -> None:
    data, _ = cleaned
    assert set(data) == {*photos, "train_clean"}
    assert data["train"] is photos["train"]
    assert data.info == photos.info
    sample = data["train_clean"][0]
    assert photos.relabeling.landmarks[sample["label"]] == sample["landmark_id"]
    assert sample["license"]


def test_the_file_is_one_that_the_loader_reads(photos, cleaned, tmp_path: Path) -> None:
    data, path = cleaned
    table = read_clean(path)
    assert sorted(table.images.values.tolist()) == sorted(data["train_clean"].ids.tolist())
    for folder in ("train", "metadata", "test", "index"):
        (tmp_path / folder).symlink_to(photos.root / folder)
    (tmp_path / "train_clean.csv").write_bytes(path.read_bytes())
    again = GoogleLandmarksV2(str(tmp_path), (32, 32), classes="train_clean", cache=str(tmp_path / "cache"))
    assert len(again["train_clean"]) == len(data["train_clean"])
    assert len(again.info.classes) == len(table.landmarks)


def test_classes_of_the_clean_set_number_its_landmarks_anew(photos, pixels, cleaned) -> None:
    kept = cleaned[0]["train_clean"]
    data = LandmarkCleanSet(photos, pixels, verification=SETTINGS, min_inliers=25, frequency=2, classes="train_clean")
    landmarks = np.unique(kept.numbers["landmark_id"])
    assert len(data.info.classes) == len(landmarks)
    for split in ("train", "train_clean"):
        numbers = data[split].numbers
        assert (landmarks[numbers["label"]] == numbers["landmark_id"]).all()
    old = photos.info.classes[photos.relabeling.labels(landmarks[:1])[0]]
    assert data.info.classes[0] == old


def test_splits_without_landmarks_of_train_and_thresholds_out_of_reach_are_refused(photos, pixels) -> None:
    with pytest.raises(gw.DataError, match='split "index" has index_landmark_id'):
        LandmarkCleanSet(photos, pixels, split="index")
    with pytest.raises(gw.DataError, match=r'split "train" is to be one of google-landmarks-v2.*it is TensorSamples'):
        LandmarkCleanSet(gw.Dataset({"train": gw.TensorSamples(label=torch.zeros(3))}), pixels)
    with pytest.raises(gw.DataError, match=r"keeps none of \d+ images: the best pair has \d+ inliers, min_inliers is 999"):
        LandmarkCleanSet(photos, pixels, verification=Verification(trials=10), min_inliers=999)
    with pytest.raises(ValueError, match="min_inliers is at least 3; found 2"):
        LandmarkCleanSet(photos, pixels, min_inliers=2)


def test_a_clean_set_that_only_loses_small_landmarks_is_no_purer_than_chance(photos) -> None:
    samples = photos["train"]
    _landmarks, label, counts = np.unique(samples.numbers["landmark_id"], return_inverse=True, return_counts=True)
    large = samples.select(np.flatnonzero(counts[label] >= np.median(counts)))
    found = cleaning_quality(samples, large)
    assert found["purity"] == pytest.approx(found["random-purity"])
    assert found["kept-correct-of-kept-landmarks"] == 1
    assert found["kept-landmarks"] == pytest.approx((counts >= np.median(counts)).mean())
    assert found["kept-wrong"] + found["dropped-wrong"] == 1
