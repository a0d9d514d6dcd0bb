"""The evaluator of negative transfer: what training on all noise levels costs each interval of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from graftwork import Artifact, Backbone, ConfigError, DataError, Dataset, Evaluator, Figure, InterfaceError, Report, Table
from graftwork.interfaces import DiffusionPipeline, device_of, embed
from graftwork.kinds.dataset import Split
from graftwork.kinds.evaluator import evaluating, split_batches
from graftwork_denoising_task_clustering.clustered_denoising import AFFINITY, INTERVALS
from graftwork_denoising_task_clustering.clusters import Clustering, intervals_of
from graftwork_denoising_task_clustering.denoisers import Denoiser, denoiser_of
from graftwork_denoising_task_clustering.figures import draw_gaps
from graftwork_denoising_task_clustering.intervals import Intervals
from graftwork_denoising_task_clustering.mixed_sampling import draw, frechet_distance, mixed_denoiser
from graftwork_denoising_task_clustering.noise_levels import noise_levels

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["NegativeTransferGap"]

Count = Annotated[int, Field(ge=1)]
SHOWN = 10
"""Pictures a row of the figure."""


class NegativeTransferGap(Evaluator):
    """FID of sampling with an interval's dedicated denoiser inside the interval, less that of the shared one (Go et al., 2023, section 3).

    Below zero the interval is worse off for being trained with the others: negative transfer. Every set of samples has the same captions
    or labels and the same noise. Metrics: `fid`, of the shared model; for each dedicated one `fid-j` and `gap-j`. Without any it
    measures `fid` alone. With few samples an FID is biased upwards, alike for all: compare at one number of samples only.

    Args:
        features: a network whose features the distance is taken over.
        dedicated: number of an interval, from 0 -> pipeline that was trained on it alone (clustered-denoising's `interval`).
        clusters: how the intervals were made: "uniform", "timestep", "log-snr" or "gradient".
        k: how many there are.
        intervals: an artifact `intervals` of interval-clusters, in place of `clusters` and `k`.
        affinity: an artifact `affinity` of denoising-task-affinity, for "gradient".
        split: whose samples are compared with, and whose captions or labels are asked for.
        images: a dataset whose split of that name has the pictures, where the stage's has latents; by default the stage's own.
        samples: how many.
        steps: of the sampler.
        guidance_scale: of classifier-free guidance; 1 is none.
        seed: of the noise.
        batch_size: pictures that are drawn at once.

    Raises:
        ConfigError: if a dedicated model names no interval.
    """

    needs = DiffusionPipeline

    def __init__(
        self,
        features: Backbone,
        dedicated: dict[int, DiffusionPipeline] = {},  # noqa: B006 - read only
        clusters: Clustering = "uniform",
        k: Count = 5,
        intervals: Artifact | None = None,
        affinity: Artifact | None = None,
        split: Split = "test",
        images: Dataset | None = None,
        samples: Annotated[int, Field(ge=2)] = 1000,
        steps: Count = 50,
        guidance_scale: Annotated[float, Field(ge=1)] = 1.0,
        seed: int = 0,
        batch_size: Count = 64,
    ):
        self.given: Intervals | None = None
        if intervals is not None:
            found = intervals.check(INTERVALS).data
            self.given = Intervals(tuple(found["starts"]), found["count"])
        self.k = len(self.given.starts) if self.given is not None else k
        if strangers := [number for number in dedicated if not 0 <= number < self.k]:
            raise ConfigError(f"dedicated names intervals from 0 to {self.k - 1}; found {strangers}")
        if samples < 2 or steps < 1 or batch_size < 1 or guidance_scale < 1:
            raise ValueError(
                f"samples is at least 2, steps, batch_size and guidance_scale at least 1; found {samples}, {steps}, {batch_size}"
            )
        self.features, self.dedicated, self.images = features, dict(dedicated), images
        self.clusters: Clustering = clusters
        self.affinity = None if affinity is None else affinity.check(AFFINITY).tensors["affinity"]
        self.split, self.samples, self.steps, self.guidance_scale = split, samples, steps, guidance_scale
        self.seed, self.batch_size = seed, batch_size

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Sample with the shared model, then with each dedicated one inside its interval.

        Raises:
            ConfigError: if the intervals do not fit the schedule.
            InterfaceError: if a dedicated pipeline is of another kind.
            DataError: if there are no pictures to compare with.
        """
        denoiser, levels = denoiser_of(model), noise_levels(model.scheduler)
        try:
            intervals = self.given or intervals_of(self.clusters, self.k, levels, self.affinity)
        except ValueError as error:
            raise ConfigError(f"negative-transfer-gap: {error}") from error
        if intervals.count != levels.count:
            raise ConfigError(f"the intervals are of {intervals.count} timesteps, the scheduler has {levels.count}")
        truth = self._real(data)
        drawn = self._drawn(denoiser, data)
        metrics = {"fid": frechet_distance(self._embedded(drawn), truth)}
        rows, shown = [], {"shared": drawn[:SHOWN].cpu()}
        for number, expert in sorted(self.dedicated.items()):
            other = denoiser_of(expert)
            if type(other) is not type(denoiser):
                raise InterfaceError(f"dedicated {number} is a {type(expert).__name__}, which cannot stand in for {type(model).__name__}")
            start, end = intervals.bounds[number]
            with mixed_denoiser(denoiser.network, {(start, end): other.network}, levels), evaluating(other.network):
                drawn = self._drawn(denoiser, data)
            metrics[f"fid-{number}"] = frechet_distance(self._embedded(drawn), truth)
            metrics[f"gap-{number}"] = metrics[f"fid-{number}"] - metrics["fid"]
            rows.append([number, start, end - 1, metrics[f"fid-{number}"], metrics[f"gap-{number}"]])
            shown[f"{start} to {end - 1}"] = drawn[:SHOWN].cpu()
        columns = ["interval", "first timestep", "last timestep", "FID, dedicated inside", "gap"]
        table = Table(columns, rows, f"Shared model: {metrics['fid']:.5g}. A gap below zero is negative transfer.")
        gaps = {f"{start} to {end - 1}": gap for _, start, end, gap in ((row[0], row[1], row[2] + 1, row[4]) for row in rows)}
        caption = "Gap of each interval, and pictures of the same captions and noise: shared above, dedicated inside an interval below."
        return Report(metrics, {"gaps": table}, {"gaps": Figure(draw_gaps(gaps, shown), caption)})

    def _real(self, data: Dataset) -> Tensor:
        source = self.images if self.images is not None else data
        found = []
        with evaluating(self.features):
            for batch in split_batches(source, self.split, self.features, limit=self.samples, batch_size=self.batch_size):
                if "image" not in batch:
                    raise DataError(f'split "{self.split}" has no `image` to compare with: give the pictures as `images`')
                found.append(self._features(batch["image"]))
        return torch.cat(found)

    def _drawn(self, denoiser: Denoiser, data: Dataset) -> Tensor:
        found = []
        batches = split_batches(data, self.split, denoiser.network, limit=self.samples, batch_size=self.batch_size)
        for number, batch in enumerate(batches):
            seed = self.seed + number * self.batch_size
            found.append(draw(denoiser, batch, steps=self.steps, guidance_scale=self.guidance_scale, seed=seed))
        return torch.cat(found)

    def _embedded(self, images: Tensor) -> Tensor:
        with evaluating(self.features):
            return torch.cat([self._features(part.to(device_of(self.features))) for part in torch.split(images, self.batch_size)])

    def _features(self, images: Tensor) -> Tensor:
        return embed(self.features, {"image": images}).float().cpu()  # type: ignore[arg-type]
