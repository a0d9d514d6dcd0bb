"""What a scheduler's timesteps mean: which evaluations make up one step of the solver; solvers by name; a differentiable rollout."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from graftwork import InterfaceError
from graftwork.builtin.hub import need

__all__ = ["Evaluate", "Solver", "require_deterministic", "rollout", "solver_steps", "using_solver"]

Solver: TypeAlias = Literal["ddim", "dpm-solver++", "euler", "heun"]
"""Deterministic solvers that take the place of a pipeline's own."""

Evaluate: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""`evaluate(sample, timestep)` gives the conditional and the unconditional prediction, (B, ...) each."""

_SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "dpm-solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "euler": ("EulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
}
_RANDOM = ("Ancestral", "SDE", "DDPM", "LCM", "TCD", "Wuerstchen", "Consistency")


def solver_steps(scheduler: Any) -> tuple[int, ...]:
    """Which step of the solver each evaluation of the network belongs to, from 0.

    One to one for DDIM, Euler and multistep solvers; Heun and other schedulers of `order` 2 evaluate twice a step (but once in the
    last), singlestep DPM-Solver as often as its `order_list` says, and PNDM twice, or four times, in its warm-up steps.

    Args:
        scheduler: of diffusers, with its timesteps set.
    """
    count = len(scheduler.timesteps)
    orders = getattr(scheduler, "order_list", None)
    warmup = getattr(scheduler, "prk_timesteps", None)
    if orders is not None and "Singlestep" in type(scheduler).__name__:
        starts = [order == 1 for order in orders[:count]]
    elif warmup is not None and len(warmup):
        starts = [index % 4 == 0 or index >= len(warmup) for index in range(count)]
    elif warmup is not None:
        starts = [index != 1 or count == 1 for index in range(count)]
    else:
        starts = [index % scheduler.order == 0 for index in range(count)]
    return tuple(number - 1 for number in itertools.accumulate(map(int, starts)))


@contextmanager
def using_solver(pipeline: Any, solver: Solver | None) -> Iterator[None]:
    """Let a pipeline sample by another solver, made from its own scheduler's settings; its own comes back afterwards.

    Args:
        pipeline: a diffusers pipeline of noise or velocity prediction.
        solver: by name; None leaves the pipeline's own.

    Raises:
        ValueError: if there is no such solver.
        InterfaceError: if the pipeline matches flows, whose solvers differ.
    """
    if solver is None:
        yield
        return
    if solver not in _SOLVERS:
        raise ValueError(f"solver is one of {', '.join(_SOLVERS)}; found {solver!r}")
    own = pipeline.scheduler
    if not hasattr(own, "alphas_cumprod"):
        raise InterfaceError(f"{type(own).__name__} is a scheduler of flows, which the solver {solver} does not sample: leave solver out")
    name, settings = _SOLVERS[solver]
    pipeline.scheduler = getattr(need("diffusers", "diffusers"), name).from_config(own.config, **settings)
    try:
        yield
    finally:
        pipeline.scheduler = own


def require_deterministic(scheduler: Any) -> None:
    """Raise unless a scheduler adds no noise on the way.

    Raises:
        InterfaceError: naming it.
    """
    name, config = type(scheduler).__name__, scheduler.config
    random = any(word in name for word in _RANDOM) or str(config.get("algorithm_type", "")).startswith("sde")
    if random or config.get("stochastic_sampling", False):
        raise InterfaceError(f"{name} adds noise at every step; the search needs a deterministic solver, such as DDIM")


def rollout(
    evaluate: Evaluate,
    scheduler: Any,
    latents: Tensor,
    weights: Tensor,
    recompute: bool = True,
) -> Tensor:
    """Sample under u + w_t (c - u), differentiably in the weights.

    The denoiser is evaluated once for each branch and step; with `recompute` nothing of an evaluation is kept for the backward pass but
    its input, so memory is that of one evaluation and one latent a step.

    Args:
        evaluate: of the denoiser, with gradients.
        scheduler: deterministic, of diffusers, with its timesteps set and no step done; it is copied, and its state stays as it is.
        latents: x_T, (B, ...).
        weights: w, one for each step of the solver: 0 unconditional, 1 conditional, s guided.
        recompute: evaluate again in the backward pass.

    Returns:
        x_0, of the latents' shape.

    Raises:
        ValueError: if there are not as many weights as the solver takes steps.
    """
    scheduler = copy.deepcopy(scheduler)
    places = solver_steps(scheduler)
    if len(weights) != places[-1] + 1:
        raise ValueError(f"weights has {len(weights)} entries; {type(scheduler).__name__} takes {places[-1] + 1} steps")

    def guided(sample: Tensor, timestep: Tensor, weight: Tensor) -> Tensor:
        conditional, unconditional = evaluate(sample, timestep)
        return unconditional + weight * (conditional - unconditional)

    for place, timestep in zip(places, scheduler.timesteps, strict=True):
        shown = scheduler.scale_model_input(latents, timestep) if hasattr(scheduler, "scale_model_input") else latents
        weight = weights[place].to(latents.dtype)
        if recompute and torch.is_grad_enabled():
            prediction = checkpoint(guided, shown, timestep, weight, use_reentrant=False, preserve_rng_state=False)
        else:
            prediction = guided(shown, timestep, weight)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    return latents
