"""The evaluator: what a modified model trains, by formula and by counting, and where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from graftwork import Dataset, Evaluator, Figure, Report, Table
from graftwork_unified_petl.builder import petl_of
from graftwork_unified_petl.counting import site_counts
from graftwork_unified_petl.figure import draw_counts

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["PetlParameterCount"]


class PetlParameterCount(Evaluator):
    """Trainable parameters of a modified model against all of the frozen one's (He et al., 2022, section 4.1).

    New parameters are counted twice, by the formulas of `parameters_of` and in the model, and the two are both reported.

    Args:
        folded: count prefixes as they are kept after training, without the networks that generate them.
    """

    needs = nn.Module

    def __init__(self, folded: bool = True):
        self.folded = folded

    def evaluate(self, model: Any, data: Dataset | None = None, run: Run | None = None) -> Report:
        """Metrics new (counted), by-formula, heads (of the task), frozen, share (new / frozen), a table by site and a picture.

        Raises:
            InterfaceError: if the model is not modified.
        """
        petl = petl_of(model)
        modifications = petl.folded_modifications() if self.folded else petl.modifications
        counts = site_counts(model, modifications)
        formula = sum(one.parameters for one in counts)
        counted = petl.count(self.folded)
        new = {id(one) for one in petl.parameters()}
        biases = sum(one.numel() for one in petl.originals.values())
        rest = [one for one in model.parameters() if id(one) not in new]
        heads = sum(one.numel() for one in rest if one.requires_grad) - biases
        frozen = sum(one.numel() for one in rest) - heads
        metrics = {"new": counted, "by-formula": formula, "heads": heads, "frozen": frozen, "share": counted / frozen}
        rows = [(one.stack, "shared" if one.layer < 0 else one.layer, one.site, one.parameters) for one in counts]
        table = Table(("stack", "layer", "site", "parameters"), rows, f"{counted:,} new parameters beside {frozen:,} frozen ones.")
        figure = Figure(draw_counts(counts, frozen), "Where the new parameters are, layer by layer.")
        return Report(metrics, {"sites": table}, {"parameters": figure} if counts else {})
