"""What a claim comes to: in one run, and over the seeds of a reproduction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graftwork.errors import GraftworkError
from graftwork.metrics import metric_of

__all__ = ["Judgement", "comparisons", "judge", "measured"]


@dataclass(frozen=True)
class Judgement:
    """One comparison of a claim, for one seed.

    Args:
        method: "stage/metric" of the method.
        baseline: "stage/metric" that it is held against.
        direction: "higher" or "lower" is better.
        margin: by how much the method may be worse.
        method_value: of this run; None when it was not measured.
        baseline_value: likewise.
        verdict: "for the claim", "against it" or "not measured".
    """

    method: str
    baseline: str
    direction: str
    margin: float
    method_value: float | None
    baseline_value: float | None
    verdict: str

    @property
    def difference(self) -> float | None:
        """Method less baseline."""
        if self.method_value is None or self.baseline_value is None:
            return None
        return self.method_value - self.baseline_value


def comparisons(claim: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The comparisons of a claim as a pipeline writes it, one or many; those that name no two numbers are left out."""
    compare = claim.get("compare")
    listed = compare if isinstance(compare, list) else [compare]
    return [one for one in listed if isinstance(one, dict) and {"method", "baseline"} <= one.keys()]


def judge(claim: Mapping[str, Any], metrics: Mapping[str, float]) -> list[Judgement]:
    """Hold one run's numbers against a claim.

    Args:
        claim: as a pipeline writes it.
        metrics: "stage/metric" -> number.
    """
    found = []
    for one in comparisons(claim):
        method, baseline = str(one["method"]), str(one["baseline"])
        direction, margin = str(one.get("direction", "higher")), one.get("margin", 0.0)
        allowed = float(margin) if isinstance(margin, (int, float)) else 0.0
        left, right = measured(metrics, method), measured(metrics, baseline)
        if left is None or right is None:
            verdict = "not measured"
        else:
            gain = (left - right if direction == "higher" else right - left) + allowed
            verdict = "for the claim" if gain > 0 else "against it"
        found.append(Judgement(method, baseline, direction, allowed, left, right, verdict))
    return found


def measured(metrics: Mapping[str, float], name: str) -> float | None:
    """The metric "stage/metric" as `metric_of` finds it; None if there is none, or several."""
    try:
        return metric_of(metrics, name)
    except GraftworkError:
        return None
