"""Tiny pipelines of the real classes, and data that they read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import graftwork as gw

STEPS, SIDE, CHANNELS, SAMPLES = 100, 8, 4, 24


def pixels() -> Any:
    """A DDPM of 8 x 8 pixels."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    return DDPMPipeline(UNet2DModel(**unet_settings(1)), DDPMScheduler(STEPS))


def unet_settings(channels: int, **further: Any) -> dict[str, Any]:
    levels = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    return (
        {"sample_size": SIDE, "in_channels": channels, "out_channels": channels, "layers_per_block": 1, "norm_num_groups": 4}
        | levels
        | further
    )


def autoencoder() -> Any:
    from graftwork_testbed.zoo.autoencoder import autoencoder_kl

    coder = autoencoder_kl(CHANNELS, [8, 8], sample_size=2 * SIDE)
    coder.register_to_config(shift_factor=0.0)
    return coder


def classes() -> Any:
    """A DiT that predicts variances too, and drops labels in training."""
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        2, 8, CHANNELS, 2 * CHANNELS, num_layers=1, norm_num_groups=4, sample_size=SIDE, patch_size=2, num_embeds_ada_norm=10
    )
    return DiTPipeline(transformer, autoencoder(), DDIMScheduler(STEPS))


def captions(prediction: str = "epsilon") -> Any:
    """Stable Diffusion, of 1000 timesteps."""
    from graftwork_testbed.zoo.diffusion import stable_diffusion

    return stable_diffusion(
        autoencoder(), [16], attention_heads=2, text_width=16, text_layers=1, sample_size=SIDE, prediction_type=prediction
    )


def flow() -> Any:
    """Flux, of 1000 timesteps."""
    from graftwork_testbed.zoo.flow import flux

    return flux(autoencoder(), 1, 1, 2, (4, 6, 6), text_width=16, text_layers=1)


PIPELINES: dict[str, Callable[[], Any]] = {"pixels": pixels, "classes": classes, "captions": captions, "flow": flow}


@pytest.fixture
def pipeline() -> Callable[..., Any]:
    def make(kind: str, seed: int = 0, **settings: Any) -> Any:
        pytest.importorskip("graftwork_testbed", reason="needs the test bed's untrained pipelines")
        torch.manual_seed(seed)
        made = PIPELINES[kind](**settings)
        made.set_progress_bar_config(disable=True)
        return made

    return make


@pytest.fixture
def data() -> Callable[[str], gw.Dataset]:
    def make(kind: str) -> gw.Dataset:
        generator = torch.Generator().manual_seed(1)
        rows = {"label": torch.arange(SAMPLES) % 10, "caption": [("a red two", "a blue six")[index % 2] for index in range(SAMPLES)]}
        if kind == "pixels":
            rows["image"] = torch.rand(SAMPLES, 1, SIDE, SIDE, generator=generator)
        else:
            rows["latents"] = torch.randn(SAMPLES, CHANNELS, SIDE, SIDE, generator=generator)
            rows["latent_std"] = torch.full((SAMPLES, CHANNELS, SIDE, SIDE), 0.1)
        split = gw.TensorSamples(**rows)
        return gw.Dataset({"train": split, "test": split})

    return make


def settings_of(**settings: Any) -> gw.TrainConfig:
    usual = {"steps": 2, "batch_size": 11, "optimizer": {"use": "sgd", "lr": 0.01}, "log_every": 1}
    return gw.TrainConfig.model_validate(usual | settings)


@pytest.fixture
def train() -> Callable[..., gw.Engine]:
    """Trains, and gives the engine; what was exported is its `exported`, the logged rows its `rows`."""

    def run(objective: gw.Objective, model: Any, data: gw.Dataset, **settings: Any) -> Any:
        rows: list[dict[str, float]] = []
        engine: Any = gw.Engine(model, objective, data, settings_of(**settings), device="cpu", log=lambda step, row: rows.append(row))
        engine.exported, engine.rows = engine.fit(), rows
        return engine

    return run


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
