"""What a copy of the data set holds: the long tail, the share out of domain, the licences, and what cleaning did."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import numpy as np
import pyarrow.compute as pc  # type: ignore[import-untyped]
from numpy.typing import NDArray
from pydantic import Field

from graftwork import DataError, Dataset, Evaluator, Figure, Report, Split, Table
from graftwork.run import Run
from graftwork_google_landmarks.checks import at_least
from graftwork_google_landmarks.dataset import landmark_data
from graftwork_google_landmarks.figures import draw_sizes
from graftwork_google_landmarks.ids import IdIndex
from graftwork_google_landmarks.samples import LANDMARK_FIELDS, LandmarkSamples, landmark_samples
from graftwork_google_landmarks.solutions import USAGES

__all__ = ["LandmarkStatistics", "class_sizes", "cleaning_quality"]


def class_sizes(landmarks: NDArray[np.int64]) -> dict[str, float]:
    """What there is to say of images a landmark: images, landmarks, mean, median and largest size, the share of landmarks with one image,
    and the share of images in the largest tenth of the landmarks."""
    counts = np.sort(np.unique(landmarks, return_counts=True)[1])[::-1]
    if not len(counts):
        raise DataError("there is no image to count")
    return {
        "images": float(counts.sum()),
        "landmarks": float(len(counts)),
        "mean-size": float(counts.mean()),
        "median-size": float(np.median(counts)),
        "largest-size": float(counts[0]),
        "single-image-share": float((counts == 1).mean()),
        "head-share": float(counts[: -(-len(counts) // 10)].sum() / counts.sum()),
    }


def cleaning_quality(noisy: LandmarkSamples, clean: LandmarkSamples, random_draws: int = 200) -> dict[str, float]:
    """How well a clean set tells right images from wrong ones, where the truth is known.

    Args:
        noisy: the split before, with `true_landmark_id`.
        clean: the split after.
        random_draws: random subsets of each landmark, of the clean set's sizes, that it is held against.

    Returns:
        kept-correct and kept-wrong: shares of the right and of the wrong images that stay; dropped-wrong; purity: right images among
        those that stay; kept-landmarks. random-purity: the purity of keeping as many images of each landmark at random, so that a
        clean set that has only lost small landmarks does no better. kept-correct-of-kept-landmarks: the share of right images that
        stay, of landmarks that stay.
    """
    stated, true = noisy.numbers["landmark_id"], noisy.numbers["true_landmark_id"]
    right = stated == true
    kept = np.zeros(len(noisy), bool)
    kept[IdIndex(noisy.ids, "the noisy split").require(clean.ids, "the clean split")] = True
    landmarks, label = np.unique(stated, return_inverse=True)
    sizes, stays = np.bincount(label), np.bincount(label[kept], minlength=len(landmarks))
    correct = np.bincount(label[right], minlength=len(landmarks))
    alive = (stays > 0)[label]
    found = {
        "kept-correct": float(kept[right].mean()),
        "kept-correct-of-kept-landmarks": float(kept[right & alive].mean()) if (right & alive).any() else 0.0,
        "purity": float(right[kept].mean()),
        "random-purity": float((stays * correct / sizes).sum() / stays.sum()),
        "kept-landmarks": float((stays > 0).mean()),
    }
    if (~right).any():
        found |= {"kept-wrong": float(kept[~right].mean()), "dropped-wrong": float(1 - kept[~right].mean())}
    return found


class LandmarkStatistics(Evaluator):
    """Images a landmark, the share of test images without a landmark, licences, supercategories; and what a clean set keeps.

    No model is looked at. Where train has `true_landmark_id`, as photo-landmarks has, the clean set is held against it.

    Args:
        train: the split that is counted.
        clean: a cleaned split, counted beside it; none leaves it out.
        top: rows of the tables.

    Raises:
        ValueError: if a parameter is out of range.
    """

    def __init__(self, train: Split = "train", clean: Split | None = None, top: Annotated[int, Field(ge=1)] = 15):
        at_least(1, top=top)
        self.train, self.clean, self.top = train, clean, top

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics as `class_sizes` gives them, those of the clean split as clean/..., out-of-domain-share, and `cleaning_quality`.

        Raises:
            DataError: if a split has no landmarks.
        """
        noisy = self._split(data, self.train)
        metrics = class_sizes(self._landmarks(noisy))
        counted = {self.train: np.unique(self._landmarks(noisy), return_counts=True)[1]}
        if self.clean is not None:
            clean = self._split(data, self.clean)
            metrics |= {f"clean/{name}": value for name, value in class_sizes(self._landmarks(clean)).items()}
            counted[self.clean] = np.unique(self._landmarks(clean), return_counts=True)[1]
            if "true_landmark_id" in noisy.numbers:
                metrics |= {f"clean/{name}": value for name, value in cleaning_quality(noisy, clean).items()}
        behind = landmark_data(data)
        if behind is not None and behind.recognition is not None:
            scored = behind.recognition.usage != USAGES.index("Ignored")
            metrics["out-of-domain-share"] = float((behind.recognition.truths.lengths()[scored] == 0).mean())
        tables = {"sizes": self._sizes(noisy), **self._described(noisy)}
        if (licences := self._licences(noisy)) is not None:
            tables["licences"] = licences
        figure = Figure(draw_sizes(counted), "Images of each landmark, largest first; the legend counts images and landmarks.")
        return Report(metrics, tables, {"sizes": figure})

    def _split(self, data: Dataset, split: str) -> LandmarkSamples:
        return landmark_samples(data[split], split, "landmark-statistics")

    @staticmethod
    def _landmarks(samples: LandmarkSamples) -> NDArray[np.int64]:
        if samples.landmark_key is None:
            raise DataError("landmark-statistics counts images of landmarks; the split has no landmark ids")
        return samples.numbers[samples.landmark_key]

    def _sizes(self, samples: LandmarkSamples) -> Table:
        landmarks, counts = np.unique(self._landmarks(samples), return_counts=True)
        order = np.argsort(-counts, kind="stable")[: self.top]
        titles = samples.fields.column("category", landmarks[order]) if samples.fields is not None else [""] * len(order)
        rows = [
            [int(landmark), title.rpartition("Category:")[2], int(count)]
            for landmark, title, count in zip(landmarks[order], titles, counts[order], strict=True)
        ]
        return Table(["landmark_id", "category", "images"], rows, "The largest landmarks.")

    def _described(self, samples: LandmarkSamples) -> dict[str, Table]:
        """Images and landmarks of each supercategory, and of natural and human-made ones."""
        if samples.fields is None:
            return {}
        landmarks, counts = np.unique(self._landmarks(samples), return_counts=True)
        found = {}
        for name in LANDMARK_FIELDS[1:]:
            images: Counter[str] = Counter()
            for text, count in zip(samples.fields.column(name, landmarks), counts.tolist(), strict=True):
                images[text or "not known"] += count
            of = Counter(text or "not known" for text in samples.fields.column(name, landmarks))
            rows = [[text, of[text], count] for text, count in images.most_common(self.top)]
            if set(images) != {"not known"}:
                found[name] = Table([name, "landmarks", "images"], rows)
        return found

    def _licences(self, samples: LandmarkSamples) -> Table | None:
        if samples.attribution is None or "license" not in samples.attribution.fields:
            return None if not samples.licence else Table(["licence", "images"], [[samples.licence, len(samples)]])
        counted = pc.value_counts(samples.attribution.column("license").combine_chunks())
        rows = sorted(((one["values"] or "not stated", one["counts"]) for one in counted.to_pylist()), key=lambda row: (-row[1], row[0]))
        return Table(["licence", "images"], [list(row) for row in rows[: self.top]], "Each image's own, as its attribution states it.")
