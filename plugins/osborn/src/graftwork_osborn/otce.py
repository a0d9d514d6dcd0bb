"""OTCE of source models, and its plain sum over a set: the paper's control without cohesion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from graftwork import Dataset, Evaluator, Report, Split, Table
from graftwork_osborn.measure import Task
from graftwork_osborn.pool import Measurement, Pool, check_pool, rank_subsets, sources_of
from graftwork_osborn.sampling import Reading
from graftwork_osborn.transport import Transport

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["OTCE"]

Weight = Annotated[float, Field(ge=0)]


class OTCE(Evaluator):
    """W_D and W_T of each source model, and their weighted sum (Tan et al., 2021, sections 3.2 and 3.3); of a set the plain sum.

    The authors fit the weights of the two on auxiliary tasks; here they are given. Lower is better.

    Args:
        pool: name -> Backbone or Segmenter, one or several.
        sources: name -> split of the set that the model was trained on.
        source_data: name -> dataset that has this split; the stage's own for the others.
        split: the target's labelled samples.
        k: rank all subsets of so many models too; none leaves that out.
        weights: of W_D and W_T.
        transport: how couplings are found.
        task: how W_T is read; as the authors' code, H(target | source) through the coupling.
        reading: how many samples, drawn how.

    Attributes:
        higher_is_better: false.

    Raises:
        ValueError: if a model has no source set, k does not fit the pool, or a weight is negative.
    """

    higher_is_better: ClassVar[bool] = False

    def __init__(
        self,
        pool: Pool,
        sources: dict[str, str],
        source_data: dict[str, Dataset] = {},  # noqa: B006 - read only
        split: Split = "train",
        k: Annotated[int, Field(ge=1)] | None = None,
        weights: tuple[Weight, Weight] = (1.0, 1.0),
        transport: Transport = Transport(),  # noqa: B008 - frozen
        task: Task = Task(given="source"),  # noqa: B008 - frozen
        reading: Reading = Reading(),  # noqa: B008 - frozen
    ):
        check_pool(pool, k)
        if min(weights) < 0:
            raise ValueError(f"weights are at least 0; found {weights}")
        self.pool, self.split, self.k, self.weights = pool, split, k, weights
        self.measurement = Measurement(pool, sources_of(pool, sources, source_data, "otce"), split, transport, task, reading)

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics domain, task and score, summed over the pool; a table of each model's; with `k` the artifact "scores" of all subsets.

        Raises:
            DataError: if a target class has no sample, or features are not finite or of two widths.
        """
        table = self.measurement.table(data, 0 if run is None else run.seed)
        score = table.set_score(("domain", "task"), self.weights, standardise=False)
        columns = zip(table.names, table.domain.tolist(), table.task.tolist(), score.singles.tolist(), strict=True)
        shown = Table(["model", "W_D", "W_T", "score"], list(map(list, columns)), f"Each model against {self.split}; lower is better.")
        metrics = {"domain": float(table.domain.sum()), "task": float(table.task.sum()), "score": float(score.singles.sum())}
        prints = data.fingerprint()
        artifacts, tables = {"table": table.artifact(prints)}, {"models": shown}
        ranked = None if self.k is None else rank_subsets(score, table.names, self.k, False, prints, "OTCE")
        if ranked is not None:
            tables["ranking"], artifacts["scores"] = ranked[1:]
        return Report(metrics, tables, {}, artifacts)
