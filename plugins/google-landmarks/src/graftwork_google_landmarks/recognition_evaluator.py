"""The recognition task: one landmark and a score for each test image, most of which show none."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from graftwork import INPUTS, DataError, Dataset, Evaluator, Figure, Report, Split, Table
from graftwork.interfaces import device_of
from graftwork.run import Run
from graftwork_google_landmarks.checks import at_least
from graftwork_google_landmarks.descriptors import nearest_samples
from graftwork_google_landmarks.figures import draw_gap
from graftwork_google_landmarks.ground_truth import by_usage, inliers_of, need_model, placed, solution_of
from graftwork_google_landmarks.ids import joint_codes
from graftwork_google_landmarks.matching import Verification
from graftwork_google_landmarks.predictions import RecognitionPredictions, read_recognition_predictions, write_recognition_predictions
from graftwork_google_landmarks.recognition import ban_distractors, recognise
from graftwork_google_landmarks.samples import LandmarkSamples, landmark_samples
from graftwork_google_landmarks.scoring import gap_curve, global_average_precision, top1_accuracy
from graftwork_google_landmarks.search import Precision
from graftwork_google_landmarks.solutions import Solution

__all__ = ["LandmarkRecognition", "recognition_metrics"]

Count = Annotated[int, Field(ge=1)]


def recognition_metrics(predictions: RecognitionPredictions, solution: Solution) -> dict[str, float]:
    """Every metric of the recognition task.

    Returns:
        gap, gap-landmarks-only (predictions for queries without a landmark left out), top-1-accuracy.

    Raises:
        DataError: as `scoring.gap_curve`.
    """
    return {
        "gap": global_average_precision(predictions, solution),
        "gap-landmarks-only": global_average_precision(predictions, solution, ignore_non_landmark=True),
        "top-1-accuracy": top1_accuracy(predictions, solution),
    }


class LandmarkRecognition(Evaluator):
    """GAP and top-1 accuracy, for the recognition task of Google Landmarks v2.

    A test image is given the landmark of its nearest train images, as `recognition.recognise` says, or a file of predictions is
    scored. Landmarks are those of train: the index numbers landmarks differently, and a gallery that has its numbering is refused.

    Args:
        query: split of the queries.
        gallery: split of train whose images have landmark ids.
        submission: a file `id,landmarks` to score instead of a model.
        solution: the file recognition_solution_v2.1.csv; by default the data set's.
        neighbours: train images that vote.
        rerank: features, distance, residual, trials, seed and folder of a verification, as of `matching.Verification`, whose inliers
            with each neighbour add to its vote; none leaves votes to the descriptors.
        inlier_cap: inliers beyond which more make no difference.
        ban_over: a landmark that is predicted for more queries than this has its predictions put last; none bans none. The 2019
            winners took 30.
        write: file to write the predictions to.
        batch_size: images embedded at once.
        workers: processes that read images.
        precision: of descriptors and of the search.

    Raises:
        ValueError: if a number is out of its range.
    """

    keys = ("image_id", INPUTS)

    def __init__(
        self,
        query: Split = "test",
        gallery: Split = "train",
        submission: str | None = None,
        solution: str | None = None,
        neighbours: Count = 3,
        rerank: Verification | None = None,
        inlier_cap: Count = 70,
        ban_over: Annotated[int, Field(ge=0)] | None = None,
        write: str | None = None,
        batch_size: Count = 64,
        workers: Annotated[int, Field(ge=0)] = 0,
        precision: Precision = "float32",
    ):
        at_least(1, neighbours=neighbours, inlier_cap=inlier_cap, batch_size=batch_size)
        at_least(0, ban_over=ban_over, workers=workers)
        self.query, self.gallery, self.submission, self.solution = query, gallery, submission, solution
        self.neighbours, self.rerank, self.inlier_cap, self.ban_over = neighbours, rerank, inlier_cap, ban_over
        self.write, self.batch_size, self.workers, self.precision = write, batch_size, workers, precision

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics as `recognition_metrics` gives them, a table of the queries and the precision curve.

        Raises:
            DataError: if there is no solution, it or the submission does not fit the data, or the gallery has no landmark ids of train.
            InterfaceError: if there is neither a model nor a submission.
        """
        solution = solution_of(data, "recognition", self.solution)
        if self.submission is not None:
            made = read_recognition_predictions(Path(self.submission).expanduser(), solution)
        else:
            need_model(model, "landmark-recognition")
            made = self._predict(model, data, solution.part(["Public", "Private"]))
        if self.write:
            write_recognition_predictions(Path(self.write).expanduser(), made)
        metrics = by_usage(solution, lambda part: recognition_metrics(made.part(part), part))
        scored = solution.part(["Public", "Private"])
        shows = scored.truths.lengths() > 0
        rows = [["with a landmark", int(shows.sum())], ["without", int((~shows).sum())], ["ignored", len(solution) - len(scored)]]
        figures = {"precision": self._draw(made, scored)} if len(made.ids) else {}
        return Report(metrics, {"queries": Table(["queries", "number"], rows)}, figures)

    def _predict(self, model: Any, data: Dataset, scored: Solution) -> RecognitionPredictions:
        queries = landmark_samples(data[self.query], self.query, "landmark-recognition")
        gallery = self._gallery(data)
        rows = queries.positions(scored.ids, "the recognition solution")
        loading = (data.collate, self.batch_size, self.workers, self.precision)
        near = nearest_samples(model, queries, rows, gallery, self.neighbours, *loading)
        at = near.indices.numpy()
        settings = None if self.rerank is None else placed(self.rerank, data)
        inliers = None if settings is None else inliers_of(queries, rows, gallery, at, settings, device_of(model))
        found = recognise(near.scores.numpy(), gallery.numbers["landmark_id"][at], inliers, self.inlier_cap)
        found = found if self.ban_over is None else ban_distractors(found, self.ban_over)
        return RecognitionPredictions(scored.ids, found.landmarks, found.scores)

    def _gallery(self, data: Dataset) -> LandmarkSamples:
        gallery = landmark_samples(data[self.gallery], self.gallery, "landmark-recognition")
        if gallery.landmark_key == "index_landmark_id":
            raise DataError(
                f'landmark-recognition answers with landmark ids of train; split "{self.gallery}" has those of the index, another '
                "numbering: take train or train_clean as its gallery"
            )
        if gallery.landmark_key is None:
            raise DataError(f'landmark-recognition answers with landmark ids of train; split "{self.gallery}" has none')
        return gallery

    def _draw(self, made: RecognitionPredictions, scored: Solution) -> Figure:
        precision, correct, positives = gap_curve(made, scored)
        ours, theirs = joint_codes(made.ids, scored.ids)
        order = np.argsort(theirs)
        shows = (scored.truths.lengths() > 0)[order[np.searchsorted(theirs[order], ours)]]
        figure = draw_gap(precision, correct, positives, made.scores, shows)
        return Figure(figure, "Precision as the threshold falls; GAP is the area below. Right: scores with and without a landmark.")
