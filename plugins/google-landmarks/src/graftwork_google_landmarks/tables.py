"""The CSV files of the data set as columns: Arrow reads them, ids stay fixed bytes, no row becomes a Python object."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.csv as arrow_csv  # type: ignore[import-untyped]
from numpy.typing import NDArray

from graftwork import DataError
from graftwork_google_landmarks.ids import ID_LENGTH, id_array

__all__ = [
    "ID",
    "CleanTable",
    "ImageTable",
    "Lists",
    "column_ids",
    "fixed_ids",
    "read_clean",
    "read_columns",
    "read_ids",
    "read_labelled",
    "read_landmark_fields",
    "split_lists",
    "write_clean",
    "write_csv",
    "write_relabeling",
]

ID = pa.binary(ID_LENGTH)


class ImageTable(NamedTuple):
    """Images and their landmarks.

    Args:
        ids: (N,) S16.
        landmarks: (N,) int64.
    """

    ids: NDArray[np.bytes_]
    landmarks: NDArray[np.int64]


class Lists(NamedTuple):
    """Lists of different length, one behind the other.

    Args:
        offsets: (N + 1,) int64; list i is values[offsets[i] : offsets[i + 1]].
        values: all of them, an array.
    """

    offsets: NDArray[np.int64]
    values: Any

    def lengths(self) -> NDArray[np.int64]:
        """(N,)."""
        return np.diff(self.offsets)

    def rows(self) -> NDArray[np.int64]:
        """(len(values),): which list each value is of."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths())

    def __getitem__(self, index: Any) -> Any:
        """List `index`, as an array."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def select(self, rows: NDArray[np.int64]) -> Lists:
        """The lists at `rows`, in that order."""
        lengths = self.lengths()[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        inner = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Lists(offsets, self.values[np.repeat(self.offsets[rows], lengths) + inner])


class CleanTable(NamedTuple):
    """A clean set: landmarks, and the ids of each one's images."""

    landmarks: NDArray[np.int64]
    images: Lists


def read_columns(path: Path, types: Mapping[str, pa.DataType], newlines: bool = False) -> pa.Table:
    """Some columns of a CSV file with a header.

    Args:
        path: the file; what ends in .gz is decompressed.
        types: column -> its Arrow type; other columns are not kept.
        newlines: whether quoted values may hold line breaks.

    Raises:
        DataError: if it cannot be read, lacks a column, or a value is of another type.
    """
    convert = arrow_csv.ConvertOptions(include_columns=list(types), column_types=dict(types), strings_can_be_null=False)
    try:
        return arrow_csv.read_csv(
            path, parse_options=arrow_csv.ParseOptions(newlines_in_values=newlines), convert_options=convert, memory_pool=None
        )
    except (OSError, KeyError, pa.ArrowInvalid, pa.ArrowKeyError) as error:
        said = str(error).partition("\n")[0]
        raise DataError(f"{path} cannot be read as a CSV file with the columns {', '.join(types)}: {said}") from None


