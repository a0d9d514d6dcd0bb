"""Calls of a pipeline that can be repeated from the same noise, and the prompts that they are made of."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from graftwork import ConfigError, DataError, Dataset, Evaluator
from graftwork.interfaces import device_of
from graftwork_adaptive_guidance.solvers import Solver, solver_steps

__all__ = ["GUIDANCE_SCALE", "GuidedCall", "PromptedEvaluator", "batched_calls", "evaluations_of", "guided_arguments", "prompts_of"]

GUIDANCE_SCALE = 7.5
"""s where neither the call nor the guidance names one."""


def guided_arguments(pipeline: Any, inputs: Mapping[str, Any], scale: float | None) -> dict[str, Any]:
    """A call's arguments with classifier-free guidance on.

    Args:
        pipeline: of diffusers. One whose call has `true_cfg_scale` is guided by that and a negative prompt, "" by default; any other
            by `guidance_scale`.
        inputs: arguments of the call.
        scale: s, where the call names none.

    Raises:
        ConfigError: if the call turns its guidance off.
    """
    name = "true_cfg_scale" if "true_cfg_scale" in inspect.signature(pipeline.__call__).parameters else "guidance_scale"
    given = {name: GUIDANCE_SCALE if scale is None else scale, **inputs}
    if not given[name] > 1:
        raise ConfigError(f"{name} is above 1 where guidance is to be saved; the call has {given[name]}")
    if name == "true_cfg_scale" and given.get("negative_prompt") is None and "negative_prompt_embeds" not in given:
        prompt = given.get("prompt", "")
        given["negative_prompt"] = "" if isinstance(prompt, str) else [""] * len(prompt)
    return given


@dataclass(frozen=True)
class GuidedCall:
    """A guided call of a pipeline, each sample from noise of its own seed; `run` gives the same every time.

    Args:
        prompts: one a sample.
        seeds: of the noise, one a sample.
        steps: of the sampler.
        guidance_scale: s.
        negative_prompt: for every sample; "" or None is the empty prompt.
        inputs: further arguments of the call, such as `height`.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    guidance_scale: float
    negative_prompt: str | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def run(self, pipeline: Any, steps: int | None = None, scale: float | None = None, output_type: str = "pt") -> Tensor:
        """Call the pipeline, without gradients.

        Args:
            pipeline: of diffusers.
            steps: instead of the call's own.
            scale: instead of the call's own.
            output_type: "pt" for images in [0, 1], "latent" for latents.

        Returns:
            (B, 3, H, W), or latents.
        """
        device = device_of(pipeline)
        noise = [torch.Generator(device).manual_seed(seed) for seed in self.seeds]
        given = {"prompt": list(self.prompts), "num_inference_steps": steps or self.steps, "generator": noise, "output_type": output_type}
        if self.negative_prompt:
            given["negative_prompt"] = [self.negative_prompt] * len(self.prompts)
        with torch.no_grad():
            output = pipeline(**guided_arguments(pipeline, {**given, **self.inputs}, scale or self.guidance_scale))
        return output.images  # type: ignore[no-any-return]


def batched_calls(
    prompts: Sequence[str],
    seed: int,
    steps: int,
    guidance_scale: float,
    negative_prompt: str | None = None,
    batch_size: int = 16,
    inputs: Mapping[str, Any] | None = None,
) -> list[GuidedCall]:
    """Calls for many prompts.

    Args:
        prompts: one a sample.
        seed: of the first sample's noise; the next has the next.
        steps: of the sampler.
        guidance_scale: s.
        negative_prompt: for every sample.
        batch_size: samples a call.
        inputs: further arguments of each call.

    Raises:
        ValueError: if steps or batch_size is below 1, or the scale is not above 1.
    """
    if steps < 1 or batch_size < 1 or not guidance_scale > 1:
        raise ValueError(
            f"steps and batch_size are at least 1 and guidance_scale is above 1; found {steps}, {batch_size} and {guidance_scale}"
        )
    calls = []
    for start in range(0, len(prompts), batch_size):
        part = tuple(prompts[start : start + batch_size])
        seeds = tuple(range(seed + start, seed + start + len(part)))
        calls.append(GuidedCall(part, seeds, steps, guidance_scale, negative_prompt, inputs or {}))
    return calls


def prompts_of(data: Dataset, split: str, key: str, limit: int | None) -> list[str]:
    """The first prompts of a split.

    Raises:
        DataError: if the split is missing or empty, or a sample has no text under `key`.
    """
    samples = data[split]
    count = len(samples) if limit is None else min(limit, len(samples))
    if not count:
        raise DataError(f'split "{split}" is empty: there is no prompt')
    found = []
    for index in range(count):
        sample = samples[index]
        if not isinstance(sample.get(key), str):
            raise DataError(f'prompts are read from "{key}", which is no text in sample {index} of "{split}"; it has {", ".join(sample)}')
        found.append(sample[key])
    return found


def evaluations_of(pipeline: Any, steps: int) -> tuple[int, ...]:
    """Solver step of each evaluation in a call of so many steps; the pipeline's scheduler stays as it is."""
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting", False) else {}  # moves the steps, adds none
    scheduler.set_timesteps(steps, **shift)
    return solver_steps(scheduler)


class PromptedEvaluator(Evaluator):
    """An evaluator that calls a pipeline on prompts, each from noise of its own seed.

    Args:
        split: of the prompts.
        key: sample key of the prompts.
        prompts: these instead of a split's.
        limit: the first so many.
        guidance_scale: s.
        steps: of the sampler.
        solver: that replaces the pipeline's own, or None.
        negative_prompt: of every call.
        batch_size: samples a call.

    Raises:
        ValueError: if prompts is empty.
    """

    def __init__(
        self,
        split: str,
        key: str,
        prompts: list[str] | None,
        limit: int | None,
        guidance_scale: float,
        steps: int,
        solver: Solver | None,
        negative_prompt: str | None,
        batch_size: int,
    ):
        if prompts is not None and not prompts:
            raise ValueError("prompts is empty; give some, or none to read a split")
        self.split, self.key, self.prompts, self.limit, self.guidance_scale = split, key, prompts, limit, guidance_scale
        self.steps, self.solver, self.negative_prompt, self.batch_size = steps, solver, negative_prompt, batch_size
        self.keys = (key,) if prompts is None else ()

    def calls(self, data: Dataset, run: Any) -> tuple[list[str], list[GuidedCall]]:
        """The prompts, and the calls that draw them; another seed of the run draws from other noise."""
        prompts = self.prompts if self.prompts is not None else prompts_of(data, self.split, self.key, self.limit)
        prompts = prompts[: self.limit]
        seed = getattr(run, "seed", 0) * 100_003
        return prompts, batched_calls(prompts, seed, self.steps, self.guidance_scale, self.negative_prompt, self.batch_size)
