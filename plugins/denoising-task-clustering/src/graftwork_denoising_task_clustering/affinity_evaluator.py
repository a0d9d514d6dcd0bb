"""The evaluator of task affinity: how alike the gradients of noise levels are, along training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork import Artifact, ConfigError, DataError, Dataset, Evaluator, Figure, Report, Table, fingerprint
from graftwork.builtin.hub import diffusers_pipeline
from graftwork.interfaces import DiffusionPipeline, device_of
from graftwork.kinds.dataset import Split
from graftwork.kinds.evaluator import split_batches
from graftwork_denoising_task_clustering.affinity import CountSketch, affinity_gaps, cosine_matrix, flatten, gradient_sketches, spearman
from graftwork_denoising_task_clustering.clustered_denoising import AFFINITY, clustered_errors
from graftwork_denoising_task_clustering.denoisers import denoiser_of
from graftwork_denoising_task_clustering.figures import draw_affinity
from graftwork_denoising_task_clustering.noise_levels import NoiseLevels, noise_levels

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["DenoisingTaskAffinity", "task_affinity"]

Count = Annotated[int, Field(ge=1)]


@contextmanager
def differentiable(network: nn.Module, train: bool) -> Iterator[None]:
    """A network in training or eval mode whose parameters can be differentiated; modes and flags come back afterwards.

    Where some of its parameters require gradients only those do; where none does, all.
    """
    modes = [(module, module.training) for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.train(train)
    if not any(flag for _, flag in flags):
        network.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def task_affinity(
    pipeline: Any,
    batches: list[dict[str, Any]],
    timesteps: list[int],
    *,
    sketch: int | None = 4096,
    train: bool = True,
    seed: int = 0,
) -> Tensor:
    """Task affinity scores (T', T') float64 of one checkpoint: cosines of the gradients of the noise levels' losses.

    Each gradient is accumulated over the same samples. Noise and dropout are drawn from torch's global generators, which are put back.

    Args:
        pipeline: of diffusers.
        batches: collated samples on its device.
        timesteps: T' of them.
        sketch: width of the gradients' sketches; None keeps them whole, T' P numbers.
        train: training mode, with dropout, as in the authors' code.
        seed: of noise, dropout and sketch.

    Raises:
        ValueError: if a gradient is zero or not finite.
        DataError: if a batch lacks a key.
    """
    denoiser, levels = denoiser_of(pipeline), noise_levels(pipeline.scheduler)
    total = sum(len(next(iter(batch.values()))) for batch in batches)
    device = device_of(denoiser.network)

    def losses(timestep: int) -> Iterator[Tensor]:
        for batch in batches:
            denoiser.check(batch)
            samples = denoiser.samples(batch)
            times = levels.spread(torch.full((len(samples),), timestep, device=device))
            errors = clustered_errors(denoiser, levels, samples, times, denoiser.condition(batch, 0.0), (len(samples),))
            yield errors[0].sum() / total

    with torch.random.fork_rng([device] if device.type == "cuda" else []), differentiable(denoiser.network, train):
        torch.manual_seed(seed)
        summary = flatten if sketch is None else CountSketch(sketch, seed)
        return cosine_matrix(gradient_sketches(denoiser.network, losses, timesteps, summary)).cpu()


class DenoisingTaskAffinity(Evaluator):
    """Cosines of the gradients of noise levels, averaged over checkpoints along training (Go et al., 2023, section 3).

    The timesteps are the middles of `cells` equal parts of the schedule. Each gradient is accumulated over the same samples and kept as a
    sketch, so memory is one gradient. Metrics: `mean_affinity`, off the diagonal; `spearman_timestep` and `spearman_log_snr`, rank
    correlation of the averaged affinity with the gap; `worst_spearman_timestep`, the largest over the checkpoints, which is below 0
    where near timesteps are more alike at every checkpoint. Artifact `affinity`: the matrix, for interval-clusters and clustered-denoising.

    Args:
        split: whose first samples are used.
        limit: how many samples, for every timestep the same.
        cells: T', how many timesteps; it divides the schedule's number. The paper's is all of them.
        checkpoints: further pipelines along the same training; the stage's own model is always one.
        checkpoint_folders: Hugging Face ids or folders of further ones, which are loaded one at a time.
        sketch: width of the gradients' sketches; none keeps them whole.
        train_mode: measure in training mode, dropout included, as in the authors' code.
        seed: of noise and sketch.
        batch_size: samples that are differentiated at once.
    """

    needs = DiffusionPipeline

    def __init__(
        self,
        split: Split = "train",
        limit: Count = 1000,
        cells: Annotated[int, Field(ge=2)] = 20,
        checkpoints: list[DiffusionPipeline] = [],  # noqa: B006 - read only
        checkpoint_folders: list[str] = [],  # noqa: B006 - read only
        sketch: Count | None = 4096,
        train_mode: bool = True,
        seed: int = 0,
        batch_size: Count = 100,
    ):
        if cells < 2 or limit < 1 or batch_size < 1:
            raise ValueError(f"cells is at least 2, limit and batch_size at least 1; found {cells}, {limit}, {batch_size}")
        self.split, self.limit, self.cells, self.sketch = split, limit, cells, sketch
        self.checkpoints, self.checkpoint_folders = list(checkpoints), list(checkpoint_folders)
        self.train_mode, self.seed, self.batch_size = train_mode, seed, batch_size

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Measure every checkpoint.

        Raises:
            ConfigError: if `cells` does not divide the schedule, or a checkpoint has another one.
            DataError: if a sample lacks a key, or a gradient is zero or not finite.
        """
        levels = noise_levels(model.scheduler)
        if levels.count % self.cells:
            raise ConfigError(f"cells divides the schedule's {levels.count} timesteps; found {self.cells}")
        width = levels.count // self.cells
        timesteps = [index * width + width // 2 for index in range(self.cells)]
        device = device_of(denoiser_of(model).network)
        batches = list(split_batches(data, self.split, denoiser_of(model).network, limit=self.limit, batch_size=self.batch_size))
        found: dict[str, Tensor] = {}
        for name, checkpoint in self._pipelines(model, device):
            if noise_levels(checkpoint.scheduler).count != levels.count:
                raise ConfigError(f"checkpoint {name} has another number of timesteps than {levels.count}")
            try:
                found[name] = task_affinity(checkpoint, batches, timesteps, sketch=self.sketch, train=self.train_mode, seed=self.seed)
            except ValueError as error:
                raise DataError(f"denoising-task-affinity, checkpoint {name}: {error}") from error
        affinity = torch.stack(list(found.values())).mean(0)
        artifact = Artifact(
            AFFINITY,
            {"affinity": affinity, "timesteps": torch.tensor(timesteps)},
            {"count": levels.count, "checkpoints": list(found)},
            model=fingerprint(denoiser_of(model).network),
            dataset=data.fingerprint(),
        )
        return Report(*_summary(affinity, found, timesteps, levels), {"affinity": artifact})

    def _pipelines(self, model: Any, device: torch.device) -> Iterator[tuple[str, Any]]:
        yield from ((str(number), one) for number, one in enumerate(self.checkpoints))
        for folder in self.checkpoint_folders:
            yield folder, diffusers_pipeline(folder, device=str(device))
        yield "model", model


def _summary(
    affinity: Tensor, found: Mapping[str, Tensor], timesteps: list[int], levels: NoiseLevels
) -> tuple[dict[str, float], dict[str, Table], dict[str, Figure]]:
    positions = torch.tensor(timesteps, dtype=torch.float64)
    snr = levels.log_snr[timesteps]
    ranks = {name: spearman(*affinity_gaps(one, positions)) for name, one in found.items()}
    away = ~torch.eye(len(affinity), dtype=torch.bool)
    metrics = {
        "mean_affinity": float(affinity[away].mean()),
        "spearman_timestep": spearman(*affinity_gaps(affinity, positions)),
        "spearman_log_snr": spearman(*affinity_gaps(affinity, snr)),
        "worst_spearman_timestep": max(ranks.values()),
    }
    rows = [[name, float(one[away].mean()), float(one[away].min()), ranks[name]] for name, one in found.items()]
    table = Table(
        ["checkpoint", "mean affinity", "least affinity", "rank correlation with the gap"],
        rows,
        "Affinity of pairs of noise levels; a negative correlation says that near levels are more alike.",
    )
    caption = "Cosine of the gradients of two noise levels, and the same against their distance in timesteps and in log SNR."
    return metrics, {"checkpoints": table}, {"affinity": Figure(draw_affinity(affinity, positions, snr), caption)}
