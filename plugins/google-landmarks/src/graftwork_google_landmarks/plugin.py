"""What this distribution registers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork import Component, Paper, hookimpl

__all__ = ["graftwork_datasets", "graftwork_evaluators", "graftwork_models", "graftwork_objectives"]

HERE = "graftwork_google_landmarks"
PAPER = Paper(
    "Google Landmarks Dataset v2 - A Large-Scale Benchmark for Instance-Level Recognition and Retrieval",
    arxiv="2004.01804",
    year=2020,
    venue="CVPR",
)
CLEANING = Paper("Two-stage Discriminative Re-ranking for Large-scale Landmark Retrieval", arxiv="2003.11211", year=2020, venue="CVPRW")
DELG = Paper("Unifying Deep Local and Global Features for Image Search", arxiv="2001.05027", year=2020, venue="ECCV")
ARCFACE = Paper("ArcFace: Additive Angular Margin Loss for Deep Face Recognition", arxiv="1801.07698", year=2019, venue="CVPR")
REVISITED = Paper("Revisiting Oxford and Paris: Large-Scale Image Retrieval Benchmarking", arxiv="1803.11285", year=2018, venue="CVPR")


@hookimpl
def graftwork_datasets() -> Iterator[Component]:
    """The data set, a small one in its layout, and the cleaning of either."""
    clean = {"data": {"use": "photo-landmarks"}, "model": {"use": "small-cnn"}, "verification": {"residual": 5}, "min_inliers": 20}
    yield Component(
        "google-landmarks-v2",
        f"{HERE}.dataset:GoogleLandmarksV2",
        "5 million photographs of landmarks, from a folder",
        PAPER,
        {"root": "gldv2"},
    )
    yield Component("photo-landmarks", f"{HERE}.photo_landmarks:PhotoLandmarks", "The same layout, made offline from photographs", PAPER)
    yield Component(
        "landmark-clean-set",
        f"{HERE}.clean_dataset:LandmarkCleanSet",
        "Keep the train images that others of their landmark verify",
        CLEANING,
        clean,
    )


@hookimpl
def graftwork_models() -> Iterator[Component]:
    """The global descriptor."""
    backbone = {"backbone": {"use": "small-cnn"}, "embedding_dim": 128}
    yield Component("landmark-embedding", f"{HERE}.embedding:LandmarkEmbedding", "Backbone, GeM, linear layer, unit length", DELG, backbone)


@hookimpl
def graftwork_objectives() -> Iterator[Component]:
    """Classification with a margin."""
    yield Component(
        "arcface-classification",
        f"{HERE}.objective:ArcFaceClassification",
        "Classify by cosine with a margin: ArcFace, CosFace, AdaCos",
        ARCFACE,
    )


@hookimpl
def graftwork_evaluators() -> Iterator[Component]:
    """The two tasks, transfer to Oxford and Paris, and what the data set holds."""
    files = {"gnd": "gnd_roxford5k.mat", "images": "jpg"}
    yield Component("landmark-retrieval", f"{HERE}.retrieval_evaluator:LandmarkRetrieval", "mAP@100 of ranking the index", PAPER)
    yield Component(
        "landmark-recognition", f"{HERE}.recognition_evaluator:LandmarkRecognition", "GAP of naming landmarks among non-landmarks", PAPER
    )
    yield Component(
        "revisited-retrieval",
        f"{HERE}.revisited_evaluator:RevisitedRetrieval",
        "mAP on ROxford and RParis, by difficulty",
        REVISITED,
        files,
    )
    yield Component(
        "landmark-statistics", f"{HERE}.statistics:LandmarkStatistics", "Long tail, out-of-domain share, licences, cleaning", PAPER
    )
