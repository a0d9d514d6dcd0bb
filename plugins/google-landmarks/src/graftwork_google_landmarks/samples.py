"""Images of one split with what is known of each: nothing is read until a sample is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graftwork import DataError
from graftwork.builtin.datasets import Pixels, read_image
from graftwork_google_landmarks.archives import ImageStore
from graftwork_google_landmarks.attribution import FIELDS, Attribution
from graftwork_google_landmarks.ids import IdIndex

__all__ = ["LANDMARK_FIELDS", "LandmarkFields", "LandmarkSamples", "landmark_samples"]

LANDMARK_FIELDS = ("category", "supercategory", "hierarchical_label", "natural_or_human_made")
"""What is known of a landmark."""

WHOLE = Pixels()
"""In colour, at the size they have."""


class LandmarkFields:
    """Texts that belong to landmarks.

    Args:
        table: `landmark_id` (L,) and fields (L,), as `tables.read_landmark_fields` gives them.
    """

    def __init__(self, table: Mapping[str, NDArray[Any]]):
        order = np.argsort(table["landmark_id"])
        self._landmarks = table["landmark_id"][order]
        self._fields = {name: table[name][order] for name in LANDMARK_FIELDS if name in table}

    def rows(self, landmarks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of each landmark; -1 for one that the table lacks."""
        if not len(self._landmarks):
            return np.full(len(landmarks), -1, np.int64)
        at = np.minimum(np.searchsorted(self._landmarks, landmarks), len(self._landmarks) - 1)
        return np.where(self._landmarks[at] == landmarks, at, -1)

    def of(self, landmark: int) -> dict[str, str]:
        """Every field of a landmark; "" for what is not known."""
        row = int(self.rows(np.array([landmark]))[0])
        return {name: str(self._fields[name][row] or "") if row >= 0 and name in self._fields else "" for name in LANDMARK_FIELDS}

    def column(self, name: str, landmarks: NDArray[np.int64]) -> list[str]:
        """One field of many landmarks."""
        rows = self.rows(landmarks)
        found = self._fields.get(name)
        return [str(found[row] or "") if found is not None and row >= 0 else "" for row in rows.tolist()]


@dataclass(frozen=True, eq=False)
class LandmarkSamples:
    """Samples of a split.

    A sample has `image` (3, H, W) float32 in [0, 1], `image_id` and `index` (position in the split). Where the split has them:
    `label` and `landmark_id` (train), `index_landmark_id` (index: another numbering, so another key), `category` (a Wikimedia
    URL), `supercategory`, `hierarchical_label`, `natural_or_human_made`, and the attribution `url`, `author`, `license`, `title`.

    Args:
        store: gives the encoded images.
        ids: (N,) S16.
        numbers: key -> (N,) integers: `landmark_id`, `label`, `index_landmark_id`, and whatever else an image has.
        pixels: how images come out.
        fields: texts of the landmarks.
        attribution: of the images, in the order of `ids`.
        licence: of every image, where there is no attribution.
        kept: decoded images by id, as bytes, which those that are read join; None keeps none. Samples that are selected share it.
    """

    store: ImageStore
    ids: NDArray[np.bytes_]
    numbers: Mapping[str, NDArray[np.int64]]
    pixels: Pixels = WHOLE
    fields: LandmarkFields | None = None
    attribution: Attribution | None = None
    licence: str = ""
    kept: dict[str, Tensor] | None = None

    @property
    def columns(self) -> Mapping[str, Tensor]:
        """The numbers as tensors, without reading an image."""
        return {key: torch.from_numpy(np.ascontiguousarray(column)) for key, column in self.numbers.items()}

    @property
    def landmark_key(self) -> str | None:
        """Which of the two numberings the split has: "landmark_id", "index_landmark_id", or None."""
        return next((key for key in ("landmark_id", "index_landmark_id") if key in self.numbers), None)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index = index % len(self)
        name = self.ids[index].decode()
        sample: dict[str, Any] = {"image": self._image(name), "image_id": name, "index": index}
        sample |= {key: int(column[index]) for key, column in self.numbers.items()}
        if self.fields is not None and self.landmark_key is not None:
            sample |= self.fields.of(sample[self.landmark_key])
        if self.attribution is not None or self.licence:
            known = {} if self.attribution is None else self.attribution[index]
            sample |= {field: known.get(field, "") for field in FIELDS}
            sample["license"] = sample["license"] or self.licence
        return sample

    def picture(self, image_id: str) -> Tensor:
        """An image at its full size, (3, H, W) float32 in [0, 1]."""
        return self._read(image_id, self.pixels._replace(size=None))

    def _image(self, name: str) -> Tensor:
        if self.kept is None:
            return self._read(name, self.pixels)
        if name not in self.kept:
            self.kept[name] = (self._read(name, self.pixels) * 255).round().to(torch.uint8)
        return self.kept[name].float() / 255

    def _read(self, name: str, pixels: Pixels) -> Tensor:
        return read_image(self.store.read(name), f"image {name}", pixels)

    def select(self, indices: NDArray[np.int64] | Tensor) -> LandmarkSamples:
        """The samples at some positions, as samples of their own."""
        rows = np.asarray(indices, np.int64)
        return replace(
            self,
            ids=self.ids[rows],
            numbers={key: column[rows] for key, column in self.numbers.items()},
            attribution=None if self.attribution is None else self.attribution.select(rows),
        )

    def with_numbers(self, **numbers: NDArray[np.int64]) -> LandmarkSamples:
        """The same samples with further, or other, numbers."""
        return replace(self, numbers={**self.numbers, **numbers})

    def positions(self, ids: NDArray[np.bytes_], asking: str) -> NDArray[np.int64]:
        """Where images stand in the split.

        Raises:
            DataError: if one is not there, naming it.
        """
        return IdIndex(self.ids, "the split").require(ids, asking)


def landmark_samples(samples: Any, split: str, user: str) -> LandmarkSamples:
    """The samples, if they are of this plugin.

    Raises:
        DataError: if they are not.
    """
    if not isinstance(samples, LandmarkSamples):
        raise DataError(
            f'{user} reads image ids and landmark ids: split "{split}" is to be one of google-landmarks-v2, photo-landmarks or '
            f"landmark-clean-set; it is {type(samples).__name__}"
        )
    return samples
