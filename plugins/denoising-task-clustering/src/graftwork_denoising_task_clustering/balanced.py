"""The three multi-task methods as objectives around any objective whose loss has parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from graftwork import Batch, ConfigError, Dataset, Engine, Loss, Objective
from graftwork.errors import nearest
from graftwork.kinds.objective import MakeOptimizer
from graftwork.toolkit.wrapping import Around
from graftwork_denoising_task_clustering.balancer import Balancer
from graftwork_denoising_task_clustering.gradients import Backward, Losses
from graftwork_denoising_task_clustering.nash import NashMTL
from graftwork_denoising_task_clustering.pcgrad import PCGrad
from graftwork_denoising_task_clustering.uncertainty import RATE, UncertaintyWeighting

__all__ = ["NashMTLObjective", "PCGradObjective", "UncertaintyWeightingObjective", "balanced_step", "drawn_seed", "with_own_optimizer"]

Names = Annotated[list[str], Field(min_length=2)]
Chunks = Annotated[int, Field(ge=1)]
Every = Annotated[int, Field(ge=1)]
Norm = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]


def balanced_step(engine: Engine, balancer: Balancer, losses: Losses, max_norm: float | None = None) -> dict[str, Tensor]:
    """One optimisation step on k losses: gradients by the balancer, clipping, and the engine's step.

    Args:
        engine: whose model and objective are trained; scaled, accumulated and averaged over processes as it is set.
        balancer: which makes one gradient of them.
        losses: k of them.
        max_norm: largest norm of the gradient; `train.clip_norm` takes its place where it is given.

    Returns:
        Figures for the log.
    """
    accelerator = engine.accelerator
    own = {id(parameter) for parameter in balancer.parameters()}
    trained = [parameter for parameter in engine.joined.parameters() if id(parameter) not in own]
    several = accelerator.num_processes > 1
    backward = Backward(
        trained,
        scaler=accelerator.scaler,
        average=(lambda gradients: accelerator.reduce(gradients, "mean")) if several else None,
        backward=engine.backward,
        micro_batches=engine.train.accumulate,
        complete=accelerator.sync_gradients,
    )
    figures = balancer.descend(losses, backward)
    if max_norm is not None and engine.train.clip_norm is None and accelerator.sync_gradients:
        accelerator.clip_grad_norm_(backward.parameters, max_norm)
    engine.step()
    return figures


def with_own_optimizer(
    made: Optimizer | Mapping[str, Optimizer], balancer: UncertaintyWeighting, rate: float, make: MakeOptimizer
) -> Mapping[str, Optimizer]:
    """The optimisers of an objective, and one more for the log-variances, so that clipping the network leaves them alone."""
    return {**(made if isinstance(made, Mapping) else {"model": made}), "uncertainty": make(balancer.param_groups(rate))}


def drawn_seed() -> int:
    """A seed from torch's global generator, which the engine seeds before `setup`."""
    return int(torch.randint(2**62, ()))


class _Balanced(Around):
    """An objective around another, whose parts are the tasks."""

    balancer: Balancer
    max_norm: float | None = None

    def __init__(self, base: Objective, losses: list[str] | None, user: str):
        super().__init__(base, user)
        if losses is not None and (len(losses) < 2 or len(set(losses)) < len(losses)):
            raise ConfigError(f"{user} needs at least 2 losses, each named once; found {losses}")
        self.losses, self.user = losses, user

    def tasks(self, loss: Loss) -> list[Tensor]:
        """The losses, k scalars: the named parts, or all that can be differentiated.

        Raises:
            ConfigError: if one is missing, constant, or there are fewer than two.
        """
        parts = loss.parts
        names = self.losses if self.losses is not None else [name for name, part in parts.items() if part.requires_grad]
        for name in names:
            if name not in parts or not parts[name].requires_grad:
                wrong = "is not differentiable" if name in parts else f"is no part{nearest(name, parts)}"
                raise ConfigError(f'losses: "{name}" {wrong} of {type(self.base).__name__}; it has {", ".join(parts) or "none"}')
        if len(names) < 2:
            raise ConfigError(
                f"{self.user} needs at least 2 losses; {type(self.base).__name__} has the differentiable parts {', '.join(names) or 'none'}"
            )
        return [parts[name].float() for name in names]

    def update(self, engine: Engine, batches: Mapping[str, Batch]) -> Loss:
        """One step of the method. The balancer's figures join the parts."""
        found = engine.loss(batches)
        return Loss(found.total, {**found.parts, **balanced_step(engine, self.balancer, self.tasks(found), self.max_norm)})


class PCGradObjective(_Balanced):
    """Gradient surgery around an objective of several losses (Yu et al., 2020, algorithm 1): conflicting gradients are projected.

    Args:
        base: the inner objective; its loss has at least two parts that can be differentiated.
        losses: which of its parts are the tasks; all that can be differentiated by default. The rest of the total is not trained on.
        chunks: take the surgery's coefficients from a Gram matrix made in so many chunks of layers, and one more backward pass, in
            place of holding a gradient for each loss.
    """

    def __init__(self, base: Objective, losses: Names | None = None, chunks: Chunks | None = None):
        super().__init__(base, losses, "pcgrad")
        self.balancer: PCGrad = PCGrad(chunks=chunks)

    def setup(self, model: Any, data: Dataset) -> None:
        """Set the inner objective up, and draw the seed of the random orders from the run's."""
        super().setup(model, data)
        self.balancer.generator.manual_seed(drawn_seed())


class NashMTLObjective(_Balanced):
    """Nash-MTL around an objective of several losses (Navon et al., 2022): weights at which all gain in equal proportion.

    Args:
        base: the inner objective; its loss has at least two parts that can be differentiated.
        losses: which of its parts are the tasks, by name: their number must be known before the first step.
        every: steps between refreshes of the weights; only those differentiate the losses one by one.
        max_norm: largest norm of the gradient; none leaves it. `train.clip_norm` takes its place.
        chunks: of layers whose gradients are held at once while the weights are found.
    """

    def __init__(self, base: Objective, losses: Names, every: Every = 25, max_norm: Norm | None = 1.0, chunks: Chunks = 1):
        super().__init__(base, losses, "nash-mtl")
        self.balancer = NashMTL(len(losses), every, chunks)
        self.max_norm = max_norm


class UncertaintyWeightingObjective(_Balanced):
    """Uncertainty weighting around an objective of several losses (Kendall et al., 2018): a learned log-variance for each.

    Args:
        base: the inner objective; its loss has at least two parts that can be differentiated.
        losses: which of its parts are the tasks, by name: their number must be known before the first step.
        lr: of the log-variances, which have an optimiser of their own, without weight decay.
    """

    def __init__(self, base: Objective, losses: Names, lr: Rate = RATE):
        super().__init__(base, losses, "uncertainty-weighting")
        self.balancer: UncertaintyWeighting = UncertaintyWeighting(len(losses))
        self.lr = lr

    def optimizers(self, model: Any, make: MakeOptimizer) -> Optimizer | Mapping[str, Optimizer]:
        """The inner objective's optimisers, and `uncertainty`."""
        return with_own_optimizer(super().optimizers(model, make), self.balancer, self.lr, make)
