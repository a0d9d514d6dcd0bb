"""What a saliency target is: one scalar a sample, or several, out of a model's output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from graftwork.errors import GraftworkError, InterfaceError
from graftwork.kinds.dataset import Batch
from graftwork_grad_cam.forward import call_model

__all__ = ["CHOSEN", "FunctionTarget", "Target", "score_matrix"]

CHOSEN = "chosen target"
"""The key of a batch under which a target keeps what it chose for each sample, so that the choice goes where the sample goes."""


class Target(ABC):
    """What is asked of a network: "how does the image speak for this?".

    A target is used in this order. `prepare` binds to a batch what must be known beforehand; `forward` runs the model; `score` takes
    its scalars out of the output, before any softmax unless it says otherwise. `pin` binds a choice that the output decided (the
    predicted class), so that the same thing is asked again of a changed image. Subclasses are frozen dataclasses of plain values.

    Attributes:
        name: what YAML calls it.
        keys: sample keys that it reads.
    """

    name: ClassVar[str]
    keys: tuple[str, ...] = ()

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> Batch:
        """The batch with what the target fixes beforehand, by default nothing. Called in eval mode without gradients."""
        return dict(batch)

    def forward(self, model: nn.Module, batch: Mapping[str, Any]) -> Any:
        """The output to be explained, by default that of the model called on the batch."""
        return call_model(model, batch)

    @abstractmethod
    def score(self, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """(B, T) scores, or (B,), each sample's depending on itself alone.

        Args:
            output: what `forward` gave.
            batch: what `prepare` gave.
        """

    def choice(self, output: Any, batch: Mapping[str, Any]) -> Tensor | None:
        """What is asked of each sample, as indices (B, T), where the target is one of a numbered few; else None."""
        return None

    def pin(self, output: Any, batch: Mapping[str, Any]) -> Batch:
        """The batch with the choice bound to it."""
        choice = self.choice(output, batch)
        return dict(batch) if choice is None else {**batch, CHOSEN: choice}

    def captions(self, output: Any, batch: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
        """For pictures: what each map of each sample shows, in a few words; empty where there is nothing to say.

        Args:
            output: what `forward` gave.
            batch: what `prepare` gave.
            names: of the classes.
        """
        choice = self.choice(output, batch)
        if choice is None:
            return []
        return [[names[index] if index < len(names) else str(index) for index in row] for row in choice.tolist()]

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which `target_from_dict` makes the target again."""
        values = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        return {"name": self.name, **{key: value for key, value in values.items() if value is not None}}


@dataclass(frozen=True)
class FunctionTarget(Target):
    """Any function of the model's output: (B, T) or (B,) scores, or a scalar that sums over the samples.

    Args:
        function: from output to scores.
    """

    name: ClassVar[str] = "function"
    function: Callable[[Any], Tensor]

    def score(self, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """What the function gives.

        Raises:
            InterfaceError: if that is no tensor.
        """
        scores = self.function(output)
        if not isinstance(scores, Tensor):
            raise InterfaceError(f"the target is not differentiable: its function gave a {type(scores).__name__}, not a tensor")
        return scores

    def to_dict(self) -> dict[str, Any]:
        """Refused: a function is no plain data."""
        raise GraftworkError("a target that is a function cannot be written down; use one of the named targets")


def score_matrix(scores: Tensor) -> Tensor:
    """Scores as (B, T); a scalar becomes (1, 1)."""
    return scores if scores.dim() == 2 else scores.reshape(-1, 1)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
