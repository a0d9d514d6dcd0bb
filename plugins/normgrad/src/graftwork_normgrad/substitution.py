"""Other values in a model's parameters for a while; afterwards they are the very tensors that they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

__all__ = ["substituted"]


@contextmanager
def substituted(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Put values into named parameters while the block runs.

    No number is copied: each parameter points to the other tensor and then to its own again, so that it comes back bit for bit, also
    after an exception. `requires_grad`, `.grad`, buffers, modes and hooks are not touched, and an optimizer that holds the parameters
    sees nothing of it.

    Args:
        model: whose parameters.
        values: name, as `named_parameters` has it -> tensor of the same shape and type.

    Raises:
        KeyError: if there is no such parameter.
    """
    parameters = dict(model.named_parameters())
    held = {name: parameters[name].data for name in values}
    try:
        for name, value in values.items():
            parameters[name].data = value.detach()
        yield
    finally:
        for name, tensor in held.items():
            parameters[name].data = tensor
