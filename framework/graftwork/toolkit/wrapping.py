"""Objectives around other objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from graftwork.builtin.objectives import CrossEntropy
from graftwork.errors import ConfigError
from graftwork.interfaces import require
from graftwork.kinds.dataset import Batch, Dataset
from graftwork.kinds.objective import Loss, MakeOptimizer, Objective

__all__ = ["Around"]


class Around(Objective):
    """An objective around another: its feeds, keys, needs, optimisers, loss and export are those of the one inside.

    Args:
        base: the inner objective; None is cross-entropy.
        user: name of the outer one, for messages.

    Raises:
        ConfigError: if the inner objective owns its step or its loop, which the outer one would not run.
    """

    def __init__(self, base: Objective | None, user: str):
        super().__init__()
        self.base = base if base is not None else CrossEntropy()
        for method, what in (("update", "step"), ("fit", "loop")):
            if getattr(type(self.base), method) is not getattr(Objective, method):
                raise ConfigError(f"{user} owns the step, and so does {type(self.base).__name__}, which brings a {what} of its own")
        self.feeds, self.keys, self.needs = self.base.feeds, self.base.keys, self.base.needs

    def setup(self, model: Any, data: Dataset) -> None:
        """Set the inner objective up.

        Raises:
            InterfaceError: if the model lacks what it needs.
        """
        require(model, self.base.needs, type(self.base).__name__)
        self.base.setup(model, data)

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The inner objective's loss."""
        found = self.base(model, batches, progress)
        return found if isinstance(found, Loss) else Loss(found)

    def after_step(self, model: Any) -> None:
        """What the inner objective does after a step."""
        self.base.after_step(model)

    def optimizers(self, model: Any, make: MakeOptimizer) -> Optimizer | Mapping[str, Optimizer]:
        """The inner objective's optimisers, which take the steps; schedules are theirs."""
        return self.base.optimizers(model, make)

    def export(self, model: Any) -> Any:
        """What the inner objective hands on; nothing of a history or of saved weights is in it."""
        return self.base.export(model)

    @property
    def exports_model(self) -> bool:
        """As the inner objective says."""
        return self.base.exports_model
