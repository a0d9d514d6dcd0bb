"""Images from folders and Hugging Face datasets from disk; nothing is asked of the network."""

from __future__ import annotations

import io
from pathlib import Path

import numpy
import pytest
import torch

import graftwork as gw
from graftwork.builtin.datasets import HuggingFaceDataset, ImageFolder, Pixels, read_image
from graftwork.builtin.wrappers import FewShotSubset, labels_of
from graftwork.kinds.evaluator import split_batches

image_library = pytest.importorskip("PIL.Image")


def picture(seed: int = 0, shape: tuple[int, ...] = (6, 8, 3)) -> numpy.ndarray:
    return numpy.random.default_rng(seed).integers(0, 256, shape, dtype=numpy.uint8)


def save(path: Path, array: numpy.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image_library.fromarray(array).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("cat", 10), ("ant", 20)):
        for index in range(count):
            save(tmp_path / "images" / name / f"{index:02d}.png", picture(index))
    return tmp_path / "images"


# -- one image ----------------------------------------------------------------------------------------------------------------


def test_an_image_comes_out_as_it_is_stored(tmp_path: Path) -> None:
    array = picture()
    found = read_image(save(tmp_path / "a.png", array), "a.png", Pixels())
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.from_numpy(array).permute(2, 0, 1) / 255)
    assert torch.equal(found, read_image((tmp_path / "a.png").read_bytes(), "bytes", Pixels()))


@pytest.mark.parametrize(("shape", "channels"), [((6, 8), 3), ((6, 8), 1), ((6, 8, 3), 1), ((6, 8, 4), 3)])
def test_colours_are_converted(tmp_path: Path, shape: tuple[int, ...], channels: int) -> None:
    found = read_image(save(tmp_path / "a.png", picture(shape=shape)), "a.png", Pixels(channels=channels))
    assert found.shape == (channels, 6, 8)
    assert found.is_contiguous()


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    array = numpy.arange(0, 48_000, 1000, dtype=numpy.uint16).reshape(6, 8)
    found = read_image(save(tmp_path / "a.png", array), "a.png", Pixels())
    torch.testing.assert_close(found, torch.from_numpy(array.astype(numpy.float32) / 65535).expand(3, 6, 8))


def test_resizing_smaller_averages(tmp_path: Path) -> None:
    array = numpy.zeros((32, 32, 3), dtype=numpy.uint8)
    array[:, 3::8] = array[:, 4::8] = 255  # a quarter is white: the columns that sampling without antialiasing would hit
    found = read_image(save(tmp_path / "a.png", array), "a.png", Pixels(size=(4, 4)))
    assert found.shape == (3, 4, 4)
    assert (found - 0.25).abs().max() < 0.05


def test_an_image_that_is_too_large_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", picture(shape=(60, 80, 3)))
    path.write_bytes(path.read_bytes()[:200])  # its header says how large it is; the pixels are gone
    with pytest.raises(gw.DataError, match=r"a\.png has 80 x 60 pixels; max_pixels is 4799"):
        read_image(path, "a.png", Pixels(most=4799))
    with pytest.raises(gw.DataError, match=r"a\.png cannot be read as an image"):
        read_image(path, "a.png", Pixels(most=4800))


def test_formats_that_run_programs_are_not_opened() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    with pytest.raises(gw.DataError, match="cannot be read as an image: cannot identify"):
        read_image(postscript, "a.png", Pixels())


# -- folders ------------------------------------------------------------------------------------------------------------------


def test_class_folders_are_divided_by_class_and_seed(folder: Path) -> None:
    data = ImageFolder(str(folder), seed=1)
    assert data.info.classes == ("ant", "cat")
    counts = {split: torch.bincount(labels_of(data[split]), minlength=2).tolist() for split in data}
    assert counts == {"train": [14, 7], "val": [2, 1], "test": [4, 2]}
    parts = [set(data[split].paths) for split in data]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 30
    assert ImageFolder(str(folder), seed=1)["test"].paths == data["test"].paths
    assert ImageFolder(str(folder), seed=2)["test"].paths != data["test"].paths


def test_without_held_out_shares_all_is_for_training(folder: Path) -> None:
    assert list(ImageFolder(str(folder), val=0.0, test=0.0)) == ["train"]


def test_split_folders_are_the_splits(folder: Path) -> None:
    for name in ("train", "test"):
        save(folder.parent / "split" / name / "cat" / "a.jpg", picture())
    save(folder.parent / "split" / "train" / "ant" / "b.png", picture(7))
    (folder.parent / "split" / "train" / "ant" / "notes.txt").write_text("not an image")
    data = ImageFolder(str(folder.parent / "split"), size=(4, 4), channels=1)
    assert sorted(data) == ["test", "train"]
    assert data.info == gw.DatasetInfo(classes=("ant", "cat"), channels=1, size=(4, 4))
    assert data["test"][0]["label"] == 1  # "cat" is 1 in every split, though "ant" is missing in this one
    (batch,) = split_batches(data, "train", torch.nn.Linear(1, 1))
    assert batch["image"].shape == (2, 1, 4, 4)
    assert batch["label"].tolist() == [0, 1]


def test_a_few_shots_are_drawn_without_decoding_anything(folder: Path) -> None:
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"broken")
    assert len(FewShotSubset(ImageFolder(str(folder)), shots=3)["train"]) == 6


