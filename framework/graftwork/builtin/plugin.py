"""What the core itself registers. Light: the parts are imported when they are first used."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork.component import Component, Paper
from graftwork.hookspecs import hookimpl

__all__ = ["graftwork_datasets", "graftwork_evaluators", "graftwork_models", "graftwork_objectives"]

HERE = "graftwork.builtin"
BALANCED = Paper("Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", arxiv="1904.06627", year=2019, venue="CVPR")
CLIP = Paper("Learning Transferable Visual Models From Natural Language Supervision", arxiv="2103.00020", year=2021, venue="ICML")
DISTILLATION = Paper("Distilling the Knowledge in a Neural Network", arxiv="1503.02531", year=2015)
NEIGHBOURS = Paper("Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arxiv="1805.01978", year=2018, venue="CVPR")
RETRIEVAL = Paper("A Metric Learning Reality Check", arxiv="2003.08505", year=2020, venue="ECCV")
SMOOTHING = Paper("Rethinking the Inception Architecture for Computer Vision", arxiv="1512.00567", year=2016, venue="CVPR")
TEACHER = {"teacher": {"use": "small-cnn"}}
FOLDER = {"data": {"use": "image-folder", "root": "images"}}


@hookimpl
def graftwork_objectives() -> Iterator[Component]:
    """Cross-entropy, regression, distillation, contrast."""
    yield Component("cross-entropy", f"{HERE}.objectives:CrossEntropy", "Classify, with optional label smoothing", SMOOTHING)
    yield Component("mse", f"{HERE}.objectives:MeanSquaredError", "Regress a target by least squares")
    yield Component("distillation", f"{HERE}.objectives:Distillation", "Match a frozen teacher's soft labels", DISTILLATION, TEACHER)
    yield Component("info-nce", f"{HERE}.objectives:InfoNCE", "Align images and texts symmetrically, as CLIP does", CLIP)


@hookimpl
def graftwork_models() -> Iterator[Component]:
    """Two small networks; classifiers, text encoders and pipelines by Hugging Face id or folder."""
    vit, sentences, stable = (
        "google/vit-base-patch16-224",
        "sentence-transformers/all-MiniLM-L6-v2",
        "stabilityai/stable-diffusion-xl-base-1.0",
    )
    image, text = f"{HERE}.transformers_models:TransformersImageClassifier", f"{HERE}.transformers_models:TransformersTextEncoder"
    yield Component("mlp", f"{HERE}.networks:MLP", "Fully connected layers over features or flat images", example={"in_features": 8})
    yield Component("small-cnn", f"{HERE}.networks:SmallCNN", "A few convolutions for small images, quick on a CPU")
    yield Component("transformers-image-classifier", image, "An image classifier from the Hub or a folder", example={"name": vit})
    yield Component("transformers-text-encoder", text, "A sentence encoder from the Hub or a folder", example={"name": sentences})
    yield Component("diffusers-pipeline", f"{HERE}.hub:diffusers_pipeline", "A pipeline from the Hub or a folder", example={"name": stable})


@hookimpl
def graftwork_datasets() -> Iterator[Component]:
    """Loaders of data, and wrappers over data."""
    rows, mnist = f"{HERE}.datasets:HuggingFaceDataset", {"name": "ylecun/mnist"}
    yield Component("image-folder", f"{HERE}.datasets:ImageFolder", "Images in one folder a class", example={"root": "images"})
    yield Component("huggingface-dataset", rows, "A dataset from the Hub or a folder", example=mnist)
    yield Component("few-shot-subset", f"{HERE}.wrappers:FewShotSubset", "A few training samples of each class", example=FOLDER)
    yield Component("class-balanced-batches", f"{HERE}.wrappers:ClassBalancedBatches", "Batches of P classes x K", BALANCED, FOLDER)


@hookimpl
def graftwork_evaluators() -> Iterator[Component]:
    """Accuracy, regression error, and what frozen features are good for."""
    yield Component("accuracy", f"{HERE}.evaluators:Accuracy", "Accuracy, a class at a time, and the confusion matrix")
    yield Component("regression-error", f"{HERE}.evaluators:RegressionError", "Mean errors and R2 of a regression")
    yield Component("retrieval", f"{HERE}.evaluators:Retrieval", "Recall@K and mean average precision of embeddings", RETRIEVAL)
    yield Component("linear-probe", f"{HERE}.evaluators:LinearProbe", "Logistic regression on frozen features", CLIP)
    yield Component("knn-probe", f"{HERE}.evaluators:KNNProbe", "Nearest neighbours among frozen features", NEIGHBOURS)
