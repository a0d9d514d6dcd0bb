"""How alike conditional and unconditional predictions are along plain guidance, and what follows from it for AG and LinearAG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from graftwork import Dataset, Figure, Report, Split, Table
from graftwork.interfaces import DiffusionPipeline
from graftwork.kinds.evaluator import evaluating
from graftwork_adaptive_guidance.calibration import choose_threshold, guided_steps, saved_share, threshold_artifact
from graftwork_adaptive_guidance.calls import GUIDANCE_SCALE, GuidedCall, PromptedEvaluator, evaluations_of
from graftwork_adaptive_guidance.coefficients import CoefficientTable, FitMode, Mark, check_schedule
from graftwork_adaptive_guidance.figure import draw_alignment
from graftwork_adaptive_guidance.linear import fit_coefficients
from graftwork_adaptive_guidance.rules import AdaptiveRule
from graftwork_adaptive_guidance.similarity import Space
from graftwork_adaptive_guidance.solvers import Solver, using_solver
from graftwork_adaptive_guidance.steering import denoiser_of, steer

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["GuidanceAlignment", "guidance_similarities"]

Count = Annotated[int, Field(ge=1)]


def guidance_similarities(pipeline: Any, calls: list[GuidedCall], space: Space = "prediction") -> Tensor:
    """gamma of plain guidance, (T, N) float32 on the CPU: a row a step of the solver, a column a sample.

    Args:
        pipeline: of diffusers.
        calls: guided.
        space: where predictions are compared.
    """
    found = []
    with evaluating(denoiser_of(pipeline)):
        for call in calls:
            rule = AdaptiveRule(threshold=2.0, space=space)
            with steer(pipeline, rule):
                call.run(pipeline, output_type="latent")
            found.append(torch.stack(rule.similarities).float().cpu())
    return torch.cat(found, dim=1)


class GuidanceAlignment(PromptedEvaluator):
    """Runs plain guidance and reports gamma_t of every step and sample, the step at which AG would stop for a grid of thresholds, what
    that saves, and how well past predictions explain the unconditional ones, as LinearAG needs (Castillo et al., 2025).

    Hands on, as artifacts, `threshold` for `adaptive-guidance` and `coefficients` for `linear-adaptive-guidance`.

    Args:
        split: of the prompts.
        key: sample key of the prompts.
        prompts: texts to use instead of a split's.
        limit: so many prompts; all by default.
        guidance_scale: s.
        steps: of the sampler.
        solver: instead of the pipeline's own.
        negative_prompt: of every sample; none is the empty one.
        space: where predictions are compared.
        thresholds: grid; by default 33 quantiles of what is seen, and 0.991.
        target_saving: share of plain guidance's evaluations that the chosen threshold, the largest of the grid that does, saves.
        linear: fit LinearAG's coefficients too.
        schedule: LinearAG's: "cfg", "estimate" or "cond" for each step; None alternates in the first half.
        mode: LinearAG's fit: each step on samples that earlier estimates have led to, or all on plain guidance.
        constant: fit a constant term too.
        batch_size: samples a call.

    Raises:
        ValueError: if a parameter is out of range.
    """

    needs = DiffusionPipeline

    def __init__(
        self,
        split: Split = "test",
        key: str = "caption",
        prompts: list[str] | None = None,
        limit: Count | None = None,
        guidance_scale: Annotated[float, Field(gt=1)] = GUIDANCE_SCALE,
        steps: Count = 20,
        solver: Solver | None = None,
        negative_prompt: str | None = None,
        space: Space = "prediction",
        thresholds: list[float] | None = None,
        target_saving: Annotated[float, Field(ge=0, lt=0.5)] = 0.25,
        linear: bool = True,
        schedule: list[Mark] | None = None,
        mode: FitMode = "on-policy",
        constant: bool = False,
        batch_size: Count = 16,
    ):
        for threshold in thresholds or ():
            AdaptiveRule(threshold)
        if not 0 <= target_saving < 0.5:
            raise ValueError(f"target_saving is in [0, 0.5), since the conditional half is always run; found {target_saving}")
        super().__init__(split, key, prompts, limit, guidance_scale, steps, solver, negative_prompt, batch_size)
        self.space, self.thresholds, self.target_saving = space, thresholds, target_saving
        self.linear, self.mode, self.constant = linear, mode, constant
        self.schedule = None if schedule is None else check_schedule(schedule)

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics of gamma, of the chosen threshold and of the fit; tables `steps`, `thresholds` and `estimates`; one figure."""
        prompts, calls = self.calls(data, run)
        with using_solver(model, self.solver):
            similarities = guidance_similarities(model, calls, self.space)
            table = self._fit(model, calls) if self.linear else None
        places = (torch.arange(33) + 0.5) / 33  # most lie where cosines crowd
        grid = sorted(self.thresholds or {*similarities.flatten().quantile(places).tolist(), 0.991})
        chosen = choose_threshold(similarities, grid, self.target_saving)
        steps = len(similarities)
        guided = {threshold: guided_steps(similarities, threshold) for threshold in grid}
        saved = [float(saved_share(guided[threshold], steps).mean()) for threshold in grid]
        ends = {"first": 0, "middle": steps // 2, "last": -1}
        metrics = {f"gamma-{name}": float(similarities[place].mean()) for name, place in ends.items()}
        artifacts = {}
        if chosen is not None:
            metrics |= {"threshold": chosen, "nfe-saved": saved[grid.index(chosen)]}
            artifacts["threshold"] = threshold_artifact(chosen, self.space, steps=self.steps, guidance_scale=self.guidance_scale)
        tables = {
            "steps": _step_table(similarities),
            "thresholds": _threshold_table(guided, saved, steps),
            "stops": _stop_table(guided, prompts),
        }
        estimates: dict[int, float] = {}
        if table is not None:
            artifacts["coefficients"] = table.to_artifact()
            tables["estimates"] = _estimate_table(table, self._places(model))
            estimates = dict(zip((row[0] for row in tables["estimates"].rows), table.r2, strict=True))
            if table.r2:
                metrics |= {"estimate-r2": min(table.r2), "estimate-error": max(table.relative_error)}
        figure = draw_alignment(similarities, grid, saved, chosen, estimates)
        caption = f"Cosine of the two predictions at scale {self.guidance_scale:g}, {len(prompts)} samples; what a threshold saves."
        return Report(metrics, tables, {"alignment": Figure(figure, caption)}, artifacts)

    def _places(self, model: Any) -> tuple[int, ...]:
        with using_solver(model, self.solver):
            return evaluations_of(model, self.steps)

    def _fit(self, model: Any, calls: list[GuidedCall]) -> CoefficientTable:
        places, settings = evaluations_of(model, self.steps), {"schedule": self.schedule, "mode": self.mode, "constant": self.constant}
        with evaluating(denoiser_of(model)):
            return fit_coefficients(model, calls, places, self.guidance_scale, **settings)  # type: ignore[arg-type]


def _step_table(similarities: Tensor) -> Table:
    rows = [[step, row.mean().item(), row.min().item(), row.max().item()] for step, row in enumerate(similarities)]
    return Table(["step", "mean", "least", "most"], rows, "Cosine of conditional and unconditional predictions under plain guidance.")


def _threshold_table(guided: dict[float, Tensor], saved: list[float], steps: int) -> Table:
    rows = []
    for (threshold, count), share in zip(guided.items(), saved, strict=True):
        mean = count.double().mean().item()
        rows.append([threshold, mean, int(count.min()), int(count.max()), steps + mean, share])
    columns = ["threshold", "guided steps", "fewest", "most", "NFE", "saved"]
    return Table(columns, rows, f"What AG would do of {steps} steps; plain guidance takes {2 * steps} evaluations.")


def _stop_table(guided: dict[float, Tensor], prompts: list[str]) -> Table:
    chosen = list(guided)[:: max(1, len(guided) // 6)]
    rows = [[prompt, *(int(guided[threshold][place]) for threshold in chosen)] for place, prompt in enumerate(prompts)]
    return Table(["prompt", *(f"{threshold:.4g}" for threshold in chosen)], rows, "Guided steps of each sample, by threshold.")


def _estimate_table(table: CoefficientTable, places: tuple[int, ...]) -> Table:
    estimated = [index for index, place in enumerate(places) if table.schedule[place] == "estimate"]
    rows = [list(row) for row in zip(estimated, table.r2, table.relative_error, strict=True)]
    return Table(["evaluation", "R2", "relative error"], rows, f"LinearAG's estimates of unconditional predictions, fitted {table.mode}.")
