"""The guidances: Adaptive Guidance, LinearAG, and any explicit policy; for pipelines of diffusers."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from graftwork import Artifact, ConfigError, Dataset, Guidance
from graftwork.interfaces import DiffusionPipeline, require
from graftwork.kinds.evaluator import evaluating
from graftwork.kinds.guidance import Samples
from graftwork_adaptive_guidance.calibration import threshold_of
from graftwork_adaptive_guidance.calls import GUIDANCE_SCALE, batched_calls, evaluations_of, guided_arguments, prompts_of
from graftwork_adaptive_guidance.coefficients import CoefficientTable, FitMode, Mark, check_schedule
from graftwork_adaptive_guidance.linear import LinearRule, fit_coefficients
from graftwork_adaptive_guidance.policy import Choice, Pattern, parse_policy, pattern_policy
from graftwork_adaptive_guidance.rules import AdaptiveRule, GuidanceRule, PolicyRule
from graftwork_adaptive_guidance.similarity import Space
from graftwork_adaptive_guidance.steering import Cost, denoiser_of, steer

__all__ = ["AdaptiveGuidance", "GuidancePolicy", "LinearAdaptiveGuidance", "SteeredGuidance"]

Count = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(gt=1)]


def _check_scale(guidance_scale: float | None) -> None:
    if guidance_scale is not None and not guidance_scale > 1:
        raise ValueError(f"guidance_scale is above 1 where guidance is to be saved; found {guidance_scale}")


class SteeredGuidance(Guidance):
    """What a rule makes of classifier-free guidance. The pipeline is called with its guidance on.

    Attributes:
        costs: of each call since the guidance was last attached.
    """

    needs = DiffusionPipeline
    stacks = False
    guidance_scale: float | None = None

    def __init__(self) -> None:
        self.costs: list[Cost] = []

    @abstractmethod
    def rule(self) -> GuidanceRule:
        """A rule, of this guidance's settings."""

    @contextmanager
    def attach(self, pipeline: Any) -> Iterator[Any]:
        """Guide the calls of a pipeline; its denoiser is in evaluation mode meanwhile.

        Args:
            pipeline: of diffusers, called with classifier-free guidance on.

        Raises:
            InterfaceError: if it has no unconditional branch, or is guided already.
            ConfigError: if a call has its guidance off, or does not go with the settings.
        """
        require(pipeline, DiffusionPipeline, type(self).__name__)
        gradients = torch.is_grad_enabled()
        with evaluating(denoiser_of(pipeline), gradients), steer(pipeline, self.rule()) as self.costs:
            yield pipeline

    def sample(self, pipeline: Any, inputs: Mapping[str, Any]) -> Samples:
        """Call the pipeline under guidance.

        Args:
            pipeline: of diffusers.
            inputs: the call's arguments. Guidance is on without being asked for: the scale is this guidance's own, else 7.5.

        Returns:
            Images; metrics `nfe`, evaluations of the denoiser for a sample, and `nfe-saved`, the share that plain guidance takes more.

        Raises:
            ConfigError: if the call turns guidance off.
        """
        samples = super().sample(pipeline, guided_arguments(pipeline, inputs, self.guidance_scale))
        cost = self.costs[-1]
        return dataclasses.replace(samples, metrics={"nfe": cost.mean, "nfe-saved": cost.saved})


