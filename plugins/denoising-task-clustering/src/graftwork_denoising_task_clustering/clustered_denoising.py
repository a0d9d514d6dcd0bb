"""The objective: train a denoiser with its noise levels grouped into tasks ("Addressing Negative Transfer in Diffusion Models").

Go et al., 2023, https://arxiv.org/abs/2306.00354.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, get_args

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from graftwork import Artifact, Batch, ConfigError, Dataset, Engine, Loss, Objective
from graftwork.interfaces import DiffusionPipeline
from graftwork.kinds.objective import MakeOptimizer
from graftwork_denoising_task_clustering.balanced import Chunks, Every, Norm, Rate, balanced_step, drawn_seed, with_own_optimizer
from graftwork_denoising_task_clustering.balancer import Balancer
from graftwork_denoising_task_clustering.clusters import Clustering, TimestepClusters, cluster_losses, intervals_of, random_groups
from graftwork_denoising_task_clustering.denoisers import Denoiser, denoiser_of
from graftwork_denoising_task_clustering.intervals import Intervals
from graftwork_denoising_task_clustering.nash import NashMTL
from graftwork_denoising_task_clustering.noise_levels import NoiseLevels, Weighting, noise_levels
from graftwork_denoising_task_clustering.pcgrad import PCGrad
from graftwork_denoising_task_clustering.uncertainty import RATE, UncertaintyWeighting

__all__ = ["AFFINITY", "INTERVALS", "ClusteredDenoising", "Method", "clustered_errors"]

AFFINITY, INTERVALS = "denoising-task-affinity", "timestep-intervals"
"""Types of the artifacts that the evaluators make."""

Method: TypeAlias = Literal["none", "pcgrad", "nash-mtl", "uncertainty-weighting"]
Starts: TypeAlias = list[Annotated[int, Field(ge=0)]]


def clustered_errors(
    denoiser: Denoiser, levels: NoiseLevels, samples: Tensor, times: Tensor, condition: Mapping[str, Tensor], cuts: Sequence[int]
) -> list[Tensor]:
    """Squared errors of the prediction, averaged over all but the batch: one (rows,) for each cut of the batch.

    Each cut goes through the network by itself, so that its gradient costs a backward pass over its own rows only. Noise is drawn from
    torch's global generator.

    Args:
        denoiser: whose network predicts.
        levels: noise levels of its scheduler.
        samples: (B, C, h, w).
        times: (B,).
        condition: rows as in the batch.
        cuts: rows of each cut; they sum to B.
    """
    noise = torch.randn_like(samples)
    noisy, target = levels.noised(samples, noise, times), levels.target(samples, noise, times)
    columns = {name: torch.split(value, list(cuts)) for name, value in condition.items()}
    found = []
    for index, (part, when, wanted) in enumerate(zip(*(torch.split(column, list(cuts)) for column in (noisy, times, target)), strict=True)):
        predicted = denoiser.predict(part, when, {name: column[index] for name, column in columns.items()})
        found.append((predicted.float() - wanted.float()).square().flatten(1).mean(1))
    return found


class ClusteredDenoising(Objective):
    """Train a denoiser on k groups of noise levels as k tasks (Go et al., 2023, section 4).

    A batch is stratified: B / k timesteps uniform from each interval. The mean squared error of an interval's rows is its loss, and a
    multi-task method makes one gradient of the k losses. `mtl: none` with `k: 1` is plain denoising. The pipeline's U-Net or transformer is
    trained; autoencoder and text encoders stay as they are. What the stage hands on holds the moving average of the weights. Parts:
    `cluster-j`, the loss of each; `mse`, the error without weights; and the method's figures.

    Args:
        clusters: how timesteps are grouped: "uniform" (equal intervals), the optimum of the "timestep", "log-snr" or "gradient" cost,
            "random" (groups that are not contiguous, the paper's control), or the intervals' first timesteps as a list.
        k: how many groups; a list or an artifact of intervals brings its own number.
        mtl: "uncertainty-weighting", "nash-mtl", "pcgrad", or "none": the mean of the losses.
        intervals: an artifact `intervals` of interval-clusters, in place of `clusters`.
        affinity: an artifact `affinity` of denoising-task-affinity, which "gradient" needs.
        interval: train on this group alone, from 0, for negative-transfer-gap; `mtl` has then no part.
        weighting: of squared errors: "none", "min-snr" (Hang et al., 2023) or "p2" (Choi et al., 2022).
        gamma: of the weighting; by default 5 for min-snr and 1 for p2.
        reweight_density: weigh each loss by k |I_j| / T, so that unequal intervals leave timesteps their uniform density.
        caption_dropout: chance that a caption is dropped; a DiT drops class labels by its own setting.
        ema_decay: of the moving average that is handed on; 0 keeps none.
        lr: of uncertainty weighting's log-variances, which have an optimiser of their own.
        every: steps between refreshes of Nash-MTL's weights.
        max_norm: largest norm of Nash-MTL's gradient; `train.clip_norm` takes its place.
        chunks: as in `pcgrad`: gradients of so many chunks of layers in place of all at once.

    Raises:
        ConfigError: if options exclude one another.
    """

    needs = DiffusionPipeline

    def __init__(
        self,
        clusters: Clustering | Literal["random"] | Starts = "uniform",
        k: Annotated[int, Field(ge=1)] = 5,
        mtl: Method = "uncertainty-weighting",
        intervals: Artifact | None = None,
        affinity: Artifact | None = None,
        interval: Annotated[int, Field(ge=0)] | None = None,
        weighting: Weighting = "none",
        gamma: Annotated[float, Field(gt=0)] | None = None,
        reweight_density: bool = False,
        caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1,
        ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999,
        lr: Rate = RATE,
        every: Every = 25,
        max_norm: Norm | None = 1.0,
        chunks: Chunks | None = None,
    ):
        super().__init__()
        if clusters == "gradient" and affinity is None and intervals is None:
            raise ConfigError(
                'clusters "gradient" needs `affinity`, an artifact of denoising-task-affinity: affinity: {from: STAGE/affinity}'
            )
        given = intervals.check(INTERVALS).data["starts"] if intervals is not None else clusters if isinstance(clusters, list) else None
        self.starts: list[int] | None = None if given is None else list(given)
        self.k = len(self.starts) if self.starts is not None else k
        if interval is not None and interval >= self.k:
            raise ConfigError(f"interval is one of 0 to {self.k - 1}; found {interval}")
        if mtl in ("pcgrad", "nash-mtl") and self.k < 2 and interval is None:
            raise ConfigError(f"{mtl} needs at least 2 losses; found k {self.k}")
        if mtl not in get_args(Method) or weighting not in get_args(Weighting):
            raise ConfigError(f"mtl is one of {get_args(Method)} and weighting of {get_args(Weighting)}; found {mtl!r} and {weighting!r}")
        self.clustering: Any = clusters
        self.affinity = None if affinity is None else affinity.check(AFFINITY).tensors["affinity"]
        self.interval, self.weighting, self.gamma, self.reweight_density = interval, weighting, gamma, reweight_density
        self.caption_dropout, self.ema_decay, self.lr = caption_dropout, ema_decay, lr
        self.max_norm = max_norm if mtl == "nash-mtl" and interval is None else None
        self.balancer = None if interval is not None else _balancer(mtl, self.k, every, chunks)
        self.average: AveragedModel | None = None

    def setup(self, model: Any, data: Dataset) -> None:
        """Group the scheduler's timesteps, freeze what is not trained, and begin the average.

        Raises:
            ConfigError: if k is above T, the SNR is not positive, or the affinity does not fit.
            InterfaceError: if the pipeline's network or scheduler is not known here.
        """
        self._denoiser, self.levels = (denoiser_of(model),), noise_levels(model.scheduler)  # a tuple: not a submodule
        try:
            if self.starts is not None:
                groups = Intervals(tuple(self.starts), self.levels.count).assignment()
            elif self.clustering == "random":
                groups = random_groups(self.levels.count, self.k, torch.Generator().manual_seed(drawn_seed()))
            else:
                groups = intervals_of(self.clustering, self.k, self.levels, self.affinity).assignment()
        except ValueError as error:
            raise ConfigError(f"clustered-denoising: {error}") from error
        self.groups = TimestepClusters(groups)
        if isinstance(self.balancer, PCGrad):
            self.balancer.generator.manual_seed(drawn_seed())
        for component in model.components.values():
            if isinstance(component, nn.Module):
                component.requires_grad_(component is self.denoiser.network)
        if self.ema_decay:
            rule = get_ema_multi_avg_fn(self.ema_decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.denoiser.network, multi_avg_fn=rule).requires_grad_(False)

    @property
    def denoiser(self) -> Denoiser:
        """Of the pipeline that is trained."""
        return self._denoiser[0]

    def optimizers(self, model: Any, make: MakeOptimizer) -> Optimizer | Mapping[str, Optimizer]:
        """One over the network; uncertainty weighting adds `uncertainty`."""
        made = make([{"params": list(self.denoiser.network.parameters())}])
        return with_own_optimizer(made, self.balancer, self.lr, make) if isinstance(self.balancer, UncertaintyWeighting) else made

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The mean of the losses, and each of them.

        Raises:
            DataError: if the batch lacks a key, or is smaller than k.
        """
        batch = batches["train"]
        self.denoiser.check(batch)
        samples = self.denoiser.samples(batch)
        drawn = self.groups.draw(len(samples), only=self.interval)
        times = self.levels.spread(drawn.timesteps)
        apart = self.balancer is not None and self.balancer.needs_gradients
        cuts = drawn.counts if apart else (len(samples),)
        condition = self.denoiser.condition(batch, self.caption_dropout)
        errors = clustered_errors(self.denoiser, self.levels, samples, times, condition, cuts)
        weights = self.levels.weights(times, self.weighting, self.gamma)
        if apart:
            weighted = [(part * weight).mean() for part, weight in zip(errors, torch.split(weights, list(cuts)), strict=True)]
        else:
            weighted = list(cluster_losses(errors[0] * weights, drawn.tasks, len(drawn.counts)))
        if self.reweight_density and self.interval is None:
            weighted = [loss * weight for loss, weight in zip(weighted, self.groups.density_weights(), strict=True)]
        first = self.interval or 0
        figures = {"mse": torch.cat(errors).detach().mean()}
        return Loss(torch.stack(weighted).mean(), {**{f"cluster-{first + j}": loss for j, loss in enumerate(weighted)}, **figures})

    def update(self, engine: Engine, batches: Mapping[str, Batch]) -> Loss:
        """A step of the multi-task method."""
        loss = engine.loss(batches)
        figures: dict[str, Tensor] = {}
        if self.balancer is None:
            engine.backward(loss.total)
            engine.step()
        else:
            losses = [loss.parts[f"cluster-{j}"] for j in range(self.k)]
            figures = balanced_step(engine, self.balancer, losses, self.max_norm)
        return Loss(loss.total, {**loss.parts, **figures})

    def after_step(self, model: Any) -> None:
        """The average follows."""
        if self.average is not None:
            self.average.update_parameters(self.denoiser.network)

    def export(self, model: Any) -> Any:
        """The pipeline with the averaged weights; the one that is trained keeps its own."""
        if self.average is None:
            return model
        exported = copy.copy(model)
        averaged = copy.deepcopy(self.average.module)
        setattr(exported, self.denoiser.network_name, averaged.requires_grad_(True))
        return exported


def _balancer(method: Method, clusters: int, every: int, chunks: int | None) -> Balancer | None:
    if method == "pcgrad":
        return PCGrad(chunks=chunks)
    if method == "nash-mtl":
        return NashMTL(clusters, every, chunks or 1)
    return UncertaintyWeighting(clusters) if method == "uncertainty-weighting" else None
