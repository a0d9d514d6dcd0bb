"""Rules of guidance: which predictions a step evaluates, and what the pipeline gets to see of them. No pipeline is known here."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from graftwork import ConfigError
from graftwork_adaptive_guidance.policy import Choice
from graftwork_adaptive_guidance.similarity import Space, denoised, guidance_cosine, guide, without_variance

__all__ = ["AdaptiveRule", "Demand", "Evaluation", "GuidanceRule", "PolicyRule", "Sampling", "Shown"]


@dataclass(frozen=True)
class Sampling:
    """One call of a pipeline, as it begins.

    Args:
        samples: B.
        solver_steps: of each evaluation, the step of the solver that it belongs to.
        device: of the predictions.
        scheduler: of diffusers, with its timesteps set; None where no rule asks for it.
        first: place of the first evaluation in the scheduler's timesteps; above 0 where a call starts from a picture.
        guidance_scale: of the call, where the pipeline tells it.
        denoiser: the network; None where no rule asks for it.
    """

    samples: int
    solver_steps: tuple[int, ...]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    scheduler: Any = None
    first: int = 0
    guidance_scale: float | None = None
    denoiser: Any = None

    @property
    def steps(self) -> int:
        """T, of the solver."""
        return self.solver_steps[-1] + 1 if self.solver_steps else 0

    def opens_step(self, index: int) -> bool:
        """Whether an evaluation is the first of its solver step."""
        return index == 0 or self.solver_steps[index] != self.solver_steps[index - 1]


class Demand(NamedTuple):
    """What to evaluate next: the conditional branch of every sample or none, the unconditional one of some samples."""

    conditional: bool
    unconditional: tuple[int, ...]


@dataclass(frozen=True)
class Evaluation:
    """What was evaluated.

    Args:
        index: of the evaluation, from 0.
        conditional: c, (B, ...), or None.
        unconditional: u of the samples that were demanded, (n, ...), or None where n = 0.
        sample: (B, ...) what the network was shown.
        timestep: what the network was told.
    """

    index: int
    conditional: Tensor | None
    unconditional: Tensor | None
    sample: Tensor
    timestep: Any = None


class Shown(NamedTuple):
    """What the pipeline is handed, (B, ...) each; where both are alike its formula u + s (c - u) gives just that, whatever s."""

    unconditional: Tensor
    conditional: Tensor


class GuidanceRule(ABC):
    """Decides what each evaluation runs. Begins anew with every call of the pipeline."""

    def begin(self, sampling: Sampling) -> None:
        """A call begins."""
        self.sampling = sampling

    @abstractmethod
    def demand(self, index: int) -> Demand:
        """What evaluation `index` is to run."""

    @abstractmethod
    def combine(self, evaluation: Evaluation) -> Shown:
        """What the pipeline is handed for it."""

    def everyone(self) -> tuple[int, ...]:
        """Every sample of the batch."""
        return tuple(range(self.sampling.samples))

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float | None) -> Shown:
        """Guidance at a scale; the pipeline's own formula serves where that is its scale, or none is given."""
        if scale is None or scale == self.sampling.guidance_scale:
            return Shown(unconditional, conditional)
        result = guide(conditional, unconditional, scale)
        return Shown(result, result)


