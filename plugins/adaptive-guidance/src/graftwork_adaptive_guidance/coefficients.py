"""LinearAG's table of coefficients, what it was fitted for, and how it is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

from graftwork import Artifact, ArtifactError, fingerprint
from graftwork_adaptive_guidance.rules import Sampling

__all__ = ["TYPE", "CoefficientTable", "FitMode", "Mark", "alternating_schedule", "check_schedule", "sampler_settings"]

TYPE = "linear-guidance-coefficients"
"""Type of the artifact."""

Mark: TypeAlias = Literal["cfg", "estimate", "cond"]
"""What a step does: both branches, the conditional one with an estimate of the other, or the conditional one alone."""

FitMode: TypeAlias = Literal["on-policy", "teacher-forced"]
"""Whether each step is fitted on samples that earlier estimates have led to, or on those of plain guidance."""


def alternating_schedule(steps: int) -> tuple[Mark, ...]:
    """LinearAG's own schedule: guided and estimated steps in turn in the first half, then conditional ones.

    Args:
        steps: T, of the solver.
    """
    return tuple("cond" if 2 * step >= steps else "estimate" if step % 2 else "cfg" for step in range(steps))


def check_schedule(schedule: Sequence[str]) -> tuple[Mark, ...]:
    """A schedule, if it is one.

    Raises:
        ValueError: if a mark is unknown, or the first step is to be estimated.
    """
    if odd := [mark for mark in schedule if mark not in ("cfg", "estimate", "cond")]:
        raise ValueError(f'schedule marks steps as "cfg", "estimate" or "cond"; found {odd[0]!r}')
    if not schedule:
        raise ValueError("schedule has no entry; it needs one for each step")
    if schedule[0] == "estimate":
        raise ValueError("schedule, step 0 is marked estimate: no past prediction to combine")
    if late := [step for step, mark in enumerate(schedule) if mark != "cond" and "cond" in schedule[:step]]:
        raise ValueError(f"schedule, step {late[0]} is guided after a conditional one, which leaves a gap in the history")
    return cast("tuple[Mark, ...]", tuple(schedule))


def sampler_settings(scheduler: Any) -> dict[str, Any]:
    """A scheduler's class and settings, as JSON holds them; what a table depends on."""
    kept = (str, int, float, bool)
    plain = {key: value for key, value in scheduler.config.items() if not key.startswith("_") and isinstance(value, kept)}
    return {"class": type(scheduler).__name__, **dict(sorted(plain.items()))}


