"""Revisited Oxford and Paris: files, scores against the definition, cropped queries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import graftwork as gw
from graftwork_google_landmarks import RevisitedGroundTruth, RevisitedQuery, RevisitedRetrieval, read_ground_truth, revisited_scores
from graftwork_google_landmarks.revisited_evaluator import RevisitedImages


def query(name: str, easy=(), hard=(), junk=(), box=(0, 0, 9, 9)) -> RevisitedQuery:
    return RevisitedQuery(name, box, *(np.array(each, np.int64) for each in (easy, hard, junk)))


def area(ranking: list[int], right: set[int], junk: set[int]) -> float:
    """Trapezoids under the precision-recall curve, walking down the ranking."""
    kept = [image for image in ranking if image not in junk]
    total, hits = 0.0, 0
    for rank, image in enumerate(kept):
        if image in right:
            before = hits / rank if rank else 1.0
            hits += 1
            total += (before + hits / (rank + 1)) / 2
    return total / len(right)


def test_a_ranking_by_hand() -> None:
    truth = RevisitedGroundTruth(tuple("abcdef"), (query("q", easy=[1, 4], hard=[3], junk=[0]),))
    found = revisited_scores(np.array([[0, 1, 2, 3, 4, 5]]), truth, (1, 2, 10))
    assert found["easy/map"] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)  # 1, 2, 4, 5: junk and hard are taken out
    assert found["medium/map"] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2 + (2 / 3 + 3 / 4) / 2) / 3)
    assert found["hard/map"] == pytest.approx((0 + 1 / 2) / 2)
    assert [found[f"easy/precision@{k}"] for k in (1, 2, 10)] == pytest.approx([1, 1 / 2, 2 / 3])  # 10 looks no further than rank 3


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_areas_under_the_curve(seed: int) -> None:
    generator = np.random.default_rng(seed)
    kinds = generator.integers(0, 4, (6, 30))
    queries = tuple(query(str(row), *(np.flatnonzero(kinds[row] == kind) for kind in range(3))) for row in range(6))
    ranking = np.stack([generator.permutation(30) for _ in range(6)])
    found = revisited_scores(ranking, RevisitedGroundTruth(tuple(map(str, range(30))), queries))
    sides = {"easy": ((0,), (1, 2)), "medium": ((0, 1), (2,)), "hard": ((1,), (0, 2))}
    for setup, (right, junk) in sides.items():
        areas = [
            area(order.tolist(), set(np.flatnonzero(np.isin(kind, right))), set(np.flatnonzero(np.isin(kind, junk))))
            for order, kind in zip(ranking, kinds, strict=True)
        ]
        assert found[f"{setup}/map"] == pytest.approx(np.mean(areas))


def test_a_perfect_ranking_is_one_and_a_query_without_answers_does_not_count() -> None:
    truth = RevisitedGroundTruth(tuple("abcd"), (query("p", easy=[2]), query("q", hard=[1])))
    found = revisited_scores(np.array([[2, 0, 1, 3], [1, 0, 2, 3]]), truth)
    assert {name: value for name, value in found.items() if name.endswith("map")} == {"easy/map": 1, "medium/map": 1, "hard/map": 1}
    only = RevisitedGroundTruth(tuple("abcd"), (query("p", easy=[2]),))
    assert "hard/map" not in revisited_scores(np.array([[2, 0, 1, 3]]), only)


def test_rankings_that_do_not_fit_are_refused() -> None:
    truth = RevisitedGroundTruth(tuple("abcd"), (query("p", easy=[2]),))
    with pytest.raises(ValueError, match=r"1 queries and 4 images is wanted; found \(1, 3\)"):
        revisited_scores(np.zeros((1, 3), np.int64), truth)
    with pytest.raises(ValueError, match="ranks are at least 1"):
        revisited_scores(np.array([[0, 1, 2, 3]]), truth, [0])


@pytest.fixture
def oxford(tmp_path: Path) -> Path:
    """Four index images, two queries; the same ground truth as .mat and as JSON."""
    (tmp_path / "jpg").mkdir()
    for name, seed in (("all_1", 1), ("all_2", 2), ("all_3", 1), ("all_4", 4), ("q_1", 1), ("q_2", 2)):
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 30), Image.Resampling.NEAREST).save(tmp_path / f"jpg/{name}.jpg", quality=95)
    names = ["all_1", "all_2", "all_3", "all_4"]
    entries = [
        {"bbx": [0.0, 0.0, 40.0, 30.0], "easy": [0], "hard": [2], "junk": [3]},
        {"bbx": [10.0, 5.0, 30.0, 25.0], "easy": [1], "hard": [], "junk": []},
    ]
    (tmp_path / "gnd.json").write_text(json.dumps({"imlist": names, "qimlist": ["q_1", "q_2"], "gnd": entries}))
    cells = lambda texts: np.array([[text] for text in texts], object)  # noqa: E731
    fields = np.zeros((1, 2), [("bbx", object), ("easy", object), ("hard", object), ("junk", object)])
    for at, entry in enumerate(entries):
        fields[0, at] = tuple(np.array([entry[key]], float) + (0 if key == "bbx" else 1) for key in ("bbx", "easy", "hard", "junk"))
    savemat(tmp_path / "gnd.mat", {"imlist": cells(names), "qimlist": cells(["q_1", "q_2"]), "gnd": fields})
    return tmp_path


def test_matlab_counts_from_one_and_json_from_zero(oxford: Path) -> None:
    for name in ("gnd.mat", "gnd.json"):
        truth = read_ground_truth(oxford / name)
        assert truth.index == ("all_1", "all_2", "all_3", "all_4")
        assert [(one.name, one.easy.tolist(), one.hard.tolist(), one.junk.tolist()) for one in truth.queries] == [
            ("q_1", [0], [2], [3]),
            ("q_2", [1], [], []),
        ]
        assert truth.queries[1].box == (10, 5, 30, 25)


def test_a_pickle_is_refused_with_what_to_take_instead(oxford: Path) -> None:
    (oxford / "gnd.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(gw.DataError, match=r"is a pickle, which is never loaded here. Take the .mat file .* convert it to JSON"):
        read_ground_truth(oxford / "gnd.pkl")


def test_ground_truth_of_another_form_is_refused(oxford: Path) -> None:
    for text in ("{}", "not json", '{"imlist": ["a"], "qimlist": ["q"], "gnd": []}'):
        (oxford / "odd.json").write_text(text)
        with pytest.raises(gw.DataError, match=r"cannot be read as ground truth of Revisited"):
            read_ground_truth(oxford / "odd.json")
    entry = {"bbx": [0, 0, 1, 1], "easy": [9], "hard": [], "junk": []}
    (oxford / "odd.json").write_text(json.dumps({"imlist": ["a"], "qimlist": ["q"], "gnd": [entry]}))
    with pytest.raises(gw.DataError, match="query q names index images 9 to 9 of 1"):
        read_ground_truth(oxford / "odd.json")


def test_queries_are_cropped_first_and_shrunk_by_their_images_factor(oxford: Path) -> None:
    whole = RevisitedImages(oxford / "jpg", ("q_2",), None, max_side=20)
    assert whole[0]["image"].shape == (3, 15, 20)
    cropped = RevisitedImages(oxford / "jpg", ("q_2",), ((10, 5, 30, 25),), max_side=20)
    assert cropped[0]["image"].shape == (3, 10, 10)
    assert RevisitedImages(oxford / "jpg", ("q_2",), None)[0]["image"].shape == (3, 30, 40)  # never enlarged


def test_the_evaluator_scores_by_difficulty(oxford: Path, pixels) -> None:
    report = gw.evaluator("revisited-retrieval", gnd=str(oxford / "gnd.mat"), images=str(oxford / "jpg")).evaluate(pixels, gw.Dataset({}))
    assert report.metrics["easy/map"] > 0.6
    assert report.metrics["hard/precision@1"] == 1
    assert [row[0] for row in report.tables["setups"].rows] == ["easy", "medium", "hard"]
    assert report.figures["retrieved"].figure.axes


def test_images_and_boxes_that_are_not_there_are_named(oxford: Path) -> None:
    with pytest.raises(gw.DataError, match=r"there is no image .*nowhere.jpg"):
        RevisitedImages(oxford / "jpg", ("nowhere",))[0]
    with pytest.raises(gw.DataError, match="lies outside the image"):
        RevisitedImages(oxford / "jpg", ("q_1",), ((90, 90, 95, 95),))[0]
    with pytest.raises(gw.InterfaceError, match="needs a model"):
        RevisitedRetrieval(str(oxford / "gnd.mat"), str(oxford / "jpg")).evaluate(None, gw.Dataset({}))
