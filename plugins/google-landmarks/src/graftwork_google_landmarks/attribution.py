"""Who made each image and under which licence: read once into a memory-mapped Arrow file, so that millions of rows take no memory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.csv as arrow_csv  # type: ignore[import-untyped]
from numpy.typing import NDArray

from graftwork import DataError
from graftwork_google_landmarks.ids import IdIndex
from graftwork_google_landmarks.tables import ID, column_ids

__all__ = ["FIELDS", "Attribution"]

FIELDS = ("url", "author", "license", "title")
"""Columns of `train_attribution.csv` beside `id`."""

BLOCK = 2**24
"""Bytes of CSV that are parsed at once."""


class Attribution:
    """Rows of an attribution file, by the position of an image in its split.

    Args:
        path: `train_attribution.csv`, or `train.csv` for the urls alone.
        ids: (N,) the split's images.
        fields: columns to keep.
        cache: an Arrow file that holds what was read; it is made anew when the CSV file has changed. None, or a folder that cannot
            be written, keeps the rows in memory.

    Raises:
        DataError: if the file cannot be read, lists an image twice, or lacks one of the split's.
    """

    def __init__(self, path: Path, ids: NDArray[np.bytes_], fields: tuple[str, ...] = FIELDS, cache: Path | None = None):
        self.fields = fields
        self._table = self._open(path, cache)
        self._rows = IdIndex(column_ids(self._table["id"]), str(path)).require(ids, "the split").astype(np.int32)

    def _open(self, path: Path, cache: Path | None) -> pa.Table:
        state = path.stat()
        stamp = f"{path.name}:{state.st_size}:{state.st_mtime_ns}:{','.join(self.fields)}".encode()
        if cache is not None:
            with contextlib.suppress(OSError, pa.ArrowInvalid):
                kept = pa.ipc.open_file(pa.memory_map(str(cache))).read_all()
                if (kept.schema.metadata or {}).get(b"source") == stamp:
                    return kept
            with contextlib.suppress(OSError):
                self._convert(path, cache, stamp)
                return pa.ipc.open_file(pa.memory_map(str(cache))).read_all()
        return pa.Table.from_batches(list(self._batches(path)), pa.schema({"id": ID, **dict.fromkeys(self.fields, pa.string())}))

    def _batches(self, path: Path) -> Any:
        types = {"id": ID, **dict.fromkeys(self.fields, pa.string())}
        convert = arrow_csv.ConvertOptions(include_columns=list(types), column_types=types, strings_can_be_null=False)
        try:
            yield from arrow_csv.open_csv(
                path,
                read_options=arrow_csv.ReadOptions(block_size=BLOCK),
                parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
                convert_options=convert,
            )
        except (OSError, KeyError, pa.ArrowInvalid, pa.ArrowKeyError) as error:
            said = str(error).partition("\n")[0]
            raise DataError(f"{path} cannot be read as a CSV file with the columns {', '.join(types)}: {said}") from None

    def _convert(self, path: Path, cache: Path, stamp: bytes) -> None:
        """Write the Arrow file beside its place, a block at a time, and rename it."""
        cache.parent.mkdir(parents=True, exist_ok=True)
        beside = cache.with_name(f"{cache.name}.{os.getpid()}.part")
        try:
            writer = None
            for batch in self._batches(path):
                writer = writer or pa.ipc.new_file(str(beside), batch.schema.with_metadata({b"source": stamp}))
                writer.write_batch(batch)
            if writer is not None:
                writer.close()
                beside.replace(cache)
        finally:
            beside.unlink(missing_ok=True)

    def __getitem__(self, index: int) -> dict[str, str]:
        """Field -> text, of the image at a position of the split."""
        row = int(self._rows[index])
        return {field: self._table[field][row].as_py() or "" for field in self.fields}

    def column(self, field: str, indices: NDArray[np.int64] | None = None) -> pa.ChunkedArray:
        """One field of all images, or of those at some positions, as Arrow text."""
        rows = self._rows if indices is None else self._rows[indices]
        return self._table[field].take(pa.array(rows))

    def select(self, indices: NDArray[np.int64]) -> Attribution:
        """The rows of the images at some positions."""
        part = Attribution.__new__(Attribution)
        part.fields, part._table, part._rows = self.fields, self._table, self._rows[indices]
        return part
