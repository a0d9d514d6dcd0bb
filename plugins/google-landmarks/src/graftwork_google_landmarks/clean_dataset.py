"""The wrapper that cleans a noisy train split, by nearest neighbours and geometric verification."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from graftwork import DataError, Dataset, DatasetInfo, Samples, Split
from graftwork.interfaces import device_of
from graftwork_google_landmarks.checks import at_least
from graftwork_google_landmarks.clean_set import CandidatePairs, CleanSet, same_landmark_neighbours, select_clean
from graftwork_google_landmarks.dataset import LandmarkClasses
from graftwork_google_landmarks.descriptors import embed_samples
from graftwork_google_landmarks.ground_truth import placed
from graftwork_google_landmarks.labels import relabel
from graftwork_google_landmarks.local_features import FeatureStore, Provider
from graftwork_google_landmarks.matching import AS_PUBLISHED, Verification, verify_pairs
from graftwork_google_landmarks.samples import LandmarkSamples, landmark_samples
from graftwork_google_landmarks.search import Precision
from graftwork_google_landmarks.tables import write_clean

__all__ = ["LandmarkCleanSet", "build_clean_set"]

Count = Annotated[int, Field(ge=1)]


def build_clean_set(
    samples: LandmarkSamples,
    descriptors: Tensor,
    settings: Verification = AS_PUBLISHED,
    k: int = 1000,
    same_label_cap: int = 100,
    min_inliers: int = 30,
    frequency: int = 3,
    min_images: int = 2,
    provider: Provider | None = None,
    precision: Precision = "float32",
    device: torch.device | str = "cpu",
) -> tuple[CleanSet, CandidatePairs, Tensor]:
    """Clean a train split (Yokoo et al., 2020).

    Args:
        samples: the split.
        descriptors: (N, D) of its images; they are brought to unit length.
        settings: of the verification.
        k: nearest neighbours searched.
        same_label_cap: neighbours of the same landmark, the image itself among them.
        min_inliers: of a verified pair.
        frequency: verified neighbours of an image that is kept.
        min_images: kept images of a landmark that is kept.
        provider: local features of an image by any function, such as DELF, instead of those that the settings name.
        precision: of the search.
        device: where neighbours are searched and pairs verified.

    Returns:
        What is kept; the pairs that were verified; their inliers. The last two go into `clean_set.select_clean` again with other
        thresholds.
    """
    landmarks = torch.from_numpy(samples.numbers["landmark_id"])
    pairs = same_landmark_neighbours(normalize(descriptors.float(), dim=1).to(device), landmarks, k, same_label_cap, precision)
    order = torch.argsort(landmarks[pairs.query], stable=True)  # a landmark at a time, so that few features are held
    names = samples.ids.astype(str)
    store = FeatureStore(provider or settings.features, samples.picture, settings.folder)
    inliers = torch.empty(len(order), dtype=torch.long)
    listed = list(zip(names[pairs.query[order].numpy()].tolist(), names[pairs.neighbour[order].numpy()].tolist(), strict=True))
    inliers[order] = verify_pairs(listed, store, store, settings, device)
    return select_clean(landmarks, pairs, inliers, min_inliers, frequency, min_images), pairs, inliers


class LandmarkCleanSet(Dataset):
    """A data set with `train_clean`: the train images that enough images of their landmark agree with (Yokoo et al., 2020).

    Each image's nearest neighbours under its landmark are matched by local features, and the pair is verified if one affine map
    explains enough matches. An image with enough verified neighbours is kept, and a landmark with enough kept images. The other
    splits stay as they are.

    Args:
        data: google-landmarks-v2 or photo-landmarks, or a wrapper over one.
        model: gives the descriptors that neighbours are found by; the authors' was trained on the first Google Landmarks data set.
        split: what is cleaned.
        k: nearest neighbours that are looked through for the same landmark.
        same_label_cap: of these, how many are verified, the image itself counted.
        verification: features, distance, residual, trials, seed and folder of the verification of a pair; see `matching.Verification`.
        min_inliers: inliers of a verified pair.
        frequency: verified neighbours of an image that is kept; the authors' code takes 3, their paper is said to take 2.
        min_images: kept images of a landmark that is kept.
        classes: "train" leaves labels as they are; "train_clean" numbers the kept landmarks anew, and leaves images of others out of
            every split that has labels.
        write: file to write the clean set to, in the format of `train_clean.csv`.
        batch_size: images embedded at once.
        precision: of the search for neighbours.

    Attributes:
        clean: positions of the kept images in `split`, and each image's number of verified neighbours.
        pairs: the pairs of images that were verified.
        inliers: of each pair.

    Raises:
        ValueError: if a parameter is out of range.
        DataError: if the split has no landmark ids, or nothing is left.
    """

    def __init__(
        self,
        data: Dataset,
        model: nn.Module,
        split: Split = "train",
        k: Count = 1000,
        same_label_cap: Count = 100,
        verification: Verification = AS_PUBLISHED,
        min_inliers: Annotated[int, Field(ge=3)] = 30,
        frequency: Count = 3,
        min_images: Count = 2,
        classes: LandmarkClasses = "train",
        write: str | None = None,
        batch_size: Count = 64,
        precision: Precision = "float32",
    ):
        at_least(1, k=k, same_label_cap=same_label_cap, frequency=frequency, min_images=min_images, batch_size=batch_size)
        at_least(3, min_inliers=min_inliers)
        samples = landmark_samples(data[split], split, "landmark-clean-set")
        if samples.landmark_key != "landmark_id":
            raise DataError(f'landmark-clean-set cleans by the landmark ids of train; split "{split}" has {samples.landmark_key or "none"}')
        self.data = data
        descriptors = embed_samples(model, samples, None, data.collate, batch_size)
        self.clean, self.pairs, self.inliers = build_clean_set(
            samples,
            descriptors,
            placed(verification, data),
            k,
            same_label_cap,
            min_inliers,
            frequency,
            min_images,
            precision=precision,
            device=device_of(model),
        )
        if not len(self.clean.kept):
            best = int(self.inliers.max()) if len(self.inliers) else 0
            raise DataError(
                f"landmark-clean-set keeps none of {len(samples)} images: the best pair has {best} inliers, min_inliers is {min_inliers}, "
                f"frequency {frequency}"
            )
        kept = samples.select(self.clean.kept)
        if write:
            write_clean(Path(write).expanduser(), kept.numbers["landmark_id"], kept.ids)
        super().__init__(*_renumbered(data, kept, classes), data.collate)

    def batch_sampler(self, split: str, batch_size: int, generator: torch.Generator) -> Any:
        """The inner dataset's, where a split's indices are as they were."""
        return self.data.batch_sampler(split, batch_size, generator) if split in self.data and self[split] is self.data[split] else None


def _renumbered(data: Dataset, kept: LandmarkSamples, classes: str) -> tuple[dict[str, Samples], DatasetInfo]:
    """The splits and their info, with the labels that are asked for."""
    splits: dict[str, Any] = {**data, "train_clean": kept}
    if classes == "train":
        return splits, data.info
    numbering = relabel(kept.numbers["landmark_id"])
    old = np.full(len(numbering.landmarks), -1, np.int64)
    old[numbering.labels(kept.numbers["landmark_id"])] = kept.numbers["label"]
    for name, samples in splits.items():
        if isinstance(samples, LandmarkSamples) and "label" in samples.numbers:
            labels = numbering.find(samples.numbers["landmark_id"])
            rows = np.flatnonzero(labels >= 0)
            splits[name] = samples.select(rows).with_numbers(label=labels[rows])
    names = tuple(data.info.classes[label] for label in old.tolist()) if data.info.classes else ()
    return splits, DatasetInfo(names, data.info.channels, data.info.size, data.info.domains, 0, data.info.description)
