"""Adaptive Guidance as a guider of diffusers' modular pipelines."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor

from graftwork_adaptive_guidance.rules import AdaptiveRule
from graftwork_adaptive_guidance.similarity import guidance_cosine

__all__ = ["AdaptiveGuider"]


class AdaptiveGuider(ClassifierFreeGuidance):
    """AG for modular pipelines (Castillo et al., 2025): a `BaseGuidance` whose `num_conditions` falls from 2 to 1.

    A guider sees whole batches, so the unconditional branch is run until the last sample has stopped; a sample that has stopped uses
    the conditional prediction alone all the same, and gets the picture that it would get by itself.

    Args:
        guidance_scale: s.
        threshold: gamma-bar, a cosine; values above 1 switch the stop off.
        min_steps: steps that are guided in any case.
        guidance_rescale: as diffusers has it, for samples that are guided.
        use_original_formulation: as diffusers has it.
        start: share of the steps before guidance begins.
        stop: share of the steps after which it ends in any case.
        enabled: whether there is guidance.

    Raises:
        ValueError: if a parameter is out of range.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        guidance_scale: float = 7.5,
        threshold: float = 0.991,
        min_steps: int = 1,
        guidance_rescale: float = 0.0,
        use_original_formulation: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ):
        super().__init__(guidance_scale, guidance_rescale, use_original_formulation, start, stop, enabled)
        AdaptiveRule(threshold, min_steps=min_steps)
        self.threshold, self.min_steps = threshold, min_steps
        self._latched: Tensor | None = None
        self._all_latched, self._guided = False, 0

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """Begin a step; a step that is not later than the one before begins a new call, with every latch open."""
        if self._step is None or step <= self._step or step == 0:
            self._latched, self._all_latched, self._guided = None, False, 0
        elif self._latched is not None and not self._all_latched:
            self._all_latched = bool(self._latched.all())
        super().set_state(step, num_inference_steps, timestep)

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """Guidance for samples that are not latched, the conditional prediction for the others."""
        if pred_uncond is None:
            return GuiderOutput(pred=pred_cond, pred_cond=pred_cond, pred_uncond=None)
        output = super().forward(pred_cond, pred_uncond)
        latched = torch.zeros(len(pred_cond), dtype=torch.bool, device=pred_cond.device) if self._latched is None else self._latched
        stopped = latched.view(-1, *[1] * (pred_cond.ndim - 1))
        output.pred = torch.where(stopped, pred_cond, output.pred)
        self._guided += 1
        if self._guided >= self.min_steps:
            latched = latched | (guidance_cosine(pred_cond, pred_uncond) >= self.threshold)
        self._latched = latched
        return output

    def _is_cfg_enabled(self) -> bool:
        return super()._is_cfg_enabled() and not self._all_latched