class AdaptiveRule(GuidanceRule):
    """AG: guidance until the two predictions point the same way, then the conditional one alone (Castillo et al., 2025).

    gamma is looked at in the first evaluation of each solver step. The step in which it reaches the threshold still uses its guided
    result; every later one uses c, whatever gamma would be. There is one number, and one latch, for each sample.

    Args:
        threshold: gamma-bar; above 1 nothing ever stops.
        guidance_scale: s, instead of the pipeline call's.
        per_sample: stop each sample by itself; else all stop together, when the last has reached the threshold.
        space: where predictions are compared.
        min_steps: solver steps that are guided in any case.
        static_shapes: run both branches of all samples while one is still guided, so that the denoiser sees batches of B and 2B
            only; the result is the same.

    Raises:
        ValueError: if a parameter is out of range.
    """

    def __init__(
        self,
        threshold: float = 0.991,
        guidance_scale: float | None = None,
        per_sample: bool = True,
        space: Space = "prediction",
        min_steps: int = 1,
        static_shapes: bool = False,
    ):
        if math.isnan(threshold) or threshold < -1:
            raise ValueError(f"threshold is a cosine; values above 1 switch the stop off; found {threshold}")
        if space not in ("prediction", "x0"):
            raise ValueError(f'space is "prediction" or "x0"; found {space!r}')
        if min_steps < 1:
            raise ValueError(f"min_steps is at least 1, the step that gamma is first seen in; found {min_steps}")
        if guidance_scale is not None and not (math.isfinite(guidance_scale) and guidance_scale >= 1):
            raise ValueError(f"guidance_scale is at least 1 and finite; found {guidance_scale}")
        self.threshold, self.guidance_scale, self.per_sample, self.space = threshold, guidance_scale, per_sample, space
        self.min_steps, self.static_shapes = min_steps, static_shapes
        self.similarities: list[Tensor] = []

    def begin(self, sampling: Sampling) -> None:
        """Open every latch."""
        super().begin(sampling)
        self.similarities = []
        self._latched = torch.zeros(sampling.samples, dtype=torch.bool, device=sampling.device)
        self._active = self.everyone()

    def demand(self, index: int) -> Demand:
        """c of all, u of the samples that are still guided; the one place that waits for the device, once a solver step."""
        if index and self._active and self.threshold <= 1 and self.sampling.opens_step(index):
            active = tuple((~self._latched).nonzero().flatten().tolist())
            self._active = active if self.per_sample or not active else self.everyone()
        shared = self.static_shapes and self._active
        return Demand(True, self.everyone() if shared else self._active)

    def combine(self, evaluation: Evaluation) -> Shown:
        """(u, c) of the samples that are guided, (c, c) of the others."""
        conditional, unconditional = evaluation.conditional, evaluation.unconditional
        assert conditional is not None
        if unconditional is None or not self._active:
            return Shown(conditional, conditional)
        active = None if len(self._active) == len(conditional) else torch.tensor(self._active, device=conditional.device)
        if active is not None and len(unconditional) == len(conditional):
            unconditional = unconditional[active]
        chosen = conditional if active is None else conditional[active]
        if self.sampling.opens_step(evaluation.index):
            self._look(evaluation, chosen, unconditional, active)
        shown = self.guided(chosen, unconditional, self.guidance_scale)
        if active is None:
            return shown
        return Shown(*(conditional.index_copy(0, active, part) for part in shown))

    def _look(self, evaluation: Evaluation, chosen: Tensor, unconditional: Tensor, active: Tensor | None) -> None:
        sampling = self.sampling
        pair = (without_variance(chosen, evaluation.sample), without_variance(unconditional, evaluation.sample))
        if self.space == "x0":
            sample = evaluation.sample if active is None else evaluation.sample[active]
            time = evaluation.timestep
            if isinstance(time, Tensor) and time.ndim:
                time = time[active] if active is not None and len(time) == sampling.samples else time
            place = sampling.first + evaluation.index
            pair = tuple(denoised(sampling.scheduler, one.float(), sample.float(), time, place) for one in pair)  # type: ignore[assignment]
        gamma = guidance_cosine(*pair)
        everyone = torch.full((sampling.samples,), torch.nan, device=gamma.device, dtype=gamma.dtype)
        everyone = gamma if active is None else everyone.index_copy(0, active, gamma)
        self.similarities.append(everyone)
        if sampling.solver_steps[evaluation.index] + 1 >= self.min_steps:
            self._latched |= everyone >= self.threshold  # not a number is below every threshold


class PolicyRule(GuidanceRule):
    """Runs an explicit policy, one choice for each solver step, the same for every sample.

    Args:
        policy: choices in the order of the steps.
    """

    def __init__(self, policy: Sequence[Choice]):
        self.policy = tuple(policy)

    def begin(self, sampling: Sampling) -> None:
        """Hold the policy against the call.

        Raises:
            ConfigError: if it has not one entry for each solver step.
        """
        super().begin(sampling)
        if len(self.policy) != sampling.steps:
            evaluations = len(sampling.solver_steps)
            also = "" if evaluations == sampling.steps else f" in {evaluations} evaluations"
            raise ConfigError(f"policy has {len(self.policy)} entries; the call takes {sampling.steps} steps{also}")

    def demand(self, index: int) -> Demand:
        """What the step's choice needs."""
        choice = self._choice(index)
        return Demand(choice.kind != "uncond", () if choice.kind == "cond" else self.everyone())

    def combine(self, evaluation: Evaluation) -> Shown:
        """The step's choice."""
        choice, conditional, unconditional = self._choice(evaluation.index), evaluation.conditional, evaluation.unconditional
        if unconditional is None:
            assert conditional is not None
            return Shown(conditional, conditional)
        if conditional is None:
            return Shown(unconditional, unconditional)
        return self.guided(conditional, unconditional, choice.scale)

    def _choice(self, index: int) -> Choice:
        return self.policy[self.sampling.solver_steps[index]]
