"""The data set's own metrics, without a loop over queries: mAP@100, precision@k, first position; GAP, top-1 accuracy.

Definitions: the metric code of Google Landmarks (tensorflow/models, research/delf, google_landmarks_dataset/metrics.py), which scored
the challenges of Weyand et al., "Google Landmarks Dataset v2", 2020, https://arxiv.org/abs/2004.01804.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graftwork import DataError
from graftwork_google_landmarks.ids import joint_codes
from graftwork_google_landmarks.membership import find_pairs
from graftwork_google_landmarks.predictions import RecognitionPredictions, RetrievalPredictions
from graftwork_google_landmarks.solutions import Solution

__all__ = [
    "RetrievalHits",
    "average_precisions",
    "first_positions",
    "gap_curve",
    "global_average_precision",
    "mean_average_precision",
    "mean_median_position",
    "mean_precisions",
    "retrieval_hits",
    "top1_accuracy",
]

RetrievalLike = RetrievalPredictions | Mapping[str, Sequence[str]]
RecognitionLike = RecognitionPredictions | Mapping[str, tuple[int, float]]


class RetrievalHits(NamedTuple):
    """The correct ones among the first `max_predictions` predictions of each query.

    Args:
        query: (H,) position of the query in the solution, ascending.
        rank: (H,) from 1, ascending within a query.
        fresh: (H,) whether it is the first time that the query's prediction names this image.
        truths: (Q,) number of right answers of each query.
        max_predictions: predictions that count.
    """

    query: NDArray[np.int64]
    rank: NDArray[np.int64]
    fresh: NDArray[np.bool_]
    truths: NDArray[np.int64]
    max_predictions: int


def _positions(ids: NDArray[np.bytes_], known: NDArray[np.bytes_], task: str) -> NDArray[np.int64]:
    """Where each predicted query stands in the solution."""
    ours, theirs = joint_codes(ids, known)
    if not len(known):
        raise DataError(f"the {task} solution has no query")
    order = np.argsort(theirs, kind="stable")
    at = order[np.searchsorted(theirs[order], ours).clip(max=len(known) - 1)]
    unknown = theirs[at] != ours
    if unknown.any():
        raise DataError(f"query {ids[unknown][0].decode()} is not in the {task} solution")
    if len(np.unique(at)) != len(at):
        raise DataError(f"query {known[np.argmax(np.bincount(at))].decode()} is predicted twice")
    return np.asarray(at)


def retrieval_hits(
    predictions: RetrievalLike, solution: Solution | Mapping[str, Sequence[str]], max_predictions: int = 100
) -> RetrievalHits:
    """Find the correct predictions; every retrieval metric follows from these.

    Args:
        predictions: index images of some queries, best first.
        solution: right answers; a query with none, or a prediction for a query that is not there, raises.
        max_predictions: of a query, that count.

    Raises:
        DataError: if a predicted query is not in the solution, or a query has no answer.
        ValueError: if max_predictions is not positive.
    """
    if max_predictions < 1:
        raise ValueError(f"max_predictions is at least 1; found {max_predictions}")
    made = predictions if isinstance(predictions, RetrievalPredictions) else RetrievalPredictions.of(predictions)
    known = solution if isinstance(solution, Solution) else Solution.of("retrieval", solution)
    truths = known.truths.lengths()
    if (truths == 0).any():
        raise DataError(f"query {known.ids[truths == 0][0].decode()} has no right answer: leave out what is Ignored")
    queries = _positions(made.ids, known.ids, "retrieval")
    order = np.argsort(queries, kind="stable")
    images = _head(made, order, max_predictions)
    lengths = images.lengths
    query = np.repeat(queries[order], lengths)
    correct, answer = find_pairs((query, images.values), (known.truths.rows(), known.truths.values))
    starts = np.zeros(len(known), np.int64)
    starts[queries[order]] = np.cumsum(lengths) - lengths
    query = query[correct]
    first = np.empty(len(known.truths.values), np.int64)
    first[answer[::-1]] = np.arange(len(answer))[::-1]  # of equal positions the last one assigned stays: the first prediction
    fresh = first[answer] == np.arange(len(answer))
    return RetrievalHits(query, correct + 1 - starts[query], fresh, truths, max_predictions)


class _Head(NamedTuple):
    lengths: NDArray[np.int64]
    values: NDArray[np.bytes_]


def _head(made: RetrievalPredictions, order: NDArray[np.int64], most: int) -> _Head:
    """The first `most` images of each prediction, in an order of queries; not copied where that is the order they are in."""
    lengths = made.images.lengths()
    if (lengths <= most).all() and (np.diff(order) == 1).all():
        return _Head(lengths, made.images.values)
    cut = np.minimum(lengths[order], most)
    inner = np.arange(cut.sum()) - np.repeat(np.cumsum(cut) - cut, cut)
    return _Head(cut, made.images.values[np.repeat(made.images.offsets[order], cut) + inner])


def average_precisions(hits: RetrievalHits) -> NDArray[np.float64]:
    """AP@K of each query, (Q,): sum over correct predictions of (correct so far / rank), over min(right answers, K).

    An image that is named again is passed over, but keeps its rank. A query without a prediction has 0.
    """
    query, rank = hits.query[hits.fresh], hits.rank[hits.fresh]
    counts = np.bincount(query, minlength=len(hits.truths))
    so_far = np.arange(1, len(query) + 1) - np.repeat(np.cumsum(counts) - counts, counts)
    sums = np.bincount(query, weights=so_far / rank, minlength=len(hits.truths))
    return np.asarray(sums / np.minimum(hits.truths, hits.max_predictions))


def mean_average_precision(
    predictions: RetrievalLike, solution: Solution | Mapping[str, Sequence[str]], max_predictions: int = 100
) -> float:
    """mAP@K over all queries of the solution, those without a prediction included; see `average_precisions`."""
    return float(average_precisions(retrieval_hits(predictions, solution, max_predictions)).mean())


def mean_precisions(hits: RetrievalHits) -> NDArray[np.float64]:
    """Mean precision at ranks 1 to K, (K,): correct ones, repetitions left out, over the rank, also where fewer were predicted."""
    at_rank = np.bincount(hits.rank[hits.fresh] - 1, minlength=hits.max_predictions)
    return np.asarray(np.cumsum(at_rank) / np.arange(1, hits.max_predictions + 1) / len(hits.truths))


def first_positions(hits: RetrievalHits) -> NDArray[np.int64]:
    """Rank of each query's first correct prediction, (Q,); K + 1 for one without."""
    found = np.full(len(hits.truths), hits.max_predictions + 1, np.int64)
    query, first = np.unique(hits.query, return_index=True)
    found[query] = hits.rank[first]
    return found


