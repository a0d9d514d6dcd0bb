"""LinearAG: unconditional predictions estimated from past ones, and how the estimates are fitted."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from graftwork import fingerprint
from graftwork_adaptive_guidance.coefficients import CoefficientTable, FitMode, Mark, alternating_schedule, empty_table, sampler_settings
from graftwork_adaptive_guidance.least_squares import Solution, StreamedLeastSquares
from graftwork_adaptive_guidance.rules import AdaptiveRule, Demand, Evaluation, Sampling, Shown
from graftwork_adaptive_guidance.steering import denoiser_of, steer

__all__ = ["LinearRule", "Request", "fit_coefficients"]


class Request(Protocol):
    """A call of a pipeline that can be made again and again from the same noise."""

    def run(self, pipeline: Any) -> Any:
        """Call the pipeline."""


class LinearRule(AdaptiveRule):
    """LinearAG: at steps marked "estimate" c alone is evaluated and u is a linear combination of past predictions.

    At steps marked "cfg" both are evaluated, and AG's latch may stop a sample for good; steps marked "cond" use c alone. Up to the last
    estimate the history keeps two latents for each evaluation and sample.

    Args:
        table: coefficients and schedule.
        threshold: AG's; above 1, the default, only the schedule decides.
        history_dtype: that predictions are kept in; None is their own.
        check_weights: compare the denoiser's weights with those that the table was fitted to, once.
    """

    def __init__(
        self, table: CoefficientTable, threshold: float = 2.0, history_dtype: torch.dtype | None = None, check_weights: bool = True
    ):
        super().__init__(threshold, table.guidance_scale)
        self.table, self.history_dtype, self.check_weights = table, history_dtype, check_weights
        self._checked: Any = None

    def begin(self, sampling: Sampling) -> None:
        """Hold the table against the call, and begin a history.

        Raises:
            ArtifactError: if the table was fitted for another call.
        """
        super().begin(sampling)
        self.table.check(sampling, weights=self.check_weights and self._checked is not sampling.denoiser)
        self._checked = sampling.denoiser
        self.marks: list[Mark] = [self.table.schedule[step] for step in sampling.solver_steps]
        self._kept = max((index + 1 for index, mark in enumerate(self.marks) if mark == "estimate"), default=0)
        self._history: Tensor | None = None

    def demand(self, index: int) -> Demand:
        """Both branches of what is still guided at "cfg", else the conditional one."""
        demand = super().demand(index)
        return demand if self.marks[index] == "cfg" else Demand(True, ())

    def combine(self, evaluation: Evaluation) -> Shown:
        """Guidance, by the true or the estimated prediction."""
        index, conditional = evaluation.index, evaluation.conditional
        assert conditional is not None
        if self.marks[index] == "cfg":
            shown = super().combine(evaluation)
            true = evaluation.unconditional
            if true is not None and len(true) < len(conditional):  # those that have stopped are combined no more
                true = conditional.index_copy(0, torch.tensor(self._active, device=true.device), true)
            self._keep(index, conditional, conditional if true is None else true)
            return shown
        if self.marks[index] == "cond":
            return Shown(conditional, conditional)
        self._keep(index, conditional)
        estimate = self.estimate(index).to(conditional.dtype)
        self._keep(index, None, estimate)
        shown = self.guided(conditional, estimate, self.guidance_scale)
        if len(self._active) == len(conditional):
            return shown
        stopped = torch.ones(len(conditional), dtype=torch.bool, device=conditional.device)
        stopped[list(self._active)] = False
        stopped = stopped.view(-1, *[1] * (conditional.ndim - 1))
        return Shown(*(torch.where(stopped, conditional, part) for part in shown))

    def columns(self, index: int) -> Tensor:
        """What an estimate combines, (2 t + 1, B, ...): c_0 .. c_t, then u_0 .. u_{t-1}."""
        assert self._history is not None
        return torch.cat([self._history[0, : index + 1], self._history[1, :index]])

    def estimate(self, index: int) -> Tensor:
        """u^_t, in float32 or finer."""
        columns = self.columns(index)
        dtype = torch.promote_types(columns.dtype, torch.float32)
        row = torch.cat([self.table.conditional[index, : index + 1], self.table.unconditional[index, :index]])
        combined: Tensor = torch.tensordot(row.to(columns.device, dtype), columns.to(dtype), dims=1)
        constant: Tensor = self.table.constant[index].to(combined)
        return combined + constant

    def _keep(self, index: int, conditional: Tensor | None, unconditional: Tensor | None = None) -> None:
        """Copies, since a pipeline may be handed what is kept and write over it."""
        if index >= self._kept:
            return
        for place, value in enumerate((conditional, unconditional)):
            if value is None:
                continue
            if self._history is None:
                self._history = value.new_zeros((2, self._kept, *value.shape), dtype=self.history_dtype or value.dtype)
            self._history[place, index] = value.detach()


class _EnoughError(Exception):
    """Leaves a pipeline's call when all that is needed of it was seen."""


