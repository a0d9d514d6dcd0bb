"""What the three multi-task methods share: from k losses of a step to one gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from graftwork_denoising_task_clustering.gradients import Backward, Losses

__all__ = ["Balancer"]


class Balancer(nn.Module, ABC):
    """Makes one gradient of several losses. What it carries between steps is in its state."""

    @property
    def needs_gradients(self) -> bool:
        """Whether this step asks for the losses' gradients one by one, so that losses of separate rows are best computed apart."""
        return False

    @abstractmethod
    def descend(self, losses: Losses, backward: Backward) -> dict[str, Tensor]:
        """Put a step's gradient into `.grad`.

        Args:
            losses: k of them, in graphs that can be differentiated.
            backward: how to differentiate them.

        Returns:
            Figures for the log: name -> 0-d tensor.
        """

    def backward(self, losses: Losses, parameters: Sequence[Tensor] | nn.Module) -> dict[str, Tensor]:
        """`descend` in a plain loop: in place of `loss.backward()`, before the optimiser's step.

        Args:
            losses: k scalars, or one tensor (k,).
            parameters: what they share and the optimiser trains, or the module that holds it.
        """
        return self.descend(losses, Backward(parameters))
