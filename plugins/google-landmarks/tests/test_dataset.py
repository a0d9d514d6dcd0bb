"""The loader: splits, keys, labels, attribution, and files that contradict one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import graftwork as gw
from graftwork.builtin.wrappers import labels_of
from graftwork_google_landmarks import GoogleLandmarksV2, train_validation_split
from graftwork_google_landmarks.dataset import landmark_data

INDEX = [f"a{n:015x}" for n in range(1, 7)]
TEST = [f"b{n:015x}" for n in range(1, 7)]


def test_the_splits_of_a_folder_with_all_files(layout: Path) -> None:
    data = gw.dataset("google-landmarks-v2", root=str(layout))
    assert {split: len(samples) for split, samples in data.items()} == {"train": 12, "train_clean": 5, "index": 6, "test": 6}
    assert data.info.classes == ("Tower", "Bridge", "Lake", "Hill")
    assert len(data.recognition) == len(data.retrieval) == 6


def test_a_train_sample_has_everything_that_is_known_of_it(layout: Path, landmark_of) -> None:
    sample = GoogleLandmarksV2(str(layout))["train"][9]
    image = sample.pop("image")
    assert image.shape == (3, 20, 24)
    assert 0 <= image.min() < image.max() <= 1
    assert sample == {
        "image_id": list(landmark_of)[9],
        "index": 9,
        "landmark_id": 99,
        "label": 2,
        "category": "http://commons.wikimedia.org/wiki/Category:Lake",
        "supercategory": "lakes",
        "hierarchical_label": "lakes",
        "natural_or_human_made": "natural",
        "url": f"http://x/{list(landmark_of)[9]}",
        "author": "Doe, Jane",
        "license": "CC-BY 3.0",
        "title": 'A "title",\nof two lines',
    }


def test_attribution_goes_by_image_id_and_stays_with_the_image(layout: Path, landmark_of) -> None:
    data = GoogleLandmarksV2(str(layout))
    expected = {name: f"CC-BY {3 + at % 2}.0" for at, name in enumerate(reversed(landmark_of))}
    for split in ("train", "train_clean"):
        assert all(sample["license"] == expected[sample["image_id"]] for sample in data[split])
    again = GoogleLandmarksV2(str(layout))  # out of the memory-mapped file this time
    assert (layout / ".graftwork/train.attribution.arrow").is_file()
    assert [sample["license"] for sample in again["train"]] == list(expected.values())[::-1]


def test_without_an_attribution_file_the_url_and_the_readmes_licence_remain(layout: Path) -> None:
    (layout / "metadata/train_attribution.csv").unlink()
    sample = GoogleLandmarksV2(str(layout))["train"][0]
    assert (sample["url"], sample["author"], sample["license"]) == (f"http://x/{sample['image_id']}", "", "CC-BY")
    assert GoogleLandmarksV2(str(layout))["index"][0]["license"] == "CC0 or public domain"
    assert GoogleLandmarksV2(str(layout), attribution=False)["train"][0]["url"] == ""


def test_index_and_train_landmarks_go_by_different_keys(layout: Path) -> None:
    data = GoogleLandmarksV2(str(layout))
    sample = data["index"][2]
    assert sample["index_landmark_id"] == 7
    assert sample["category"].endswith("Hill")  # 7 is the Tower in train
    assert not {"landmark_id", "label"} & set(sample)
    assert "index_landmark_id" not in data["train"][0]


def test_landmark_ids_of_train_given_as_index_labels_are_refused(layout: Path, landmark_of) -> None:
    path = layout / "metadata/index_image_to_landmark.csv"
    path.write_text("id,landmark_id\n" + "".join(f"{name},{of}\n" for name, of in zip(INDEX, landmark_of.values(), strict=False)))
    assert GoogleLandmarksV2(str(layout), splits=["index"])["index"]  # 7 and 40 are in both numberings
    path.write_text("id,landmark_id\n" + "".join(f"{name},{of}\n" for name, of in zip(INDEX, reversed(landmark_of.values()), strict=False)))
    with pytest.raises(gw.DataError, match=r"has landmark 1234, which index_label_to_\*.csv lacks.*are these landmark ids of train"):
        GoogleLandmarksV2(str(layout))


def test_labels_number_the_landmarks_of_train_in_every_split(layout: Path) -> None:
    data = GoogleLandmarksV2(str(layout))
    assert data.relabeling.landmarks.tolist() == [7, 40, 99, 1234]
    for split in ("train", "train_clean"):
        assert all(data.relabeling.landmarks[sample["label"]] == sample["landmark_id"] for sample in data[split])
        assert labels_of(data[split]).tolist() == [sample["label"] for sample in data[split]]
    data.save_relabeling(layout / "relabeling.csv")
    assert (layout / "relabeling.csv").read_text().splitlines() == ["new_label,old_label", "0,7", "1,40", "2,99", "3,1234"]


def test_classes_of_the_clean_set_leave_other_landmarks_out_of_train(layout: Path) -> None:
    data = GoogleLandmarksV2(str(layout), classes="train_clean")
    assert data.info.classes == ("Tower", "Hill")
    assert len(data["train"]) == 7
    assert sorted({(s["landmark_id"], s["label"]) for s in data["train"]}) == [(7, 0), (1234, 1)]
    assert labels_of(data["train_clean"]).tolist() == [0, 0, 0, 1, 1]


def test_a_fifth_of_each_class_validates_and_one_at_least() -> None:
    landmarks = np.repeat([5, 6, 7, 8], [25, 9, 3, 1])
    trains, validates = train_validation_split(landmarks, 0.2, seed=3)
    assert np.bincount(landmarks[validates])[5:].tolist() == [5, 1, 1, 1]
    assert sorted([*trains, *validates]) == list(range(38))
    again = train_validation_split(landmarks, 0.2, seed=3)[1]
    assert (again == validates).all()
    assert (train_validation_split(landmarks, 0.2, seed=4)[1] != validates).any()
    with pytest.raises(ValueError, match="share is above 0 and below 1; found 1"):
        train_validation_split(landmarks, 1)


def test_validation_splits_are_made_of_train_and_of_the_clean_set(layout: Path) -> None:
    data = GoogleLandmarksV2(str(layout), validation=0.5)
    sizes = {split: len(samples) for split, samples in data.items()}
    assert sizes == {"train": 7, "validation": 5, "train_clean": 3, "validation_clean": 2, "index": 6, "test": 6}
    assert not {s["image_id"] for s in data["train"]} & {s["image_id"] for s in data["validation"]}


def test_archives_and_extracted_trees_give_the_same_samples(tmp_path: Path, make_layout) -> None:
    packed, loose = (GoogleLandmarksV2(str(make_layout(tmp_path / str(flag), flag)), (10, 12)) for flag in (False, True))
    for split in packed:
        for ours, theirs in zip(packed[split], loose[split], strict=True):
            assert torch.equal(ours.pop("image"), theirs.pop("image"))
            assert ours == theirs
    assert packed.fingerprint() == loose.fingerprint()


def test_some_of_the_archives_are_enough_when_that_is_asked_for(layout: Path) -> None:
    (layout / "train/images_001.tar").unlink()
    whole = GoogleLandmarksV2(str(layout))
    with pytest.raises(gw.DataError, match="image 0000000000000002 is in none of the archives"):
        whole["train"][1]
    part = GoogleLandmarksV2(str(layout), partial=True)
    assert (len(part["train"]), len(part["train_clean"])) == (8, 4)
    assert [sample["image"].shape[0] for sample in part["train"]] == [3] * 8


def test_files_beside_the_images_or_in_the_root_are_found_too(layout: Path) -> None:
    (layout / "metadata/test.csv").rename(layout / "test/test.csv")
    (layout / "metadata/train.csv").rename(layout / "train.csv")
    data = GoogleLandmarksV2(str(layout), splits=["train", "test"])
    assert set(data) == {"train", "test"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("train_clean.csv", "landmark_id,images\n7,0000000000000001 ffffffffffffffff\n", "train_clean.csv has image ffffffffffffffff"),
        ("train_clean.csv", "landmark_id,images\n40,0000000000000001\n", "under landmark 40; train.csv has it under 7"),
        ("train_clean.csv", "landmark_id,images\n40,abc\n", "an image id has 16 characters; found 'abc'"),
        ("train.csv", "id,url,landmark_id\n0000000000000001,x,one\n", "cannot be read as a CSV file"),
        ("train.csv", "id,url,landmark_id\n" + 2 * "0000000000000001,x,1\n", "lists image 0000000000000001 twice"),
        ("train_label_to_hierarchical.csv", "landmark_id,category\n7,a\n7,b\n", "lists a landmark twice"),
        ("index_image_to_landmark.csv", "id,landmark_id\na000000000000001,7\n", "index.csv has image a000000000000002"),
        ("train_attribution.csv", "id,url,author,license,title\n", "the split has image 0000000000000001"),
    ],
)
def test_files_that_contradict_one_another_are_refused(layout: Path, name: str, text: str, said: str) -> None:
    (layout / "metadata" / name).write_text(text)
    with pytest.raises(gw.DataError, match=said):
        GoogleLandmarksV2(str(layout))


def test_folders_without_the_data_set_are_refused(tmp_path: Path, layout: Path) -> None:
    with pytest.raises(gw.DataError, match="there is no folder"):
        GoogleLandmarksV2(str(tmp_path / "nowhere"))
    with pytest.raises(gw.DataError, match=r"holds none of train.csv, index.csv and test.csv"):
        GoogleLandmarksV2(str(tmp_path / "gldv2/train"))
    (layout / "metadata/train_clean.csv").unlink()
    with pytest.raises(gw.DataError, match=r"has no train_clean.csv"):
        GoogleLandmarksV2(str(layout), splits=["train_clean"])
    with pytest.raises(gw.DataError, match=r"has no train_clean.csv"):
        GoogleLandmarksV2(str(layout), classes="train_clean")


def test_an_image_that_is_too_large_or_damaged_is_named(layout: Path) -> None:
    with pytest.raises(gw.DataError, match=f"image {TEST[0]} has 24 x 20 pixels; max_pixels is 400"):
        GoogleLandmarksV2(str(layout), max_pixels=400)["test"][0]
    with pytest.raises(IndexError, match="sample 6 of 6"):
        GoogleLandmarksV2(str(layout))["test"][6]


def test_a_folder_that_cannot_be_written_is_read_all_the_same(layout: Path) -> None:
    (layout / ".graftwork").write_text("a file where the cache would be")
    assert GoogleLandmarksV2(str(layout))["train"][0]["author"] == "Doe, Jane"


def test_the_data_set_is_found_behind_wrappers(layout: Path) -> None:
    data = GoogleLandmarksV2(str(layout))
    wrapped = gw.dataset("class-balanced-batches", data=gw.dataset("few-shot-subset", data=data, shots=2), classes=2, instances=2)
    assert landmark_data(wrapped) is data
    assert landmark_data(gw.Dataset({})) is None
