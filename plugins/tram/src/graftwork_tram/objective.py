"""The objectives: trust region aware minimization, and sharpness-aware minimization with a fixed radius, around any inner objective.

From "TRAM: Bridging Trust Regions and Sharpness Aware Minimization" (Sherborne et al., 2024), https://arxiv.org/abs/2310.03646.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from accelerate.utils import DistributedType
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from graftwork import Batch, ConfigError, Dataset, Engine, InterfaceError, Loss, Objective
from graftwork.interfaces import inputs
from graftwork.kinds.objective import MakeOptimizer
from graftwork.toolkit.wrapping import Around
from graftwork_tram.ascent import NO_GRADIENT, Metric
from graftwork_tram.divergence import Divergence, DivergenceName, Kernel, Reduction
from graftwork_tram.regions import InputNoise, NoiseType, ShadowDtype
from graftwork_tram.step import Execution, StepSettings, TwoPasses
from graftwork_tram.trust_region import RegionName, TrustRegion, make_region
from graftwork_tram.two_pass import BatchNormMode, trained_parameters

__all__ = ["TRAM", "SharpnessAware"]

RADII: Mapping[str, float] = {"euclidean": 0.05, "adaptive": 0.5, "fisher": 0.1}
"""Usual radii of SAM, ASAM and Fisher-SAM."""

Eps = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Radius = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(gt=0, lt=1)]


class _TwoPassObjective(Around):
    """Runs a step's passes through the engine: micro-batches are collected, processes averaged, and e taken once per optimiser step."""

    def __init__(self, base: Objective | None, user: str, settings: StepSettings, trust_region: TrustRegion | None):
        super().__init__(base, user)
        self.settings, self.trust_region = settings, trust_region
        self._passes: TwoPasses | None = None

    def setup(self, model: Any, data: Dataset) -> None:
        """Set the inner objective up, and begin a history at the weights as they are now.

        Raises:
            InterfaceError: if the model lacks what is needed; a region needs a module, whose calls it can record.
        """
        super().setup(model, data)
        self._passes = None
        if self.trust_region is None:
            return
        if not isinstance(model, nn.Module):
            raise InterfaceError(f"a region compares the predictions of a module; {type(model).__name__} is none: use sharpness-aware")
        region = self.trust_region.region
        if isinstance(region, InputNoise):
            region.seed = int(torch.randint(2**62, ()))  # drawn from the run's seed
        region.begin(model)

    def optimizers(self, model: Any, make: MakeOptimizer) -> Optimizer | Mapping[str, Optimizer]:
        """The inner objective's optimisers, which take the steps; schedules are theirs.

        Raises:
            ConfigError: if it makes none.
        """
        made = super().optimizers(model, make)
        if not isinstance(made, Optimizer) and not made:
            raise ConfigError(f"{type(self.base).__name__} made no base optimiser, which takes the step")
        return made

    def update(self, engine: Engine, batches: Mapping[str, Batch]) -> Loss:
        """A first pass, measured; on the last micro-batch of a step also the second passes and the step.

        Returns:
            The loss at w with the figures of `TwoPasses.second`, averaged over the micro-batches; before the last one, its own loss.

        Raises:
            ConfigError: if no parameter received a gradient; under FSDP; with the fisher metric of a region in float16.
            DataError: if a divergence or the first gradient is not finite.
        """
        passes, execution = self._ready(engine), _execution(engine)
        groups = [group for optimizer in engine.optimizers.values() for group in optimizer.param_groups]
        first = passes.first(lambda: engine.loss(batches), groups, execution, lambda: _predict(engine.model, batches))
        if not engine.accelerator.sync_gradients:
            return first.loss
        if not trained_parameters(groups):
            raise ConfigError(f"{NO_GRADIENT}: the loss of {type(self.base).__name__} does not depend on what is trained")
        found = passes.second(groups, execution)
        if self.trust_region is not None:
            self.trust_region.region.follow(engine.model)
        engine.step()
        return found

    def fit(self, engine: Engine) -> None:
        """The whole loop; one row of figures for each optimiser step, however many micro-batches it has."""
        for batches in engine.batches():
            found = self.update(engine, batches)
            if engine.accelerator.sync_gradients:
                engine.record(found)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the passes, which hold the model."""
        return {**self.__dict__, "_passes": None}

    def _ready(self, engine: Engine) -> TwoPasses:
        if self._passes is None:
            if engine.accelerator.distributed_type == DistributedType.FSDP:
                raise ConfigError("two passes put each weight's own storage back, which FSDP slices: use DDP")
            if engine.accelerator.scaler is not None and self.trust_region is not None and self.settings.metric == "fisher":
                raise ConfigError("the fisher metric differentiates the divergence unscaled, which float16 does not hold: use bf16")
            self._passes = TwoPasses(engine.joined.model, self.settings, self.trust_region, (self.base,))
            if self.trust_region is not None and isinstance(self.trust_region.region, InputNoise):
                self.trust_region.region.seed += engine.accelerator.process_index  # each process noises its own batch
        return self._passes


class TRAM(_TwoPassObjective):
    """Climb as far as the predictions move, and descend with the gradient found there (Sherborne et al., 2024).

    e = d g / ||g||, where g is the loss's gradient and d >= 0 the divergence between the model's predictions and those under input
    noise (TRAM-x), with the previous step's weights (TRAM-theta_{t-1}), with those at the start (TRAM-theta_0) or with their moving
    average. The batch then runs again at w + e, and the inner objective's optimiser steps at w with the gradient found there. Parts
    beside the inner objective's: `perturbed_loss`, `divergence`, `radius`, `gradient_norm`, `perturbation_norm`, `gradient_cosine`.

    Args:
        base: the inner objective, by reference; cross-entropy by default. One that owns its step cannot be inside.
        region: what predictions are compared with: themselves under "input-noise", or with the "previous" step's weights, the
            "pretrained" ones (at the start of training) or their "ema"; none: nothing, the radius is `rho`, as in `sharpness-aware`.
        divergence: D(target, model): "forward-kl" is KL(target || model).
        kl_reduction: "batchmean" sums over classes and averages over samples or tokens; "code" also divides by the classes and by
            the batch size, as the authors' code does (`l2` and `mmd`: by the batch size).
        kernel: of `mmd`.
        logit_scale: what the divergence is multiplied by; language models may need it.
        metric: of the ball: "euclidean"; "adaptive" as in ASAM; "fisher" is TRAM-Fisher, experimental: a ball of radius `rho` whose
            metric is the squared gradient of the divergence.
        max_radius: cap on the radius; the `divergence` that is logged stays as measured.
        eps: of input noise: deviation, or half width if uniform.
        noise: "normal" or "uniform".
        at: where the noise goes: "input", "embeddings" or a module by name; none: on the embeddings of tokens, else on the input.
        decay: of the ema; 0.999 if not given.
        shadow_device: where earlier weights lie between steps, such as "cpu"; by default beside the weights.
        shadow_dtype: of the earlier weights; by default that of the weights.
        rho: radius where the divergence is not one: without a region, and with the fisher metric.
        eta: weight of the Fisher information.
        same_rng: repeat the first pass's dropout masks in the other two.
        batch_norm: what batch norm normalises by in the second pass: the batch, or the running statistics. It records neither.
        logits_key: where the logits are in what the model gives; by default the tensor itself, or its `logits`.
        class_dim: axis of the classes; by default 1 for maps (B, C, H, W), else the last.
        cosine: log the cosine of the two gradients, which keeps the first one through the second pass.

    Raises:
        ValueError: if a value is out of range.
        ConfigError: if the inner objective owns its step.
    """

    def __init__(
        self,
        base: Objective | None = None,
        region: RegionName | None = "input-noise",
        divergence: DivergenceName = "forward-kl",
        kl_reduction: Reduction = "batchmean",
        kernel: Kernel = "imq2",
        logit_scale: Positive = 1.0,
        metric: Metric = "euclidean",
        max_radius: Positive | None = None,
        eps: Eps = 0.1,
        noise: NoiseType = "normal",
        at: str | None = None,
        decay: Decay | None = None,
        shadow_device: str | None = None,
        shadow_dtype: ShadowDtype | None = None,
        rho: Radius = 0.05,
        eta: Radius = 1.0,
        same_rng: bool = False,
        batch_norm: BatchNormMode = "batch",
        logits_key: str | None = None,
        class_dim: int | None = None,
        cosine: bool = True,
    ):
        settings = StepSettings(metric, rho, eta, max_radius, same_rng, batch_norm, cosine)
        measured = Divergence(divergence, kl_reduction, kernel, logit_scale, class_dim)
        trust = None
        if region is not None:
            made = make_region(region, eps=eps, noise=noise, at=at, decay=decay, device=shadow_device, dtype=shadow_dtype)
            trust = TrustRegion(made, measured, logits_key=logits_key, same_rng=same_rng, batch_norm=batch_norm)
        super().__init__(base, "tram", settings, trust)


class SharpnessAware(_TwoPassObjective):
    """Climb a fixed radius up the loss, and descend with the gradient found there: SAM, ASAM and Fisher-SAM.

    SAM (Foret et al., 2021, https://arxiv.org/abs/2010.01412): e = rho g / ||g||. ASAM (Kwon et al., 2021,
    https://arxiv.org/abs/2102.11600): e = rho w^2 g / || |w| g ||. Fisher-SAM (Kim et al., 2022, https://arxiv.org/abs/2206.04920):
    e = rho F^-1 g / sqrt(g^T F^-1 g) with F^-1 = 1 / (1 + eta g^2). Parts beside the inner objective's: `perturbed_loss`, `radius`,
    `gradient_norm`, `perturbation_norm`, `gradient_cosine`.

    Args:
        base: the inner objective, by reference; cross-entropy by default. One that owns its step cannot be inside.
        metric: "euclidean" is SAM, "adaptive" ASAM, "fisher" Fisher-SAM.
        rho: radius; if not given, 0.05, 0.5 and 0.1.
        eta: weight of the Fisher information.
        same_rng: repeat the first pass's dropout masks in the second.
        batch_norm: what batch norm normalises by in the second pass: the batch, or the running statistics. It records neither.
        cosine: log the cosine of the two gradients, which keeps the first one through the second pass.

    Raises:
        ValueError: if a value is out of range.
        ConfigError: if the inner objective owns its step.
    """

    def __init__(
        self,
        base: Objective | None = None,
        metric: Metric = "euclidean",
        rho: Radius | None = None,
        eta: Radius = 1.0,
        same_rng: bool = False,
        batch_norm: BatchNormMode = "batch",
        cosine: bool = True,
    ):
        radius = RADII.get(metric, 0.0) if rho is None else rho
        settings = StepSettings(metric, radius, eta, None, same_rng, batch_norm, cosine)
        super().__init__(base, "sharpness-aware", settings, None)


def _execution(engine: Engine) -> Execution:
    accelerator = engine.accelerator

    def mean(tensor: Tensor) -> Tensor:
        return accelerator.reduce(tensor, "mean") if accelerator.num_processes > 1 else tensor

    return Execution(
        engine.backward, accelerator.autocast, lambda: accelerator.no_sync(engine.wrapped), mean, getattr(accelerator, "scaler", None)
    )


def _predict(model: nn.Module, batches: Mapping[str, Batch]) -> None:
    """Call the model on each feed's batch, for inner objectives that ask it for features only."""
    for batch in batches.values():
        model(*inputs(model, batch))