class AdaptiveGuidance(SteeredGuidance):
    """AG: classifier-free guidance until conditional and unconditional predictions point the same way, then the conditional one alone
    (Castillo et al., 2025, https://arxiv.org/abs/2312.12487).

    gamma_t = <c_t, u_t> / (||c_t|| ||u_t||), one number a sample. The step in which it reaches the threshold still uses its guided
    result; later ones run the denoiser on the conditional row only. T steps with k guided ones take T + k evaluations, not 2 T.
    Negative prompts count until the stop. Samples of one batch stop each at their own step.

    Args:
        guidance_scale: s; None is the pipeline call's own, and 7.5 where `sample` is given none.
        threshold: gamma-bar, a cosine; values above 1 switch the stop off. It depends on the model: `guidance-alignment` shows it.
        per_sample: stop each sample by itself; else all stop together, when the last has reached the threshold.
        space: compare the network's predictions, or the samples without noise that they imply ("x0").
        min_steps: steps that are guided in any case.
        static_shapes: let the denoiser see batches of B and 2B rows only, as compiled models and CUDA graphs want; the images are the
            same, less is saved.
        calibration: threshold found by `guidance-alignment`, in place of `threshold`; its space takes the place of `space`.

    Attributes:
        costs: of each call since the guidance was last attached.
        similarities: gamma of the last call, a (B,) tensor for each guided step; not a number where a sample had stopped.

    Raises:
        ValueError: if a parameter is out of range.
    """

    def __init__(
        self,
        guidance_scale: Scale | None = None,
        threshold: float = 0.991,
        per_sample: bool = True,
        space: Space = "prediction",
        min_steps: Count = 1,
        static_shapes: bool = False,
        calibration: Artifact | None = None,
    ):
        super().__init__()
        _check_scale(guidance_scale)
        if calibration is not None:
            threshold, space = threshold_of(calibration)
        self.guidance_scale, self.threshold, self.space = guidance_scale, threshold, space
        self._rule = AdaptiveRule(threshold, guidance_scale, per_sample, space, min_steps, static_shapes)

    def rule(self) -> GuidanceRule:
        """AG's rule."""
        return self._rule

    @property
    def similarities(self) -> list[torch.Tensor]:
        """gamma of the last call."""
        return self._rule.similarities


class LinearAdaptiveGuidance(SteeredGuidance):
    """LinearAG: some unconditional predictions are linear combinations of past ones (Castillo et al., 2025,
    https://arxiv.org/abs/2312.12487).

    At a step that is estimated only c_t is evaluated, and u_t is a combination of c_0 .. c_t and u_0 .. u_{t-1} with numbers as
    coefficients, fitted once on the model's own samples; u_i may be an estimate itself. By default guided and estimated steps alternate
    in the first half, and the second half is conditional: 25 evaluations instead of 40 at 20 steps.

    Args:
        coefficients: a fitted table, of `fit` or of `guidance-alignment`.
        table: folder that such a table was saved to, instead.
        threshold: also stop a sample for good where gamma of a guided step reaches this, as AG does; None leaves that to the schedule.
        history: type that past predictions are kept in; None is their own.
        check_weights: refuse a denoiser of other weights than the table was fitted to, which reads them all at the first call.
        guidance_scale: s; of `fit`, and held against the table's.
        steps: of the sampler, for `fit`.
        schedule: for `fit`: "cfg", "estimate" or "cond" for each step; None alternates.
        mode: for `fit`: each step on samples that earlier estimates have led to, or all on plain guidance.
        constant: for `fit`: a constant term too.
        trajectories: for `fit`: how many prompts.
        split: for `fit`: of the prompts.
        key: for `fit`: sample key of the prompts.
        batch_size: for `fit`: samples a call.
        seed: for `fit`: of the first sample's noise.

    Raises:
        ValueError: if a parameter is out of range, or two tables are given.
        ArtifactError: if the table is none or damaged.
    """

    def __init__(
        self,
        coefficients: Artifact | None = None,
        table: str | None = None,
        threshold: float | None = None,
        history: Literal["float32", "float16", "bfloat16"] | None = None,
        check_weights: bool = True,
        guidance_scale: Scale | None = None,
        steps: Count = 20,
        schedule: list[Mark] | None = None,
        mode: FitMode = "on-policy",
        constant: bool = False,
        trajectories: Count = 200,
        split: str = "train",
        key: str = "caption",
        batch_size: Count = 16,
        seed: Annotated[int, Field(ge=0)] = 0,
    ):
        super().__init__()
        if coefficients is not None and table is not None:
            raise ValueError("coefficients and table are both given; give one")
        stored = Artifact.load(Path(table).expanduser()) if table is not None else coefficients
        self.table = None if stored is None else CoefficientTable.from_artifact(stored)
        if self.table is not None and guidance_scale is not None and guidance_scale != self.table.guidance_scale:
            raise ValueError(f"the table was fitted for guidance_scale {self.table.guidance_scale:g}; found {guidance_scale:g}")
        self.guidance_scale = guidance_scale if self.table is None else self.table.guidance_scale
        self.threshold = 2.0 if threshold is None else threshold
        AdaptiveRule(self.threshold)
        self.history = None if history is None else getattr(torch, history)
        self.check_weights = check_weights
        self.schedule = None if schedule is None else check_schedule(schedule)
        self.mode: FitMode = mode
        self.steps, self.constant, self.trajectories = steps, constant, trajectories
        self.split, self.key, self.batch_size, self.seed = split, key, batch_size, seed
        self._rule: LinearRule | None = None

    def rule(self) -> GuidanceRule:
        """LinearAG's rule.

        Raises:
            ConfigError: if there is no table.
        """
        if self.table is None:
            raise ConfigError("linear-adaptive-guidance has no coefficients: fit them, or take them from guidance-alignment")
        if self._rule is None:
            self._rule = LinearRule(self.table, self.threshold, self.history, self.check_weights)
        return self._rule

    def fit(self, pipeline: Any, data: Dataset) -> Artifact:
        """Fit the table on a pipeline's own samples, and use it from now on.

        Args:
            pipeline: of diffusers.
            data: its `split` holds prompts under `key`.

        Raises:
            DataError: if there are no prompts.
        """
        scale = GUIDANCE_SCALE if self.guidance_scale is None else self.guidance_scale
        prompts = prompts_of(data, self.split, self.key, self.trajectories)
        calls = batched_calls(prompts, self.seed, self.steps, scale, batch_size=self.batch_size)
        places = evaluations_of(pipeline, self.steps)
        with evaluating(denoiser_of(pipeline)):
            self.table = fit_coefficients(pipeline, calls, places, scale, schedule=self.schedule, mode=self.mode, constant=self.constant)
        self.guidance_scale, self._rule = scale, None
        return self.table.to_artifact()


