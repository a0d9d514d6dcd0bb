"""What a policy does where: its cost, and how it divides guidance between the halves of the sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graftwork import Dataset, Evaluator, Figure, InterfaceError, Report, Table
from graftwork.interfaces import DiffusionPipeline
from graftwork_adaptive_guidance.figure import draw_policy
from graftwork_adaptive_guidance.policy import Choice

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["GuidancePolicyReport", "shares"]


def shares(policy: Sequence[Choice]) -> dict[str, float]:
    """Shares of guided, conditional and unconditional steps in each half of a policy; a middle step belongs to the second.

    Args:
        policy: choices in the order of the steps, two at least.

    Raises:
        ValueError: if there are fewer than two.
    """
    if len(policy) < 2:
        raise ValueError(f"policy has {len(policy)} step: there are no halves")
    middle = len(policy) // 2
    found = {}
    for half, part in (("first-half", policy[:middle]), ("second-half", policy[middle:])):
        for kind, name in (("cfg", "guided"), ("cond", "conditional"), ("uncond", "unconditional")):
            found[f"{name}-{half}"] = sum(one.kind == kind for one in part) / len(part)
    return found


class GuidancePolicyReport(Evaluator):
    """Shows the policy that a pipeline carries, as `guidance-policy-search` hands it on (Castillo et al., 2025).

    Metrics `nfe` and the shares of guided, conditional and unconditional steps in each half of the sampling.
    """

    needs = DiffusionPipeline

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Read the policy; nothing is drawn.

        Raises:
            InterfaceError: if the pipeline carries none.
        """
        policy = getattr(getattr(model, "guidance", None), "policy", None)
        if policy is None:
            raise InterfaceError(f"guidance-policy-report needs a pipeline that carries a policy; {type(model).__name__} carries none")
        metrics = {"nfe": float(sum(one.cost for one in policy)), **shares(policy)}
        rows = [[step, str(one), one.cost] for step, one in enumerate(policy)]
        caption = f"What each of {len(policy)} steps evaluates; plain guidance takes {2 * len(policy)}, this {metrics['nfe']:g}."
        figure = Figure(draw_policy([str(one) for one in policy]), caption)
        return Report(metrics, {"policy": Table(["step", "choice", "evaluations"], rows, caption)}, {"policy": figure})
