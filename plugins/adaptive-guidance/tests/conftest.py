"""Tiny real pipelines of diffusers, untrained, and what counts the rows that their denoisers truly run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from graftwork_adaptive_guidance import GuidedCall, guidance_similarities
from graftwork_testbed.zoo.autoencoder import autoencoder_kl
from graftwork_testbed.zoo.diffusion import stable_diffusion
from graftwork_testbed.zoo.flow import flux

STEPS, SCALE = 4, 4.0


def make_autoencoder() -> Any:
    made = autoencoder_kl(block_out_channels=[8, 8], latent_channels=4, norm_num_groups=4)
    made.register_to_config(shift_factor=0.0)  # a Flux pipeline wants a number
    return made


def make_unet_pipeline() -> Any:
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "norm_num_groups": 4}
    made = stable_diffusion(make_autoencoder(), [16], attention_heads=2, text_width=16, text_layers=1, **sizes)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (16,), "layers_per_block": 1}
    unet = diffusers.UNet2DConditionModel(**sizes, **blocks, attention_head_dim=2, cross_attention_dim=16)  # attends in the middle alone
    made.register_modules(unet=unet)
    with torch.no_grad():  # so that the text matters and samples differ
        for name, weight in made.unet.named_parameters():
            if "attn2" in name:
                weight.mul_(6)
    return made


def make_flow_pipeline() -> Any:
    torch.manual_seed(0)
    made = flux(make_autoencoder(), 1, 1, attention_heads=2, axes_dims_rope=(4, 6, 6), text_width=16, text_layers=1)
    with torch.no_grad():
        torch.nn.init.normal_(made.transformer.proj_out.weight, std=0.3)
    return made


@pytest.fixture(scope="session")
def unet_pipeline() -> Any:
    """StableDiffusionPipeline: one call of the denoiser for both branches."""
    return make_unet_pipeline()


@pytest.fixture(scope="session")
def flow_pipeline() -> Any:
    """FluxPipeline without embedded guidance: two calls."""
    return make_flow_pipeline()


@pytest.fixture(params=["joint", "separate"])
def pipeline(request: Any, unet_pipeline: Any, flow_pipeline: Any) -> Any:
    """Each of the two forms in which pipelines ask for both branches."""
    return unet_pipeline if request.param == "joint" else flow_pipeline


@pytest.fixture
def double_pipeline(unet_pipeline: Any) -> Iterator[Any]:
    """The first in float64: an untrained network makes much of rounding."""
    yield unet_pipeline.to(torch.float64)
    unet_pipeline.to(torch.float32)


@pytest.fixture(scope="session")
def call() -> GuidedCall:
    """Three prompts."""
    return make_call(("a red one", "a blue seven", "a green four"))


def make_call(prompts: tuple[str, ...], first: int = 0, **settings: Any) -> GuidedCall:
    given = {"steps": STEPS, "guidance_scale": SCALE, "inputs": {"height": 16, "width": 16}, **settings}
    return GuidedCall(prompts, tuple(range(first, first + len(prompts))), **given)


@pytest.fixture(scope="session")
def calls() -> Callable[..., GuidedCall]:
    return make_call


@pytest.fixture(scope="session")
def plain(call: GuidedCall) -> Callable[..., Tensor]:
    """Latents of plain guidance, drawn once for each pipeline, its type and scale."""
    drawn: dict[Any, Tensor] = {}

    def look(pipeline: Any, scale: float = SCALE) -> Tensor:
        key = (id(pipeline), pipeline.dtype, scale)
        if key not in drawn:
            drawn[key] = call.run(pipeline, scale=scale, output_type="latent")
        return drawn[key].clone()

    return look


@pytest.fixture(scope="session")
def similar(call: GuidedCall) -> Callable[..., Tensor]:
    """gamma of plain guidance, (T, 3), seen once for each pipeline, its type and space."""
    seen: dict[Any, Tensor] = {}

    def look(pipeline: Any, space: Any = "prediction") -> Tensor:
        key = (id(pipeline), pipeline.dtype, space)
        if key not in seen:
            seen[key] = guidance_similarities(pipeline, [call], space)
        return seen[key].clone()

    return look


@pytest.fixture(scope="session")
def recorded() -> Callable[[Any, GuidedCall], list[tuple[Tensor, Tensor]]]:
    """What a U-Net was shown and what it gave, [negative; positive], at each step of plain guidance; seen by a hook of torch."""

    def record(pipeline: Any, call: GuidedCall) -> list[tuple[Tensor, Tensor]]:
        found: list[tuple[Tensor, Tensor]] = []

        def look(module: Any, inputs: Any, output: Any) -> None:
            found.append((inputs[0], output[0]))

        handle = pipeline.unet.register_forward_hook(look)
        try:
            call.run(pipeline, output_type="latent")
        finally:
            handle.remove()
        return found

    return record


@pytest.fixture
def rows() -> Callable[[Any], Any]:
    """Counts the rows that reach the first layer of a pipeline's denoiser, whatever its `forward` is."""

    @contextmanager
    def counting(pipeline: Any) -> Iterator[list[int]]:
        found: list[int] = []
        network = getattr(pipeline, "unet", None) or pipeline.transformer
        first = getattr(network, "conv_in", None) or getattr(network, "x_embedder", None) or network.pos_embed
        handle = first.register_forward_pre_hook(lambda module, inputs: found.append(len(inputs[0])))
        try:
            yield found
        finally:
            handle.remove()

    return counting


@pytest.fixture
def linear_denoiser() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """c and u of a linear network of two numbers, in float64."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 2, 2, generator=generator, dtype=torch.float64) / 3
    return lambda sample, timestep: (sample @ first + 0.1, sample @ second)


@pytest.fixture
def ddim() -> Callable[[int], Any]:
    """A scheduler whose timesteps are set."""

    def make(steps: int) -> Any:
        scheduler = diffusers.DDIMScheduler(clip_sample=False)
        scheduler.set_timesteps(steps)
        return scheduler

    return make
