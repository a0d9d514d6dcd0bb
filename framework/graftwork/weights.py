"""The weights of a training as one state, whether each process has all of them or FSDP has spread them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from graftwork import processes
from graftwork.errors import CheckpointError, ConfigError
from graftwork.kinds.dataset import Batch
from graftwork.kinds.objective import Loss, Objective

__all__ = ["Joined", "SpreadWeights", "Weights"]


class Joined(nn.Module):
    """Model and objective as one module, so that DDP and FSDP see every parameter whichever methods an objective calls."""

    def __init__(self, model: Any, objective: Objective):
        super().__init__()
        components = getattr(model, "components", {})  # a diffusers pipeline is no module but holds some
        self.model = (
            model if isinstance(model, nn.Module) else nn.ModuleDict({k: v for k, v in components.items() if isinstance(v, nn.Module)})
        )
        self.objective = objective
        self._called = (model,)  # a tuple: not registered twice

    def forward(self, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The objective's loss of one step."""
        result = self.objective(self._called[0], batches, progress)
        return result if isinstance(result, Loss) else Loss(result)

    def export(self) -> Any:
        """What the objective hands on of the model."""
        return self.objective.export(self._called[0])


class Weights:
    """Weights and optimisers of which each process has all.

    Args:
        joined: model and objective as one module.
    """

    def __init__(self, joined: Joined):
        self.joined = joined
        self.wrapped: nn.Module = joined

    @staticmethod
    def of(accelerator: Accelerator, joined: Joined) -> Weights:
        """As the accelerator will have them; to be called before it prepares them."""
        return SpreadWeights(joined) if accelerator.distributed_type == DistributedType.FSDP else Weights(joined)

    def state_dict(self) -> dict[str, Any]:
        """All weights, buffers and extra state."""
        return self.joined.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take weights up."""
        self.joined.load_state_dict(state, strict=strict)

    def optimizer_state(self, optimizer: Any) -> Any:
        """The state of one of the optimisers."""
        return optimizer.state_dict()

    def load_optimizer_state(self, optimizer: Any, state: Any) -> None:
        """Take up the state of one of the optimisers."""
        optimizer.load_state_dict(state)

    def whole(self) -> Joined:
        """The joined module with all weights in it, to measure and to hand on."""
        return self.joined

    def refuse(self, what: str) -> None:
        """Say that something cannot be done with spread weights; nothing here."""


class SpreadWeights(Weights):
    """Weights that FSDP spreads over processes. They are gathered on the CPU of the first, into a copy that was made before.

    Every method is to be called in all processes.
    """

    def __init__(self, joined: Joined):
        super().__init__(joined)
        self._copy = copy.deepcopy(joined).cpu()

    def state_dict(self) -> dict[str, Any]:
        """All weights, buffers and extra state: in the first process; {} in the others."""
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        return get_model_state_dict(self.wrapped, options=_gathered())

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Spread weights that each process has been handed."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        found = set_model_state_dict(self.wrapped, dict(state), options=StateDictOptions(full_state_dict=True, strict=False))
        if strict and (found.missing_keys or found.unexpected_keys):
            raise CheckpointError(f"weights are missing or too many: {', '.join([*found.missing_keys, *found.unexpected_keys])}")

    def optimizer_state(self, optimizer: Any) -> Any:
        """The state of one of the optimisers, by the names of its parameters: in the first process."""
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        return get_optimizer_state_dict(self.wrapped, optimizer.optimizer, options=_gathered())

    def load_optimizer_state(self, optimizer: Any, state: Any) -> None:
        """Spread a state that each process has been handed."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True, strict=False)  # a parameter that no loss has reached has no state
        set_optimizer_state_dict(self.wrapped, optimizer.optimizer, state, options=options)

    def whole(self) -> Joined:
        """The copy, with the weights as they are now."""
        gathered = self.state_dict()
        self._copy.load_state_dict(processes.from_first(lambda: gathered))
        return self._copy

    def refuse(self, what: str) -> None:
        """Raise.

        Raises:
            ConfigError: naming what cannot be done.
        """
        raise ConfigError(f"{what} needs each process to have all weights, which FSDP spreads: use DDP")


def _gathered() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)
