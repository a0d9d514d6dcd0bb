"""Which (group, id) pairs of a long list are in a shorter one: exact, by one look into a table of hashes, without sorting the long one."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["find_pairs"]

Pairs: TypeAlias = tuple[NDArray[np.int64], NDArray[np.bytes_]]
"""(N,) group numbers and (N,) ids, fixed bytes."""

GROUP, WORD, FINAL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0xD6E8FEB86659FD93)
CHUNK = 2**17
"""Pairs looked up at once, which bounds the scratch memory."""


def find_pairs(pairs: Pairs, wanted: Pairs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the pairs that are wanted.

    Each wanted pair is put at its hash's slot of a table with 16 to 32 slots a pair. A pair whose slot is empty, as almost all that are not
    wanted find it, is done with; one whose slot holds the very same pair is found. The few wanted pairs that lost their slot to
    another are matched by sorting. Hashes only choose whom to compare: what is found is equal, whatever the hashes.

    Args:
        pairs: (N,) group numbers and ids.
        wanted: (M,) of the same kind, M < 2^31.

    Returns:
        Positions in `pairs`, ascending, (H,); and for each a position in `wanted` with the same pair, (H,), the same for equal pairs.
    """
    if not len(wanted[0]) or not len(pairs[0]):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    width = -(-max(pairs[1].dtype.itemsize, wanted[1].dtype.itemsize) // 8) * 8
    theirs = _words(wanted[1], width)
    bits = int(np.clip(np.ceil(np.log2(len(wanted[0]))) + 4, 10, 27))
    shift = np.uint64(64 - bits)
    table = np.full(1 << bits, -1, np.int32)
    slots = _hash(wanted[0], theirs) >> shift
    table[slots] = np.arange(len(slots), dtype=np.int32)
    lost = np.flatnonzero(table[slots] != np.arange(len(slots)))
    contested = np.zeros(1 << bits if len(lost) else 1, bool)
    if len(lost):
        contested[slots[lost]] = True
    found, answers, rest = [], [], []
    for start in range(0, len(pairs[0]), CHUNK):
        group, words = pairs[0][start : start + CHUNK], _words(pairs[1][start : start + CHUNK], width)
        slot = _hash(group, words) >> shift
        answer = table[slot]
        maybe = np.flatnonzero(answer >= 0)
        holder = answer[maybe]
        same = wanted[0][holder] == group[maybe]
        for column in range(words.shape[1]):
            same &= theirs[holder, column] == words[maybe, column]
        found.append(start + maybe[same])
        answers.append(holder[same].astype(np.int64))
        if len(lost):
            others = maybe[~same]
            rest.append(start + others[contested[slot[others]]])
    hits, of = np.concatenate(found), np.concatenate(answers)
    left = np.concatenate(rest) if rest else np.zeros(0, np.int64)
    if len(left):
        more, which = _by_sorting(pairs[0][left], _words(pairs[1][left], width), wanted[0][lost], theirs[lost])
        hits, of = np.concatenate([hits, left[more]]), np.concatenate([of, lost[which]])
        order = np.argsort(hits, kind="stable")
        hits, of = hits[order], of[order]
    return hits, of


def _words(ids: NDArray[np.bytes_], width: int) -> NDArray[np.uint64]:
    """Ids (N,) as (N, width / 8) words."""
    return np.ascontiguousarray(ids.astype(f"S{width}", copy=False)).view(np.uint64).reshape(len(ids), -1)


def _hash(group: NDArray[np.int64], words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 bits of each pair, the high ones well mixed."""
    mixed = (group + 1).astype(np.uint64) * GROUP
    for column in range(words.shape[1]):
        mixed ^= words[:, column]
        mixed *= WORD
        mixed ^= mixed >> np.uint64(29)
    return mixed * FINAL


def _by_sorting(
    group: NDArray[np.int64], words: NDArray[np.uint64], of: NDArray[np.int64], wanted: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The same for few pairs: positions in `group`, and in `of`."""
    groups, columns = np.concatenate([of, group]), np.concatenate([wanted, words])
    order = np.lexsort((*columns.T, groups))  # stable: wanted ones come first among equals
    groups, columns = groups[order], columns[order]
    new = np.ones(len(order), bool)
    new[1:] = (groups[1:] != groups[:-1]) | (columns[1:] != columns[:-1]).any(axis=1)
    head = order[np.flatnonzero(new)][np.cumsum(new) - 1]  # the first of each run of equals
    ours = (order >= len(of)) & (head < len(of))
    return order[ours] - len(of), head[ours]
