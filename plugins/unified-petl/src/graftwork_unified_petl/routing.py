"""The way into the heads of a transformers model: its attention interface, taken per module, whatever kernel is behind it."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from graftwork import InterfaceError
from graftwork_unified_petl.sites import Attention

__all__ = ["AttentionCall", "RoutedConfig", "route", "unroute"]

PREFIX = "graftwork-petl:"
CAUSAL_BY_FLAG = ("sdpa",)
"""Kernels that see causality in a flag where there is no mask, and take a longer key side to be filled from its start."""


@dataclass(frozen=True)
class AttentionCall:
    """One call of a frozen attention: what it attends with.

    Args:
        module: the frozen attention.
        kernel: name of its implementation, such as "sdpa".
        query: (B, h, n, d_h).
        key: (B, h_kv, m, d_h).
        value: (B, h_kv, m, d_h).
        mask: None, bool or additive (B, 1, n, m), or (B, m) for flash attention.
        bias: position bias (1 or B, h, n, m) of T5, or None.
        scaling: of the logits.
        dropout: on the weights.
        settings: what else the kernel is given.
    """

    module: Any
    kernel: str
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    bias: Tensor | None
    scaling: float
    dropout: float
    settings: dict[str, Any]

    def run(self) -> tuple[Tensor, Any]:
        """The frozen attention's own output (B, n, h, d_h), and its weights where the kernel gives them."""
        own: Any = getattr(sys.modules[type(self.module).__module__], "eager_attention_forward", None)
        function: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(self.kernel, own)
        bias = {} if self.bias is None else {"position_bias": self.bias}
        values = (self.query, self.key, self.value, self.mask)
        found: tuple[Tensor, Any] = function(
            self.module, *values, scaling=self.scaling, dropout=self.dropout, **bias, **self.settings
        )  # fmt: skip
        return found

    def with_prefix_in_keys(self, length: int) -> AttentionCall:
        """The call whose keys and values begin with a prefix of l positions already: every query sees all of it, without a position."""
        mask = self._extended_mask(length, self.key.shape[2])
        return self if mask is self.mask else dataclasses.replace(self, mask=mask)

    def extended(self, prefix_key: Tensor, prefix_value: Tensor) -> AttentionCall:
        """The call with a prefix (h_kv, l, d_h) before its keys and values; every query sees all of it, without a position.

        Raises:
            InterfaceError: if the kernel takes a mask that cannot be extended.
        """
        batch, length = self.key.shape[0], prefix_key.shape[1]
        cropped = self._cropped()
        key, value = (
            torch.cat([new.to(old.dtype).expand(batch, -1, -1, -1), old], dim=2)
            for new, old in ((prefix_key, cropped.key), (prefix_value, cropped.value))
        )
        bias = None if cropped.bias is None else pad(cropped.bias, (length, 0))
        return dataclasses.replace(cropped, key=key, value=value, bias=bias, mask=cropped._extended_mask(length, key.shape[2]))

    def _causal_by_flag(self) -> bool:
        given = self.settings.get("is_causal")
        causal = bool(getattr(self.module, "is_causal", True) if given is None else given)
        return self.mask is None and self.kernel in CAUSAL_BY_FLAG and causal and self.query.shape[2] > 1

    def _cropped(self) -> AttentionCall:
        """Without the unfilled end of a static cache, which the kernel itself would crop where causality is a flag."""
        count = self.query.shape[2]
        if not self._causal_by_flag() or self.key.shape[2] <= count:
            return self
        bias = None if self.bias is None else self.bias[..., :count]
        return dataclasses.replace(self, key=self.key[:, :, :count], value=self.value[:, :, :count], bias=bias)

    def _extended_mask(self, length: int, columns: int) -> Any:
        """The mask of l positions more, where there are so many columns with them."""
        if self.mask is None and not self._causal_by_flag():
            return None
        if self.mask is None:
            rows = self.query.shape[2]
            if self.bias is None:
                return causal_lower_right(rows, columns)  # flash attention has a kernel for this one
            return torch.ones(rows, columns, dtype=torch.bool, device=self.query.device).tril(columns - rows)[None, None]
        if not isinstance(self.mask, Tensor):
            raise InterfaceError(
                f"a prefix cannot be put before a mask of type {type(self.mask).__name__} (attention implementation "
                f'"{self.kernel}"): call model.set_attn_implementation("sdpa")'
            )
        visible = True if self.mask.dtype == torch.bool else 1 if self.mask.dim() == 2 else 0
        return pad(self.mask, (length, 0), value=visible)


class RoutedConfig:
    """A configuration as one attention module sees it: the model's, with a kernel that lets grafts at the heads.

    Args:
        base: the model's configuration; what is changed there later is seen here.
        grafts: each has `extend(call)`, which may put a prefix before the keys, and `compose(call, output)`.
    """

    def __init__(self, base: Any, grafts: list[Any]):
        self.__dict__.update(base=base, grafts=grafts)

    @property
    def _attn_implementation(self) -> str:
        return _routed(self.base._attn_implementation)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("base", "grafts"):
            raise AttributeError(name)
        return getattr(self.base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.base, name, value)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    kernel: str,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **settings: Any,
) -> tuple[Tensor, Any]:
    """transformers' attention function: the frozen one, with the grafts of this module's heads."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = AttentionCall(module, kernel, query, key, value, attention_mask, position_bias, scaling, dropout, settings)
    seen = call
    for graft in module.config.grafts:
        seen = graft.extend(seen)
    output, weights = seen.run()
    for graft in module.config.grafts:
        output = graft.compose(call, output)
    return output, weights


@functools.cache
def _routed(kernel: str) -> str:
    """The name under which transformers finds a kernel that lets grafts at the heads: registered once."""
    name = f"{PREFIX}{kernel}"
    AttentionInterface.register(name, functools.partial(_attend, kernel=kernel))
    return name


def route(attention: Attention, graft: nn.Module) -> None:
    """Let a graft at the heads of an attention.

    Raises:
        InterfaceError: if it does not compute its heads through transformers' attention interface.
    """
    core = attention.core
    if not attention.routed:
        raise InterfaceError(
            f"{attention.path} ({type(core).__name__}) does not compute its heads through transformers' attention interface: "
            "there a prefix cannot be inserted; use site attention, ffn or a projection"
        )
    if not isinstance(core.config, RoutedConfig):
        core.config = RoutedConfig(core.config, [])
    core.config.grafts.append(graft)


def unroute(attention: Attention) -> None:
    """Give an attention its own configuration back."""
    if isinstance(attention.core.config, RoutedConfig):
        attention.core.config = attention.core.config.base