class GuidancePolicy(SteeredGuidance):
    """An explicit policy: for each step the unconditional or the conditional prediction alone, or guidance at any scale (Castillo et
    al., 2025, https://arxiv.org/abs/2312.12487).

    Args:
        policy: "uncond", "cond", "cfg" or "cfg(SCALE)" for each step; "cfg" has the pipeline call's scale.
        pattern: a policy by hand instead: guidance in the `first` or the `last` steps, or in every other one.
        guided: how many steps a pattern guides.
        steps: of a pattern.
        searched: a pipeline that carries a policy, as `guidance-policy-search` hands it on, instead.
        guidance_scale: s of "cfg" entries; None is the pipeline call's own.

    Raises:
        ValueError: if there is not exactly one policy, or it is wrong.
    """

    def __init__(
        self,
        policy: list[str] | None = None,
        pattern: Pattern | None = None,
        guided: Annotated[int, Field(ge=0)] | None = None,
        steps: Count = 20,
        searched: DiffusionPipeline | None = None,
        guidance_scale: Scale | None = None,
    ):
        super().__init__()
        given = [name for name, value in (("policy", policy), ("pattern", pattern), ("searched", searched)) if value is not None]
        if len(given) != 1:
            raise ValueError(f"give one of policy, pattern and searched; found {' and '.join(given) or 'none'}")
        if policy is not None:
            found = parse_policy(policy)
        elif pattern is not None:
            found = pattern_policy(pattern, steps, guided)
        else:
            carried = getattr(getattr(searched, "guidance", None), "policy", None)
            if carried is None:
                raise ValueError(f"searched is a pipeline that carries a policy; {type(searched).__name__} carries none")
            found = carried
        _check_scale(guidance_scale)
        if guidance_scale is not None:
            found = tuple(Choice("cfg", guidance_scale) if one == Choice("cfg") else one for one in found)
        self.policy, self.guidance_scale = found, guidance_scale

    @classmethod
    def of(cls, policy: tuple[Choice, ...], guidance_scale: float | None = None) -> GuidancePolicy:
        """A guidance of choices that are there already."""
        return cls([str(one) for one in policy], guidance_scale=guidance_scale)

    def rule(self) -> GuidanceRule:
        """The policy's rule."""
        return PolicyRule(self.policy)
