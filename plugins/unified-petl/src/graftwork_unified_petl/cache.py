"""Prefixes in the cache of a generation: put there once, before the first token, and grown, reordered and cropped with the tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

__all__ = ["PrefixedLayer", "can_hold_a_prefix", "prefixed_layer"]

READS_LENGTHS = ("has_relative_attention_bias", "is_kv_shared_layer")
"""Of attentions that make more of the keys in their cache than attend to them: T5's positions, Gemma's keys of other layers."""


class PrefixedLayer(DynamicLayer):
    """A layer of a growing cache whose keys and values begin with a prefix; the length that it tells is that of its tokens.

    Whoever builds masks and positions sees a cache of tokens alone, so that a prefix has no position.

    Args:
        prefix_key: (h_kv, l, d_h).
        prefix_value: (h_kv, l, d_h).
    """

    def __init__(self, prefix_key: Tensor, prefix_value: Tensor):
        super().__init__()  # type: ignore[no-untyped-call]
        self.prefix, self.length = (prefix_key, prefix_value), prefix_key.shape[1]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Begin with the prefix, in the type of the states that follow."""
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values = (part.to(self.device, self.dtype).expand(len(key_states), -1, -1, -1) for part in self.prefix)

    def get_seq_length(self) -> int:
        """Tokens that are held."""
        return 0 if self.keys is None else self.keys.shape[-2] - self.length


def can_hold_a_prefix(attention: Any) -> bool:
    """Whether the cache of an attention module may begin with a prefix: it has a place there, and only attends to what it finds."""
    return getattr(attention, "layer_idx", None) is not None and not any(hasattr(attention, name) for name in READS_LENGTHS)


def prefixed_layer(cache: Any, index: int, cross: bool, prefix: Callable[[], tuple[Tensor, Tensor]]) -> PrefixedLayer | None:
    """The layer of an attention's cache, made to begin with a prefix where it is empty.

    Args:
        cache: that the attention is called with, or None.
        index: of its layer.
        cross: whether the attention is a cross attention.
        prefix: gives the keys and values of a prefix, each (h_kv, l, d_h).

    Returns:
        None if the layer holds tokens without a prefix, or does not grow by concatenation: a static one, a sliding window.
    """
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.cross_attention_cache if cross else cache.self_attention_cache
    if cache is None or cache.offloading:
        return None
    layers = cache.layers
    if cache.layer_class_to_replicate is DynamicLayer:
        layers.extend(DynamicLayer() for _ in range(index + 1 - len(layers)))  # type: ignore[no-untyped-call]
    found = layers[index]
    if type(found) not in (DynamicLayer, PrefixedLayer):
        return None
    if not found.get_seq_length():
        found = layers[index] = PrefixedLayer(*prefix())
    return found if isinstance(found, PrefixedLayer) else None