def test_a_damaged_file_is_named_when_it_is_read(folder: Path) -> None:
    path = folder / "ant" / "00.png"
    path.write_bytes(path.read_bytes()[:60])
    samples = ImageFolder(str(folder), val=0.0, test=0.0)["train"]
    with pytest.raises(gw.DataError, match=r"ant/00\.png cannot be read as an image"):
        samples[0]
    assert samples[1]["label"] == 0


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_that_leads_out_of_the_root_is_refused(folder: Path, what: str) -> None:
    outside = save(folder.parent / "secret" / "a.png", picture())
    (folder / "ant" / "link.png" if what == "file" else folder / "link").symlink_to(outside if what == "file" else outside.parent)
    with pytest.raises(gw.DataError, match=f"leads out of {folder}"):
        ImageFolder(str(folder))


def test_a_folder_without_images_or_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(gw.DataError, match=rf"image-folder: there is no folder {tmp_path}/none"):
        ImageFolder(str(tmp_path / "none"))
    with pytest.raises(gw.DataError, match=r"has no images in CLASS/ or SPLIT/CLASS/; an image ends in \.bmp, \.gif"):
        ImageFolder(str(tmp_path))
    with pytest.raises(ValueError, match=r"leave nothing to train on: 0\.5 \+ 0\.5"):
        ImageFolder(str(tmp_path), val=0.5, test=0.5)


# -- Hugging Face -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DatasetDict as `save_to_disk` writes it: encoded images, named labels, text, numbers."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "label": datasets.ClassLabel(names=["ant", "cat"]),
            "caption": datasets.Value("string"),
            "numbers": datasets.Sequence(datasets.Value("float64")),
        }
    )

    def rows(count: int):
        encoded = []
        for index in range(count):
            stream = io.BytesIO()
            image_library.fromarray(picture(index)).save(stream, "PNG")
            encoded.append({"bytes": stream.getvalue(), "path": None})
        columns = {
            "img": encoded,
            "label": [i % 2 for i in range(count)],
            "caption": list("abcdef"[:count]),
            "numbers": [[0.5, 1.0]] * count,
        }
        return datasets.Dataset.from_dict(columns, features=features)

    datasets.DatasetDict({"train": rows(6), "validation": rows(4)}).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_dataset_comes_out_in_the_shared_vocabulary(saved: Path) -> None:
    data = HuggingFaceDataset(str(saved), columns={"img": "image", "caption": "text"})
    assert list(data) == ["train", "val"]
    assert data.info == gw.DatasetInfo(classes=("ant", "cat"), channels=3)
    (batch,) = split_batches(data, "train", torch.nn.Linear(1, 1))
    assert torch.equal(batch["image"], torch.stack([torch.from_numpy(picture(i)).permute(2, 0, 1) / 255 for i in range(6)]))
    assert batch["label"].tolist() == [0, 1, 0, 1, 0, 1]
    assert batch["text"] == list("abcdef")
    assert batch["numbers"].dtype == torch.float32
    assert batch["numbers"].shape == (6, 2)
    assert labels_of(data["val"]).tolist() == [0, 1, 0, 1]


def test_splits_and_sizes_can_be_chosen(saved: Path) -> None:
    data = HuggingFaceDataset(str(saved), columns={"img": "image"}, splits={"test": "validation"}, size=(4, 4), channels=1)
    assert list(data) == ["test"]
    assert data["test"][0]["image"].shape == (1, 4, 4)
    assert data.info.size == (4, 4)


def test_images_are_bounded_before_they_are_decoded(saved: Path) -> None:
    samples = HuggingFaceDataset(str(saved), max_pixels=47)["train"]
    with pytest.raises(gw.DataError, match=r'img of dataset ".*", split "train", row 2, has 8 x 6 pixels; max_pixels is 47'):
        samples[2]


def test_a_folder_of_images_or_parquet_is_read_too(folder: Path, saved: Path) -> None:
    datasets = pytest.importorskip("datasets")
    images = HuggingFaceDataset(str(folder))
    assert images.info.classes == ("ant", "cat")
    assert len(images["train"]) == 30
    assert images["train"][0]["image"].shape == (3, 6, 8)
    parquet = folder.parent / "parquet"
    parquet.mkdir()
    datasets.load_from_disk(saved)["train"].to_parquet(parquet / "train.parquet")
    assert HuggingFaceDataset(str(parquet), columns={"img": "image"})["train"][3]["label"] == 1


def test_a_column_or_split_that_is_not_there_is_named(saved: Path) -> None:
    with pytest.raises(gw.DataError, match=r'has no column "image" \(did you mean "img"\?\); it has img, label, caption, numbers'):
        HuggingFaceDataset(str(saved), columns={"image": "image"})
    with pytest.raises(gw.DataError, match=r'has no split "test"; it has train, validation'):
        HuggingFaceDataset(str(saved), splits={"test": "test"})


def test_a_dataset_that_is_nowhere_says_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        gw.DataError, match=r'dataset "nobody/nothing" cannot be loaded; tried the Hugging Face Hub, as there is no folder .*nothing: '
    ):
        HuggingFaceDataset("nobody/nothing")
    with pytest.raises(gw.DataError, match=rf'dataset "{tmp_path}/none": there is no folder {tmp_path}/none; a Hugging Face id is'):
        HuggingFaceDataset(f"{tmp_path}/none")
