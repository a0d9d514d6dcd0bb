"""The offline data set: its layout, what is planted in it, and what it says of itself; the statistics evaluator on it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import graftwork as gw
from graftwork_google_landmarks import GoogleLandmarksV2, LandmarkStatistics, PhotoLandmarks, class_sizes
from graftwork_google_landmarks.archives import archives_in
from graftwork_google_landmarks.photo_views import PICTURES, load_picture, tiles, views
from graftwork_google_landmarks.solutions import USAGES

SMALL = {
    "size": (16, 16),
    "pixels": 32,
    "grid": 1,
    "largest": 4,
    "smallest": 2,
    "noise": 0.2,
    "index_images": 1,
    "queries": 1,
    "collages": 1,
    "distractors": 3,
}


def test_the_layout_is_one_that_the_real_loader_reads(photos) -> None:
    plain = GoogleLandmarksV2(str(photos.root), (32, 32), verify=True)
    assert set(plain) == set(photos) == {"train", "index", "test"}
    assert all(len(plain[split]) == len(photos[split]) for split in photos)
    assert plain.info.classes == photos.info.classes
    assert [len(archives_in(photos.root / split)) for split in ("train", "index", "test")] == [4, 2, 2]


def test_the_planted_share_of_train_images_stands_under_a_wrong_landmark(photos) -> None:
    numbers = photos["train"].numbers
    wrong = numbers["landmark_id"] != numbers["true_landmark_id"]
    assert wrong.sum() == round(0.25 * len(wrong))
    assert set(numbers["landmark_id"]) <= set(numbers["true_landmark_id"])
    assert "true_landmark_id" not in photos["test"].numbers


def test_sizes_fall_by_zipfs_law(photos) -> None:
    counts = np.sort(np.unique(photos["train"].numbers["true_landmark_id"], return_counts=True)[1])[::-1]
    assert counts.tolist() == np.maximum(4, np.round(12 / np.sqrt(np.arange(1, 17)))).astype(int).tolist()


def test_some_landmarks_are_in_one_of_train_and_index_only(photos) -> None:
    assert (len(np.unique(photos["train"].numbers["true_landmark_id"])), len(np.unique(photos["index"].numbers["index_landmark_id"]))) == (
        16,
        16,
    )
    titles = [{s["category"] for s in photos[split]} for split in ("train", "index")]
    assert len(titles[0] ^ titles[1]) == 2
    shown, ranked = photos.recognition.truths.lengths(), photos.retrieval.usage != USAGES.index("Ignored")
    assert ((shown == 0) & ranked).sum() == ((shown > 0) & ~ranked).sum() == 2
    assert (shown == 0).sum() == 20 + 2
    assert (shown > 1).sum() == 3


def test_index_images_of_a_querys_landmark_are_its_answers(photos) -> None:
    index = photos["index"]
    of = dict(zip(index.ids.tolist(), [sample["category"] for sample in index], strict=True))
    solution = photos.retrieval
    for at in np.flatnonzero((solution.usage != USAGES.index("Ignored")) & (solution.truths.lengths() == 2)):
        assert len({of[name] for name in solution.truths[at].tolist()}) == 1


def test_hierarchy_and_licence_come_with_each_image(photos) -> None:
    sample = photos["index"][0]
    picture = PICTURES[sample["hierarchical_label"]]
    assert (sample["supercategory"], sample["natural_or_human_made"]) == (picture.kind, picture.made)
    assert (sample["author"], sample["license"]) == (picture.author, picture.license)
    assert all(photos[split][at]["license"] for split in photos for at in range(0, len(photos[split]), 7))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a data set of `SMALL`, to copy where a test changes it."""
    return PhotoLandmarks(**SMALL, root=str(tmp_path_factory.mktemp("small") / "data")).root