def mean_median_position(hits: RetrievalHits) -> tuple[float, float]:
    """Mean and median of `first_positions`."""
    positions = first_positions(hits)
    return float(positions.mean()), float(np.median(positions))


class RecognitionHits(NamedTuple):
    """Predictions by descending score.

    Args:
        correct: (P,) whether the landmark is one of the query's.
        empty: (P,) whether the query shows no landmark.
        positives: number of queries that show one.
    """

    correct: NDArray[np.bool_]
    empty: NDArray[np.bool_]
    positives: int


def _recognition(predictions: RecognitionLike, solution: Solution | Mapping[str, Sequence[int]]) -> RecognitionHits:
    made = predictions if isinstance(predictions, RecognitionPredictions) else RecognitionPredictions.of(predictions)
    known = solution if isinstance(solution, Solution) else Solution.of("recognition", solution)
    lengths = known.truths.lengths()
    if not (lengths > 0).any():
        raise DataError("no query of the recognition solution shows a landmark: nothing can be scored")
    query = _positions(made.ids, known.ids, "recognition")
    order = np.lexsort((made.landmarks, joint_codes(made.ids)[0], -made.scores))
    landmarks = np.unique(np.concatenate([known.truths.values, made.landmarks]))
    truth = known.truths.rows() * len(landmarks) + np.searchsorted(landmarks, known.truths.values)
    correct = np.isin(query * len(landmarks) + np.searchsorted(landmarks, made.landmarks), truth)
    return RecognitionHits(correct[order], (lengths == 0)[query][order], int((lengths > 0).sum()))


def gap_curve(
    predictions: RecognitionLike, solution: Solution | Mapping[str, Sequence[int]], ignore_non_landmark: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
    """What GAP sums: precision after each prediction, (P,), surest first, whether each is correct, and the number of landmark queries.

    Ties in score go by image id, then by landmark id, both ascending.

    Raises:
        DataError: if a predicted query is not in the solution, or is predicted twice, or no query shows a landmark.
    """
    hits = _recognition(predictions, solution)
    correct = hits.correct[~hits.empty] if ignore_non_landmark else hits.correct
    return np.cumsum(correct) / np.arange(1, len(correct) + 1), correct, hits.positives


def global_average_precision(
    predictions: RecognitionLike, solution: Solution | Mapping[str, Sequence[int]], ignore_non_landmark: bool = False
) -> float:
    """GAP, or micro-AP: (1 / queries that show a landmark) * sum of the precision at each correct prediction, all ranked together.

    A prediction for a query without a landmark is wrong. Queries may be left out; of several right landmarks any one is correct.

    Args:
        predictions: (landmark id, score) of some queries.
        solution: the landmark ids of each query; none where it shows none.
        ignore_non_landmark: leave out predictions for queries that show none.

    Raises:
        DataError: as `gap_curve`.
    """
    precision, correct, positives = gap_curve(predictions, solution, ignore_non_landmark)
    return float(precision[correct].sum() / positives)


def top1_accuracy(predictions: RecognitionLike, solution: Solution | Mapping[str, Sequence[int]]) -> float:
    """Share of the queries that show a landmark whose prediction is right; a query without a prediction is wrong.

    Raises:
        DataError: as `gap_curve`.
    """
    hits = _recognition(predictions, solution)
    return float(hits.correct.sum() / hits.positives)
