"""What a recipe's claim cannot say: that a number is below zero."""

from __future__ import annotations

import pytest

import graftwork as gw
from graftwork_denoising_task_clustering import DenoisingTaskAffinity


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sketch", [4096, None])
def test_near_noise_levels_of_the_zoos_diffusion_model_have_gradients_more_alike(sketch) -> None:
    pytest.importorskip("graftwork_testbed", reason="needs the test bed's trained pipeline")
    scenes = gw.dataset("digit-scenes", max_digits=1, muting=1.0, train=16, val=16, test=32)
    data = gw.dataset("encoded-latents", data=scenes, autoencoder=gw.model("zoo/scene-autoencoder"))
    metrics = DenoisingTaskAffinity("test", limit=32, cells=10, sketch=sketch).evaluate(gw.model("zoo/scene-diffusion"), data).metrics
    assert metrics["worst_spearman_timestep"] < 0
    assert metrics["spearman_log_snr"] < 0
