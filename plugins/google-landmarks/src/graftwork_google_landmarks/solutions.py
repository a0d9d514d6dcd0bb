"""Ground truth of the two tasks: `recognition_solution_v2.1.csv` and `retrieval_solution_v2.1.csv`, by columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from numpy.typing import NDArray

from graftwork import DataError
from graftwork_google_landmarks.ids import id_array
from graftwork_google_landmarks.tables import ID, Lists, column_ids, fixed_ids, read_columns, split_lists, write_csv

__all__ = ["USAGES", "Solution", "Usage", "read_recognition_solution", "read_retrieval_solution", "write_solution"]

Usage = Literal["Public", "Private", "Ignored"]
USAGES: tuple[Usage, ...] = ("Public", "Private", "Ignored")
"""What a query counts for; `Solution.usage` holds positions in it."""


@dataclass(frozen=True)
class Solution:
    """The right answers to some queries.

    Args:
        task: "recognition", whose truths are landmark ids (int64), or "retrieval", whose truths are ids of index images (bytes).
        ids: (Q,) the queries' image ids, fixed bytes.
        truths: a list for each query; empty where no landmark is shown.
        usage: (Q,) int8, position in `USAGES`.

    Raises:
        DataError: if a query stands twice, or one that is scored for retrieval has no answer.
    """

    task: Literal["recognition", "retrieval"]
    ids: NDArray[np.bytes_]
    truths: Lists
    usage: NDArray[np.int8]

    def __post_init__(self) -> None:
        unique, counts = np.unique(self.ids, return_counts=True)
        if len(unique) != len(self.ids):
            raise DataError(f"the {self.task} solution has query {unique[counts > 1][0].decode()} twice")
        empty = (self.truths.lengths() == 0) & (self.usage != USAGES.index("Ignored"))
        if self.task == "retrieval" and empty.any():
            raise DataError(
                f"the retrieval solution has no image for query {self.ids[empty][0].decode()}, which is not Ignored: "
                "a query without an answer in the index cannot be scored"
            )

    @classmethod
    def of(cls, task: Literal["recognition", "retrieval"], answers: Mapping[str, Sequence[Any]], usage: Usage = "Private") -> Solution:
        """From a mapping of query id -> its right answers, all of one usage.

        Args:
            task: which of the two.
            answers: landmark ids (integers) for recognition, ids of index images for retrieval.
            usage: of all of them.
        """
        flat = [answer for found in answers.values() for answer in found]
        values: NDArray[Any] = np.array(flat, np.int64) if task == "recognition" else id_array(flat)
        offsets = np.cumsum([0, *(len(found) for found in answers.values())])
        return cls(task, id_array(answers), Lists(offsets, values), np.full(len(answers), USAGES.index(usage), np.int8))

    def part(self, usages: Iterable[Usage]) -> Solution:
        """The queries of some usages."""
        rows = np.flatnonzero(np.isin(self.usage, [USAGES.index(one) for one in usages]))
        return Solution(self.task, self.ids[rows], self.truths.select(rows), self.usage[rows])

    def __len__(self) -> int:
        return len(self.ids)


def _usage(column: pa.ChunkedArray, ids: NDArray[np.bytes_], path: Path) -> NDArray[np.int8]:
    found = pc.index_in(column, value_set=pa.array(USAGES)).combine_chunks()
    if found.null_count:
        at = pc.index(found.is_null(), True).as_py()
        raise DataError(f"{path}: query {ids[at].decode()} has the usage {column[at].as_py()!r}; it is one of {', '.join(USAGES)}")
    return np.asarray(found.to_numpy(zero_copy_only=False)).astype(np.int8)


def read_recognition_solution(path: Path) -> Solution:
    """`id,landmarks,Usage`: the train landmark ids that each test image shows, between spaces; none for an image without a landmark.

    Raises:
        DataError: if it cannot be read, or a usage or landmark id is none.
    """
    table = read_columns(path, {"id": ID, "landmarks": pa.string(), "Usage": pa.string()})
    ids, lists = column_ids(table["id"]), split_lists(table["landmarks"])
    usage = _usage(table["Usage"], ids, path)
    try:
        values = np.asarray(lists.values.cast(pa.int64()).to_numpy(zero_copy_only=False))
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: landmark ids are integers between single spaces: {str(error).partition(chr(10))[0]}") from None
    return Solution("recognition", ids, Lists(lists.offsets, values), usage)


def read_retrieval_solution(path: Path) -> Solution:
    """`id,images,Usage`: the index images of each test image's landmark, between spaces; "None" for a query that is Ignored.

    Raises:
        DataError: if it cannot be read, a usage is none, or a query that is not Ignored has no image.
    """
    table = read_columns(path, {"id": ID, "images": pa.string(), "Usage": pa.string()})
    ids = column_ids(table["id"])
    usage = _usage(table["Usage"], ids, path)
    texts = table["images"].combine_chunks()
    without = pc.or_(pc.equal(texts, "None"), pa.array(usage == USAGES.index("Ignored")))  # the text of an Ignored query is not read
    lists = split_lists(pa.chunked_array([pc.if_else(without, "", texts)]))
    return Solution("retrieval", ids, Lists(lists.offsets, fixed_ids(lists.values, path)), usage)


def write_solution(path: Path, solution: Solution) -> None:
    """Write a solution in the format of its task's file."""
    values = solution.truths.values
    texts = values.astype(str) if solution.task == "retrieval" else values.astype(np.int64).astype(str)
    groups = [" ".join(texts[a:b]) for a, b in pairwise(solution.truths.offsets.tolist())]
    if solution.task == "retrieval":
        groups = [group or "None" for group in groups]
    column = "landmarks" if solution.task == "recognition" else "images"
    write_csv(path, {"id": solution.ids, column: groups, "Usage": [USAGES[one] for one in solution.usage.tolist()]})
