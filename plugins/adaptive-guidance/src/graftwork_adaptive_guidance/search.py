"""The search for a guidance policy by differentiable architecture search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from graftwork import Batch, DataError, Dataset, Loss, Objective
from graftwork.interfaces import DiffusionPipeline
from graftwork.kinds.evaluator import evaluating
from graftwork.kinds.objective import MakeOptimizer
from graftwork_adaptive_guidance.calls import GUIDANCE_SCALE, GuidedCall, evaluations_of
from graftwork_adaptive_guidance.capture import CapturedDenoiser, capture
from graftwork_adaptive_guidance.guidance import GuidancePolicy
from graftwork_adaptive_guidance.guided_pipeline import GuidedPipeline
from graftwork_adaptive_guidance.policy import Choice, costs, default_options, expected_cost, hard_policy, parse_policy, weights
from graftwork_adaptive_guidance.solvers import Solver, require_deterministic, rollout, using_solver
from graftwork_adaptive_guidance.steering import denoiser_of

__all__ = ["GuidancePolicySearch", "search_loss"]

Count = Annotated[int, Field(ge=1)]


def search_loss(
    logits: Tensor,
    options: Sequence[Choice],
    scale: float,
    sample: Callable[[Tensor], Tensor],
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    cost_weight: float = 1.0,
    budget: float | None = None,
) -> Loss:
    """The loss of relaxed guidance: distance to the teacher's sample, and what the policy costs (Castillo et al., 2025).

    Every option is u + w_k (c - u), so a mixture of them is u + (sum_k p_k w_k) (c - u): K options cost the two evaluations of one.

    Args:
        logits: alpha, (T, K).
        options: K.
        scale: s of the teacher.
        sample: takes w, (T,), and gives x_0 of the sampler under it; differentiable.
        teacher: x_0 of the sampler under plain guidance.
        temperature: tau of p = softmax(alpha / tau).
        cost_weight: lambda.
        budget: evaluations of a sample that cost nothing; None charges lambda E[NFE] / 2 T.

    Returns:
        The total; parts `distance`, the mean squared error, and `expected-nfe`.
    """
    mixture = (logits / temperature).softmax(1) @ weights(options, scale).to(logits)
    distance = (sample(mixture) - teacher).square().mean()
    nfe = expected_cost(logits, costs(options), temperature)
    charge = nfe / (2 * len(logits)) if budget is None else torch.relu(nfe - budget)
    return Loss(distance + cost_weight * charge, {"distance": distance.detach(), "expected-nfe": nfe.detach()})


class GuidancePolicySearch(Objective):
    """Search which steps need classifier-free guidance (Castillo et al., 2025, https://arxiv.org/abs/2312.12487).

    Owns logits alpha (T, K) over K options for each step. The sampler is unrolled from the noise of the teacher, plain guidance, with
    the options mixed by softmax(alpha); alpha learns by the distance of the two samples, backwards through the frozen denoiser, and by
    what the policy costs. The stage hands on the pipeline with the likeliest options as its policy.

    Noise is drawn by the sample's `index`, so a sample's teacher is computed once and kept.

    Args:
        steps: T, of the sampler.
        guidance_scale: s of the teacher.
        options: edges of the graph, "uncond", "cond", "cfg(SCALE)"; None is these two and cfg at s/2, s and 2 s.
        temperature: tau of the softmax.
        cost_weight: lambda.
        budget: evaluations of a sample that cost nothing; None is 1.5 T.
        charge_all: no budget: charge lambda E[NFE] / 2 T from the first evaluation on.
        key: sample key of the prompts.
        negative_prompt: of every sample; none is the empty one.
        solver: instead of the pipeline's own.
        seed: of the noise.
        recompute: keep one evaluation at a time for the backward pass, and evaluate again there.

    Raises:
        ValueError: if a parameter is out of range.
    """

    needs = DiffusionPipeline

    def __init__(
        self,
        steps: Count = 20,
        guidance_scale: Annotated[float, Field(gt=1)] = GUIDANCE_SCALE,
        options: list[str] | None = None,
        temperature: Annotated[float, Field(gt=0)] = 1.0,
        cost_weight: Annotated[float, Field(ge=0)] = 1.0,
        budget: Annotated[float, Field(gt=0)] | None = None,
        charge_all: bool = False,
        key: str = "caption",
        negative_prompt: str | None = None,
        solver: Solver | None = None,
        seed: Annotated[int, Field(ge=0)] = 0,
        recompute: bool = True,
    ):
        super().__init__()
        if not (math.isfinite(guidance_scale) and guidance_scale > 1) or temperature <= 0 or cost_weight < 0:
            found = f"{guidance_scale}, {temperature} and {cost_weight}"
            raise ValueError(f"guidance_scale is above 1, temperature above 0 and cost_weight not negative; found {found}")
        if charge_all and budget is not None:
            raise ValueError(f"charge_all charges from the first evaluation on and goes without a budget; found {budget}")
        self.options = default_options(guidance_scale) if options is None else parse_policy(options)
        if len(self.options) < 2:
            raise ValueError(f"options has {len(self.options)} entry: a search needs two")
        self.steps, self.guidance_scale, self.temperature, self.cost_weight = steps, guidance_scale, temperature, cost_weight
        self.budget, self.charge_all = budget, charge_all
        self.key, self.negative_prompt, self.solver, self.seed, self.recompute = key, negative_prompt, solver, seed, recompute
        self.keys = {"train": (key, "index")}
        self.logits = nn.Parameter(torch.zeros(steps, len(self.options)))
        self._teachers: dict[int, Tensor] = {}
        self._trained: list[nn.Parameter] = []

    @property
    def policy(self) -> tuple[Choice, ...]:
        """The likeliest option of each step."""
        return hard_policy(self.logits.detach(), self.options)

    def setup(self, model: Any, data: Dataset) -> None:
        """Freeze the pipeline, and size alpha by the steps of its solver.

        Raises:
            InterfaceError: if the solver adds noise.
        """
        with using_solver(model, self.solver):
            require_deterministic(model.scheduler)
            count = evaluations_of(model, self.steps)[-1] + 1
        if count != len(self.logits):
            self.logits = nn.Parameter(torch.zeros(count, len(self.options)))
        parts = [part for part in model.components.values() if isinstance(part, nn.Module)]
        self._trained = [one for part in parts for one in part.parameters() if one.requires_grad]
        for one in self._trained:
            one.requires_grad_(False)

    def optimizers(self, model: Any, make: MakeOptimizer) -> Optimizer:
        """One, of alpha alone."""
        return make([{"params": [self.logits]}])

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The loss of a batch of prompts; parts `distance` and `expected-nfe`."""
        prompts, indices = self._read(batches["train"])
        with self._sampler(model):
            call = GuidedCall(prompts, tuple(self.seed + index for index in indices), self.steps, self.guidance_scale, self.negative_prompt)
            denoiser = capture(model, call)
            teacher = self._teacher(denoiser, indices)

            def sample(mixture: Tensor) -> Tensor:
                return rollout(denoiser, denoiser.scheduler, denoiser.latents, mixture, self.recompute)

            budget = None if self.charge_all else 1.5 * len(self.logits) if self.budget is None else self.budget
            settings = {"temperature": self.temperature, "cost_weight": self.cost_weight, "budget": budget}
            return search_loss(self.logits, self.options, self.guidance_scale, sample, teacher, **settings)  # type: ignore[arg-type]

    def export(self, model: Any) -> Any:
        """The pipeline, as trainable as it was, with the policy as its guidance."""
        for one in self._trained:
            one.requires_grad_(True)
        self._trained = []
        return GuidedPipeline(model, GuidancePolicy.of(self.policy))

    def _read(self, batch: Batch) -> tuple[tuple[str, ...], list[int]]:
        prompts = batch[self.key]
        if not isinstance(prompts, (list, tuple)) or not all(isinstance(one, str) for one in prompts):
            raise DataError(f'guidance-policy-search reads prompts from "{self.key}", which holds {type(prompts).__name__}, not text')
        return tuple(prompts), [int(index) for index in batch["index"]]

    @contextmanager
    def _sampler(self, model: Any) -> Iterator[None]:
        with using_solver(model, self.solver), evaluating(denoiser_of(model), torch.is_grad_enabled()):
            yield

    def _teacher(self, denoiser: CapturedDenoiser, indices: Sequence[int]) -> Tensor:
        """x_0 of plain guidance, kept on the host."""
        device = denoiser.latents.device
        if any(index not in self._teachers for index in indices):
            plain = torch.full((len(self.logits),), self.guidance_scale, device=device)
            with torch.no_grad():
                found = rollout(denoiser, denoiser.scheduler, denoiser.latents, plain, recompute=False)
            self._teachers.update(zip(indices, found.cpu(), strict=True))
        return torch.stack([self._teachers[index] for index in indices]).to(device)
