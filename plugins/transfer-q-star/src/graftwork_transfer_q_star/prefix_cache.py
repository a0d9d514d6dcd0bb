"""Keys and values of the prefixes of a batch, computed once and branched into rollouts."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

__all__ = ["Branches", "PrefixCache"]


class BranchLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer of branches: prefixes copied once into a buffer with room for what follows, which is then written in place.

    A DynamicLayer concatenates, and so copies every prefix again for every token.

    Args:
        layer: of the prefixes, (B, heads, L, d).
        rows: (N,) long, which prefix each branch grows from.
        room: tokens that may follow.
    """

    def __init__(self, layer: Any, rows: Tensor, room: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device, self.is_initialized = layer.keys.dtype, layer.keys.device, True
        self.buffers = [self._buffer(each, rows, room) for each in (layer.keys, layer.values)]
        self._show(layer.keys.shape[-2])

    @staticmethod
    def _buffer(states: Tensor, rows: Tensor, room: int) -> Tensor:
        _, heads, length, width = states.shape
        buffer = states.new_empty(len(rows), heads, length + room, width)
        buffer[:, :, :length] = states.index_select(0, rows)
        return buffer

    def _show(self, length: int) -> None:
        self.filled = length
        self.keys, self.values = (buffer[:, :, :length] for buffer in self.buffers)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the states of new tokens (N, heads, n, d) and give all."""
        end = self.filled + key_states.shape[-2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.filled : end] = states
        self._show(end)
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep some branches."""
        self.buffers = [buffer.index_select(0, beam_idx) for buffer in self.buffers]
        self._show(self.filled)


class PrefixCache:
    """A language model's cache of the prefixes of a batch, extended by what is new and branched without touching it.

    Args:
        model: causal language model of transformers.
        reuse: without, nothing is kept and every token of a rollout reads its whole prefix again: slow, and the same tokens. A model
            that takes no `past_key_values` is read so in any case.

    Attributes:
        forwards: calls of the model so far.
        tokens: that went through it, padding left out.
    """

    def __init__(self, model: Any, reuse: bool = True):
        taken = inspect.signature(model.forward).parameters
        self.model, self.reuse = model, reuse and "past_key_values" in taken
        self._takes_positions, self._last = "position_ids" in taken, {"logits_to_keep": 1} if "logits_to_keep" in taken else {}
        self._caches = {"use_cache": self.reuse} if "use_cache" in taken else {}
        self.input_ids: Tensor | None = None
        self.mask: Tensor | None = None
        self._cache: Any = None
        self.forwards = self.tokens = 0

    def advance(self, input_ids: Tensor, mask: Tensor) -> None:
        """Take in the batch as it has become. What it has in common with what is known is not computed again.

        Args:
            input_ids: (B, L) long; what goes before the known part must be unchanged, or all is read anew.
            mask: (B, L) bool, False at the padding on the left.
        """
        known = self._known(input_ids, mask)
        if self.reuse:
            self._cache = self._cache if known else None
            if known < input_ids.shape[1]:
                _, self._cache = self.forward(input_ids[:, known:], mask, self._cache)
                self.tokens += int(mask[:, known:].sum())
        self.input_ids, self.mask = input_ids, mask

    def _known(self, input_ids: Tensor, mask: Tensor) -> int:
        if self.input_ids is None or self.mask is None:
            return 0
        length = self.input_ids.shape[1]
        same = torch.equal(self.input_ids, input_ids[:, :length]) and torch.equal(self.mask, mask[:, :length])
        return length if same else 0

    @torch.no_grad()
    def forward(self, input_ids: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """One call of the model.

        Args:
            input_ids: (N, n) long, the last n tokens.
            mask: (N, L) bool, False at padding, of everything: tokens in the cache included.
            cache: of what goes before, or None.

        Returns:
            Logits (N, V) of the token that follows, at least in float32; and the cache.
        """
        given: dict[str, Any] = {**self._caches, **self._last, "attention_mask": mask.long()}
        if self._takes_positions:
            given["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        if cache is not None:
            given["past_key_values"] = cache
        output = self.model(input_ids=input_ids, **given)
        self.forwards += 1
        logits = output.logits[:, -1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32)), getattr(output, "past_key_values", None)

    def branch(self, rows: Tensor, room: int) -> Branches:
        """Branches from prefixes.

        Args:
            rows: (N,) long, the prefix of each.
            room: most tokens that a branch takes.
        """
        assert self.input_ids is not None
        assert self.mask is not None
        if not self.reuse or self._cache is None:
            return Branches(self, self.mask[rows], tokens=self.input_ids[rows])
        if all(type(layer) is DynamicLayer for layer in getattr(self._cache, "layers", [None])):
            cache: Any = DynamicCache()
            cache.layers = [BranchLayer(layer, rows, room) for layer in self._cache.layers]
        else:  # sliding windows, recurrent states, ...: whatever knows how to select rows
            cache = copy.deepcopy(self._cache)
            cache.reorder_cache(rows)
        return Branches(self, self.mask[rows], cache)

    def branch_bytes(self, room: int, vocabulary: int) -> int:
        """Bytes that one branch with so much room takes, the logits of its last token included."""
        assert self.input_ids is not None
        rows, length = self.input_ids.shape
        layers = getattr(self._cache, "layers", []) if self.reuse else []
        states = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        size = sum(state.numel() * state.element_size() for state in states if state is not None)
        positions = 1 if self._last or size else length + room  # for which logits are made
        return int(size * (length + room) // max(rows * length, 1) + 4 * vocabulary * positions)


class Branches:
    """Rollouts that grow from prefixes by a token at a time.

    Args:
        source: whose model is called.
        mask: (N, L) bool, False at padding.
        cache: of the prefixes, in copies; None reads everything again.
        tokens: (N, L) long, the prefixes; needed without a cache only.
    """

    def __init__(self, source: PrefixCache, mask: Tensor, cache: Any = None, tokens: Tensor | None = None):
        self.source, self.mask, self.cache, self.tokens = source, mask, cache, tokens

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token (N,) to each; logits (N, V) of the next."""
        new = tokens[:, None]
        self.mask = torch.cat([self.mask, torch.ones_like(new, dtype=torch.bool)], dim=1)
        if self.tokens is None:
            self.source.tokens += len(tokens)
            logits, self.cache = self.source.forward(new, self.mask, self.cache)
        else:
            self.tokens = torch.cat([self.tokens, new], dim=1)
            self.source.tokens += int(self.mask.sum())
            logits, _ = self.source.forward(self.tokens, self.mask, None)
        return logits

    def keep(self, index: Tensor) -> None:
        """Go on with some branches only: (n,) long."""
        self.mask = self.mask[index]
        if self.tokens is not None:
            self.tokens = self.tokens[index]
        elif self.cache is not None:
            self.cache.reorder_cache(index)
