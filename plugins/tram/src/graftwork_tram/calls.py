"""The calls that a model got in a pass: their inputs, to be run again otherwise, and the logits that came out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from graftwork import InterfaceError
from graftwork.interfaces import device_of
from graftwork_tram.two_pass import RandomState

__all__ = ["Call", "RecordedCalls", "logits_of", "token_mask"]

MASKS = ("decoder_attention_mask", "attention_mask")
"""Names of the arguments that tell tokens from padding; the first that fits the logits is taken."""


@dataclass(frozen=True)
class Call:
    """One call of a model.

    Args:
        args: positional inputs.
        kwargs: inputs by name.
        logits: what came out, or was taken out of it.
        mask: logits' shape without the classes, 1 at tokens and 0 at padding; None where there is none.
        random: torch's random state before the call, where it was asked for.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    logits: Tensor
    mask: Tensor | None = None
    random: RandomState | None = field(default=None, repr=False)


class RecordedCalls:
    """Records each call of a module between `with` and its end.

    Args:
        model: the module; calls of its submodules by themselves are not recorded.
        logits_key: where the logits are in what it gives; None: the tensor itself, or its `logits`.
        random: whether to keep the random state before each call.
        detach: whether to keep logits without their graph.

    Attributes:
        calls: in order.
    """

    def __init__(self, model: nn.Module, logits_key: str | None = None, *, random: bool = False, detach: bool = True):
        self.model, self.logits_key, self.random, self.detach = model, logits_key, random, detach
        self.calls: list[Call] = []
        self._states: list[RandomState] = []
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        if self.random:
            device = device_of(self.model)
            self._hooks.append(self.model.register_forward_pre_hook(lambda module, args: self._states.append(RandomState.capture(device))))
        self._hooks.append(self.model.register_forward_hook(self._keep, with_kwargs=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        logits = logits_of(output, self.logits_key, type(module).__name__)
        state = self._states.pop() if self._states else None
        mask = token_mask(module.forward, args, kwargs, logits)
        self.calls.append(Call(args, kwargs, logits.detach() if self.detach else logits, mask, state))


def logits_of(output: Any, key: str | None = None, name: str = "the model") -> Tensor:
    """The logits in what a model gives: itself if a tensor, else its `logits`, or its entry or attribute `key`.

    Args:
        output: a tensor, a mapping, or an object with attributes, such as a transformers output.
        key: where they are, if under another name.
        name: of the model, for the message.

    Raises:
        InterfaceError: if there is no such tensor.
    """
    if key is None and isinstance(output, Tensor):
        return output
    wanted = key or "logits"
    found = output.get(wanted) if isinstance(output, Mapping) else getattr(output, wanted, None)
    if not isinstance(found, Tensor):
        offered = ", ".join(output) if isinstance(output, Mapping) else type(output).__name__
        raise InterfaceError(
            f'{name} gives {offered or "an empty mapping"}, which has no tensor "{wanted}": say where the logits are with logits_key'
        )
    return found


def token_mask(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], logits: Tensor) -> Tensor | None:
    """Which logits belong to tokens and which to padding, by the attention mask among a call's inputs; None where no mask fits.

    Args:
        forward: what was called, whose signature names the positional inputs.
        args: positional inputs.
        kwargs: inputs by name.
        logits: what came out, (B, T, V) for tokens.
    """
    if logits.ndim != 3:
        return None
    try:
        named = inspect.signature(forward).bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError):
        named = dict(kwargs)
    for name in MASKS:
        mask = named.get(name, named.get("kwargs", {}).get(name) if isinstance(named.get("kwargs"), dict) else None)
        if isinstance(mask, Tensor) and mask.shape == logits.shape[:2]:
            return mask.to(torch.bool)
    return None
