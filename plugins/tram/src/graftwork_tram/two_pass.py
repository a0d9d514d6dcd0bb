"""What a step of two passes over one batch must put back exactly: weights, buffers, batch-norm statistics, random state.

Nothing here knows of an objective or an optimiser: each is a context manager over modules, parameters or a device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["BatchNormMode", "RandomState", "frozen_batch_norm", "preserved_buffers", "swapped_tensors", "trained_parameters"]

BatchNormMode: TypeAlias = Literal["batch", "running"]


def trained_parameters(parameters: Iterable[Any]) -> list[nn.Parameter]:
    """Each parameter that has a gradient, once: frozen and unused ones are left out, tied ones are one.

    Args:
        parameters: parameters, or an optimiser's groups of them.
    """
    flat = [inner for one in parameters for inner in (one["params"] if isinstance(one, Mapping) else [one])]
    return [parameter for parameter in dict.fromkeys(flat) if parameter.grad is not None]


@contextmanager
def swapped_tensors(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Let parameters or buffers hold other values, then give each its own storage back.

    The original storage is never written to, so what comes back is the same to the bit, also after an exception. Gradients that
    are made inside go to the parameters as always. Not for parameters that share or slice one storage, as FSDP's do.

    Args:
        tensors: parameters or buffers.
        values: as many, of the same shapes, dtypes and devices.

    Raises:
        ValueError: if the two differ in number or shape.
    """
    if len(tensors) != len(values):
        raise ValueError(f"there are {len(tensors)} tensors but {len(values)} values")
    for tensor, value in zip(tensors, values, strict=True):
        if tensor.shape != value.shape:
            raise ValueError(f"a value {tuple(value.shape)} does not fit a tensor {tuple(tensor.shape)}")
    originals = [tensor.data for tensor in tensors]
    try:
        for tensor, value in zip(tensors, values, strict=True):
            tensor.data = value.data
        yield
    finally:
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.data = original


@contextmanager
def preserved_buffers(*modules: nn.Module) -> Iterator[None]:
    """Put back every buffer, and every module's extra state, as they were at the start: a pass inside leaves no trace in them.

    That covers running statistics, counters, queues and moving averages that a module keeps where its `state_dict` holds them.

    Args:
        modules: whose buffers; one that occurs in several is saved once.
    """
    inner = list(dict.fromkeys(each for module in modules for each in module.modules()))
    buffers = list(dict.fromkeys(buffer for each in inner for buffer in each.buffers(recurse=False)))
    saved = [buffer.detach().clone() for buffer in buffers]
    stateful = [each for each in inner if type(each).get_extra_state is not nn.Module.get_extra_state]
    extra = [copy.deepcopy(each.get_extra_state()) for each in stateful]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, saved, strict=True):
                buffer.copy_(value)
        for each, state in zip(stateful, extra, strict=True):
            each.set_extra_state(state)


@contextmanager
def frozen_batch_norm(module: nn.Module, statistics: BatchNormMode = "batch") -> Iterator[None]:
    """Keep batch norm (and instance norm that tracks statistics) from recording what passes through; each mode comes back after.

    Unlike `preserved_buffers` this writes to no buffer, so a pass whose graph is still to be differentiated may lie before it.

    Args:
        module: whose norms.
        statistics: what they normalise by meanwhile: the "batch" as in training, or the "running" ones.

    Raises:
        ValueError: if `statistics` is neither.
    """
    if statistics not in ("batch", "running"):
        raise ValueError(f'statistics are "batch" or "running"; found "{statistics}"')
    norms = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._NormBase)]
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    for norm in norms:
        if statistics == "running":
            norm.training = False
        elif norm.training:
            norm.track_running_stats = False
    # instance norm records whenever it holds statistics, whatever the flag says
    kept = [(norm, norm.running_mean, norm.running_var) for norm in norms if isinstance(norm, nn.modules.instancenorm._InstanceNorm)]
    try:
        for norm, _, _ in kept if statistics == "batch" else ():
            if norm.training:
                norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, mean, variance in kept:
            norm.running_mean, norm.running_var = mean, variance
        for norm, (training, tracks) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, tracks


@dataclass(frozen=True)
class RandomState:
    """torch's random state, on the CPU and one accelerator: a pass can be run again with the same dropout masks.

    Args:
        cpu: state of the CPU's generator.
        device: the accelerator, or None.
        state: of its generator, or None.
    """

    cpu: Tensor
    device: torch.device | None = None
    state: Tensor | None = None

    @classmethod
    def capture(cls, device: torch.device | str = "cpu") -> RandomState:
        """The state as it is now.

        Args:
            device: where the passes run.
        """
        device = torch.device(device)
        if device.type == "cpu":
            return cls(torch.get_rng_state())
        return cls(torch.get_rng_state(), device, torch.get_device_module(device).get_rng_state(device))

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw inside what was drawn after the capture; afterwards the stream goes on where it was."""
        now = RandomState.capture(self.device or "cpu")
        self._set()
        try:
            yield
        finally:
            now._set()

    def _set(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.device is not None and self.state is not None:
            torch.get_device_module(self.device).set_rng_state(self.state, self.device)
