"""Prediction files as Kaggle took them: `id,images` for retrieval, `id,landmarks` with "landmark score" for recognition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from numpy.typing import NDArray

from graftwork import DataError
from graftwork_google_landmarks.ids import id_array
from graftwork_google_landmarks.solutions import USAGES, Solution
from graftwork_google_landmarks.tables import Lists, read_columns, split_lists, write_csv

__all__ = [
    "RecognitionPredictions",
    "RetrievalPredictions",
    "read_recognition_predictions",
    "read_retrieval_predictions",
    "write_recognition_predictions",
    "write_retrieval_predictions",
]


@dataclass(frozen=True)
class RetrievalPredictions:
    """Index images for some queries, best first.

    Args:
        ids: (P,) the queries' image ids, fixed bytes.
        images: a list of image ids, fixed bytes, for each.
    """

    ids: NDArray[np.bytes_]
    images: Lists

    @classmethod
    def of(cls, predictions: Mapping[str, Sequence[str]]) -> RetrievalPredictions:
        """From a mapping of query id -> index image ids."""
        offsets = np.cumsum([0, *(len(found) for found in predictions.values())])
        return cls(id_array(predictions), Lists(offsets, id_array([one for found in predictions.values() for one in found])))

    def part(self, solution: Solution) -> RetrievalPredictions:
        """The predictions for a solution's queries."""
        rows = np.flatnonzero(np.isin(self.ids, solution.ids))
        return RetrievalPredictions(self.ids[rows], self.images.select(rows))


@dataclass(frozen=True)
class RecognitionPredictions:
    """One landmark and a score for each of some queries.

    Args:
        ids: (P,) the queries' image ids, fixed bytes.
        landmarks: (P,) train landmark ids.
        scores: (P,) float64, higher is surer.

    Raises:
        DataError: if a score is not a number.
    """

    ids: NDArray[np.bytes_]
    landmarks: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        if np.isnan(self.scores).any():
            raise DataError(f"the score of query {self.ids[np.isnan(self.scores)][0].decode()} is not a number")

    @classmethod
    def of(cls, predictions: Mapping[str, tuple[int, float]]) -> RecognitionPredictions:
        """From a mapping of query id -> (landmark id, score)."""
        landmarks, scores = ([pair[side] for pair in predictions.values()] for side in (0, 1))
        return cls(id_array(predictions), np.array(landmarks, np.int64), np.array(scores, np.float64))

    def part(self, solution: Solution) -> RecognitionPredictions:
        """The predictions for a solution's queries."""
        rows = np.flatnonzero(np.isin(self.ids, solution.ids))
        return RecognitionPredictions(self.ids[rows], self.landmarks[rows], self.scores[rows])


def _rows(path: Path, column: str, solution: Solution) -> tuple[NDArray[np.bytes_], Lists]:
    """Ids and split texts of a file's rows that hold a prediction; what is Ignored is passed over before anything is checked."""
    table = read_columns(path, {"id": pa.string(), column: pa.string()})
    ids = id_array(np.asarray(table["id"].to_numpy(zero_copy_only=False)).tolist())
    ignored = np.isin(ids, solution.ids[solution.usage == USAGES.index("Ignored")])
    texts = table[column].combine_chunks()
    filled = ~np.asarray(pc.equal(texts, "").to_numpy(zero_copy_only=False))
    counted, kept = np.flatnonzero(filled & ~ignored), np.flatnonzero(~ignored)
    unique, first, counts = np.unique(ids[counted], return_index=True, return_counts=True)
    repeated = unique[counts > 1]
    if not len(repeated) and len(kept) > len(counted):  # an empty row after a filled one repeats it as well
        at = np.searchsorted(unique, ids[kept]).clip(max=max(len(unique) - 1, 0))
        again = (unique[at] == ids[kept]) & (kept > counted[first][at]) if len(unique) else np.zeros(len(kept), bool)
        repeated = ids[kept][again]
    if len(repeated):
        raise DataError(f"{path}: query {repeated[0].decode()} is repeated")
    unknown = ~np.isin(ids[counted], solution.ids)
    if unknown.any():
        raise DataError(f"{path}: query {ids[counted][unknown][0].decode()} is not in the {solution.task} solution")
    trimmed = pc.replace_substring_regex(texts.take(pa.array(counted)), " $", "")
    return ids[counted], split_lists(pa.chunked_array([trimmed]))


def read_retrieval_predictions(path: Path, solution: Solution) -> RetrievalPredictions:
    """`id,images`: index images between spaces, best first; an empty prediction is none, and a space at the end is no image.

    Args:
        path: the file, with a header; what ends in .gz is decompressed.
        solution: with the queries there are; those that are Ignored are passed over.

    Raises:
        DataError: if it cannot be read, or a query is repeated or unknown.
    """
    ids, lists = _rows(path, "images", solution)
    return RetrievalPredictions(ids, Lists(lists.offsets, _bytes(lists.values)))


def _bytes(values: Any) -> NDArray[np.bytes_]:
    """Texts as fixed bytes; ids of 16 characters, which all should be, without a Python object each."""
    from graftwork_google_landmarks.ids import ID_LENGTH
    from graftwork_google_landmarks.tables import fixed_ids

    if len(values) and pc.all(pc.equal(pc.binary_length(values), ID_LENGTH)).as_py():
        return fixed_ids(values, Path())
    return id_array(np.asarray(values.to_numpy(zero_copy_only=False)).tolist())


def read_recognition_predictions(path: Path, solution: Solution) -> RecognitionPredictions:
    """`id,landmarks`: a train landmark id and a score; an empty prediction is none.

    Args:
        path: the file, with a header; what ends in .gz is decompressed.
        solution: with the queries there are; those that are Ignored are passed over.

    Raises:
        DataError: if it cannot be read, a query is repeated or unknown, or a prediction is not two numbers.
    """
    ids, lists = _rows(path, "landmarks", solution)
    odd = np.flatnonzero(lists.lengths() != 2)
    if len(odd):
        raise DataError(
            f"{path}: a prediction is a landmark id and a score; query {ids[odd[0]].decode()} has {lists.lengths()[odd[0]]} elements"
        )
    try:
        landmarks = np.asarray(lists.values.take(pa.array(np.arange(0, 2 * len(ids), 2))).cast(pa.int64()).to_numpy(zero_copy_only=False))
        scores = np.asarray(lists.values.take(pa.array(np.arange(1, 2 * len(ids), 2))).cast(pa.float64()).to_numpy(zero_copy_only=False))
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: a prediction is a landmark id and a score: {str(error).partition(chr(10))[0]}") from None
    return RecognitionPredictions(ids, landmarks, scores)


def write_retrieval_predictions(path: Path, predictions: RetrievalPredictions) -> None:
    """Write `id,images`."""
    texts, offsets = predictions.images.values.astype(str), predictions.images.offsets
    groups = [" ".join(texts[a:b]) for a, b in pairwise(offsets.tolist())]
    write_csv(path, {"id": predictions.ids, "images": groups})


def write_recognition_predictions(path: Path, predictions: RecognitionPredictions) -> None:
    """Write `id,landmarks`; scores are written so that they read back as they are."""
    pairs = zip(predictions.landmarks.tolist(), predictions.scores.tolist(), strict=True)
    write_csv(path, {"id": predictions.ids, "landmarks": [f"{landmark} {score!r}" for landmark, score in pairs]})
