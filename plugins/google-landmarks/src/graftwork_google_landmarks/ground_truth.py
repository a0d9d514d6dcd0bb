"""Where an evaluator finds the right answers, and what it does with a score for each usage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from graftwork import DataError, InterfaceError
from graftwork_google_landmarks.dataset import landmark_data
from graftwork_google_landmarks.local_features import FeatureStore
from graftwork_google_landmarks.matching import Verification, verify_pairs
from graftwork_google_landmarks.samples import LandmarkSamples
from graftwork_google_landmarks.solutions import USAGES, Solution, Usage, read_recognition_solution, read_retrieval_solution

__all__ = ["by_usage", "inliers_of", "need_model", "placed", "solution_of"]


def solution_of(data: object, task: Literal["recognition", "retrieval"], path: str | None) -> Solution:
    """A solution: the file that is named, or that of the data set.

    Raises:
        DataError: if there is none.
    """
    if path is not None:
        read = read_recognition_solution if task == "recognition" else read_retrieval_solution
        return read(Path(path).expanduser())
    behind = landmark_data(data)
    found = getattr(behind, task) if behind is not None else None
    if found is None:
        raise DataError(f"there is no {task} solution: the data set has none; give its file as `solution`")
    return found  # type: ignore[no-any-return]


def by_usage(solution: Solution, measure: Callable[[Solution], Mapping[str, float]]) -> dict[str, float]:
    """What is measured on the scored queries together, and as "public/..." and "private/..." where there are such.

    Args:
        solution: all of it.
        measure: a part of the solution -> metrics; where a part cannot be scored, it raises DataError.

    Raises:
        DataError: if the queries together cannot be scored.
    """
    found = dict(measure(solution.part(["Public", "Private"])))
    usages: tuple[Usage, ...] = ("Public", "Private")
    for usage in usages:
        part = solution.part([usage])
        scorable = (part.truths.lengths() > 0).any() and len(part) < int((solution.usage != USAGES.index("Ignored")).sum())
        if scorable:
            found |= {f"{usage.lower()}/{name}": value for name, value in measure(part).items()}
    return found


def placed(settings: Verification, data: object) -> Verification:
    """The settings with the data set's own folder of local features, where they name none and it has one."""
    behind = landmark_data(data)
    if settings.folder is not None or behind is None or behind.feature_folder is None:
        return settings
    return replace(settings, folder=str(behind.feature_folder))


def need_model(model: object, user: str) -> None:
    """Raise InterfaceError where there is neither a model nor a submission."""
    if model is None:
        raise InterfaceError(f"{user} needs a model that embeds, or a file of predictions as `submission`")


def inliers_of(
    queries: LandmarkSamples,
    rows: NDArray[np.int64],
    gallery: LandmarkSamples,
    near: NDArray[np.int64],
    settings: Verification,
    device: torch.device,
) -> NDArray[np.int64]:
    """Inliers of each query with each of its neighbours, (Q, k).

    Args:
        queries: their split.
        rows: (Q,) positions of the queries in it.
        gallery: the other split.
        near: (Q, k) positions in it.
        settings: of the verification.
        device: where pairs are matched.
    """
    ours, theirs = (FeatureStore(settings.features, samples.picture, settings.folder) for samples in (queries, gallery))
    left, right = queries.ids[rows].astype(str), gallery.ids.astype(str)
    pairs = [(query, right[at]) for query, found in zip(left.tolist(), near, strict=True) for at in found.tolist()]
    return np.asarray(verify_pairs(pairs, ours, theirs, settings, device).numpy().reshape(near.shape))
