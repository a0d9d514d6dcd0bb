"""The retrieval task: rank the index for each query."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from graftwork import INPUTS, Dataset, Evaluator, Figure, Report, Split, Table
from graftwork.interfaces import device_of
from graftwork.run import Run
from graftwork_google_landmarks.checks import at_least
from graftwork_google_landmarks.descriptors import nearest_samples
from graftwork_google_landmarks.figures import draw_retrieved
from graftwork_google_landmarks.ground_truth import by_usage, inliers_of, need_model, placed, solution_of
from graftwork_google_landmarks.matching import Verification
from graftwork_google_landmarks.predictions import RetrievalPredictions, read_retrieval_predictions, write_retrieval_predictions
from graftwork_google_landmarks.samples import landmark_samples
from graftwork_google_landmarks.scoring import average_precisions, mean_median_position, mean_precisions, retrieval_hits
from graftwork_google_landmarks.search import Precision
from graftwork_google_landmarks.solutions import Solution
from graftwork_google_landmarks.tables import Lists

__all__ = ["LandmarkRetrieval", "rerank_by_inliers", "retrieval_metrics"]

Count = Annotated[int, Field(ge=1)]
RANKS = (1, 5, 10, 50, 100)
COLUMNS = 6
"""Pictures a row of the figure shows."""


def retrieval_metrics(predictions: RetrievalPredictions, solution: Solution, max_predictions: int = 100) -> dict[str, float]:
    """Every metric of the retrieval task.

    Returns:
        map@K, precision@k for k of 1, 5, 10, 50, 100 up to K, mean-position and median-position of the first correct image.

    Raises:
        DataError: as `scoring.retrieval_hits`.
    """
    hits = retrieval_hits(predictions, solution, max_predictions)
    precisions = mean_precisions(hits)
    mean, median = mean_median_position(hits)
    found = {f"map@{max_predictions}": float(average_precisions(hits).mean())}
    found |= {f"precision@{k}": float(precisions[k - 1]) for k in RANKS if k <= max_predictions}
    return {**found, "mean-position": mean, "median-position": median}


def rerank_by_inliers(near: NDArray[np.int64], inliers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first columns of a ranking, (Q, k), by inliers (Q, m), m <= k, most first; equal ones and the rest stay in order."""
    order = np.argsort(-inliers, axis=1, kind="stable")
    head = np.take_along_axis(near[:, : inliers.shape[1]], order, axis=1)
    return np.concatenate([head, near[:, inliers.shape[1] :]], axis=1)


class LandmarkRetrieval(Evaluator):
    """mAP@100, precision@k and the position of the first right image, for the retrieval task of Google Landmarks v2.

    The index is ranked by cosine similarity of what the model embeds, or a file of predictions is scored. Queries that the solution
    ignores are passed over. Metrics are given for all scored queries together, and as public/... and private/... as Kaggle had them.

    Args:
        query: split of the queries.
        gallery: split that is ranked.
        submission: a file `id,images` to score instead of a model.
        solution: the file retrieval_solution_v2.1.csv; by default the data set's.
        max_predictions: images a query that count.
        rerank: features, distance, residual, trials, seed and folder of a verification, as of `matching.Verification`, by whose inliers
            the first ones are re-ranked; none leaves the ranking.
        rerank_top: how many are re-ranked.
        write: file to write the predictions to.
        batch_size: images embedded at once.
        workers: processes that read images.
        precision: of descriptors and of the search.
        pictures: queries that the figure shows.

    Raises:
        ValueError: if a parameter is out of range.
    """

    keys = (INPUTS, "image_id")

    def __init__(
        self,
        query: Split = "test",
        gallery: Split = "index",
        submission: str | None = None,
        solution: str | None = None,
        max_predictions: Count = 100,
        rerank: Verification | None = None,
        rerank_top: Count = 100,
        write: str | None = None,
        batch_size: Count = 64,
        workers: Annotated[int, Field(ge=0)] = 0,
        precision: Precision = "float32",
        pictures: Annotated[int, Field(ge=0)] = 8,
    ):
        at_least(1, max_predictions=max_predictions, rerank_top=rerank_top, batch_size=batch_size)
        at_least(0, workers=workers, pictures=pictures)
        self.query, self.gallery, self.submission, self.solution = query, gallery, submission, solution
        self.max_predictions, self.rerank, self.rerank_top = max_predictions, rerank, rerank_top
        self.write, self.batch_size, self.workers, self.precision, self.pictures = write, batch_size, workers, precision, pictures

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics as `retrieval_metrics` gives them.

        Raises:
            DataError: if there is no solution, or it or the submission does not fit the data.
            InterfaceError: if there is neither a model nor a submission.
        """
        solution = solution_of(data, "retrieval", self.solution)
        figures = {}
        if self.submission is not None:
            made = read_retrieval_predictions(Path(self.submission).expanduser(), solution)
        else:
            need_model(model, "landmark-retrieval")
            made, near, rows = self._predict(model, data, solution.part(["Public", "Private"]))
            if self.pictures:
                figures["retrieved"] = self._draw(data, made, solution.part(["Public", "Private"]), near, rows)
        if self.write:
            write_retrieval_predictions(Path(self.write).expanduser(), made)
        metrics = by_usage(solution, lambda part: retrieval_metrics(made.part(part), part, self.max_predictions))
        counts = [[usage, int((solution.usage == number).sum())] for number, usage in enumerate(("Public", "Private", "Ignored"))]
        return Report(metrics, {"queries": Table(["usage", "queries"], counts)}, figures)

    def _predict(self, model: Any, data: Dataset, scored: Solution) -> tuple[RetrievalPredictions, NDArray[np.int64], NDArray[np.int64]]:
        """Predictions; (Q, k) positions in the gallery; (Q,) positions of the queries in their split."""
        queries = landmark_samples(data[self.query], self.query, "landmark-retrieval")
        gallery = landmark_samples(data[self.gallery], self.gallery, "landmark-retrieval")
        rows = queries.positions(scored.ids, "the retrieval solution")
        loading = (data.collate, self.batch_size, self.workers, self.precision)
        near = nearest_samples(model, queries, rows, gallery, self.max_predictions, *loading).indices.numpy()
        if self.rerank is not None:
            head, settings = near[:, : self.rerank_top], placed(self.rerank, data)
            near = rerank_by_inliers(near, inliers_of(queries, rows, gallery, head, settings, device_of(model)))
        offsets = np.arange(len(rows) + 1) * near.shape[1]
        return RetrievalPredictions(scored.ids, Lists(offsets, gallery.ids[near.ravel()])), near, rows

    def _draw(
        self, data: Dataset, made: RetrievalPredictions, scored: Solution, near: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> Figure:
        """Queries spread over the split, each with its average precision and its first answers."""
        queries: Any = data[self.query]
        gallery: Any = data[self.gallery]
        scores = average_precisions(retrieval_hits(made, scored, self.max_predictions))
        chosen = np.unique(np.linspace(0, len(rows) - 1, min(self.pictures, len(rows))).astype(int))
        shown, found = [], []
        for at in chosen.tolist():
            right = set(scored.truths[at].tolist())
            names = gallery.ids[near[at, :COLUMNS]]
            shown.append(queries.picture(queries.ids[rows[at]].decode()))
            found.append([(gallery.picture(name.decode()), bytes(name) in right, "") for name in names])
        figure = draw_retrieved(shown, found, [f"AP {scores[at]:.2f}" for at in chosen])
        frames = "green frames are right, red ones wrong"
        return Figure(figure, f"Queries of {self.query} with their average precision, and the first of {self.gallery}; {frames}.")
