"""The Revisited Oxford and Paris protocol (Radenovic et al., CVPR 2018, https://arxiv.org/abs/1803.11285): ground truth and scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graftwork import DataError

__all__ = ["DIFFICULTIES", "RevisitedGroundTruth", "RevisitedQuery", "read_ground_truth", "revisited_scores"]

Indices = NDArray[np.int64]
DIFFICULTIES = {"easy": (("easy",), ("hard", "junk")), "medium": (("easy", "hard"), ("junk",)), "hard": (("hard",), ("easy", "junk"))}
"""Setup -> which lists are right answers, and which are taken out of the ranking."""


@dataclass(frozen=True)
class RevisitedQuery:
    """One query.

    Args:
        name: of its image, without the suffix.
        box: (x1, y1, x2, y2) of the object, pixels.
        easy: positions in the index, from 0.
        hard: positions in the index.
        junk: positions in the index.
    """

    name: str
    box: tuple[float, float, float, float]
    easy: Indices
    hard: Indices
    junk: Indices


@dataclass(frozen=True)
class RevisitedGroundTruth:
    """Ground truth of ROxford or RParis.

    Args:
        index: names of the index images, without the suffix.
        queries: the queries.
    """

    index: tuple[str, ...]
    queries: tuple[RevisitedQuery, ...]


def read_ground_truth(path: Path) -> RevisitedGroundTruth:
    """Read `gnd_roxford5k.mat` or `gnd_rparis6k.mat`, or the same as JSON: {imlist, qimlist, gnd: [{bbx, easy, hard, junk}]}.

    Positions count from 1 in the .mat file, as MATLAB does, and from 0 in JSON, as in the .pkl. That one is a pickle, which can run
    any code when it is loaded, and is refused.

    Raises:
        DataError: if it cannot be read, is of another form, or is a pickle.
    """
    if path.suffix in (".pkl", ".pickle"):
        raise DataError(
            f"{path} is a pickle, which is never loaded here. Take the .mat file of the same name from the authors' page, or, on a "
            "machine where you trust it, convert it to JSON with the keys imlist, qimlist and gnd, lists in place of arrays"
        )
    try:
        return _from_mat(path) if path.suffix == ".mat" else _from_json(path)
    except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"{path} cannot be read as ground truth of Revisited Oxford or Paris: {error!r}") from None


def _from_mat(path: Path) -> RevisitedGroundTruth:
    from scipy.io import loadmat

    found = loadmat(path)

    def names(key: str) -> tuple[str, ...]:
        return tuple("".join(cell) for cell in found[key].ravel())

    def positions(entry: Any, key: str) -> Any:
        return entry[key].ravel().astype(np.int64) - 1

    entries = [
        {"bbx": entry["bbx"].ravel(), **{key: positions(entry, key) for key in ("easy", "hard", "junk")}} for entry in found["gnd"].ravel()
    ]
    return _checked(names("imlist"), names("qimlist"), entries)


def _from_json(path: Path) -> RevisitedGroundTruth:
    found = json.loads(path.read_text(encoding="utf-8"))
    return _checked(tuple(found["imlist"]), tuple(found["qimlist"]), found["gnd"])


def _checked(index: tuple[str, ...], queries: tuple[str, ...], entries: Sequence[Mapping[str, Any]]) -> RevisitedGroundTruth:
    if len(queries) != len(entries):
        raise ValueError(f"{len(queries)} queries and {len(entries)} entries of gnd")
    made = []
    for name, entry in zip(queries, entries, strict=True):
        lists = {key: np.asarray(entry[key], np.int64).ravel() for key in ("easy", "hard", "junk")}
        joined = np.concatenate(list(lists.values()))
        if len(joined) and (joined.min() < 0 or joined.max() >= len(index)):
            raise ValueError(f"query {name} names index images {joined.min()} to {joined.max()} of {len(index)}")
        x1, y1, x2, y2 = (float(side) for side in np.asarray(entry["bbx"]).ravel())
        made.append(RevisitedQuery(name, (x1, y1, x2, y2), lists["easy"], lists["hard"], lists["junk"]))
    return RevisitedGroundTruth(index, tuple(made))


def revisited_scores(ranking: Indices, truth: RevisitedGroundTruth, ranks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """mAP and mean precision at k for the setups easy, medium and hard.

    Junk is taken out of the ranking first. Average precision is the area under the precision-recall curve by trapezoids. Precision
    at k looks no further than the last right answer. A query without a right answer in a setup does not count there.

    Args:
        ranking: (Q, N) positions in the index, best first; all of it.
        truth: ground truth of Q queries and N index images.
        ranks: the ks.

    Returns:
        "easy/map", "easy/precision@1", ... for each setup that has a query.

    Raises:
        ValueError: if the shape does not fit, or a rank is not positive.
    """
    if ranking.shape != (len(truth.queries), len(truth.index)):
        raise ValueError(f"a ranking of {len(truth.queries)} queries and {len(truth.index)} images is wanted; found {ranking.shape}")
    if min(ranks, default=1) < 1:
        raise ValueError(f"ranks are at least 1; found {list(ranks)}")
    place = np.argsort(ranking, axis=1)  # rank of each image
    found: dict[str, float] = {}
    for setup, (right, junk) in DIFFICULTIES.items():
        rows = [_score(place[at], _joined(query, right), _joined(query, junk), ranks) for at, query in enumerate(truth.queries)]
        scored = np.array([row for row in rows if row is not None])
        if len(scored):
            means = scored.mean(axis=0)
            found |= {
                f"{setup}/map": float(means[0]),
                **{f"{setup}/precision@{k}": float(m) for k, m in zip(ranks, means[1:], strict=True)},
            }
    return found


def _joined(query: RevisitedQuery, names: Sequence[str]) -> Indices:
    return np.concatenate([getattr(query, name) for name in names])


def _score(place: Indices, right: Indices, junk: Indices, ranks: Sequence[int]) -> list[float] | None:
    """Average precision of one query, then its precision at each rank."""
    if not len(right):
        return None
    positions = np.sort(place[right])
    positions = positions - np.searchsorted(np.sort(place[junk]), positions)  # less the junk before each
    count = np.arange(len(positions))
    before = np.where(positions > 0, count / np.maximum(positions, 1), 1.0)
    after = (count + 1) / (positions + 1)
    shown = [min(k, int(positions[-1]) + 1) for k in ranks]
    return [float(((before + after) / 2).mean()), *(float((positions < k).sum() / k) for k in shown)]