def test_equal_plans_give_equal_bytes_and_another_draw_gives_others(small: Path, tmp_path: Path) -> None:
    def digest(root: Path) -> str:
        files = sorted(path for path in root.rglob("*") if path.suffix in (".tar", ".csv", ".txt"))
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()

    before = torch.get_rng_state()
    again, another = (PhotoLandmarks(**SMALL, draw=draw, root=str(tmp_path / str(draw))).root for draw in (0, 1))
    assert digest(small) == digest(again) != digest(another)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_damaged_archive_is_written_anew_and_another_folder_left_alone(small: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(small, root)
    data = PhotoLandmarks(**SMALL, root=str(root))
    archive = root / "train/images_000.tar"
    good = archive.read_bytes()
    archive.write_bytes(good[:-20] + b"x" * 20)
    assert len(PhotoLandmarks(**SMALL, root=str(root))["train"]) == len(data["train"])
    assert archive.read_bytes() == good
    with pytest.raises(gw.DataError, match=r"photo-landmarks: .*data holds something else"):
        PhotoLandmarks(**{**SMALL, "draw": 5}, root=str(root))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("")
    with pytest.raises(gw.DataError, match="holds something else"):
        PhotoLandmarks(**SMALL, root=str(tmp_path / "mine"))


def test_images_stay_in_memory_as_bytes(photos) -> None:
    photos["train"][3]
    assert photos["train"].kept[photos["train"].ids[3].decode()].dtype == torch.uint8
    assert torch.equal(photos["train"][3]["image"], photos["train"].select(np.array([3]))[0]["image"])


def test_faces_are_landmarks_on_request(tmp_path: Path) -> None:
    data = PhotoLandmarks(**{**SMALL, "faces": 4}, root=str(tmp_path / "faces"))
    kinds = {sample["supercategory"] for split in ("train", "index") for sample in data[split]}
    assert "face" in kinds
    assert len(data.recognition) == 21 + 1 + 3


def test_tiles_cover_a_picture_and_views_stay_inside_theirs() -> None:
    picture = load_picture("chelsea")
    parts = tiles(picture, 2)
    assert sum(part.shape[1] * part.shape[2] for part in parts) == picture.shape[1] * picture.shape[2]
    flat = torch.zeros(3, 80, 100)
    flat[:, :, 50:] = 1
    seen = views(flat, 40, 24, np.random.default_rng(0))
    assert seen.shape == (40, 3, 24, 24)
    assert 0 <= seen.min() < seen.max() <= 1


def test_statistics_count_the_tail_the_share_out_of_domain_and_the_licences(photos) -> None:
    report = LandmarkStatistics().evaluate(None, photos)
    assert report.metrics["images"] == len(photos["train"])
    assert report.metrics["out-of-domain-share"] == pytest.approx(22 / len(photos["test"]))
    rows = report.tables["licences"].rows
    assert sum(row[1] for row in rows) == len(photos["train"])
    assert "CC0" in [row[0] for row in rows]
    assert {"sizes", "supercategory", "hierarchical_label", "natural_or_human_made"} <= set(report.tables)
    assert sum(row[2] for row in report.tables["natural_or_human_made"].rows) == len(photos["train"])
    assert report.figures["sizes"].figure.axes[0].lines


def test_a_clean_split_is_counted_beside_the_noisy_one(photos) -> None:
    numbers = photos["train"].numbers
    perfect = photos["train"].select(np.flatnonzero(numbers["landmark_id"] == numbers["true_landmark_id"]))
    data = gw.Dataset({**photos, "train_clean": perfect}, photos.info)
    report = LandmarkStatistics(clean="train_clean").evaluate(None, data)
    assert report.metrics["clean/images"] == len(perfect)
    assert (report.metrics["clean/purity"], report.metrics["clean/kept-correct"], report.metrics["clean/dropped-wrong"]) == (1, 1, 1)
    assert report.metrics["clean/random-purity"] < 1
    assert len(report.figures["sizes"].figure.axes[0].lines) == 2


@pytest.mark.parametrize(("name", "value"), [("grid", 0), ("pixels", 16), ("noise", 1.0), ("faces", 101), ("draw", -1)])
def test_parameters_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} is at (least|most) .*; found {value}"):
        PhotoLandmarks(**{name: value})
    with pytest.raises(gw.ConfigError, match=name):
        gw.dataset("photo-landmarks", **{name: value})


def test_class_sizes_by_hand() -> None:
    found = class_sizes(np.array([1] * 6 + [2] * 3 + [3]))
    assert found == {
        "images": 10, "landmarks": 3, "mean-size": pytest.approx(10 / 3), "median-size": 3, "largest-size": 6,
        "single-image-share": pytest.approx(1 / 3), "head-share": 0.6,
    }  # fmt: skip
    with pytest.raises(gw.DataError, match="there is no image to count"):
        class_sizes(np.zeros(0, np.int64))


def test_a_split_without_landmarks_has_no_statistics(photos) -> None:
    with pytest.raises(gw.DataError, match="the split has no landmark ids"):
        LandmarkStatistics(train="test").evaluate(None, photos)
