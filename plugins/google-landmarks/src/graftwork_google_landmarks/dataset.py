"""Google Landmarks Dataset v2 from a folder of its files, whether the archives are extracted or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from graftwork import DataError, Dataset, DatasetInfo, Samples
from graftwork.builtin.datasets import MOST, Pixels
from graftwork_google_landmarks.archives import ImageStore, TarImages, open_images
from graftwork_google_landmarks.attribution import FIELDS, Attribution
from graftwork_google_landmarks.checks import at_least
from graftwork_google_landmarks.ids import IdIndex
from graftwork_google_landmarks.labels import Relabeling, relabel, train_validation_split
from graftwork_google_landmarks.samples import LandmarkFields, LandmarkSamples
from graftwork_google_landmarks.solutions import Solution, read_recognition_solution, read_retrieval_solution
from graftwork_google_landmarks.tables import CleanTable, read_clean, read_ids, read_labelled, read_landmark_fields, write_relabeling

__all__ = ["GoogleLandmarksV2", "LandmarkClasses", "Size", "landmark_data"]

Count = Annotated[int, Field(ge=1)]
Size: TypeAlias = Annotated[tuple[Count, Count] | None, Field(description="(height, width) to resize images to; none leaves them")]
LandmarkClasses: TypeAlias = Literal["train", "train_clean"]
IMAGE_SPLITS = ("train", "index", "test")
FOLDERS = ("", "metadata", "ground_truth", "train", "index", "test")
"""Where under the root the CSV files are looked for."""


class GoogleLandmarksV2(Dataset):
    """Google Landmarks Dataset v2 (Weyand et al., 2020): splits train, train_clean, index and test, as far as their files are there.

    The root has the server's layout: `metadata/*.csv`, `ground_truth/*.csv`, and `train/`, `index/`, `test/` with `images_000.tar`,
    ... or the extracted `a/b/c/id.jpg`. CSV files may also lie in the root itself or beside the images. Archives are read in place.
    Nothing is downloaded; `python -m graftwork_google_landmarks.download train` prints the addresses.

    `label` numbers the landmarks of the train files, ascending, the same in every split that has it; `info.classes` names them.
    The index has a numbering of its own, under `index_landmark_id`; landmarks of the two are not to be compared.

    Licences: train images CC-BY without ND, index and test images CC0 or public domain, annotations CC BY 4.0; verify an image's own.

    Args:
        root: the folder.
        size: (height, width) to resize images to; none leaves them, and batches are lists then.
        classes: whose landmarks are numbered: all of train, or those of train_clean; of `train` the images of other landmarks are then
            left out.
        splits: which to open; by default those whose files are there.
        validation: share of each landmark's images that goes from train and train_clean to validation and validation_clean, at least
            one; none keeps them whole.
        seed: of that division.
        attribution: whether samples have author, license, title and url.
        partial: leave out images that the archives do not hold, for who has some of the archives.
        verify: check the archives' MD5 sums first; those that passed once and have not changed are not read again.
        cache: folder for what is found out about the files (offsets in the archives, attribution); by default `.graftwork` in the root.
        keep: whether decoded images stay in memory, as bytes; for sets that fit.
        max_pixels: an image with more is refused before it is decoded.

    Attributes:
        root: the folder.
        cache: the folder for what is found out.
        feature_folder: where local features of its images are kept if nobody says otherwise; None keeps none.
        relabeling: landmark ids in the order of their labels.
        recognition: the solution of the recognition task, or None.
        retrieval: the solution of the retrieval task, or None.

    Raises:
        ValueError: if a parameter is out of range.
        DataError: if a file is missing, damaged or contradicts another.
    """

    def __init__(
        self,
        root: str,
        size: Size = None,
        classes: LandmarkClasses = "train",
        splits: list[Literal["train", "train_clean", "index", "test"]] | None = None,
        validation: Annotated[float, Field(gt=0, lt=1)] | None = None,
        seed: Annotated[int, Field(ge=0)] = 0,
        attribution: bool = True,
        partial: bool = False,
        verify: bool = False,
        cache: str | None = None,
        keep: bool = False,
        max_pixels: Count = MOST,
    ):
        if size is not None:
            at_least(1, height=size[0], width=size[1])
        at_least(0, seed=seed)
        at_least(1, max_pixels=max_pixels)
        self.root = Path(root).expanduser().absolute()
        if not self.root.is_dir():
            raise DataError(f"google-landmarks-v2: there is no folder {self.root}")
        if classes not in ("train", "train_clean"):
            raise ValueError(f'classes is "train" or "train_clean"; found "{classes}"')
        self.cache = Path(cache).expanduser().absolute() if cache else self.root / ".graftwork"
        self._pixels, self._attributed, self._partial, self._verify = Pixels(size, 3, max_pixels), attribution, partial, verify
        self._wanted, self._keep = splits, keep
        self.feature_folder: Path | None = None
        self.relabeling = Relabeling(np.zeros(0, np.int64))
        self.recognition: Solution | None = None
        self.retrieval: Solution | None = None
        made: dict[str, Samples] = {}
        names: tuple[str, ...] = ()
        if self._asked("train", "train.csv") or self._asked("train_clean", "train_clean.csv"):
            fields = self._fields("train")
            made |= self._train(classes, fields, validation, seed)
            titles = fields.column("category", self.relabeling.landmarks) if fields is not None else []
            texts = [title.rpartition("Category:")[2] for title in titles] or [""] * len(self.relabeling.landmarks)
            names = tuple(text or str(landmark) for text, landmark in zip(texts, self.relabeling.landmarks.tolist(), strict=True))
        if self._asked("index", "index.csv"):
            made["index"] = self._index()
        if self._asked("test", "test.csv"):
            made["test"] = self._test()
        if not made:
            raise DataError(
                f"google-landmarks-v2: {self.root} holds none of train.csv, index.csv and test.csv, there or in metadata/; "
                "python -m graftwork_google_landmarks.download SPLIT --to FOLDER fetches them"
            )
        info = DatasetInfo(classes=names, channels=3, size=size or (0, 0), description=self.description())
        super().__init__(made, info)

    def description(self) -> str:
        """One sentence."""
        return "Google Landmarks Dataset v2"

    def save_relabeling(self, path: Path) -> None:
        """Write `relabeling.csv`: which landmark id each label was."""
        write_relabeling(path, self.relabeling.landmarks)

    # -- inside ----------------------------------------------------------------------------------------------------------------

    def _file(self, name: str) -> Path | None:
        return next((path for folder in FOLDERS if (path := self.root / folder / name).is_file()), None)

    def _need(self, name: str) -> Path:
        path = self._file(name)
        if path is None:
            raise DataError(f"google-landmarks-v2: {self.root} has no {name}, there or in metadata/ or ground_truth/")
        return path

    def _asked(self, split: str, name: str) -> bool:
        if self._wanted is None:
            return self._file(name) is not None
        if split in self._wanted:
            self._need(name)
        return split in self._wanted

    def _store(self, split: str) -> ImageStore:
        return open_images(self.root / split, self.cache, self._verify)

    def _fields(self, split: str) -> LandmarkFields | None:
        path = self._file(f"{split}_label_to_hierarchical.csv") or self._file(f"{split}_label_to_category.csv")
        return None if path is None else LandmarkFields(read_landmark_fields(path))

    def _samples(
        self, split: str, ids: NDArray[np.bytes_], numbers: dict[str, NDArray[np.int64]], fields: LandmarkFields | None
    ) -> LandmarkSamples:
        store = self._store(split)
        if self._partial and isinstance(store, TarImages):
            kept = np.flatnonzero(IdIndex(store.ids, "the archives").find(ids) >= 0)
            ids, numbers = ids[kept], {key: column[kept] for key, column in numbers.items()}
        about = self._attribution(split, ids)
        return LandmarkSamples(store, ids, numbers, self._pixels, fields, about, self.licence(split), {} if self._keep else None)

    def licence(self, split: str) -> str:
        """What the README says of a split's images, for those without an attribution of their own."""
        return {"train": "CC-BY", "index": "CC0 or public domain", "test": "CC0 or public domain"}[split]

    def _attribution(self, split: str, ids: NDArray[np.bytes_]) -> Attribution | None:
        if not self._attributed:
            return None
        path = self._file(f"{split}_attribution.csv")
        columns: tuple[str, ...] = FIELDS
        if path is None and split == "train":
            path, columns = self._file("train.csv"), ("url",)
        return None if path is None else Attribution(path, ids, columns, self.cache / f"{split}.attribution.arrow")

    def _train(self, classes: str, fields: LandmarkFields | None, validation: float | None, seed: int) -> dict[str, Samples]:
        table = read_labelled(self._need("train.csv"))
        IdIndex(table.ids, "train.csv")
        clean_path = self._file("train_clean.csv")
        clean = read_clean(clean_path) if clean_path is not None else None
        if classes == "train_clean":
            if clean is None:
                self._need("train_clean.csv")
            assert clean is not None
            self.relabeling = relabel(clean.landmarks)
        else:
            self.relabeling = relabel(table.landmarks)
        kept = np.flatnonzero(self.relabeling.find(table.landmarks) >= 0)
        ids, landmarks = table.ids[kept], table.landmarks[kept]
        numbers = {"landmark_id": landmarks, "label": self.relabeling.labels(landmarks), **self._extra(ids)}
        whole = self._samples("train", ids, numbers, fields)
        made: dict[str, LandmarkSamples] = {}
        if self._asked("train", "train.csv"):
            made["train"] = whole
        if clean is not None and self._asked("train_clean", "train_clean.csv"):
            made["train_clean"] = self._clean(whole, clean)
        if validation is not None:
            for split, name in (("train", "validation"), ("train_clean", "validation_clean")):
                if split in made:
                    trains, validates = train_validation_split(made[split].numbers["landmark_id"], validation, seed)
                    made[name], made[split] = made[split].select(validates), made[split].select(trains)
        return dict(made)

    def _extra(self, ids: NDArray[np.bytes_]) -> dict[str, NDArray[np.int64]]:
        """Further numbers of train images; the real data set has none."""
        return {}

    def _clean(self, whole: LandmarkSamples, clean: CleanTable) -> LandmarkSamples:
        ids = clean.images.values
        if self._partial:
            ids = ids[IdIndex(whole.ids, "train.csv").find(ids) >= 0]
        rows = whole.positions(ids, "train_clean.csv")
        stated = np.repeat(clean.landmarks, clean.images.lengths())
        if not self._partial and (whole.numbers["landmark_id"][rows] != stated).any():
            at = int(np.flatnonzero(whole.numbers["landmark_id"][rows] != stated)[0])
            raise DataError(
                f"train_clean.csv has image {ids[at].decode()} under landmark {stated[at]}; train.csv has it under "
                f"{whole.numbers['landmark_id'][rows[at]]}"
            )
        return whole.select(rows)

    def _index(self) -> LandmarkSamples:
        ids = read_ids(self._need("index.csv"))
        numbers = {}
        fields = self._fields("index")
        if (path := self._file("index_image_to_landmark.csv")) is not None:
            table = read_labelled(path)
            landmarks = table.landmarks[IdIndex(table.ids, str(path)).require(ids, "index.csv")]
            if fields is not None and (fields.rows(landmarks) < 0).any():
                odd = landmarks[fields.rows(landmarks) < 0][0]
                raise DataError(
                    f"{path} has landmark {odd}, which index_label_to_*.csv lacks: the index has a numbering of its own; "
                    "are these landmark ids of train?"
                )
            numbers["index_landmark_id"] = landmarks
        return self._samples("index", ids, numbers, fields)

    def _test(self) -> LandmarkSamples:
        ids = read_ids(self._need("test.csv"))
        if (path := self._file("recognition_solution_v2.1.csv")) is not None:
            self.recognition = read_recognition_solution(path)
        if (path := self._file("retrieval_solution_v2.1.csv")) is not None:
            self.retrieval = read_retrieval_solution(path)
        return self._samples("test", ids, {}, None)


def landmark_data(data: object) -> GoogleLandmarksV2 | None:
    """The data set behind a wrapper, or behind several; None if there is none."""
    while data is not None and not isinstance(data, GoogleLandmarksV2):
        data = getattr(data, "data", None)
    return data
