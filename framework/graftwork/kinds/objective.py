"""Objectives: what training optimises, from one loss to a whole loop of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

from graftwork.interfaces import Backbone

if TYPE_CHECKING:
    from graftwork.engine import Engine
    from graftwork.kinds.dataset import Batch, Dataset

__all__ = ["INPUTS", "Loss", "MakeOptimizer", "Objective"]

INPUTS = "inputs"
"""In `Objective.keys`: stands for whatever sample keys the model takes (`image`, `features`, `input_ids`, ...)."""

MakeOptimizer: TypeAlias = Callable[..., Optimizer]
"""`make(params_or_groups, **overrides)` builds the optimiser that the stage's `train.optimizer` describes."""


class Loss(NamedTuple):
    """A loss with its named parts.

    Args:
        total: 0-d tensor to minimise.
        parts: name -> 0-d tensor: terms of the total and other figures for the log. Device tensors; nothing is synchronised.
    """

    total: Tensor
    parts: dict[str, Tensor] = {}


class Objective(nn.Module):
    """What training optimises. Subclasses give `forward`; those that own the step, the optimisers or the loop override more.

    Everything carried between steps (schedules, moving averages, queues) belongs in buffers or `get_extra_state`, so that
    `state_dict` holds it and a resumed run equals an unbroken one.

    Attributes:
        feeds: names of the data streams that it draws from; () takes whatever streams the stage gives.
        keys: feed -> sample keys that it reads, `INPUTS` standing for the model's own. The engine hands over these and no
            others, so a label that is not listed cannot be seen. A feed that is not listed gets every key.
        needs: what its model must offer.
        resumable: whether training can go on from a checkpoint of any step. False where a `fit` of its own carries something that no
            `state_dict` holds: an interrupted training then begins anew.
    """

    feeds: tuple[str, ...] = ("train",)
    keys: Mapping[str, tuple[str, ...]] = {}
    needs: type = Backbone
    resumable: bool = True

    def setup(self, model: Any, data: Dataset) -> None:
        """Once, before training and before the optimisers are made: size heads, build critics."""

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The loss of one step.

        Args:
            model: as `needs` says.
            batches: feed -> batch, on the model's device.
            progress: share of training done, in [0, 1]; a host number.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def update(self, engine: Engine, batches: Mapping[str, Batch]) -> Loss:
        """One optimisation step. Methods with two passes, gradient surgery or several optimisers override it."""
        loss = engine.loss(batches)
        engine.backward(loss.total)
        engine.step()
        return loss

    def after_step(self, model: Any) -> None:
        """After each optimiser step, whoever took it: moving averages follow here, so that objectives around this one may own the step."""

    def optimizers(self, model: Any, make: MakeOptimizer) -> Optimizer | Mapping[str, Optimizer]:
        """The optimisers: by default one over the model (its `param_groups(lr)` where it has them) and the objective."""
        return make([*parameter_groups(model, make), *parameter_groups(self, make)])

    def fit(self, engine: Engine) -> None:
        """The whole loop. Searches and reinforcement learning override it."""
        for batches in engine.batches():
            engine.record(self.update(engine, batches))

    def export(self, model: Any) -> Any:
        """What the stage hands on, evaluates and saves: the model, by default; an objective that owns a head may join it here.

        Validation asks for it in the middle of training, so the model that is trained must not change by it.
        """
        return model

    @property
    def exports_model(self) -> bool:
        """Whether `export` hands on the model as it came, so that evaluators can be held against it before anything trains.

        A wrapper that only passes the question on says what its base says.
        """
        return type(self).export is Objective.export


def parameter_groups(module: Any, make: MakeOptimizer) -> list[dict[str, Any]]:
    """Optimiser groups of a module: its own `param_groups(lr)` where it has them, else one of all that require gradients."""
    if hasattr(module, "param_groups"):
        return list(module.param_groups(getattr(make, "lr", None)))
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [{"params": parameters}] if parameters else []
