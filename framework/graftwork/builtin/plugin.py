"""What the core itself registers. Light: the parts are imported when they are first used."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork.component import Component, Paper
from graftwork.hookspecs import hookimpl

__all__ = ["graftwork_datasets", "graftwork_evaluators", "graftwork_models", "graftwork_objectives"]

HERE = "graftwork.builtin"
SMOOTHING = Paper("Rethinking the Inception Architecture for Computer Vision", arxiv="1512.00567", year=2016, venue="CVPR")
DISTILLATION = Paper("Distilling the Knowledge in a Neural Network", arxiv="1503.02531", year=2015)
CLIP = Paper("Learning Transferable Visual Models From Natural Language Supervision", arxiv="2103.00020", year=2021, venue="ICML")
DISCRIMINATION = Paper(
    "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arxiv="1805.01978", year=2018, venue="CVPR"
)
REALITY_CHECK = Paper("A Metric Learning Reality Check", arxiv="2003.08505", year=2020, venue="ECCV")
MULTI_SIMILARITY = Paper(
    "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", arxiv="1904.06627", year=2019, venue="CVPR"
)


@hookimpl
def graftwork_objectives() -> Iterator[Component]:
    """Cross-entropy, regression, distillation, contrast."""
    yield Component("cross-entropy", f"{HERE}.objectives:CrossEntropy", "Classify, with optional label smoothing", SMOOTHING)
    yield Component("mse", f"{HERE}.objectives:MeanSquaredError", "Regress a target by least squares")
    yield Component(
        "distillation",
        f"{HERE}.objectives:Distillation",
        "Match a frozen teacher's softened class probabilities",
        DISTILLATION,
        example={"teacher": {"use": "small-cnn"}},
    )
    yield Component("info-nce", f"{HERE}.objectives:InfoNCE", "Align images and texts symmetrically, as CLIP does", CLIP)


@hookimpl
def graftwork_models() -> Iterator[Component]:
    """Two small networks; classifiers, text encoders and pipelines by Hugging Face id or folder."""
    yield Component(
        "mlp", f"{HERE}.networks:MLP", "Fully connected layers over tabular features or flat images", example={"in_features": 8}
    )
    yield Component("small-cnn", f"{HERE}.networks:SmallCNN", "A few convolutions for small images, quick on a CPU")
    yield Component(
        "transformers-image-classifier",
        f"{HERE}.transformers_models:TransformersImageClassifier",
        "An image classifier from the Hugging Face Hub or a folder",
        example={"name": "microsoft/resnet-50"},
    )
    yield Component(
        "transformers-text-encoder",
        f"{HERE}.transformers_models:TransformersTextEncoder",
        "A sentence encoder from the Hugging Face Hub or a folder",
        example={"name": "sentence-transformers/all-MiniLM-L6-v2"},
    )
    yield Component(
        "diffusers-pipeline",
        f"{HERE}.hub:diffusers_pipeline",
        "A diffusion pipeline from the Hugging Face Hub or a folder",
        example={"name": "stable-diffusion-v1-5/stable-diffusion-v1-5"},
    )


@hookimpl
def graftwork_datasets() -> Iterator[Component]:
    """Loaders of data and wrappers over it."""
    yield Component("image-folder", f"{HERE}.images:ImageFolder", "Images in one folder a class", example={"root": "images"})
    yield Component(
        "huggingface-dataset",
        f"{HERE}.hub:HuggingFaceDataset",
        "A dataset from the Hugging Face Hub or a folder",
        example={"name": "ylecun/mnist"},
    )
    yield Component(
        "few-shot-subset", f"{HERE}.wrappers:FewShotSubset", "Keep a few training samples of each class", example={"data": "image-folder"}
    )
    yield Component(
        "class-balanced-batches",
        f"{HERE}.wrappers:ClassBalancedBatches",
        "Train on batches of P classes with K samples each",
        MULTI_SIMILARITY,
        example={"data": "image-folder"},
    )


@hookimpl
def graftwork_evaluators() -> Iterator[Component]:
    """Accuracy, regression error, and what frozen features are good for."""
    yield Component("accuracy", f"{HERE}.scores:Accuracy", "Accuracy, a class at a time, and the confusion matrix")
    yield Component("regression-error", f"{HERE}.scores:RegressionError", "Mean errors and R2 of a regression")
    yield Component("retrieval", f"{HERE}.retrieval:Retrieval", "Recall@K and mean average precision of embeddings", REALITY_CHECK)
    yield Component("linear-probe", f"{HERE}.probes:LinearProbe", "Logistic regression on frozen features", CLIP)
    yield Component("knn-probe", f"{HERE}.probes:KNNProbe", "Nearest neighbours among frozen features", DISCRIMINATION)
