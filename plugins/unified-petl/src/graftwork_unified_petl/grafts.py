"""Grafts: what is put at a site of a frozen model, as bound hooks, so that a copy of the model has grafts of its own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from graftwork_unified_petl.attention import gate_from_shares, multi_head_adapter, origin_values, prefix_attention
from graftwork_unified_petl.bottleneck import Adapter, LowRank, new_scale
from graftwork_unified_petl.cache import PrefixedLayer, can_hold_a_prefix, prefixed_layer
from graftwork_unified_petl.modification import Modification
from graftwork_unified_petl.prefix import PrefixBank
from graftwork_unified_petl.routing import AttentionCall, route
from graftwork_unified_petl.sites import Attention, Projection

__all__ = ["HeadGraft", "ParallelGraft", "SequentialGraft"]

Change = Adapter | LowRank


def _read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """x of a sub-layer's call."""
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


class SequentialGraft(nn.Module):
    """h + s Delta-h(h), where h is what a module gives, or the first of what it gives (He et al., 2022, section 3.2, sequential).

    Args:
        change: Delta-h, its scale included.
        source: the module that gives h.
        start: first of the outputs that are h, where `source` gives more.
        width: of h; None for all.
    """

    def __init__(self, change: Change, source: nn.Module, start: int = 0, width: int | None = None):
        super().__init__()
        self.change, self.start, self.width = change, start, width
        self.handles: list[RemovableHandle] = [source.register_forward_hook(self.follow)]

    def follow(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook of the source."""
        first = output if isinstance(output, Tensor) else output[0]
        part = first if self.width is None else first[..., self.start : self.start + self.width]
        changed = first + _placed(self.change(part), self.start, first.shape[-1])
        return changed if isinstance(output, Tensor) else type(output)((changed, *output[1:]))


class ParallelGraft(nn.Module):
    """h + s Delta-h(x), where x is what a module reads (He et al., 2022, section 3.2, parallel).

    Args:
        change: Delta-h, its scale included.
        reader: the module whose input is x.
        target: the projection to whose output the change is added.
        before: add to the input of `target` instead: the concatenated heads, before W_o.
    """

    def __init__(self, change: Change, reader: nn.Module, target: Projection, before: bool = False):
        super().__init__()
        self.change, self.start, self.total, self.merged = change, target.start, target.total, False
        self._x: Tensor | None = None
        self.handles: list[RemovableHandle] = []
        if reader is target.module and not before:
            self.handles.append(reader.register_forward_hook(self.beside))
            return
        self.handles.append(reader.register_forward_pre_hook(self.remember, with_kwargs=True))
        take = target.module.register_forward_pre_hook(self.add_before) if before else target.module.register_forward_hook(self.add)
        self.handles.append(take)

    def remember(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the reader."""
        self._x = None if self.merged else _read(args, kwargs)

    def _take(self) -> Tensor | None:
        x, self._x = self._x, None
        return x

    def beside(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of one projection that is both read beside and added to."""
        return output if self.merged else output + _placed(self.change(args[0]), self.start, self.total)

    def add(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of the target."""
        x = self._take()
        return output if x is None else output + self.change(x)

    def add_before(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Pre-hook of the target."""
        x = self._take()
        return None if x is None else (args[0] + self.change(x), *args[1:])


def _placed(change: Tensor, start: int, total: int) -> Tensor:
    """The change among the outputs of a fused matrix, 0 elsewhere."""
    width = change.shape[-1]
    return change if width == total else functional.pad(change, (start, total - start - width))


class HeadGraft(nn.Module):
    """A prefix or multi-head adapter in the heads of one attention (He et al., 2022, section 3.1 and table 1).

    Args:
        modification: form "prefix" or "multi-head".
        attention: where.
        bank: P_k and P_v, shared by the attentions of one kind.
        layer: which of the bank's.
    """

    def __init__(self, modification: Modification, attention: Attention, bank: PrefixBank, layer: int):
        super().__init__()
        self.form, self.composition, self.layer = modification.form, modification.composition, layer
        self.heads = attention.heads
        self.handles: list[RemovableHandle] = []
        self._bank, self._attention = (bank,), (attention.core, attention.query)  # in tuples: modules of others
        self._x: Tensor | None = None
        self._cached: PrefixedLayer | None = None
        self.cross = attention.kind == "cross"
        self.scale = new_scale(modification.scale)
        self.norm: nn.LayerNorm | None = None
        if modification.layernorm == "in":
            self.norm = nn.LayerNorm(attention.query.in_width)
            self.handles.append(attention.core.register_forward_pre_hook(self.remember, with_kwargs=True))
        elif self.composition == "concatenated" and can_hold_a_prefix(attention.core):
            self.handles.append(attention.core.register_forward_pre_hook(self.enter_cache, with_kwargs=True))
        route(attention, self)

    def enter_cache(self, core: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the attention: the prefix stands in its cache, unless other grafts of its heads want the keys without it."""
        cache, alone = kwargs.get("past_key_values"), len(core.config.grafts) == 1
        prefix = functools.partial(self._bank[0], self.layer)
        self._cached = prefixed_layer(cache, core.layer_idx, self.cross, prefix) if alone else None

    def remember(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the attention: x, which a new LayerNorm and the frozen W_q are applied to."""
        self._x = _read(args, kwargs)

    def extend(self, call: AttentionCall) -> AttentionCall:
        """Prefix tuning as one attention: P before the keys; other compositions leave the call as it is."""
        if self.composition != "concatenated":
            return call
        cached, self._cached = self._cached, None
        if cached is not None and cached.keys is not None and cached.keys.shape[2] == call.key.shape[2]:
            return call.with_prefix_in_keys(cached.length)
        return call.extended(*self._bank[0](self.layer))

    def compose(self, call: AttentionCall, output: Tensor) -> Tensor:
        """Compose the frozen heads (B, n, h, d_h) with the change; a concatenated prefix has been composed already."""
        if self.composition == "concatenated":
            return output
        prefix_key, prefix_value = (part.to(call.query.dtype) for part in self._bank[0](self.layer))
        other = self._renewed_query()
        query = call.query if other is None else other
        if self.form == "multi-head":
            change = multi_head_adapter(query, prefix_key, prefix_value, call.dropout)
        else:
            change = prefix_attention(query, prefix_key, prefix_value, call.scaling, call.dropout)
        change = change.transpose(1, 2)
        if self.composition != "gated":
            return output + change * self.scale
        gate = self._gate(call, prefix_key, other).to(output.dtype).transpose(1, 2)
        return (1 - gate) * output + gate * change

    def _gate(self, call: AttentionCall, prefix_key: Tensor, other: Tensor | None) -> Tensor:
        """lambda (B, h, n, 1), by the frozen kernel itself, without dropout."""
        both = call.extended(prefix_key, prefix_key)
        count = both.key.shape[2] - prefix_key.shape[1]
        values = origin_values(prefix_key.shape[1], count, call.value.shape[-1], both.key).expand(*both.key.shape[:2], -1, -1)
        shares, _ = dataclasses.replace(both, value=values, dropout=0.0).run()
        return gate_from_shares(shares.transpose(1, 2), call.query, other, prefix_key, call.scaling)

    def _renewed_query(self) -> Tensor | None:
        """LN(x) W_q as (B, h, n, d_h), where there is a new LayerNorm; without the positions of rotary embeddings."""
        x, self._x = self._x, None
        if self.norm is None or x is None:
            return None
        core, projection = self._attention
        projected = projection(self.norm(x))
        query = projected.view(*projected.shape[:-1], self.heads, -1)
        normed: Tensor = core.q_norm(query) if hasattr(core, "q_norm") else query
        return normed.transpose(1, 2)
