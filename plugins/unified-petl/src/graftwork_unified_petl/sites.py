"""Where attention and feed-forward sub-layers sit in the transformers of transformers and timm: one table, found by structure."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from graftwork import InterfaceError
from graftwork_unified_petl.modification import AttentionKind

__all__ = ["Attention", "Block", "FeedForward", "Projection", "find_blocks"]


@dataclass(frozen=True, eq=False)
class Projection:
    """One linear map of a frozen model, which may be a part of a fused one.

    Args:
        path: of its module in the model.
        module: `nn.Linear`, or transformers' Conv1D, whose weight is (in, out).
        start: first of the module's outputs that are this map's.
        width: how many are.
    """

    path: str
    module: Any
    start: int
    width: int

    @property
    def transposed(self) -> bool:
        """Whether the weight is (in, out)."""
        return not isinstance(self.module, nn.Linear)

    @property
    def in_width(self) -> int:
        """Width of what it reads."""
        return int(self.module.weight.shape[0 if self.transposed else 1])

    @property
    def total(self) -> int:
        """Outputs of the whole module."""
        return int(self.module.weight.shape[1 if self.transposed else 0])

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in_width) to (..., width)."""
        output: Tensor = self.module(x)
        return output if self.width == self.total else output[..., self.start : self.start + self.width]


@dataclass(frozen=True, eq=False)
class Attention:
    """One attention of a block.

    Args:
        path: of `core` in the model.
        kind: "encoder" (sees both ways), "decoder" (causal) or "cross".
        core: the module that reads x and computes the heads.
        query: W_q.
        key: W_k.
        value: W_v.
        output: W_o, which reads the concatenated heads.
        heads: number of query heads.
        kv_heads: number of key and value heads; fewer than `heads` with grouped queries.
    """

    path: str
    kind: AttentionKind
    core: Any
    query: Projection
    key: Projection
    value: Projection
    output: Projection
    heads: int
    kv_heads: int

    @property
    def head_width(self) -> int:
        """d_h."""
        return self.query.width // self.heads

    @property
    def routed(self) -> bool:
        """Whether it computes its heads through transformers' attention interface, where they can be reached."""
        return hasattr(self.core, "config") and hasattr(sys.modules[type(self.core).__module__], "ALL_ATTENTION_FUNCTIONS")


@dataclass(frozen=True, eq=False)
class FeedForward:
    """The feed-forward sub-layer of a block.

    Args:
        inputs: the first matrix, or both of a gated one.
        output: the last matrix.
        activation: between them, as the model holds it.
    """

    inputs: tuple[Projection, ...]
    output: Projection
    activation: Any


@dataclass(frozen=True, eq=False)
class Block:
    """One transformer layer.

    Args:
        path: in the model.
        module: the layer.
        index: within its stack.
        attentions: self-attention first.
        ffn: the feed-forward sub-layer.
    """

    path: str
    module: nn.Module
    index: int
    attentions: tuple[Attention, ...]
    ffn: FeedForward

    @property
    def stack(self) -> str:
        """Path of the list of layers that it belongs to."""
        return self.path.rpartition(".")[0]

    @property
    def kind(self) -> AttentionKind:
        """That of its self-attention."""
        return self.attentions[0].kind


@dataclass(frozen=True)
class AttentionLayout:
    """Paths within a block. Where query, key and value are one matrix, all three name it, and it holds them in this order."""

    core: str
    query: str
    key: str
    value: str
    output: str


@dataclass(frozen=True)
class Layout:
    """How a family builds its layer: paths within it."""

    attention: AttentionLayout
    ffn_in: tuple[str, ...]
    ffn_out: str
    activation: str = ""
    cross: AttentionLayout | None = field(default=None)


