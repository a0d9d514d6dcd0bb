"""AG against plain guidance and against the rule of ComfyUI-Adaptive-Guidance, in one process, on the same noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import graftwork as gw
from graftwork.testing import median_seconds
from graftwork_adaptive_guidance import AdaptiveGuidance, GuidedCall, guidance_cosine, guidance_similarities

STEPS, SCALE, REPEATS = 20, 5.0, 3
PROMPTS = ("a red three", "a blue seven", "a green one", "a yellow nine")


def peer(pipeline: Any, call: GuidedCall, threshold: float) -> torch.Tensor:
    """The other project's rule in a loop of its own, one sample at a time: two calls a step, then one, by one cosine of the denoised."""
    scheduler, unet, drawn = pipeline.scheduler, pipeline.unet, []
    for prompt, seed in zip(call.prompts, call.seeds, strict=True):
        positive, negative = pipeline.encode_prompt(prompt, "cpu", 1, True)
        scheduler.set_timesteps(call.steps)
        shape = (1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scheduler.init_noise_sigma
        stopped = False
        for time_ in scheduler.timesteps:
            shown = scheduler.scale_model_input(latents, time_)
            prediction = unet(shown, time_, positive).sample
            if not stopped:
                other = unet(shown, time_, negative).sample
                stopped = torch.nn.functional.cosine_similarity(prediction.reshape(1, -1), other.reshape(1, -1)).item() >= threshold
                prediction = other + call.guidance_scale * (prediction - other)
            latents = scheduler.step(prediction, time_, latents).prev_sample
        drawn.append(latents)
    return torch.cat(drawn)


@pytest.mark.bench
def test_adaptive_guidance_takes_the_share_of_time_that_its_rows_say(capsys: Any) -> None:
    pipeline = gw.model("zoo/scene-diffusion")
    call = GuidedCall(PROMPTS, tuple(range(len(PROMPTS))), STEPS, SCALE)
    similarities = guidance_similarities(pipeline, [call])
    threshold = float(similarities[STEPS // 2].mean())
    guidance = AdaptiveGuidance(threshold=threshold)

    def ours() -> torch.Tensor:
        with guidance.attach(pipeline):
            return call.run(pipeline, output_type="latent")

    with torch.no_grad():
        torch.testing.assert_close(ours(), peer(pipeline, call, threshold), atol=1e-3, rtol=1e-3)
        plain, adaptive, other = median_seconds(
            [lambda: call.run(pipeline, output_type="latent"), ours, lambda: peer(pipeline, call, threshold)], REPEATS, processor=True
        )
    rows = guidance.costs[-1].rows / (2 * STEPS * len(PROMPTS))
    with capsys.disabled():
        print(f"\nplain {plain:.2f} s, AG {adaptive:.2f} s: {adaptive / plain:.3f} of its time for {rows:.3f} of its rows")
        print(f"the other project's rule, a sample at a time: {other:.2f} s, {other / adaptive:.2f} times AG's")
    assert adaptive <= 1.05 * rows * plain


@pytest.mark.bench
def test_the_cosine_is_a_hundredth_of_a_step(capsys: Any) -> None:
    pipeline = gw.model("zoo/scene-diffusion")
    size, unet = len(PROMPTS), pipeline.unet
    latents = torch.randn(2 * size, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    text = torch.randn(2 * size, 24, unet.config.cross_attention_dim)
    with torch.no_grad():
        step, cosine = median_seconds([lambda: unet(latents, 500, text), lambda: guidance_cosine(latents[:size], latents[size:])], 20)
    with capsys.disabled():
        print(f"\ncosine {1e6 * cosine:.0f} us of {1e3 * step:.1f} ms a step: {100 * cosine / step:.2f} %")
    assert cosine < 0.01 * step
