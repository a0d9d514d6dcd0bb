"""OSBORN: score sets of source models by domain, task and cohesion, rank them, and choose one greedily."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from graftwork import Artifact, Dataset, Evaluator, Figure, Report, Split, Table
from graftwork_osborn.figures import draw_pool
from graftwork_osborn.measure import Task
from graftwork_osborn.pool import Measurement, check_pool, named, rank_subsets, sources_of
from graftwork_osborn.sampling import Reading
from graftwork_osborn.submodular import Selection
from graftwork_osborn.table import Pairs, Ranking, SetScore, Term, TransferabilityTable
from graftwork_osborn.transport import Transport

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["Osborn"]


class Osborn(Evaluator):
    """The transferability of sets of source models to a labelled target, without fine-tuning any (Bachu et al., 2023, section 3).

    Lower is better: the sum of transport distances of features (W_D), conditional entropies of labels (W_T), and conditional entropies
    between the members' predictions (W_C), which is low where they agree. Its negative is submodular, and is maximised greedily.

    Args:
        pool: name -> Backbone or Segmenter, label spaces of their own; none where `measured` is given.
        sources: name -> split of the set that the model was trained on.
        source_data: name -> dataset that has this split; the stage's own for the others.
        split: the target's labelled samples.
        k: models to choose.
        terms: of the score: domain, task, cohesion; leep adds -MS-LEEP and e-leep -E-LEEP.
        weights: of the terms, in their order; all 1 by default.
        standardise: whether each term is scaled by its spread over the pool; false adds raw terms.
        pairs: "ordered" counts H(a | b) and H(b | a) of a pair, "unordered" their mean.
        transport: how couplings are found.
        task: how W_T is read.
        reading: how many samples, drawn how.
        measured: the artifact "table" of an earlier stage, to score it anew with other terms or weights; no model is run then.

    Attributes:
        higher_is_better: false.

    Raises:
        ValueError: if a model has no source set, k does not fit the pool, or terms and weights do not fit.
    """

    higher_is_better: ClassVar[bool] = False

    def __init__(
        self,
        pool: dict[str, nn.Module] = {},  # noqa: B006 - read only
        sources: dict[str, str] = {},  # noqa: B006 - read only
        source_data: dict[str, Dataset] = {},  # noqa: B006 - read only
        split: Split = "train",
        k: Annotated[int, Field(ge=1)] = 3,
        terms: Annotated[list[Term], Field(min_length=1)] = ["domain", "task", "cohesion"],  # noqa: B006 - read only
        weights: list[Annotated[float, Field(ge=0)]] | None = None,
        standardise: bool = True,
        pairs: Pairs = "ordered",
        transport: Transport = Transport(),  # noqa: B008 - frozen
        task: Task = Task(),  # noqa: B008 - frozen
        reading: Reading = Reading(),  # noqa: B008 - frozen
        measured: Artifact | None = None,
    ):
        if measured is not None and pool:
            raise ValueError("give a pool to measure, or what was measured, and not both")
        self.measured = None if measured is None else TransferabilityTable.from_artifact(measured)
        self.fingerprint = "" if measured is None else measured.dataset
        check_pool(pool if self.measured is None else self.measured.names, k)
        self.pool, self.split, self.k = pool, split, k
        self.measurement = Measurement(pool, sources_of(pool, sources, source_data, "osborn"), split, transport, task, reading)
        self.terms, self.weights, self.standardise, self.pairs = list(terms), weights, standardise, pairs
        _example().set_score(self.terms, weights, standardise, pairs)  # raises for terms and weights that do not fit

    def table(self, data: Dataset, seed: int = 0) -> TransferabilityTable:
        """What is measured of the pool on a target, or was.

        Raises:
            DataError: if a target class has no sample, or features are not finite or of two widths.
        """
        if self.measured is not None:
            return self.measured
        return self.measurement.table(data, seed)

    def score(self, table: TransferabilityTable) -> SetScore:
        """The score of sets, with `score(subset)`, `rank(k)` and `select(k)`."""
        return table.set_score(self.terms, self.weights, self.standardise, self.pairs)

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Measure, rank and select.

        Metrics: greedy-score and best-score, of the chosen and of the best subset; greedy-share, where 1 is the best and 0 the worst
        subset's score; greedy-rank. Artifacts: "table", from which other terms can be scored, and "scores" of all subsets.

        Raises:
            DataError: if a target class has no sample, or features are not finite or of two widths.
        """
        table = self.table(data, 0 if run is None else run.seed)
        prints = data.fingerprint() if self.measured is None else self.fingerprint
        score = self.score(table)
        selection = score.select(self.k)
        chosen = Table(
            ["step", "model", "gain"],
            [[step, table.names[index], gain] for step, index, gain in zip(count(1), selection.chosen, selection.gains, strict=False)],
            f"Greedy choice of {self.k}; gains fall as the set grows.",
        )
        tables = {"selection": chosen, "models": _models(table, score), "cohesion": _cohesion(table)}
        artifacts = {"table": table.artifact(prints)}
        metrics = {"greedy-score": -selection.value}
        ranked = rank_subsets(score, table.names, self.k, False, prints, " + ".join(self.terms))
        if ranked is not None:
            tables["ranking"], artifacts["scores"] = ranked[1:]
            metrics |= _against_best(selection, ranked[0])
        caption = f"Left: cost of each model; {named(table.names, selection.chosen)} are chosen in this order. Right: H(row | column)."
        return Report(metrics, tables, {"pool": Figure(draw_pool(table, score, selection.chosen), caption)}, artifacts)


def _against_best(selection: Selection[int], ranking: Ranking) -> dict[str, float]:
    best, worst = float(ranking.scores[0]), float(ranking.scores[-1])
    share = (worst + selection.value) / (worst - best) if worst > best else 1.0
    rank = 1 + int((ranking.subsets == ranking.subsets.new_tensor(sorted(selection.chosen))).all(dim=1).nonzero()[0, 0])
    return {"best-score": best, "greedy-share": share, "greedy-rank": float(rank)}


def _models(table: TransferabilityTable, score: SetScore) -> Table:
    columns = (table.domain, table.task, table.leep, score.singles, score.pairs.sum(dim=1))
    rows = [[name, *numbers] for name, *numbers in zip(table.names, *(column.tolist() for column in columns), strict=True)]
    caption = "Raw terms of each model; its cost as scored, without pairs; the costs of its pairs with all others."
    return Table(["model", "W_D", "W_T", "LEEP", "cost", "pairs"], rows, caption)


def _cohesion(table: TransferabilityTable) -> Table:
    rows = [[name, *row] for name, row in zip(table.names, table.cohesion.tolist(), strict=True)]
    return Table(["H(row | column)", *table.names], rows, "Conditional entropy of one model's predictions given another's, in nats.")


def _example() -> TransferabilityTable:
    from torch import zeros

    return TransferabilityTable(("a",), zeros(1), zeros(1), zeros(1, 1), zeros(1, 1).exp())
