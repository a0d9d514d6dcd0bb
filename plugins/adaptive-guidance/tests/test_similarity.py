from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch.nn import functional

from graftwork import InterfaceError
from graftwork_adaptive_guidance import denoised, guidance_cosine, guide, without_variance


def pair(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(shape, generator=generator)
    return first.to(dtype), (first + torch.randn(shape, generator=generator)).to(dtype)


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (3, 16, 8), (1, 2)])
def test_the_cosine_is_torchs_of_flattened_predictions(shape: tuple[int, ...]) -> None:
    c, u = pair(shape)
    expected = functional.cosine_similarity(c.flatten(1).double(), u.flatten(1).double(), dim=1)
    torch.testing.assert_close(guidance_cosine(c, u).double(), expected, atol=1e-6, rtol=0)


def test_half_precision_is_summed_in_single() -> None:
    c, u = pair((2, 4, 64, 64), torch.float16)
    c, u = 200 * c, 200 * u  # a sum of squares beyond float16's largest number
    found = guidance_cosine(c, u)
    assert found.dtype == torch.float32
    expected = functional.cosine_similarity(c.flatten(1).double(), u.flatten(1).double(), dim=1)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


def test_predictions_that_are_parallel_have_cosine_one_and_never_more() -> None:
    c, _ = pair((64, 3, 5, 5))
    found = guidance_cosine(c, 3 * c)
    assert found.max() <= 1
    torch.testing.assert_close(found, torch.ones(64))


def test_an_all_zero_prediction_has_no_cosine() -> None:
    assert guidance_cosine(torch.zeros(1, 4), torch.ones(1, 4)).isnan().all()


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"conditional \(2, 3\) and unconditional \(2, 4\) differ in shape"):
        guidance_cosine(torch.ones(2, 3), torch.ones(2, 4))


def test_guidance_at_one_is_the_conditional_prediction_to_the_bit() -> None:
    c, u = pair((4, 7))
    assert guide(c, u, 1) is c
    torch.testing.assert_close(guide(c, u, 3.0), u + 3 * (c - u), atol=0, rtol=0)


SCHEDULERS = [
    diffusers.DDIMScheduler,
    diffusers.DPMSolverMultistepScheduler,
    diffusers.EulerDiscreteScheduler,
    diffusers.HeunDiscreteScheduler,
]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("make", SCHEDULERS)
def test_a_perfect_prediction_gives_back_the_sample_without_noise(make: Any, kind: str) -> None:
    scheduler = make(prediction_type=kind)
    scheduler.set_timesteps(9)
    clean, noise = pair((2, 4, 3, 3))
    clean, noise, place = clean.double(), noise.double(), 4
    time = scheduler.timesteps[place]
    if (hasattr(scheduler, "step_index") and "Euler" in make.__name__) or "Heun" in make.__name__:
        noisy = clean + scheduler.sigmas[place].double() * noise
        shown = scheduler.scale_model_input(noisy, time)
        kept = 1 / (1 + scheduler.sigmas[place].double() ** 2)
    else:
        kept = scheduler.alphas_cumprod[time.long()].double()
        shown = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    perfect = {"epsilon": noise, "sample": clean, "v_prediction": kept.sqrt() * noise - (1 - kept).sqrt() * clean}[kind]
    torch.testing.assert_close(denoised(scheduler, perfect, shown, time, place), clean, atol=2e-3, rtol=1e-3)


def test_a_flow_leads_back_to_the_sample_without_noise() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    clean, noise = pair((2, 6, 4))
    sigma = scheduler.sigmas[2]
    shown = (1 - sigma) * clean + sigma * noise
    torch.testing.assert_close(denoised(scheduler, noise - clean, shown, scheduler.timesteps[2] / 1000, 2), clean, atol=1e-5, rtol=1e-5)


def test_a_scheduler_that_is_not_understood_is_named() -> None:
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(4)
    c, _ = pair((1, 4, 2, 2))
    with pytest.raises(InterfaceError, match='space "x0" knows no way from the "epsilon" of EDMEulerScheduler'):
        denoised(scheduler, c, c, 1.0, 0)


def test_learned_variances_are_no_part_of_the_direction() -> None:
    both = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    sample = torch.zeros(2, 4, 3, 3)
    assert torch.equal(without_variance(both, sample), both[:, :4])
    assert without_variance(sample, sample) is sample
