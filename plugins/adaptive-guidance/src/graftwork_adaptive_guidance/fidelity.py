"""How near the pictures of cheaper guidance are to those of plain guidance from the same noise."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from graftwork import Dataset, Figure, Guidance, InterfaceError, Report, Split, Table
from graftwork.interfaces import DiffusionPipeline
from graftwork_adaptive_guidance.calls import GUIDANCE_SCALE, GuidedCall, PromptedEvaluator, evaluations_of
from graftwork_adaptive_guidance.figure import draw_samples
from graftwork_adaptive_guidance.guidance import GuidancePolicy
from graftwork_adaptive_guidance.policy import pattern_policy
from graftwork_adaptive_guidance.solvers import Solver, using_solver

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["GuidanceFidelity", "image_similarity"]

PLAIN = "cfg"
FEWER, MIRRORED = "fewer-steps", "mirrored"
MOST_DECIBELS = 100.0
SHOWN = 8

Count = Annotated[int, Field(ge=1)]


def image_similarity(images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """PSNR in decibels, at most 100, and SSIM (Wang et al., 2004) of each image.

    Args:
        images: (N, 3, H, W) in [0, 1].
        reference: of the same shape.

    Returns:
        (N,) each.
    """
    decibels = peak_signal_noise_ratio(images, reference, data_range=1.0, reduction="none", dim=(1, 2, 3))
    structural = structural_similarity_index_measure(images, reference, data_range=1.0, reduction="none")
    assert isinstance(structural, Tensor)
    return decibels.clamp(max=MOST_DECIBELS), structural


@dataclass
class _Drawn:
    """What one way to guide gave for all prompts."""

    images: Tensor
    nfe: float
    seconds: float


class GuidanceFidelity(PromptedEvaluator):
    """Draws the same noise by plain guidance and by cheaper ways, and reports how near these come and what they cost (Castillo et al.,
    2025).

    Two baselines are fitted to the cost of one of them, with at least as many evaluations: `fewer-steps`, plain guidance with fewer
    steps, and `mirrored`, conditional steps first and as many guided ones last.

    Args:
        guidances: name -> guidance; they tell what they cost.
        match: name of the one that the baselines are fitted to; the first by default.
        split: of the prompts.
        key: sample key of the prompts.
        prompts: texts to use instead of a split's.
        limit: so many prompts; all by default.
        guidance_scale: s of plain guidance and of every call.
        steps: of the sampler.
        solver: instead of the pipeline's own.
        negative_prompt: of every sample; none is the empty one.
        batch_size: samples a call.

    Raises:
        ValueError: if there is no guidance, or a name is unknown or taken.
    """

    needs = DiffusionPipeline

    def __init__(
        self,
        guidances: dict[str, Guidance],
        match: str | None = None,
        split: Split = "test",
        key: str = "caption",
        prompts: list[str] | None = None,
        limit: Count | None = None,
        guidance_scale: Annotated[float, Field(gt=1)] = GUIDANCE_SCALE,
        steps: Count = 20,
        solver: Solver | None = None,
        negative_prompt: str | None = None,
        batch_size: Count = 16,
    ):
        if not guidances:
            raise ValueError("guidances is empty: there is nothing to compare")
        if taken := sorted({PLAIN, FEWER, MIRRORED} & set(guidances)):
            raise ValueError(f"{PLAIN}, {FEWER} and {MIRRORED} are names of baselines; found {', '.join(taken)}")
        match = next(iter(guidances)) if match is None else match
        if match not in guidances:
            raise ValueError(f'match is one of {", ".join(guidances)}; found "{match}"')
        self.guidances, self.match = dict(guidances), match
        super().__init__(split, key, prompts, limit, guidance_scale, steps, solver, negative_prompt, batch_size)

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics NAME/psnr, NAME/ssim, NAME/nfe and NAME/saved; a table of them with seconds; pictures."""
        prompts, calls = self.calls(data, run)
        with using_solver(model, self.solver):
            places = evaluations_of(model, self.steps)
            drawn = {PLAIN: self._draw(model, calls, None, 2 * len(places))}
            for name, guidance in self.guidances.items():
                drawn[name] = self._draw(model, calls, guidance)
            drawn |= self._baselines(model, calls, drawn[self.match].nfe, places)
        return self._report(drawn, prompts)

    def _baselines(self, model: Any, calls: list[GuidedCall], nfe: float, places: tuple[int, ...]) -> dict[str, _Drawn]:
        evaluations, solver_steps = len(places), places[-1] + 1
        fewer = max(1, math.ceil(nfe / 2 * self.steps / evaluations))
        late = min(solver_steps, math.ceil((nfe - evaluations) * solver_steps / evaluations))
        mirrored = GuidancePolicy.of(pattern_policy("last", solver_steps, max(0, late)))
        fewer_nfe = 2 * len(evaluations_of(model, fewer))
        return {FEWER: self._draw(model, calls, None, fewer_nfe, fewer), MIRRORED: self._draw(model, calls, mirrored)}

    def _draw(self, model: Any, calls: list[GuidedCall], guidance: Guidance | None, nfe: int = 0, steps: int | None = None) -> _Drawn:
        if guidance is not None and not hasattr(guidance, "costs"):
            raise InterfaceError(f"guidance-fidelity needs guidances that tell their costs; {type(guidance).__name__} does not")
        images, costs, started = [], [], time.perf_counter()
        for call in calls:
            with guidance.attach(model) if guidance is not None else nullcontext():
                images.append(call.run(model, steps).float().cpu().clamp(0, 1))
            costs += [one for cost in guidance.costs for one in cost.evaluations] if guidance is not None else [nfe] * len(call.prompts)
        return _Drawn(torch.cat(images), sum(costs) / len(costs), time.perf_counter() - started)

    def _report(self, drawn: Mapping[str, _Drawn], prompts: list[str]) -> Report:
        reference, metrics, rows, captions = drawn[PLAIN], {}, [], {PLAIN: f"{PLAIN}\n{drawn[PLAIN].nfe:g} NFE"}
        for name, one in drawn.items():
            saved = 1 - one.nfe / reference.nfe
            seconds = one.seconds / len(prompts)
            if name == PLAIN:
                metrics[f"{name}/nfe"] = one.nfe
                rows.append([name, one.nfe, 0.0, None, None, seconds])
                continue
            decibels, structural = (value.mean().item() for value in image_similarity(one.images, reference.images))
            metrics |= {f"{name}/psnr": decibels, f"{name}/ssim": structural, f"{name}/nfe": one.nfe, f"{name}/saved": saved}
            rows.append([name, one.nfe, saved, decibels, structural, seconds])
            captions[name] = f"{name}\n{one.nfe:.3g} NFE, {decibels:.1f} dB"
        caption = f"Against plain guidance from the same noise, {len(prompts)} prompts, scale {self.guidance_scale:g}, {self.steps} steps."
        table = Table(["guidance", "NFE", "saved", "PSNR, dB", "SSIM", "seconds a picture"], rows, caption)
        figure = draw_samples({name: one.images[:SHOWN] for name, one in drawn.items()}, prompts[:SHOWN], captions)
        return Report(metrics, {"fidelity": table}, {"samples": Figure(figure, caption)})
