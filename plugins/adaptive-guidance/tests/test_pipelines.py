"""Pipelines of other families, with their text encoders left out and embeddings given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from graftwork_adaptive_guidance import AdaptiveGuidance, GuidancePolicy

STEPS = 4


def embeddings(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def denoiser(**settings: Any) -> Any:
    """A small text-conditional U-Net."""
    torch.manual_seed(0)
    sizes = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 8), "layers_per_block": 1}
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    more = {"cross_attention_dim": 8, "attention_head_dim": 2, "norm_num_groups": 4}
    return diffusers.UNet2DConditionModel(**{**sizes, **blocks, **more, **settings})


def sdxl() -> tuple[Any, dict[str, Any]]:
    network = denoiser(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 + 24)
    parts = {"vae": None, "text_encoder": None, "text_encoder_2": None, "tokenizer": None, "tokenizer_2": None}
    made = diffusers.StableDiffusionXLPipeline(**parts, unet=network, scheduler=diffusers.EulerDiscreteScheduler(), add_watermarker=False)
    pooled = {"pooled_prompt_embeds": embeddings(2, 6, seed=1), "negative_pooled_prompt_embeds": embeddings(2, 6, seed=2)}
    return made, {**pooled, "prompt_embeds": embeddings(2, 5, 8, seed=3), "negative_prompt_embeds": embeddings(2, 5, 8, seed=4)}


def sd3() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=6, pos_embed_max_size=8,
    )  # fmt: skip
    names = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    made = diffusers.StableDiffusion3Pipeline(
        **dict.fromkeys(names), transformer=network, scheduler=diffusers.FlowMatchEulerDiscreteScheduler()
    )
    pooled = {"pooled_prompt_embeds": embeddings(2, 6, seed=1), "negative_pooled_prompt_embeds": embeddings(2, 6, seed=2)}
    return made, {**pooled, "prompt_embeds": embeddings(2, 5, 8, seed=3), "negative_prompt_embeds": embeddings(2, 5, 8, seed=4)}


def pixart() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    network = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, caption_channels=8, in_channels=4,
        cross_attention_dim=16, out_channels=8, attention_bias=True, use_additional_conditions=False,
    )  # fmt: skip
    made = diffusers.PixArtSigmaPipeline(
        tokenizer=None, text_encoder=None, vae=None, transformer=network, scheduler=diffusers.DPMSolverMultistepScheduler()
    )
    masks = {"prompt_attention_mask": torch.ones(2, 5), "negative_prompt_attention_mask": torch.ones(2, 5)}
    given = {"prompt_embeds": embeddings(2, 5, 8, seed=3), "negative_prompt_embeds": embeddings(2, 5, 8, seed=4)}
    return made, {**given, **masks, "negative_prompt": None, "use_resolution_binning": False}


@pytest.fixture(params=[sdxl, sd3, pixart])
def made(request: Any) -> tuple[Any, Callable[..., torch.Tensor]]:
    pipeline, inputs = request.param()
    pipeline.set_progress_bar_config(disable=True)

    def run(**more: Any) -> torch.Tensor:
        noise = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        sizes = {"height": 64, "width": 64, "num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "latent"}
        return pipeline(**inputs, **sizes, generator=noise, **more).images

    return pipeline, run


def test_a_threshold_above_one_changes_no_bit(made: Any) -> None:
    pipeline, run = made
    expected = run()
    with AdaptiveGuidance(threshold=2.0).attach(pipeline):
        assert torch.equal(run(), expected)


def test_every_argument_follows_its_rows(made: Any, rows: Any) -> None:
    """Both branches of one sample and one branch of the other must be those of whole calls, which cut nothing."""
    pipeline, run = made
    guidance = AdaptiveGuidance(threshold=2.0)
    with guidance.attach(pipeline):
        run()
    gamma = torch.stack(guidance.similarities)[0]
    threshold = float(gamma.mean())  # one sample stops at the first step, the other does not
    with rows(pipeline) as counted, AdaptiveGuidance(threshold=threshold).attach(pipeline):
        some = run()
    assert counted[:2] == [4, 3]
    with AdaptiveGuidance(threshold=threshold, static_shapes=True).attach(pipeline):
        torch.testing.assert_close(some, run(), atol=1e-4, rtol=1e-3)


def test_a_conditional_policy_runs_one_row_a_sample(made: Any, rows: Any) -> None:
    pipeline, run = made
    with rows(pipeline) as counted, GuidancePolicy(["cfg"] + ["cond"] * (STEPS - 1)).attach(pipeline):
        run()
    assert counted == [4, 2, 2, 2]