class _FittingRule(LinearRule):
    """Evaluates the true u at some estimated evaluations and adds them to their fits; leaves after the last of them.

    Args:
        table: as filled so far.
        fits: evaluation -> its fit.
        constant: whether a column of ones is fitted too.
    """

    def __init__(self, table: CoefficientTable, fits: dict[int, StreamedLeastSquares], constant: bool):
        super().__init__(table, check_weights=False)
        self.fits, self.constant = fits, constant

    def demand(self, index: int) -> Demand:
        return Demand(True, self.everyone()) if index in self.fits else super().demand(index)

    def combine(self, evaluation: Evaluation) -> Shown:
        index, conditional, unconditional = evaluation.index, evaluation.conditional, evaluation.unconditional
        if index not in self.fits:
            return super().combine(evaluation)
        assert conditional is not None
        assert unconditional is not None
        self._keep(index, conditional)
        columns = self.columns(index).flatten(1)
        if self.constant:
            columns = torch.cat([columns, torch.ones_like(columns[:1])])
        self.fits[index].add(columns, unconditional)
        if index == max(self.fits):
            raise _EnoughError
        self._keep(index, None, unconditional)
        return self.guided(conditional, unconditional, self.guidance_scale)


def fit_coefficients(
    pipeline: Any,
    requests: Sequence[Request],
    places: Sequence[int],
    guidance_scale: float,
    *,
    schedule: Sequence[Mark] | None = None,
    mode: FitMode = "on-policy",
    constant: bool = False,
    ridge: float = 1e-8,
) -> CoefficientTable:
    """Fit LinearAG's table on a pipeline's own guided samples, by least squares over all their elements.

    "teacher-forced" takes one pass, on plain guidance with its true history. "on-policy" takes one for each estimated evaluation: the
    fits so far estimate, so that each is fitted on the samples and histories that it will meet. A pass ends where its last fit is.

    Args:
        pipeline: of diffusers, with its scheduler as it will be used.
        requests: calls of it, guided by `guidance_scale`; each is run once a pass.
        places: solver step of each evaluation of such a call (`solver_steps`).
        guidance_scale: s.
        schedule: mark of each solver step; by default LinearAG's own.
        mode: what is fitted on.
        constant: fit a constant term too.
        ridge: on the Gram matrix, as a share of its mean diagonal.

    Raises:
        ValueError: if there is no request, or the schedule does not fit.
    """
    if mode not in ("on-policy", "teacher-forced"):
        raise ValueError(f"mode is on-policy or teacher-forced; found {mode!r}")
    if not requests:
        raise ValueError("requests is empty: there is nothing to fit on")
    table = empty_table(places, schedule or alternating_schedule(places[-1] + 1), guidance_scale)
    estimated = [index for index, place in enumerate(places) if table.schedule[place] == "estimate"]
    rounds = [[index] for index in estimated] if mode == "on-policy" else [estimated] if estimated else []
    found: dict[int, Solution] = {}
    for indices in rounds:
        fits = {index: StreamedLeastSquares(2 * index + 1 + constant) for index in indices}
        _one_pass(pipeline, requests, _FittingRule(table, fits, constant))
        for index, fit in fits.items():
            found[index] = fit.solve(ridge)
            _fill(table, index, found[index].coefficients)
    denoiser = denoiser_of(pipeline)
    return dataclasses.replace(
        table,
        sampler=sampler_settings(pipeline.scheduler),
        model=type(denoiser).__name__,
        fingerprint=fingerprint(denoiser),
        mode=mode,
        r2=tuple(found[index].r2 for index in estimated),
        relative_error=tuple(found[index].relative_error for index in estimated),
    )


def _one_pass(pipeline: Any, requests: Iterable[Request], rule: _FittingRule) -> None:
    for request in requests:
        with steer(pipeline, rule), contextlib.suppress(_EnoughError):
            request.run(pipeline)


def _fill(table: CoefficientTable, index: int, coefficients: Tensor) -> None:
    table.conditional[index, : index + 1] = coefficients[: index + 1]
    table.unconditional[index, :index] = coefficients[index + 1 : 2 * index + 1]
    if len(coefficients) > 2 * index + 1:
        table.constant[index] = coefficients[-1]
