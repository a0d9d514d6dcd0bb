from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from graftwork import InterfaceError
from graftwork_adaptive_guidance import capture, require_deterministic, rollout, solver_steps, using_solver


@pytest.mark.parametrize(
    ("make", "settings", "expected"),
    [
        (diffusers.DDIMScheduler, {}, [0, 1, 2, 3]),
        (diffusers.DPMSolverMultistepScheduler, {}, [0, 1, 2, 3]),
        (diffusers.FlowMatchEulerDiscreteScheduler, {}, [0, 1, 2, 3]),
        (diffusers.HeunDiscreteScheduler, {}, [0, 0, 1, 1, 2, 2, 3]),
        (diffusers.FlowMatchHeunDiscreteScheduler, {}, [0, 0, 1, 1, 2, 2, 3]),
        (diffusers.DPMSolverSinglestepScheduler, {"solver_order": 2}, [0, 0, 1, 2]),  # the last two are of first order
        (diffusers.PNDMScheduler, {"skip_prk_steps": True}, [0, 0, 1, 2, 3]),
    ],
)
def test_evaluations_belong_to_steps_of_the_solver(make: Any, settings: dict[str, Any], expected: list[int]) -> None:
    scheduler = make(**settings)
    scheduler.set_timesteps(4)
    assert list(solver_steps(scheduler)) == expected


def test_a_pipelines_own_solver_comes_back(unet_pipeline: Any) -> None:
    own = unet_pipeline.scheduler

    def inside() -> None:
        with using_solver(unet_pipeline, "dpm-solver++"):
            assert type(unet_pipeline.scheduler).__name__ == "DPMSolverMultistepScheduler"
            assert unet_pipeline.scheduler.config.beta_start == own.config.beta_start
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    assert unet_pipeline.scheduler is own


@pytest.mark.parametrize(
    ("form", "solver", "error", "message"),
    [
        ("unet_pipeline", "rk4", ValueError, r"solver is one of ddim, dpm-solver\+\+, euler, heun; found 'rk4'"),
        ("flow_pipeline", "ddim", InterfaceError, "FlowMatchEulerDiscreteScheduler is a scheduler of flows"),
    ],
)
def test_solvers_that_do_not_exist_or_fit_are_refused(request: Any, form: str, solver: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message), using_solver(request.getfixturevalue(form), solver):
        pass


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.EulerAncestralDiscreteScheduler(),
        diffusers.DDPMScheduler(),
        diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
        diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    ],
)
def test_a_solver_that_adds_noise_is_refused(scheduler: Any) -> None:
    with pytest.raises(InterfaceError, match="adds noise at every step"):
        require_deterministic(scheduler)


@pytest.mark.parametrize("solver", [None, "dpm-solver++", "euler", "heun"])
def test_the_rollout_is_the_pipelines_own_sampling(double_pipeline: Any, call: Any, solver: Any) -> None:
    with using_solver(double_pipeline, solver):
        expected = call.run(double_pipeline, output_type="latent")
        taken = capture(double_pipeline, call)
        count = solver_steps(taken.scheduler)[-1] + 1
        with torch.no_grad():
            found = rollout(taken, taken.scheduler, taken.latents, torch.full((count,), call.guidance_scale))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_rollout_of_a_flow_in_two_calls_is_the_pipelines_own(flow_pipeline: Any, call: Any) -> None:
    expected = call.run(flow_pipeline, output_type="latent")
    taken = capture(flow_pipeline, call)
    assert taken.form == "separate"
    with torch.no_grad():
        found = rollout(taken, taken.scheduler, taken.latents, torch.full((call.steps,), call.guidance_scale))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_capture_leaves_the_denoiser_as_it_was(pipeline: Any, call: Any) -> None:
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    before, names = network.forward, set(vars(network))
    capture(pipeline, call)
    assert network.forward == before
    assert set(vars(network)) - {"_diffusers_hook"} == names - {"_diffusers_hook"}


def test_recomputing_changes_no_gradient(linear_denoiser: Callable[..., Any], ddim: Any) -> None:
    start = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = []
    for recompute in (True, False):
        weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64, requires_grad=True)
        rollout(linear_denoiser, ddim(3), start, weights, recompute).square().mean().backward()
        gradients.append(weights.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-14, rtol=0)
    assert gradients[0].abs().min() > 0


def test_weights_of_another_length_are_refused(linear_denoiser: Callable[..., Any], ddim: Any) -> None:
    with pytest.raises(ValueError, match="weights has 4 entries; DDIMScheduler takes 3 steps"):
        rollout(linear_denoiser, ddim(3), torch.zeros(1, 2), torch.ones(4))
