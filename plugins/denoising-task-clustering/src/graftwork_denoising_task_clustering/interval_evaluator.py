"""The evaluator of intervals: how a pipeline's timesteps are grouped at least cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from graftwork import Artifact, ConfigError, Dataset, Evaluator, Figure, Report, Table
from graftwork.interfaces import DiffusionPipeline
from graftwork_denoising_task_clustering.clustered_denoising import AFFINITY, INTERVALS
from graftwork_denoising_task_clustering.clusters import Clustering, intervals_of
from graftwork_denoising_task_clustering.figures import draw_intervals
from graftwork_denoising_task_clustering.noise_levels import noise_levels

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["IntervalClusters"]


class IntervalClusters(Evaluator):
    """The k contiguous intervals of a scheduler's timesteps of least total cost, by exact dynamic programming (Go et al., 2023, section 4).

    Metrics: `total_cost`, `cost-j` and `start-j`. Artifact `intervals`, which clustered-denoising takes. No data are read.

    Args:
        cost: of an interval around its middle: "timestep", "log-snr", or "gradient" (task affinity); "uniform" is equal intervals.
        k: how many intervals.
        affinity: an artifact `affinity` of denoising-task-affinity, which "gradient" needs.

    Raises:
        ConfigError: if "gradient" has no affinity.
    """

    needs = DiffusionPipeline

    def __init__(self, cost: Clustering = "timestep", k: Annotated[int, Field(ge=1)] = 5, affinity: Artifact | None = None):
        if cost == "gradient" and affinity is None:
            raise ConfigError('cost "gradient" needs `affinity`, an artifact of denoising-task-affinity: affinity: {from: STAGE/affinity}')
        self.cost: Clustering = cost
        self.k = k
        self.affinity = None if affinity is None else affinity.check(AFFINITY).tensors["affinity"]

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Group the timesteps of the model's scheduler.

        Raises:
            ConfigError: if k is above T, an SNR is not positive, or the affinity does not fit.
            InterfaceError: if the scheduler is not known here.
        """
        levels = noise_levels(model.scheduler)
        try:
            found = intervals_of(self.cost, self.k, levels, self.affinity)
            snr = levels.log_snr
        except ValueError as error:
            raise ConfigError(f"interval-clusters: {error}") from error
        rows = [
            [number, start, end - 1, end - start, float(snr[start]), float(snr[end - 1]), cost]
            for number, ((start, end), cost) in enumerate(zip(found.bounds, found.costs, strict=True))
        ]
        table = Table(
            ["interval", "first timestep", "last timestep", "timesteps", "log SNR at first", "log SNR at last", "cost"],
            rows,
            f"Intervals of least {self.cost} cost, {found.total_cost:.5g} in all.",
        )
        metrics = {"total_cost": found.total_cost}
        metrics |= {f"cost-{number}": cost for number, cost in enumerate(found.costs)}
        metrics |= {f"start-{number}": float(start) for number, start in enumerate(found.starts)}
        caption = f"Log SNR of the timesteps, and the {self.k} intervals of least {self.cost} cost."
        artifact = Artifact(INTERVALS, {}, {"starts": list(found.starts), "count": found.count, "cost": self.cost})
        return Report(metrics, {"intervals": table}, {"intervals": Figure(draw_intervals(found, snr), caption)}, {"intervals": artifact})
