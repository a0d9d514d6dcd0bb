"""The trust-region baselines: a divergence of predictions added to the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from graftwork import Batch, Dataset, Engine, InterfaceError, Loss, Objective
from graftwork.interfaces import inputs
from graftwork.toolkit.wrapping import Around
from graftwork_tram.divergence import Divergence, DivergenceName, Kernel, Reduction
from graftwork_tram.objective import Decay, Eps
from graftwork_tram.regions import InputNoise, NoiseType, ShadowDtype
from graftwork_tram.trust_region import RegionName, TrustRegion, make_region
from graftwork_tram.two_pass import BatchNormMode, frozen_batch_norm

__all__ = ["TrustRegionRegulariser"]


class TrustRegionRegulariser(Around):
    """L + weight d: the divergence d as a loss term, in one pass and a half.

    With input noise it is R3F (Aghajanyan et al., 2021, https://arxiv.org/abs/2008.03156): symmetric KL between predictions with and
    without noise, the gradient flowing through both. With earlier weights it is the trust region of TRPO in the space of predictions:
    the previous step's, those at the start, or their moving average (MESA, Du et al., 2022, https://arxiv.org/abs/2205.14083), whose
    predictions are constants. Parts beside the inner objective's: `task`, its loss, and `divergence`.

    Args:
        base: the inner objective, by reference; cross-entropy by default. One that owns its step cannot be inside.
        region: "input-noise", or the weights of the "previous" step, the "pretrained" ones or their "ema".
        weight: of the divergence (lambda).
        divergence: D(target, model): "symmetric-kl" is KL(target || model) + KL(model || target).
        kl_reduction: "batchmean", or "code": also divided by the classes and by the batch size.
        kernel: of `mmd`.
        eps: of input noise, 1e-5 as in R3F: deviation, or half width if uniform.
        noise: "normal" or "uniform".
        at: where the noise goes: "input", "embeddings" or a module by name; none: on the embeddings of tokens, else on the input.
        decay: of the ema; 0.999 if not given.
        shadow_device: where earlier weights lie between steps, such as "cpu"; by default beside the weights.
        shadow_dtype: of the earlier weights; by default that of the weights.
        same_rng: repeat the dropout masks, so that noise alone tells the two predictions apart.
        batch_norm: what batch norm normalises by in the pass with noise: the batch, or the running statistics. It records neither.
        logits_key: where the logits are in what the model gives; by default the tensor itself, or its `logits`.
        class_dim: axis of the classes; by default 1 for maps (B, C, H, W), else the last.

    Raises:
        ValueError: if a value is out of range.
        ConfigError: if the inner objective owns its step.
    """

    def __init__(
        self,
        base: Objective | None = None,
        region: RegionName = "input-noise",
        weight: Annotated[float, Field(ge=0)] = 1.0,
        divergence: DivergenceName = "symmetric-kl",
        kl_reduction: Reduction = "batchmean",
        kernel: Kernel = "imq2",
        eps: Eps = 1e-5,
        noise: NoiseType = "uniform",
        at: str | None = None,
        decay: Decay | None = None,
        shadow_device: str | None = None,
        shadow_dtype: ShadowDtype | None = None,
        same_rng: bool = False,
        batch_norm: BatchNormMode = "batch",
        logits_key: str | None = None,
        class_dim: int | None = None,
    ):
        super().__init__(base, "trust-region-regulariser")
        if not weight >= 0:
            raise ValueError(f"weight is at least 0; found {weight}")
        self.weight = weight
        made = make_region(region, eps=eps, noise=noise, at=at, decay=decay, device=shadow_device, dtype=shadow_dtype)
        measured = Divergence(divergence, kl_reduction, kernel, 1.0, class_dim)
        self.trust_region = TrustRegion(made, measured, logits_key=logits_key, same_rng=same_rng, batch_norm=batch_norm)
        self._seeded = False

    def setup(self, model: Any, data: Dataset) -> None:
        """Set the inner objective up, and begin a history at the weights as they are now.

        Raises:
            InterfaceError: if the model lacks what is needed, or is no module.
        """
        super().setup(model, data)
        if not isinstance(model, nn.Module):
            raise InterfaceError(f"trust-region-regulariser compares the predictions of a module; {type(model).__name__} is none")
        region = self.trust_region.region
        if isinstance(region, InputNoise):
            region.seed = int(torch.randint(2**62, ()))  # drawn from the run's seed
        region.begin(model)

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The inner objective's loss and the weighted divergence."""
        with self.trust_region.record(model, detach=False) as recorded:
            task = super().forward(model, batches, progress)
            if not recorded.calls:
                with frozen_batch_norm(model, self.trust_region.batch_norm):
                    for batch in batches.values():
                        model(*inputs(model, batch))
        divergence = self.trust_region.measure(model, recorded.calls)
        return Loss(task.total + self.weight * divergence, {**task.parts, "task": task.total, "divergence": divergence})

    def update(self, engine: Engine, batches: Mapping[str, Batch]) -> Loss:
        """One step; a history takes the weights in before they move."""
        region = self.trust_region.region
        if not self._seeded and isinstance(region, InputNoise):
            region.seed += engine.accelerator.process_index  # each process noises its own batch
        self._seeded = True
        loss = engine.loss(batches)
        engine.backward(loss.total)
        if engine.accelerator.sync_gradients:
            region.follow(engine.model)
        engine.step()
        return loss