def _separate(core: str, output: str, names: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")) -> AttentionLayout:
    query, key, value = (f"{core}.{name}" for name in names)
    return AttentionLayout(core, query, key, value, output)


def _fused(core: str, matrix: str, output: str) -> AttentionLayout:
    return _separate(core, f"{core}.{output}", (matrix, matrix, matrix))


_BERT, _T5 = ("query", "key", "value"), ("q", "k", "v")
_BART = _separate("self_attn", "self_attn.out_proj")
_T5_SELF = _separate("layer.0.SelfAttention", "layer.0.SelfAttention.o", _T5)
_T5_CROSS = _separate("layer.1.EncDecAttention", "layer.1.EncDecAttention.o", _T5)
LAYOUTS: Mapping[str, Layout] = {
    "BERT, RoBERTa, ELECTRA": Layout(
        _separate("attention.self", "attention.output.dense", _BERT),
        ("intermediate.dense",),
        "output.dense",
        "intermediate.intermediate_act_fn",
        _separate("crossattention.self", "crossattention.output.dense", _BERT),
    ),
    "DistilBERT": Layout(
        _separate("attention", "attention.out_lin", ("q_lin", "k_lin", "v_lin")), ("ffn.lin1",), "ffn.lin2", "ffn.activation"
    ),
    "BART, mBART, Marian, OPT": Layout(_BART, ("fc1",), "fc2", "activation_fn", _separate("encoder_attn", "encoder_attn.out_proj")),
    "CLIP, SigLIP": Layout(_BART, ("mlp.fc1",), "mlp.fc2", "mlp.activation_fn"),
    "Llama, Mistral, Qwen": Layout(
        _separate("self_attn", "self_attn.o_proj"), ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", "mlp.act_fn"
    ),
    "ViT, DeiT": Layout(_separate("attention", "attention.o_proj"), ("mlp.fc1",), "mlp.fc2", "mlp.activation_fn"),
    "GPT-2": Layout(
        _fused("attn", "c_attn", "c_proj"),
        ("mlp.c_fc",),
        "mlp.c_proj",
        "mlp.act",
        AttentionLayout(
            "crossattention", "crossattention.q_attn", "crossattention.c_attn", "crossattention.c_attn", "crossattention.c_proj"
        ),
    ),
    "T5 decoder": Layout(_T5_SELF, ("layer.2.DenseReluDense.wi",), "layer.2.DenseReluDense.wo", "layer.2.DenseReluDense.act", _T5_CROSS),
    "T5 1.1 decoder": Layout(
        _T5_SELF,
        ("layer.2.DenseReluDense.wi_0", "layer.2.DenseReluDense.wi_1"),
        "layer.2.DenseReluDense.wo",
        "layer.2.DenseReluDense.act",
        _T5_CROSS,
    ),
    "T5 encoder": Layout(_T5_SELF, ("layer.1.DenseReluDense.wi",), "layer.1.DenseReluDense.wo", "layer.1.DenseReluDense.act"),
    "T5 1.1 encoder": Layout(
        _T5_SELF,
        ("layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1"),
        "layer.1.DenseReluDense.wo",
        "layer.1.DenseReluDense.act",
    ),
    "timm ViT": Layout(_fused("attn", "qkv", "proj"), ("mlp.fc1",), "mlp.fc2", "mlp.act"),
}
"""The families, each by the paths that its layer must have; the first that fits is taken."""


def find_blocks(model: nn.Module) -> list[Block]:
    """The transformer layers of a model, in the order of its modules.

    Raises:
        InterfaceError: if it has none of a known structure.
    """
    blocks: list[Block] = []
    for path, module in model.named_modules():
        if blocks and path.startswith(f"{blocks[-1].path}."):
            continue
        layout = next((one for one in LAYOUTS.values() if _fits(module, one)), None)
        if layout is not None:
            blocks.append(_block(path, module, layout))
    if not blocks:
        raise InterfaceError(f"{type(model).__name__} has no transformer layer with attention of a known structure: {'; '.join(LAYOUTS)}")
    return blocks


def _get(module: nn.Module, path: str) -> Any:
    """What is at a path, or None; an empty path leads nowhere."""
    found: Any = module if path else None
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _paths(layout: AttentionLayout) -> Iterator[str]:
    yield from (layout.core, layout.query, layout.key, layout.value, layout.output)


def _fits(module: nn.Module, layout: Layout) -> bool:
    return all(isinstance(_get(module, path), nn.Module) for path in (*_paths(layout.attention), *layout.ffn_in, layout.ffn_out))


def _block(path: str, module: nn.Module, layout: Layout) -> Block:
    index = path.rpartition(".")[2]
    attentions = [_attention(path, module, layout.attention, crossing=False)]
    if layout.cross and all(isinstance(_get(module, part), nn.Module) for part in _paths(layout.cross)):
        attentions.append(_attention(path, module, layout.cross, crossing=True))
    ffn = FeedForward(
        tuple(_projection(path, module, part) for part in layout.ffn_in),
        _projection(path, module, layout.ffn_out),
        _get(module, layout.activation),
    )
    return Block(path, module, int(index) if index.isdigit() else 0, tuple(attentions), ffn)


def _projection(path: str, block: nn.Module, part: str, share: int = 0, shares: int = 1) -> Projection:
    """The whole of a module's outputs, or one of several equal parts of them."""
    found = Projection(f"{path}.{part}" if path else part, _get(block, part), 0, 0)
    width = found.total // shares
    return Projection(found.path, found.module, share * width, width)


def _attention(path: str, block: nn.Module, layout: AttentionLayout, crossing: bool) -> Attention:
    core = _get(block, layout.core)
    names = [layout.query, layout.key, layout.value]
    query, key, value = (_projection(path, block, name, names[:at].count(name), names.count(name)) for at, name in enumerate(names))
    heads = next(
        (int(count) for count in (getattr(core, name, None) for name in ("num_heads", "num_attention_heads", "n_heads")) if count), 0
    ) or int(core.config.num_attention_heads)
    causal = bool(getattr(core, "is_causal", False))
    return Attention(
        path=f"{path}.{layout.core}" if path else layout.core,
        kind="cross" if crossing else "decoder" if causal else "encoder",
        core=core,
        query=query,
        key=key,
        value=value,
        output=_projection(path, block, layout.output),
        heads=heads,
        kv_heads=key.width // (query.width // heads),
    )
