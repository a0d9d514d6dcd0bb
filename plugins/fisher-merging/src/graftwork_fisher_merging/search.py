"""The search for merging coefficients: merge, score, keep the best (Matena and Raffel, 2022, section 3.4)."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from graftwork import ConfigError, DataError
from graftwork.errors import nearest
from graftwork_fisher_merging.merging import Merger

__all__ = ["MergeSearch", "Trial", "search_coefficients"]


@dataclass(frozen=True)
class Trial:
    """One merged model.

    Args:
        coefficients: lambda, one a model.
        score: what it was chosen by, the mean of the chosen metrics; nan where one is not finite.
        metrics: all that was measured.
    """

    coefficients: tuple[float, ...]
    score: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class MergeSearch:
    """What a search found.

    Args:
        trials: in the order of the coefficients.
        best: position of the best; of equals the first.
        metrics: whose mean is the score.
        direction: which is better.
        isotropic: whether no Fishers were given.
    """

    trials: tuple[Trial, ...]
    best: int
    metrics: tuple[str, ...]
    direction: str
    isotropic: bool

    @property
    def winner(self) -> Trial:
        """The best trial."""
        return self.trials[self.best]


def search_coefficients(
    merger: Merger,
    coefficients: Sequence[Sequence[float]],
    score: Callable[[nn.Module], Mapping[str, float]],
    metrics: Sequence[str] | None = None,
    direction: Literal["higher", "lower"] = "higher",
    finish: Callable[[nn.Module], Any] | None = None,
) -> tuple[Any, MergeSearch]:
    """Merge with each vector of coefficients and keep the best.

    One module is written to in place throughout; at the end it holds the best.

    Args:
        merger: the models.
        coefficients: to try, in order.
        score: metrics of a merged model, on validation data.
        metrics: the score is the mean of these; None takes the only one.
        direction: which is better.
        finish: called on each merged module before it is scored, such as to re-estimate batch norm.

    Returns:
        The best merged model, and everything that was tried.

    Raises:
        ValueError: if there are no coefficients, or one is wrong.
        ConfigError: if a metric is not measured, or several are and none is named.
        DataError: if no score is finite.
    """
    if not coefficients:
        raise ValueError("there are no coefficients to try")
    output = copy.deepcopy(merger.models[0])
    trials: list[Trial] = []
    names = tuple(metrics or ())
    for vector in coefficients:
        merger.write(output, vector)
        if finish is not None:
            finish(output)
        found = {name: float(value) for name, value in score(output).items()}
        names = names or tuple(found)
        _check_metrics(names, found, given=metrics is not None)
        trials.append(Trial(tuple(vector), statistics.fmean(found[name] for name in names), found))
    usable = [index for index, trial in enumerate(trials) if math.isfinite(trial.score)]
    if not usable:
        raise DataError(f"the mean of {', '.join(names)} is finite for none of {len(trials)} merged models")
    sign = 1 if direction == "higher" else -1
    best = max(usable, key=lambda index: sign * trials[index].score)
    merger.write(output, trials[best].coefficients)
    if finish is not None:
        finish(output)
    return output, MergeSearch(tuple(trials), best, names, direction, merger.fishers is None)


def _check_metrics(names: Sequence[str], found: Mapping[str, float], given: bool) -> None:
    if not given and len(found) != 1:
        raise ConfigError(f"metrics is needed: the evaluator gives {', '.join(found) or 'none'}")
    for name in names:
        if name not in found:
            raise ConfigError(f'metrics: the evaluator gives no "{name}"{nearest(name, found)}; it gives {", ".join(found)}')
