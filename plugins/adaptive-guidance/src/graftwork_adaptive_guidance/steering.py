"""Puts a rule of guidance between a diffusers pipeline and its denoiser, so that only the rows that are needed are run."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from graftwork import ConfigError, InterfaceError
from graftwork_adaptive_guidance.rows import prediction_of, take_rows, with_prediction
from graftwork_adaptive_guidance.rules import Demand, Evaluation, GuidanceRule, Sampling
from graftwork_adaptive_guidance.solvers import solver_steps

__all__ = ["Cost", "Form", "denoiser_of", "form_of", "intercepted", "no_branch", "steer"]

logger = logging.getLogger(__name__)

Form: TypeAlias = Literal["joint", "separate"]
"""How a pipeline asks for both branches: rows [negative; positive] in one call, or the positive, then the negative, in two calls."""

_REVERSED = ("Lumina", "StableCascade", "Wuerstchen")
"""Pipelines that stack [positive; negative]."""


@dataclass
class Cost:
    """What one call of a pipeline has cost.

    Args:
        rows: through the denoiser, all samples together.
        evaluations: of each sample, conditional and unconditional ones together: its NFE.
        full: evaluations of a sample under plain classifier-free guidance, 2 for each time the pipeline asked.
    """

    rows: int = 0
    evaluations: list[int] = field(default_factory=list)
    full: int = 0

    @property
    def mean(self) -> float:
        """NFE, the mean of the samples."""
        return sum(self.evaluations) / max(1, len(self.evaluations))

    @property
    def saved(self) -> float:
        """Share of plain guidance's evaluations that was not needed, in [0, 1]."""
        return 1 - self.mean / self.full if self.full else 0.0


def denoiser_of(pipeline: Any) -> Any:
    """The network that a pipeline samples with.

    Raises:
        InterfaceError: if it has none, or several.
    """
    found = [name for name in ("unet", "transformer") if isinstance(getattr(pipeline, name, None), nn.Module)]
    if len(found) != 1:
        raise InterfaceError(f"{type(pipeline).__name__} has no `unet` or `transformer` to guide")
    if isinstance(getattr(pipeline, "transformer_2", None), nn.Module):
        raise InterfaceError(f"{type(pipeline).__name__} switches between two transformers, which is not supported")
    return getattr(pipeline, found[0])


def no_branch(pipeline: Any, denoiser: Any) -> Exception:
    """What to raise for a call without classifier-free guidance."""
    config = denoiser.config
    name = type(denoiser).__name__
    if getattr(config, "guidance_embeds", False) or getattr(config, "time_cond_proj_dim", None) is not None:
        how = (
            "true_cfg_scale above 1 and a negative_prompt" if getattr(config, "guidance_embeds", False) else "a model that is not distilled"
        )
        return InterfaceError(f"guidance-embedded model has no unconditional branch: {name} takes the scale as an input; use {how}")
    separate = "true_cfg_scale" in inspect.signature(pipeline.__call__).parameters
    how = "true_cfg_scale above 1 and a negative_prompt" if separate else "guidance_scale above 1"
    return ConfigError(f"the call of {type(pipeline).__name__} ran without classifier-free guidance: give {how}")


def form_of(pipeline: Any, denoiser: Any, sample: Tensor, context: str | None) -> Form:
    """How a pipeline asks for both branches, seen in the first call of its denoiser.

    Args:
        pipeline: of diffusers.
        denoiser: its network.
        sample: the call's rows.
        context: name of the cache context that the pipeline has opened, as newer ones do.

    Raises:
        ConfigError: if the call is not guided.
        InterfaceError: if the model has no unconditional branch, or the rows are not understood.
    """
    if getattr(pipeline, "do_classifier_free_guidance", True) is False:
        raise no_branch(pipeline, denoiser)
    if any(word in type(pipeline).__name__ for word in _REVERSED):
        raise InterfaceError(f"{type(pipeline).__name__} stacks the positive rows before the negative ones, which is not supported")
    if context in ("cond", "uncond"):
        return "separate"
    half, odd = divmod(len(sample), 2)
    if not odd and half and torch.equal(sample[:half], sample[half:]):
        return "joint"
    if context is not None or getattr(pipeline, "do_classifier_free_guidance", False):
        raise InterfaceError(f"{type(pipeline).__name__} guides by rows other than [negative; positive], which is not supported")
    return "separate"


