"""Image ids: 16 hexadecimal characters, kept as fixed bytes and joined as 64-bit codes, never as Python strings."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graftwork import DataError

__all__ = ["ID_LENGTH", "IdIndex", "codes_of", "id_array", "image_path", "joint_codes"]

ID_LENGTH = 16
NIBBLES = np.full(256, 255, np.uint8)
NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint8)


def image_path(image_id: str) -> PurePosixPath:
    """Where an image lies in its split's folder and archives: `0/1/2/0123456789abcdef.jpg` for `0123456789abcdef`.

    Raises:
        ValueError: if the id has fewer than three characters.
    """
    if len(image_id) < 3:
        raise ValueError(f"image_id has at least three characters, which name its folders; found {image_id!r}")
    return PurePosixPath(image_id[0], image_id[1], image_id[2], f"{image_id}.jpg")


def id_array(ids: Iterable[str | bytes] | NDArray[Any]) -> NDArray[np.bytes_]:
    """Ids as fixed bytes, (N,) of dtype S16 or as wide as the longest.

    Raises:
        DataError: if an id is not ASCII.
    """
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "S":
        return ids
    try:
        made = np.array([one.encode("ascii") if isinstance(one, str) else bytes(one) for one in ids], dtype=np.bytes_)
    except UnicodeEncodeError as error:
        raise DataError(f"an image id is plain ASCII; found {error.object!r}") from None
    return made.astype(f"S{max(ID_LENGTH, made.dtype.itemsize)}")


def codes_of(ids: NDArray[np.bytes_]) -> NDArray[np.uint64] | None:
    """Each id's 16 hexadecimal digits as one 64-bit number, whose order is that of the strings; None if any id is of another form.

    Args:
        ids: (N,) fixed bytes.
    """
    if ids.dtype.itemsize != ID_LENGTH:
        if not len(ids) or int(np.char.str_len(ids).max()) > ID_LENGTH:
            return None if len(ids) else np.zeros(0, np.uint64)
        ids = ids.astype(f"S{ID_LENGTH}")
    found = np.zeros(len(ids), np.uint64)
    for start in range(0, len(ids), 2**20):  # bounded scratch memory
        digits = NIBBLES[np.ascontiguousarray(ids[start : start + 2**20]).view(np.uint8).reshape(-1, ID_LENGTH)]
        if (digits == 255).any():
            return None
        pairs = (digits[:, 0::2] << 4) | digits[:, 1::2]
        found[start : start + 2**20] = np.ascontiguousarray(pairs).view(">u8")[:, 0]
    return found


def joint_codes(*arrays: NDArray[np.bytes_]) -> list[NDArray[np.uint64]]:
    """Numbers that are equal where ids are equal and ordered as ids are, over several arrays of ids at once.

    Hexadecimal ids are read as numbers, with no sort and no dictionary; any others are ranked together.
    """
    direct = [codes_of(array) for array in arrays]
    if all(codes is not None for codes in direct):
        return [codes for codes in direct if codes is not None]
    width = max(array.dtype.itemsize for array in arrays)
    joined = np.concatenate([array.astype(f"S{width}") for array in arrays])
    ranks = np.unique(joined, return_inverse=True)[1].astype(np.uint64)
    return list(np.split(ranks, np.cumsum([len(array) for array in arrays])[:-1]))


class IdIndex:
    """Where ids stand in an array, by binary search over sorted codes: 16 bytes an id.

    Args:
        ids: (N,) fixed bytes.
        what: they are, for messages.

    Raises:
        DataError: if an id occurs twice, or is not 16 hexadecimal characters.
    """

    def __init__(self, ids: NDArray[np.bytes_], what: str):
        self.what = what
        codes = self._codes(ids)
        self._order = np.argsort(codes, kind="stable").astype(np.int64)
        self._sorted = codes[self._order]
        repeated = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        if len(repeated):
            raise DataError(f"{what} lists image {ids[self._order[repeated[0]]].decode()} twice")

    def _codes(self, ids: NDArray[np.bytes_]) -> NDArray[np.uint64]:
        codes = codes_of(ids)
        if codes is None:
            odd = next(one for one in ids if codes_of(np.array([one])) is None)
            raise DataError(f"{self.what}: an image id is 16 hexadecimal characters; found {odd.decode()!r}")
        return codes

    def find(self, ids: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Position of each id, (N,); -1 for one that is not there."""
        if not len(self._sorted):
            return np.full(len(ids), -1, np.int64)
        codes = self._codes(ids)
        at = np.minimum(np.searchsorted(self._sorted, codes), len(self._sorted) - 1)
        return np.where(self._sorted[at] == codes, self._order[at], -1)

    def require(self, ids: NDArray[np.bytes_], asking: str) -> NDArray[np.int64]:
        """Position of each id.

        Raises:
            DataError: naming the first id that is not there, and how many are not.
        """
        found = self.find(ids)
        missing = np.flatnonzero(found < 0)
        if len(missing):
            raise DataError(f"{asking} has image {ids[missing[0]].decode()}, which {self.what} lacks ({len(missing)} such)")
        return found
