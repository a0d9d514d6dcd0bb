"""A pipeline's denoiser as a function of sample and time, with the conditioning of one call of the pipeline."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from graftwork import InterfaceError
from graftwork_adaptive_guidance.calls import GuidedCall
from graftwork_adaptive_guidance.rows import prediction_of
from graftwork_adaptive_guidance.similarity import without_variance
from graftwork_adaptive_guidance.steering import Form, denoiser_of, form_of, intercepted, no_branch

__all__ = ["CapturedDenoiser", "capture"]


class _CapturedError(Exception):
    """Leaves a pipeline's call when its arguments were seen."""


class CapturedDenoiser:
    """Evaluates both branches at any sample and time, differentiably, as one call of a pipeline would.

    Args:
        denoiser: the network.
        calls: arguments of the denoiser's first evaluation: one call of rows [negative; positive], or the positive and the negative.
        form: which of the two.
        scheduler: with the timesteps that the pipeline set, and no step done.
        latents: x_T, (B, ...), as the pipeline drew it.
    """

    def __init__(self, denoiser: Any, calls: list[dict[str, Any]], form: Form, scheduler: Any, latents: Tensor):
        self.denoiser, self.calls, self.form, self.scheduler, self.latents = denoiser, calls, form, scheduler, latents
        self._name = next(iter(inspect.signature(denoiser.forward).parameters))
        told = torch.as_tensor(calls[0]["timestep"])
        self._shape = told.shape
        self._dtype = told.dtype
        start = float(scheduler.timesteps[0])
        self._factor = float(told.flatten()[0]) / start if start else 1.0  # Flux is told t / 1000

    def __call__(self, sample: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """The conditional and the unconditional prediction, (B, ...) each.

        Args:
            sample: (B, ...) scaled as the scheduler scales it.
            timestep: of the scheduler, a 0-d tensor.
        """
        scaled = (timestep * self._factor).to(sample.device, self._dtype)
        told = scaled.expand(self._shape) if self._shape else scaled
        if self.form == "joint":
            both = self._evaluate(self.calls[0], torch.cat([sample, sample]), told)
            unconditional, conditional = both.chunk(2)
            return without_variance(conditional, sample), without_variance(unconditional, sample)
        conditional, unconditional = (without_variance(self._evaluate(call, sample, told), sample) for call in self.calls)
        return conditional, unconditional

    def _evaluate(self, call: Mapping[str, Any], sample: Tensor, timestep: Tensor) -> Tensor:
        given = {**call, self._name: sample, "timestep": timestep}
        return prediction_of(self.denoiser.forward(**given))


def capture(pipeline: Any, call: GuidedCall) -> CapturedDenoiser:
    """Begin a call of a pipeline, keep its conditioning and its noise, and leave it at its first evaluation.

    Args:
        pipeline: of diffusers.
        call: guided.

    Raises:
        ConfigError: if the call is not guided.
        InterfaceError: if the pipeline is not understood.
    """
    denoiser = denoiser_of(pipeline)
    original, contexts = denoiser.forward, []  # type: ignore[var-annotated]
    names = list(inspect.signature(original).parameters)
    found: list[dict[str, Any]] = []
    forms: list[Form] = []

    def seen(*args: Any, **kwargs: Any) -> Any:
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        if not forms:
            forms.append(form_of(pipeline, denoiser, arguments[names[0]], contexts[-1] if contexts else None))
        elif contexts and contexts[-1] == "cond":
            raise no_branch(pipeline, denoiser)
        found.append(arguments)
        if forms[0] == "joint" or len(found) == 2:
            raise _CapturedError
        return original(**arguments)

    try:
        with intercepted(denoiser, seen, contexts):
            call.run(pipeline, output_type="latent")
    except _CapturedError:
        pass
    if not found or (forms[0] == "separate" and len(found) < 2):
        raise no_branch(pipeline, denoiser)
    scheduler = copy.deepcopy(pipeline.scheduler)
    sample = found[0][names[0]]
    sample = (sample[len(sample) // 2 :] if forms[0] == "joint" else sample).detach().clone()
    if hasattr(scheduler, "scale_model_input"):
        sample = sample / copy.deepcopy(scheduler).scale_model_input(torch.ones_like(sample), scheduler.timesteps[0])
    if sample.ndim == 4 and sample.shape[1] != getattr(denoiser.config, "out_channels", sample.shape[1]) != 2 * sample.shape[1]:
        raise InterfaceError(f"{type(denoiser).__name__} is shown more channels than it predicts, as for inpainting: not supported")
    return CapturedDenoiser(denoiser, found, forms[0], scheduler, sample)
