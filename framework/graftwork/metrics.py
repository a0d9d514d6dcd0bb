"""How a metric is named: "stage/metric", or "stage/evaluator/metric" where two evaluators of a stage measure the same."""

from __future__ import annotations

from collections.abc import Mapping

from graftwork.errors import GraftworkError

__all__ = ["metric_of"]


def metric_of(metrics: Mapping[str, float], name: str) -> float:
    """The metric "stage/metric"; an evaluator's label may be left out where that leaves no doubt.

    Args:
        metrics: of a run, by their full names.
        name: which.

    Raises:
        GraftworkError: if there is none, or several.
    """
    if name in metrics:
        return metrics[name]
    stage, _, metric = name.partition("/")
    near = [key for key in metrics if key.startswith(f"{stage}/") and key.endswith(f"/{metric}")]
    if len(near) == 1:
        return metrics[near[0]]
    measured = ", ".join(near or metrics) or "nothing"
    raise GraftworkError(f'the run measured {"several" if near else "no"} "{name}"; it measured {measured}')
