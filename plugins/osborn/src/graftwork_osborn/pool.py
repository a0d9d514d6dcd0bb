"""What the evaluators of a pool share: where its models' source sets are, and the report on all of its subsets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from pydantic import Field
from torch import nn

from graftwork import Artifact, Dataset, Table
from graftwork_osborn.measure import Source, Task, measure_pool
from graftwork_osborn.sampling import Reading
from graftwork_osborn.table import MOST, Ranking, SetScore, TransferabilityTable, subset_artifact
from graftwork_osborn.transport import Transport

__all__ = ["Measurement", "Pool", "check_pool", "named", "rank_subsets", "sources_of"]

Pool: TypeAlias = Annotated[dict[str, nn.Module], Field(min_length=1)]
SHOWN = 20
"""Rows of a ranking in a report's table."""


def check_pool(pool: Mapping[str, Any] | Sequence[str], k: int | None) -> None:
    """ValueError unless there is a model, and k of them can be chosen."""
    if not pool:
        raise ValueError("pool names at least one model")
    if k is not None and not 1 <= k <= len(pool):
        raise ValueError(f"k is 1 to {len(pool)}, the number of models in the pool; found {k}")


def sources_of(
    pool: Mapping[str, Any], splits: Mapping[str, str], data: Mapping[str, Dataset], user: str
) -> dict[str, tuple[Dataset | None, str]]:
    """Each model's source set as (dataset, split); None stands for the stage's own dataset.

    Args:
        pool: name -> model.
        splits: name -> split.
        data: name -> dataset that has it, where it is not the stage's.
        user: who needs them, for the message.

    Raises:
        ValueError: if a model has none, or a set belongs to no model.
    """
    missing = [name for name in pool if name not in splits]
    if missing:
        raise ValueError(f"{user} needs each model's source dataset to measure W_D; sources has no split for {', '.join(missing)}")
    strangers = [name for name in (*splits, *data) if name not in pool]
    if strangers:
        raise ValueError(f"sources are given for {', '.join(strangers)}, which the pool lacks; it has {', '.join(pool)}")
    return {name: (data.get(name), splits[name]) for name in pool}


@dataclass(frozen=True)
class Measurement:
    """What an evaluator measures of its pool.

    Args:
        pool: name -> model.
        sources: name -> source set, as `sources_of` gives it.
        split: the target's labelled samples.
        transport: how couplings are found.
        task: how W_T is read.
        reading: how sets are read.
    """

    pool: Mapping[str, nn.Module]
    sources: Mapping[str, tuple[Dataset | None, str]]
    split: str
    transport: Transport
    task: Task
    reading: Reading

    def table(self, data: Dataset, seed: int) -> TransferabilityTable:
        """Measure on a target; source sets without a dataset of their own are splits of it."""
        sources = {name: Source(data if own is None else own, split) for name, (own, split) in self.sources.items()}
        how = {"transport": self.transport, "task": self.task, "reading": self.reading}
        return measure_pool(self.pool, sources, data, self.split, seed=seed, **how)  # type: ignore[arg-type]


def named(names: Sequence[str], subset: Sequence[int]) -> str:
    """Names of a subset's models in one string."""
    return ", ".join(names[index] for index in subset)


def rank_subsets(
    score: SetScore, names: Sequence[str], k: int, higher_is_better: bool, dataset: str, what: str
) -> tuple[Ranking, Table, Artifact] | None:
    """Every subset of k models with its score: as a ranking, a table of the best, and an artifact; None where there are too many.

    Args:
        score: of sets, lower is better.
        names: of the models.
        k: models of a subset.
        higher_is_better: whether the number that is shown is the score's negative.
        dataset: fingerprint of the target.
        what: is scored, for the caption.
    """
    if math.comb(len(names), k) > MOST:
        return None
    ranking = score.rank(k)
    values = -ranking.scores if higher_is_better else ranking.scores
    count = len(values)
    rows = [[place + 1, named(names, ranking.subsets[place].tolist()), float(values[place])] for place in range(min(SHOWN, count))]
    direction = "higher" if higher_is_better else "lower"
    table = Table(["rank", "models", what], rows, f"The best {len(rows)} of {count} subsets of {k} by {what}; {direction} is better.")
    return ranking, table, subset_artifact("scores", ranking.subsets, values, names, higher_is_better, dataset)
