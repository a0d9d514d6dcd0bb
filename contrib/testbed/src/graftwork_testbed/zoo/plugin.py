"""What the zoo registers: its networks, and what trains and measures them. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from graftwork import Component, Paper, hookimpl

__all__ = ["graftwork_datasets", "graftwork_evaluators", "graftwork_models", "graftwork_objectives"]

HERE = "graftwork_testbed.zoo"
CLIP = Paper("Learning Transferable Visual Models From Natural Language Supervision", arxiv="2103.00020", year=2021, venue="ICML")
DIFFUSION = Paper("Denoising Diffusion Probabilistic Models", arxiv="2006.11239", year=2020, venue="NeurIPS")
FLOW = Paper("Flow Matching for Generative Modeling", arxiv="2210.02747", year=2023, venue="ICLR")
RECTIFIED = Paper("Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", arxiv="2403.03206", year=2024, venue="ICML")
CENTRES = Paper("Objects as Points", arxiv="1904.07850", year=2019)
LATENT = Paper("High-Resolution Image Synthesis with Latent Diffusion Models", arxiv="2112.10752", year=2022, venue="CVPR")


AUTOENCODER = {"autoencoder": {"use": "autoencoder-kl"}}
SCENES = {"data": {"use": "digit-scenes"}}
CHECKED = {"digits": {"use": "zoo/scene-resnet"}, "colours": {"use": "zoo/scene-colour"}}
NETWORKS = (
    ("scene-autoencoder", "scene_autoencoder", "Scenes to latents of 8x8 and back, an AutoencoderKL", LATENT),
    ("scene-diffusion", "scene_diffusion", "Captions to scenes, a StableDiffusionPipeline at 64x64", LATENT),
    ("scene-flow", "scene_flow", "Captions to scenes by flow matching, a FluxPipeline at 64x64", RECTIFIED),
    ("scene-clip", "scene_clip", "Scenes and captions in one space, a CLIPModel", CLIP),
    ("scene-resnet", "scene_resnet", "Which digit a scene shows, a ResNet", None),
    ("scene-vit", "scene_vit", "Which digit a scene shows, a vision transformer", None),
    ("scene-colour", "scene_colour", "Which colour a scene's digit has, a ResNet", None),
    ("digit-source", "digit_source", "Ten small classifiers of digits that differ in domain, architecture and seed", None),
    ("tiny-lm", "tiny_lm", "A GPT-2 of a million parameters, on help texts and a grammar", None),
    ("sentiment-reward", "sentiment_reward", "Scores how positive a text is", None),
    ("formality-reward", "formality_reward", "Scores how formal a text is", None),
    ("scene-segmenter", "scene_segmenter", "A SegFormer of scenes", None),
    ("scene-detector", "scene_detector", "An anchor-free detector of the digits of scenes", None),
)
"""Trained networks: name, function of `zoo.networks`, summary, paper."""


@hookimpl
def graftwork_datasets() -> Iterator[Component]:
    """Wrappers that the recipes need."""
    encoded = {**SCENES, **AUTOENCODER}
    yield Component("encoded-latents", f"{HERE}.latents:EncodedLatents", "Images encoded once by an autoencoder", LATENT, encoded)
    yield Component("text-corpus", f"{HERE}.language:text_corpus", "Help texts, docstrings and sentences of a grammar in one corpus")


@hookimpl
def graftwork_models() -> Iterator[Component]:
    """Untrained networks for the recipes, and the trained ones."""
    yield Component("autoencoder-kl", f"{HERE}.autoencoder:autoencoder_kl", "An untrained variational autoencoder of images", LATENT)
    yield Component("stable-diffusion", f"{HERE}.diffusion:stable_diffusion", "An untrained Stable Diffusion pipeline", LATENT, AUTOENCODER)
    yield Component("flux", f"{HERE}.flow:flux", "An untrained Flux pipeline", RECTIFIED, AUTOENCODER)
    yield Component("caption-clip", f"{HERE}.clip:caption_clip", "An untrained CLIP of scenes and captions", CLIP)
    boxes, trained = f"{HERE}.detector", {"name": "detector"}
    yield Component("anchor-free-detector-from-config", f"{boxes}:anchor_free_detector", "An untrained detector of boxes", CENTRES)
    yield Component(
        "anchor-free-detector", f"{boxes}:load_anchor_free_detector", "A detector of boxes from the Hub or a folder", CENTRES, trained
    )
    example = {"architecture": "GPT2LMHeadModel", "config": {"n_embd": 32, "n_layer": 1, "n_head": 2}}
    yield Component("text-network", f"{HERE}.language:text_network", "An untrained network that reads text", None, example)
    for name, function, summary, paper in NETWORKS:
        yield Component(name, f"{HERE}.networks:{function}", summary, paper)


@hookimpl
def graftwork_objectives() -> Iterator[Component]:
    """What trains the zoo."""
    yield Component("autoencoding", f"{HERE}.autoencoder:Autoencoding", "Rebuild images from latents, with a weighted KL", LATENT)
    yield Component("denoising", f"{HERE}.diffusion:Denoising", "Predict the noise in captioned latents", DIFFUSION)
    yield Component("flow-matching", f"{HERE}.flow:FlowMatching", "Predict the velocity from captioned latents to noise", FLOW)
    centres = f"{HERE}.detection_objective:AnchorFreeDetection"
    yield Component("anchor-free-detection", centres, "A heat map of centres by focal loss, boxes by generalised IoU", CENTRES)


@hookimpl
def graftwork_evaluators() -> Iterator[Component]:
    """What measures the zoo."""
    yield Component("reconstruction", f"{HERE}.autoencoder:Reconstruction", "PSNR and error of an autoencoder, and pairs of pictures")
    yield Component("scene-check", f"{HERE}.scene_check:SceneCheck", "Does a pipeline draw the digit and colour asked for", None, CHECKED)
