"""What the core itself registers. Light: the parts are imported when they are first used."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork.component import Component, Paper
from graftwork.hookspecs import hookimpl

__all__ = ["graftwork_datasets", "graftwork_evaluators", "graftwork_models", "graftwork_objectives"]

HERE = "graftwork.builtin"
BALANCED = Paper("Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", arxiv="1904.06627", year=2019, venue="CVPR")
BOXES = Paper("Microsoft COCO: Common Objects in Context", arxiv="1405.0312", year=2014, venue="ECCV")
CLIP = Paper("Learning Transferable Visual Models From Natural Language Supervision", arxiv="2103.00020", year=2021, venue="ICML")
DISTILLATION = Paper("Distilling the Knowledge in a Neural Network", arxiv="1503.02531", year=2015)
LANGUAGE = Paper("A Neural Probabilistic Language Model", year=2003, venue="JMLR", url="https://www.jmlr.org/papers/v3/bengio03a.html")
NEIGHBOURS = Paper("Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arxiv="1805.01978", year=2018, venue="CVPR")
PIXELS = Paper("Fully Convolutional Networks for Semantic Segmentation", arxiv="1411.4038", year=2015, venue="CVPR")
PREFERENCES = Paper("Training language models to follow instructions with human feedback", arxiv="2203.02155", year=2022, venue="NeurIPS")
RETRIEVAL = Paper("A Metric Learning Reality Check", arxiv="2003.08505", year=2020, venue="ECCV")
SMOOTHING = Paper("Rethinking the Inception Architecture for Computer Vision", arxiv="1512.00567", year=2016, venue="CVPR")
TEACHER = {"teacher": {"use": "small-cnn"}}
FOLDER = {"data": {"use": "image-folder", "root": "images"}}
LOADERS = (
    ("diffusers-pipeline", "hub:diffusers_pipeline", "A pipeline", "stabilityai/stable-diffusion-xl-base-1.0"),
    ("transformers-causal-lm", "language_models:TransformersCausalLM", "A causal language model", "openai-community/gpt2"),
    ("transformers-dual-encoder", "dual_encoder:TransformersDualEncoder", "CLIP or SigLIP", "openai/clip-vit-large-patch14"),
    (
        "transformers-image-classifier",
        "transformers_models:TransformersImageClassifier",
        "An image classifier",
        "google/vit-base-patch16-224",
    ),
    (
        "transformers-reward",
        "sequence_classifiers:TransformersReward",
        "A reward model of text",
        "Skywork/Skywork-Reward-V2-Qwen3-0.6B",
    ),
    (
        "transformers-segmenter",
        "segmenters:TransformersSegmenter",
        "A semantic segmentation model",
        "nvidia/segformer-b0-finetuned-ade-512-512",
    ),
    (
        "transformers-text-classifier",
        "sequence_classifiers:TransformersTextClassifier",
        "A text classifier",
        "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
    ),
    (
        "transformers-text-encoder",
        "transformers_models:TransformersTextEncoder",
        "A sentence encoder",
        "sentence-transformers/all-MiniLM-L6-v2",
    ),
)
"""Models by Hugging Face id or folder: name, target, what it is, and an id as an example."""


@hookimpl
def graftwork_objectives() -> Iterator[Component]:
    """Cross-entropy of classes, pixels and tokens; regression, distillation, contrast, preference."""
    tokens, pixels = f"{HERE}.language_objectives:CausalLanguageModelling", f"{HERE}.segmentation:SegmentationCrossEntropy"
    yield Component("cross-entropy", f"{HERE}.objectives:CrossEntropy", "Classify, with optional label smoothing", SMOOTHING)
    yield Component("mse", f"{HERE}.objectives:MeanSquaredError", "Regress a target by least squares")
    yield Component("distillation", f"{HERE}.objectives:Distillation", "Match a frozen teacher's soft labels", DISTILLATION, TEACHER)
    yield Component("info-nce", f"{HERE}.objectives:InfoNCE", "Align images and texts symmetrically, as CLIP does", CLIP)
    yield Component("causal-language-modelling", tokens, "Predict the next token, of whole texts or of completions", LANGUAGE)
    yield Component("pairwise-preference", f"{HERE}.preferences:PairwisePreference", "Score what is preferred higher", PREFERENCES)
    yield Component("segmentation-cross-entropy", pixels, "Classify pixels, with optional Dice loss", PIXELS)


@hookimpl
def graftwork_models() -> Iterator[Component]:
    """Two small networks; models of transformers and diffusers by Hugging Face id or folder, or untrained."""
    yield Component("mlp", f"{HERE}.networks:MLP", "Fully connected layers over features or flat images", example={"in_features": 8})
    yield Component("small-cnn", f"{HERE}.networks:SmallCNN", "A few convolutions for small images, quick on a CPU")
    fresh = f"{HERE}.from_config:transformers_from_config"
    yield Component(
        "transformers-from-config",
        fresh,
        "An untrained model of a transformers class",
        example={"architecture": "ResNetForImageClassification"},
    )
    for name, target, what, example in LOADERS:
        paper = CLIP if name == "transformers-dual-encoder" else None
        yield Component(name, f"{HERE}.{target}", f"{what} from the Hub or a folder", paper, {"name": example})


@hookimpl
def graftwork_datasets() -> Iterator[Component]:
    """Loaders of data, and wrappers over data."""
    rows, mnist = f"{HERE}.datasets:HuggingFaceDataset", {"name": "ylecun/mnist"}
    yield Component("image-folder", f"{HERE}.datasets:ImageFolder", "Images in one folder a class", example={"root": "images"})
    yield Component("huggingface-dataset", rows, "A dataset from the Hub or a folder", example=mnist)
    yield Component("few-shot-subset", f"{HERE}.wrappers:FewShotSubset", "A few training samples of each class", example=FOLDER)
    joined = {"data": FOLDER["data"], "splits": {"all": ["train"]}}
    yield Component("joined-splits", f"{HERE}.wrappers:JoinedSplits", "Several splits of a dataset as one more", example=joined)
    yield Component("class-balanced-batches", f"{HERE}.wrappers:ClassBalancedBatches", "Batches of P classes x K", BALANCED, FOLDER)


@hookimpl
def graftwork_evaluators() -> Iterator[Component]:
    """Accuracy and errors, of classes, pixels, boxes and tokens; what frozen features are good for."""
    text, pairs = f"{HERE}.language_evaluators:Perplexity", f"{HERE}.image_text"
    yield Component("accuracy", f"{HERE}.evaluators:Accuracy", "Accuracy, a class at a time, and the confusion matrix")
    yield Component("regression-error", f"{HERE}.evaluators:RegressionError", "Mean errors and R2 of a regression")
    yield Component("retrieval", f"{HERE}.evaluators:Retrieval", "Recall@K and mean average precision of embeddings", RETRIEVAL)
    yield Component("linear-probe", f"{HERE}.evaluators:LinearProbe", "Logistic regression on frozen features", CLIP)
    yield Component("knn-probe", f"{HERE}.evaluators:KNNProbe", "Nearest neighbours among frozen features", NEIGHBOURS)
    yield Component("perplexity", text, "Perplexity of a language model, beside a bigram model's", LANGUAGE)
    yield Component("image-text-retrieval", f"{pairs}:ImageTextRetrieval", "Recall@K between images and captions, both ways", CLIP)
    yield Component("zero-shot-classification", f"{pairs}:ZeroShotClassification", "Accuracy of classes that are described", CLIP)
    yield Component("mean-iou", f"{HERE}.segmentation:MeanIoU", "Intersection over union of each class of pixels", PIXELS)
    yield Component("detection-map", f"{HERE}.detection:DetectionMAP", "COCO's mean average precision of boxes", BOXES)
    yield Component("reward-score", f"{HERE}.preferences:RewardScore", "Mean and quantiles of a reward over texts")