@dataclass(frozen=True)
class CoefficientTable:
    """u^_t = sum_{i<=t} bc_ti c_i + sum_{i<t} bu_ti u_i + k_t: an estimate of the unconditional prediction from past ones (LinearAG,
    Castillo et al., 2025).

    Coefficients are numbers, the same for every pixel and channel; u_i may itself be an estimate.

    Args:
        conditional: bc, (E, E), a row an evaluation; zero above the diagonal.
        unconditional: bu, (E, E); zero on the diagonal and above.
        constant: k, (E,).
        schedule: mark of each solver step.
        guidance_scale: s that it was fitted under.
        sampler: class and settings of the scheduler.
        model: class of the denoiser.
        fingerprint: of the denoiser's weights; empty leaves them unchecked.
        mode: how it was fitted.
        r2: of each estimated evaluation, in order.
        relative_error: the same.

    Raises:
        ValueError: if the shapes or the schedule are wrong.
    """

    conditional: Tensor
    unconditional: Tensor
    constant: Tensor
    schedule: tuple[Mark, ...]
    guidance_scale: float
    sampler: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    fingerprint: str = ""
    mode: FitMode = "on-policy"
    r2: tuple[float, ...] = ()
    relative_error: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        count = len(self.constant)
        if self.conditional.shape != (count, count) or self.unconditional.shape != (count, count):
            shapes = f"{tuple(self.conditional.shape)}, {tuple(self.unconditional.shape)} and {tuple(self.constant.shape)}"
            raise ValueError(f"conditional and unconditional are (E, E) and constant (E,); found {shapes}")
        if not math.isfinite(self.guidance_scale) or self.guidance_scale <= 1:
            raise ValueError(f"guidance_scale is above 1 and finite; found {self.guidance_scale}")
        if bool(self.conditional.triu(1).any()) or bool(self.unconditional.triu(0).any()):
            raise ValueError("a coefficient of a prediction that is yet to come is not zero")

    @property
    def steps(self) -> int:
        """T, of the solver."""
        return len(self.schedule)

    def check(self, sampling: Sampling, weights: bool = True) -> None:
        """Raise unless the table was fitted for a call like this one.

        Args:
            sampling: the call.
            weights: compare the denoiser's weights too, which reads all of them.

        Raises:
            ArtifactError: if steps, scheduler, scale or model differ; both are named.
        """
        pairs: list[tuple[str, Any, Any]] = [("steps", self.steps, sampling.steps)]
        pairs.append(("evaluations", len(self.constant), len(sampling.solver_steps)))
        if sampling.scheduler is not None and self.sampler:
            used = sampler_settings(sampling.scheduler)
            pairs.append(("scheduler", self.sampler["class"], used["class"]))
            pairs += [(f"scheduler's {key}", self.sampler.get(key), used.get(key)) for key in sorted({*self.sampler, *used} - {"class"})]
        if sampling.guidance_scale is not None:
            pairs.append(("guidance_scale", self.guidance_scale, sampling.guidance_scale))
        if sampling.denoiser is not None and self.model:
            pairs.append(("model", self.model, type(sampling.denoiser).__name__))
        for what, fitted, used in pairs:
            if fitted != used:
                raise ArtifactError(f"the coefficient table was fitted for {what} {fitted}; the call has {used}: fit it again")
        if not weights or not self.fingerprint or sampling.denoiser is None:
            return
        fitted, own = self.fingerprint[:12], fingerprint(sampling.denoiser)[:12]
        if fitted != own:
            raise ArtifactError(f"the coefficient table was fitted for weights {fitted}; the call has {own}: fit it again")

    def to_artifact(self) -> Artifact:
        """The table as an artifact: safetensors and JSON."""
        tensors = {"conditional": self.conditional, "unconditional": self.unconditional, "constant": self.constant}
        data = {
            "schedule": list(self.schedule),
            "guidance_scale": self.guidance_scale,
            "sampler": dict(self.sampler),
            "model": self.model,
            "mode": self.mode,
            "r2": list(self.r2),
            "relative_error": list(self.relative_error),
        }
        return Artifact(TYPE, tensors, data, model=self.fingerprint)

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> CoefficientTable:
        """Read a table.

        Raises:
            ArtifactError: if the artifact is another, or damaged.
        """
        artifact.check(TYPE)
        try:
            tensors: dict[str, Any] = {name: artifact.tensors[name] for name in ("conditional", "unconditional", "constant")}
            data: dict[str, Any] = {**artifact.data, **{name: tuple(artifact.data[name]) for name in ("schedule", "r2", "relative_error")}}
            return cls(**tensors, **data, fingerprint=artifact.model)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the coefficient table is damaged: {error}") from None


def empty_table(places: Sequence[int], schedule: Sequence[Mark], guidance_scale: float) -> CoefficientTable:
    """A table of zeros, to be filled.

    Args:
        places: solver step of each evaluation.
        schedule: mark of each solver step.
        guidance_scale: s.

    Raises:
        ValueError: if the schedule has another number of steps.
    """
    if len(schedule) != places[-1] + 1:
        raise ValueError(f"schedule has {len(schedule)} entries; the solver takes {places[-1] + 1} steps")
    count = len(places)
    zeros = torch.zeros(count, count, dtype=torch.float64)
    return CoefficientTable(zeros, zeros.clone(), torch.zeros(count, dtype=torch.float64), check_schedule(schedule), guidance_scale)