def column_ids(column: pa.ChunkedArray) -> NDArray[np.bytes_]:
    """A fixed-size binary column as (N,) S16, from its own buffers."""
    parts = [np.frombuffer(chunk.buffers()[1], f"S{ID_LENGTH}")[chunk.offset : chunk.offset + len(chunk)] for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.zeros(0, f"S{ID_LENGTH}")


def read_ids(path: Path) -> NDArray[np.bytes_]:
    """The ids of `index.csv` or `test.csv`, (N,) S16.

    Raises:
        DataError: if it cannot be read.
    """
    return column_ids(read_columns(path, {"id": ID})["id"])


def read_labelled(path: Path) -> ImageTable:
    """Ids and landmark ids of `train.csv` or `index_image_to_landmark.csv`; urls are left on disk.

    Raises:
        DataError: if it cannot be read.
    """
    table = read_columns(path, {"id": ID, "landmark_id": pa.int64()})
    return ImageTable(column_ids(table["id"]), np.asarray(table["landmark_id"].to_numpy()))


def split_lists(column: pa.ChunkedArray) -> Lists:
    """A column of texts with values between single spaces; an empty text is an empty list.

    Returns:
        Lists whose values are a large Arrow string array, to be converted by the caller.
    """
    texts = column.combine_chunks().cast(pa.large_string())
    parts = pc.split_pattern(texts, " ")
    lengths = np.asarray(pc.list_value_length(parts).to_numpy(zero_copy_only=False)).astype(np.int64)
    flat = pc.list_flatten(parts)
    empty = np.asarray(pc.equal(texts, "").to_numpy(zero_copy_only=False))
    if empty.any():
        lengths[empty] = 0
        flat = flat.filter(pa.array(~np.repeat(empty, np.where(empty, 1, lengths))))
    return Lists(np.concatenate([[0], np.cumsum(lengths)]), flat)


def fixed_ids(values: Any, path: Path) -> NDArray[np.bytes_]:
    """An Arrow string array of image ids as (N,) S16.

    Raises:
        DataError: if one is not of 16 characters.
    """
    lengths = pc.binary_length(values)
    odd = pc.not_equal(lengths, ID_LENGTH)
    if len(values) and pc.any(odd).as_py():
        found = values.filter(odd)[0].as_py()
        raise DataError(f"{path}: an image id has {ID_LENGTH} characters; found {found!r}")
    array = values.cast(pa.large_binary()).cast(ID)
    return column_ids(pa.chunked_array([array]))


def read_clean(path: Path) -> CleanTable:
    """`train_clean.csv`: landmark_id and its images' ids between spaces.

    Raises:
        DataError: if it cannot be read, or an id is not of 16 characters.
    """
    table = read_columns(path, {"landmark_id": pa.int64(), "images": pa.string()})
    lists = split_lists(table["images"])
    return CleanTable(np.asarray(table["landmark_id"].to_numpy()), Lists(lists.offsets, fixed_ids(lists.values, path)))


def read_landmark_fields(path: Path) -> dict[str, NDArray[Any]]:
    """A file of landmarks: `landmark_id` (L,) int64, and its text fields, each (L,) of objects: the category URL and, where the file
    is the hierarchical one, supercategory, hierarchical_label and natural_or_human_made.

    Raises:
        DataError: if it cannot be read, or lists a landmark twice.
    """
    with path.open(encoding="utf-8", newline="") as file:
        header = next(csv.reader(file), [])
    table = read_columns(path, {name: pa.int64() if name == "landmark_id" else pa.string() for name in header}, newlines=True)
    found = {name: np.asarray(table[name].to_numpy(zero_copy_only=False)) for name in table.column_names}
    if "landmark_id" not in found:
        raise DataError(f"{path} has no column landmark_id; it has {', '.join(header) or 'no header'}")
    if len(np.unique(found["landmark_id"])) != len(found["landmark_id"]):
        raise DataError(f"{path} lists a landmark twice")
    return found


def write_csv(path: Path, columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> None:
    """Write columns under a header, beside the file's place, and rename it there. Bytes are ASCII."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.part")
    with beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(_plain(column) for column in columns.values()), strict=True))
    beside.replace(path)


def _plain(column: Sequence[Any] | NDArray[Any]) -> Iterable[Any]:
    if isinstance(column, np.ndarray):
        return cast(Iterable[Any], (column.astype(str) if column.dtype.kind == "S" else column).tolist())
    return column


def write_clean(path: Path, landmarks: NDArray[np.int64], ids: NDArray[np.bytes_]) -> None:
    """Write `train_clean.csv` of images (N,) with their landmarks (N,): landmarks ascending, images in the order given."""
    order = np.argsort(landmarks, kind="stable")
    unique, starts = np.unique(landmarks[order], return_index=True)
    texts = id_array(ids)[order].astype(str)
    groups = [" ".join(group) for group in np.split(texts, starts[1:])] if len(unique) else []
    write_csv(path, {"landmark_id": unique, "images": groups})


def write_relabeling(path: Path, landmarks: NDArray[np.int64]) -> None:
    """Write `relabeling.csv`: new_label, old_label; landmarks (C,) in the order of their labels."""
    write_csv(path, {"new_label": np.arange(len(landmarks)), "old_label": landmarks})
