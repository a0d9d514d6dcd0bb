"""Votes of neighbours, banned landmarks, and both tasks measured on views of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graftwork as gw
from graftwork_google_landmarks import (
    LandmarkRecognition,
    LandmarkRetrieval,
    Recognition,
    Verification,
    ban_distractors,
    global_average_precision,
    read_recognition_predictions,
    recognise,
    rerank_by_inliers,
)


def test_the_landmark_with_the_highest_sum_of_votes_is_predicted() -> None:
    similarities = np.array([[0.9, 0.8, 0.7], [0.9, 0.6, 0.2]])
    landmarks = np.array([[5, 6, 6], [5, 6, 6]])
    found = recognise(similarities, landmarks)
    assert found.landmarks.tolist() == [6, 5]
    assert found.scores.tolist() == pytest.approx([0.6 + 0.4, 0.8])


def test_inliers_add_to_the_vote_up_to_their_cap() -> None:
    similarities, landmarks = np.array([[0.9, 0.85]]), np.array([[5, 6]])
    found = recognise(similarities, landmarks, np.array([[0, 35]]))
    assert (found.landmarks.tolist(), found.scores.tolist()) == ([6], pytest.approx([0.7 + 0.5]))
    assert recognise(similarities, landmarks, np.array([[70, 900]])).scores.tolist() == pytest.approx([1.8])


def test_of_equal_sums_the_nearest_neighbours_landmark_wins() -> None:
    assert recognise(np.array([[0.8, 0.8]]), np.array([[9, 2]])).landmarks.tolist() == [9]


def test_landmarks_predicted_too_often_go_last_and_only_those() -> None:
    """112 ends in the same digits as 12, which a text search takes for it."""
    found = Recognition(np.array([12, 12, 12, 112, 7]), np.array([5.0, 4.0, 3.0, 2.0, 1.0]))
    assert ban_distractors(found, 2).scores.tolist() == [-3, -3, -3, 2, 1]
    assert ban_distractors(found, 3).scores.tolist() == found.scores.tolist()
    with pytest.raises(ValueError, match="more_than is at least 0; found -1"):
        ban_distractors(found, -1)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"similarities \(1, 2\) and landmarks \(1, 3\)"):
        recognise(np.zeros((1, 2)), np.zeros((1, 3), int))
    with pytest.raises(ValueError, match="inlier_cap is at least 1; found 0"):
        recognise(np.zeros((1, 2)), np.zeros((1, 2), int), inlier_cap=0)


def test_reranking_moves_the_most_verified_first_and_leaves_ties_and_the_tail() -> None:
    near, inliers = np.array([[4, 5, 6, 7, 8]]), np.array([[3, 9, 3]])
    assert rerank_by_inliers(near, inliers).tolist() == [[5, 4, 6, 7, 8]]


@pytest.fixture(scope="module")
def measured(photos, pixels, tmp_path_factory) -> dict[type, tuple[gw.Report, str]]:
    """By evaluator with its defaults: what it reports of the pixels, and the file of predictions that it wrote."""
    folder = tmp_path_factory.mktemp("predictions")
    paths = {kind: str(folder / f"{kind.__name__}.csv") for kind in (LandmarkRetrieval, LandmarkRecognition)}
    return {kind: (kind(write=path).evaluate(pixels, photos), path) for kind, path in paths.items()}


def test_retrieval_of_views_by_their_pixels(measured) -> None:
    report, _ = measured[LandmarkRetrieval]
    every = {"map@100", "precision@1", "precision@5", "precision@10", "precision@50", "precision@100", "mean-position", "median-position"}
    assert set(report.metrics) == {prefix + name for prefix in ("", "public/", "private/") for name in every}
    assert report.metrics["map@100"] > 0.4
    sizes = dict(report.tables["queries"].rows)
    assert sizes["Ignored"] >= 20
    weighted = sum(sizes[usage] * report.metrics[f"{usage.lower()}/map@100"] for usage in ("Public", "Private"))
    assert weighted / (sizes["Public"] + sizes["Private"]) == pytest.approx(report.metrics["map@100"])
    assert len(report.figures["retrieved"].figure.axes) == 8 * 7


def test_a_submission_scores_as_the_model_that_wrote_it(photos, measured) -> None:
    for kind, (report, path) in measured.items():
        assert kind(submission=path).evaluate(None, photos).metrics == report.metrics
        name = "retrieval" if kind is LandmarkRetrieval else "recognition"
        solution = str(photos.root / f"ground_truth/{name}_solution_v2.1.csv")
        assert kind(submission=path, solution=solution).evaluate(None, gw.Dataset({})).metrics == report.metrics


def test_recognition_of_views_among_digits(photos, measured) -> None:
    report, _ = measured[LandmarkRecognition]
    assert set(report.metrics) == {p + m for p in ("", "public/", "private/") for m in ("gap", "gap-landmarks-only", "top-1-accuracy")}
    assert 0.2 < report.metrics["gap"] <= report.metrics["gap-landmarks-only"] <= 1
    rows = dict(report.tables["queries"].rows)
    assert rows["without"] >= 20
    assert rows["with a landmark"] + rows["without"] == len(photos["test"])
    assert len(report.figures["precision"].figure.axes) == 2


def test_landmark_ids_of_the_index_are_refused_and_would_score_differently(photos, pixels, measured) -> None:
    with pytest.raises(gw.DataError, match='split "index" has those of the index, another numbering'):
        LandmarkRecognition(gallery="index").evaluate(pixels, photos)
    with pytest.raises(gw.DataError, match='split "test" has none'):
        LandmarkRecognition(gallery="test").evaluate(pixels, photos)
    disguised = photos["index"].with_numbers(landmark_id=photos["index"].numbers["index_landmark_id"])
    mixed = gw.Dataset({"train": disguised, "test": photos["test"]}, photos.info)
    solution = str(photos.root / "ground_truth/recognition_solution_v2.1.csv")
    wrong = LandmarkRecognition(solution=solution).evaluate(pixels, mixed).metrics["gap"]
    assert wrong < 0.2 * measured[LandmarkRecognition][0].metrics["gap"]


def test_verification_and_bans_change_the_scores(photos, pixels, measured, tmp_path: Path) -> None:
    before = measured[LandmarkRecognition][0].metrics
    verified = LandmarkRecognition(rerank=Verification(residual=3.0, trials=200), write=str(tmp_path / "p.csv"))
    after = verified.evaluate(pixels, photos).metrics
    assert after["gap"] > before["gap"]
    made = read_recognition_predictions(tmp_path / "p.csv", photos.recognition)
    assert global_average_precision(made, photos.recognition) == after["gap"]
    banned = LandmarkRecognition(ban_over=0).evaluate(pixels, photos).metrics
    assert banned["top-1-accuracy"] == before["top-1-accuracy"]
    assert banned["gap"] != before["gap"]


@pytest.mark.parametrize("kind", [LandmarkRetrieval, LandmarkRecognition])
def test_features_go_to_the_folder_that_is_named(photos, pixels, tmp_path: Path, kind) -> None:
    """Of a solution with one query, which is held against one neighbour: two images."""
    task = "retrieval" if kind is LandmarkRetrieval else "recognition"
    header, *rows = (photos.root / f"ground_truth/{task}_solution_v2.1.csv").read_text().splitlines()
    answered = next(row for row in rows if row.split(",")[1] and not row.endswith("Ignored"))
    (tmp_path / "one.csv").write_text(f"{header}\n{answered}\n")
    count = {"rerank_top": 1, "pictures": 0} if kind is LandmarkRetrieval else {"neighbours": 1}
    settings = Verification(residual=3.0, trials=10, folder=str(tmp_path / "kept"))
    kind(solution=str(tmp_path / "one.csv"), rerank=settings, **count).evaluate(pixels, photos)
    assert len(list((tmp_path / "kept").glob("harris/*/*/*/*.safetensors"))) == 2


def test_reranked_retrieval_finds_more(photos, pixels, measured) -> None:
    settings = Verification(residual=3.0, trials=200)
    plain = measured[LandmarkRetrieval][0].metrics
    ranked = LandmarkRetrieval(rerank=settings, rerank_top=10, pictures=0).evaluate(pixels, photos).metrics
    assert ranked["precision@1"] >= plain["precision@1"]
    assert ranked["map@100"] > plain["map@100"]
    assert list(photos.feature_folder.glob("harris/*/*/*/*.safetensors"))  # the data set's own folder, where none is named


@pytest.mark.parametrize("kind", [LandmarkRetrieval, LandmarkRecognition])
def test_what_is_missing_is_named(photos, pixels, layout, kind) -> None:
    with pytest.raises(gw.InterfaceError, match="needs a model that embeds, or a file of predictions"):
        kind().evaluate(None, photos)
    with pytest.raises(gw.DataError, match=r"there is no (retrieval|recognition) solution"):
        kind().evaluate(pixels, gw.Dataset({}))


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (LandmarkRetrieval, {"max_predictions": 0}, "max_predictions is at least 1; found 0"),
        (LandmarkRetrieval, {"rerank_top": 0}, "rerank_top is at least 1; found 0"),
        (Verification, {"residual": 0.0}, "residual is above 0; found 0.0"),
        (Verification, {"distance": -1.0}, "distance is above 0; found -1.0"),
        (Verification, {"trials": 0}, "trials is at least 1; found 0"),
        (Verification, {"features": "surf"}, 'features is one of harris, sift, orb, .*; found "surf"'),
        (LandmarkRecognition, {"neighbours": 0}, "neighbours is at least 1; found 0"),
        (LandmarkRecognition, {"ban_over": -1}, "ban_over is at least 0; found -1"),
    ],
)
def test_parameters_out_of_range_are_refused(kind, settings, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kind(**settings)
    name = {LandmarkRetrieval: "landmark-retrieval", LandmarkRecognition: "landmark-recognition"}.get(kind)
    with pytest.raises(gw.ConfigError, match=next(iter(settings))):
        gw.evaluator(name, **settings) if name else gw.evaluator("landmark-retrieval", rerank=settings)


def test_queries_of_the_solution_that_the_split_lacks_are_named(photos, pixels) -> None:
    rows = np.arange(5)
    few = gw.Dataset({**photos, "test": photos["test"].select(rows)}, photos.info)
    solution = str(photos.root / "ground_truth/retrieval_solution_v2.1.csv")
    with pytest.raises(gw.DataError, match=r"the retrieval solution has image [0-9a-f]{16}, which the split lacks \(\d+ such\)"):
        LandmarkRetrieval(solution=solution).evaluate(pixels, few)
