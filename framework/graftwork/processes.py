"""The processes of one run: which of them this is, what the first tells the others, and how the failure of one ends all.

The first process alone writes, measures and samples; all train. Nothing but the first needs the run's folder, so no storage is shared.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from graftwork.errors import GraftworkError

__all__ = [
    "count",
    "failing_together",
    "from_first",
    "gathered",
    "gathered_rows",
    "index",
    "is_first",
    "join",
    "leave",
    "mean",
    "means",
    "wait",
]

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""How long the others wait for the first, which evaluates alone; a process that dies ends the wait at once."""

FAILURE = "graftwork/failure"


def join(device: torch.device) -> None:
    """Meet the other processes, where a launcher (`accelerate launch`, `torchrun`) has started several; else nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        PartialState(cpu=device.type == "cpu", timeout=PATIENCE)


def leave() -> None:
    """Part from the others, at the end."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def index() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes."""
    return index() == 0


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, in all of them; the others do not call it, and wait.

    Tensors arrive on the CPU when they were there.
    """
    if count() == 1:
        return make()
    held: list[Any] = [make() if is_first() else None]
    dist.broadcast_object_list(held, src=0)
    return held[0]  # type: ignore[no-any-return]


def gathered(value: T) -> list[T]:
    """Each process's value, by the number of the process."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def mean(tensor: Tensor) -> Tensor:
    """The mean of a tensor over processes; as it is, where there is one."""
    if count() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / count()


def means(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The means of tensors over processes, in one exchange a dtype; as they are, where there is one process."""
    found = list(tensors)
    for dtype in {tensor.dtype for tensor in found} if count() > 1 else ():
        places = [place for place, tensor in enumerate(found) if tensor.dtype == dtype]
        together = mean(torch.cat([found[place].flatten() for place in places]))
        parts = torch.split(together, [found[place].numel() for place in places])
        for place, part in zip(places, parts, strict=True):
            found[place] = part.view(found[place].shape)
    return found


def gathered_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """The rows (B, ...) of all processes, one below another, with gradients to whoever made them; and where this process's begin.

    Each process must have as many rows. The gradients of all processes' losses arrive, so that averaged over processes they are those
    of the mean loss.
    """
    if count() == 1:
        return tensor, 0
    rows: Tensor = _Rows.apply(tensor)  # type: ignore[no-untyped-call]
    return rows, index() * len(tensor)


class _Rows(torch.autograd.Function):
    """All processes' rows; backwards, each process's rows get the sum of what all of them have to say of these."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        context.rows = len(rows)
        found = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(count())]
        dist.all_gather(found, rows.contiguous())
        return torch.cat(found)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[index() * context.rows :][: context.rows]


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        dist.barrier()


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """An exception in one process ends all, each with that one's message.

    Raises:
        GraftworkError: in the processes that were well, with the number and the message of the one that was not.
    """
    if count() == 1:
        yield
        return
    store = dist.distributed_c10d._get_default_store()
    try:
        yield
    except BaseException as error:
        if not store.check([FAILURE]):
            store.set(FAILURE, f"{index()} {type(error).__name__}: {error}")
            raise
        number, _, message = store.get(FAILURE).decode().partition(" ")
        if number == str(index()):
            raise
        raise GraftworkError(f"process {number} failed with {message}") from None