@contextmanager
def intercepted(denoiser: Any, forward: Any, contexts: list[str]) -> Iterator[None]:
    """Let another function take the calls of a network; afterwards its `forward` is what it was, with no attribute left.

    Args:
        denoiser: the network.
        forward: takes its place.
        contexts: names of the cache contexts that are open, kept up to date.

    Raises:
        InterfaceError: if its calls are taken already.
    """
    if getattr(vars(denoiser).get("forward"), "guides", False):
        raise InterfaceError(f"{type(denoiser).__name__} is guided already: rules of guidance do not stack")
    names = ("forward", *(["cache_context"] if hasattr(denoiser, "cache_context") else []))
    before = {name: vars(denoiser)[name] for name in names if name in vars(denoiser)}
    original_context = getattr(denoiser, "cache_context", None)

    def taken(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    @contextmanager
    def named(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
        assert original_context is not None
        contexts.append(name)
        try:
            with original_context(name, *args, **kwargs):
                yield
        finally:
            contexts.pop()

    taken.guides = True  # type: ignore[attr-defined]
    for name, function in zip(names, (taken, named), strict=False):
        object.__setattr__(denoiser, name, function)
    try:
        yield
    finally:
        for name in names:
            object.__delattr__(denoiser, name)
            if name in before:
                object.__setattr__(denoiser, name, before[name])


@contextmanager
def steer(pipeline: Any, rule: GuidanceRule) -> Iterator[list[Cost]]:
    """Let a rule decide which rows the denoiser of a pipeline runs, for as long as the context lasts.

    The pipeline is called as ever, with its guidance on. No attribute of it is touched; its denoiser's `forward` is replaced, and is
    the same bound method again afterwards. Each call of the pipeline begins anew, also after one that was cut short.

    Args:
        pipeline: of diffusers, with a `unet` or a `transformer` and classifier-free guidance.
        rule: what decides.

    Yields:
        The costs of the calls so far, one each.

    Raises:
        InterfaceError: if the pipeline has no unconditional branch, or is guided already.
        ConfigError: if a call has its guidance off.
    """
    denoiser = denoiser_of(pipeline)
    steering = _Steering(pipeline, denoiser, rule)
    with intercepted(denoiser, steering, steering.contexts):
        yield steering.costs
    if steering.pending is not None:
        raise no_branch(pipeline, denoiser)


@dataclass
class _Pending:
    """The first of two calls of one evaluation."""

    demand: Demand
    conditional: Tensor | None
    handed: Tensor
    sample: Tensor


class _Steering:
    """Takes the calls of a denoiser."""

    def __init__(self, pipeline: Any, denoiser: Any, rule: GuidanceRule):
        self.pipeline, self.denoiser, self.rule = pipeline, denoiser, rule
        self.original = denoiser.forward
        self.names = list(inspect.signature(self.original).parameters)
        self.contexts: list[str] = []
        self.costs: list[Cost] = []
        self.pending: _Pending | None = None
        self.timesteps: Any = None
        self.index, self.evaluations = 0, 0
        self.descending = True
        self.form: Form = "joint"
        self.last: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = {**dict(zip(self.names, args, strict=False)), **kwargs}
        if arguments.get("skip_layers") is not None:  # a third call, of skip-layer guidance
            return self.original(**arguments)
        sample = arguments[self.names[0]]
        if self._begins(arguments.get("timestep")):
            self._begin(sample)
        return self._joint(arguments, sample) if self.form == "joint" else self._separate(arguments, sample)

    def _begins(self, timestep: Any) -> bool:
        """Whether a call of the pipeline begins: it has set its timesteps, the last one was done, or time goes up again."""
        timesteps, last, self.last = self.pipeline.scheduler.timesteps, self.last, timestep
        if timesteps is not self.timesteps or self.index >= self.evaluations:
            return True
        if not self.descending:
            return False
        values = [float(one.flatten()[0]) if isinstance(one, Tensor) else one for one in (last, timestep) if not _on_accelerator(one)]
        return len(values) == 2 and values[1] > values[0]

    def _begin(self, sample: Tensor) -> None:
        scheduler = self.pipeline.scheduler
        context = self.contexts[-1] if self.contexts else None
        self.form = form_of(self.pipeline, self.denoiser, sample, context)
        self.timesteps, self.index, self.pending = scheduler.timesteps, 0, None
        self.descending = bool(scheduler.timesteps[0] >= scheduler.timesteps[-1])  # inversion goes up
        places = solver_steps(scheduler)
        told = getattr(self.pipeline, "_num_timesteps", None)
        self.evaluations = told if isinstance(told, int) and 0 < told <= len(places) else len(places)
        first = getattr(scheduler, "begin_index", None) or 0
        first = first if first + self.evaluations <= len(places) else 0
        own = places[first : first + self.evaluations]
        samples = len(sample) // 2 if self.form == "joint" else len(sample)
        scale = getattr(self.pipeline, "_guidance_scale", None) if self.form == "joint" else None
        self.costs.append(Cost(evaluations=[0] * samples))
        logger.info("%s runs both branches of guidance in %s", type(self.pipeline).__name__, f"{self.form} calls")
        relative = tuple(place - own[0] for place in own)
        self.rule.begin(Sampling(samples, relative, sample.device, scheduler, first, scale, self.denoiser))

    def _joint(self, arguments: Mapping[str, Any], sample: Tensor) -> Any:
        batch, demand = len(sample) // 2, self.rule.demand(self.index)
        chosen = [*demand.unconditional, *(range(batch, 2 * batch) if demand.conditional else ())]
        output = self._run(arguments, chosen, len(sample))
        found, count = prediction_of(output), len(demand.unconditional)
        unconditional, conditional = found[:count] if count else None, found[count:] if demand.conditional else None
        timestep = _half(arguments.get("timestep"), len(sample))
        shown = self.rule.combine(Evaluation(self.index, conditional, unconditional, sample[batch:], timestep))
        self._count(demand, batch)
        if shown.unconditional is unconditional and shown.conditional is conditional:
            return output
        return with_prediction(output, torch.cat([shown.unconditional, shown.conditional]))

    def _separate(self, arguments: Mapping[str, Any], sample: Tensor) -> Any:
        context = self.contexts[-1] if self.contexts else None
        second = context == "uncond" if context in ("cond", "uncond") else self.pending is not None
        if second:
            return self._second(arguments)
        if self.pending is not None:
            raise no_branch(self.pipeline, self.denoiser)
        demand = self.rule.demand(self.index)
        if demand.conditional:
            output = self.original(**arguments)
            found = prediction_of(output)
            self.pending = _Pending(demand, found, found, sample)
            return output
        blank = torch.zeros_like(sample)  # filled in when the second call has been made
        self.pending = _Pending(demand, None, blank, sample)
        return self._packed(arguments, blank)

    def _second(self, arguments: Mapping[str, Any]) -> Any:
        pending, self.pending = self.pending, None
        if pending is None:
            raise InterfaceError(f"{type(self.pipeline).__name__} runs the negative branch first, which is not supported")
        batch, demand = len(pending.sample), pending.demand
        output = self._run(arguments, list(demand.unconditional), batch) if demand.unconditional else None
        unconditional = None if output is None else prediction_of(output)
        conditional, time = pending.conditional, arguments.get("timestep")
        shown = self.rule.combine(Evaluation(self.index, conditional, unconditional, pending.sample, time))
        self._count(demand, batch)
        if shown.conditional is not conditional:
            pending.handed.copy_(shown.conditional)  # the pipeline holds it, and combines it when this call returns
        if output is not None and shown.unconditional is unconditional:
            return output
        return self._packed(arguments, shown.unconditional) if output is None else with_prediction(output, shown.unconditional)

    def _run(self, arguments: Mapping[str, Any], chosen: list[int], rows: int) -> Any:
        return self.original(**(arguments if len(chosen) == rows else take_rows(arguments, chosen, rows)))

    def _count(self, demand: Demand, batch: int) -> None:
        cost = self.costs[-1]
        cost.full += 2
        cost.rows += len(demand.unconditional) + batch * demand.conditional
        for sample in range(batch):
            cost.evaluations[sample] += demand.conditional
        for sample in demand.unconditional:
            cost.evaluations[sample] += 1
        self.index += 1

    @staticmethod
    def _packed(arguments: Mapping[str, Any], prediction: Tensor) -> Any:
        if arguments.get("return_dict", True):
            from diffusers.models.modeling_outputs import Transformer2DModelOutput

            return Transformer2DModelOutput(sample=prediction)
        return (prediction,)


def _on_accelerator(value: Any) -> bool:
    return value is None or (isinstance(value, Tensor) and value.device.type != "cpu")


def _half(timestep: Any, rows: int) -> Any:
    """The timesteps of the second half of the rows, where there is one for each."""
    return timestep[rows // 2 :] if isinstance(timestep, Tensor) and timestep.ndim and len(timestep) == rows else timestep
