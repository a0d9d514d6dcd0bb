from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from graftwork import InterfaceError
from graftwork_unified_petl import Modification, attach, detach, find_blocks

FOUND = {
    "bert": (["encoder"] * 2, 4, 4, 1),
    "roberta": (["encoder"] * 2, 4, 4, 1),
    "distilbert": (["encoder"] * 2, 4, 4, 1),
    "bart": (["encoder"] * 2 + ["decoder", "cross"] * 2, 4, 4, 1),
    "t5": (["encoder"] * 2 + ["decoder", "cross"] * 2, 4, 4, 1),
    "gpt2": (["decoder"] * 2, 4, 4, 1),
    "llama": (["decoder"] * 2, 4, 2, 2),
    "vit": (["encoder"] * 2, 4, 4, 1),
    "clip": (["encoder"] * 4, 4, 4, 1),
}


def test_each_family_has_its_attentions_found(every_model: str, make: Callable) -> None:
    blocks = find_blocks(make(every_model))
    kinds, heads, kv_heads, matrices = FOUND[every_model]
    attentions = [one for block in blocks for one in block.attentions]
    assert [one.kind for one in attentions] == kinds
    assert {(one.heads, one.kv_heads, one.routed) for one in attentions} == {(heads, kv_heads, True)}
    assert {(one.query.in_width, one.output.width) for one in attentions} == {(16, 16)}
    assert {one.query.width for one in attentions} == {20 if every_model == "t5" else 16}
    assert {(len(block.ffn.inputs), block.ffn.inputs[0].width, block.ffn.output.in_width) for block in blocks} == {
        (matrices, block.ffn.output.in_width, block.ffn.output.in_width) for block in blocks
    }
    assert [block.index for block in blocks] == [0, 1] * (len(blocks) // 2)
    assert all(callable(block.ffn.activation) for block in blocks)


def test_the_parts_of_a_fused_matrix_are_query_key_and_value_in_this_order(make: Callable) -> None:
    attention = find_blocks(make("gpt2", add_cross_attention=True))[0].attentions
    own, cross = attention
    assert [(one.start, one.width, one.total) for one in (own.query, own.key, own.value)] == [(0, 16, 48), (16, 16, 48), (32, 16, 48)]
    assert [(one.start, one.width, one.total) for one in (cross.query, cross.key, cross.value)] == [(0, 16, 16), (0, 16, 32), (16, 16, 32)]
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(own.value(x), own.core.c_attn(x)[..., 32:])


class TimmAttention(nn.Module):
    """As timm's: one matrix for query, key and value, and torch's attention inside."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = 2, nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).view(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        heads = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.proj(heads.transpose(1, 2).flatten(2))


class TimmBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp, self.norm = TimmAttention(), nn.Module(), nn.LayerNorm(8)
        self.mlp.fc1, self.mlp.fc2, self.mlp.act = nn.Linear(8, 12), nn.Linear(12, 8), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x))
        return x + self.mlp.fc2(self.mlp.act(self.mlp.fc1(x)))


def test_timm_shaped_models_take_bottlenecks_but_no_prefix() -> None:
    model, x = nn.Sequential(TimmBlock(), TimmBlock()), torch.randn(2, 5, 8)
    before = model(x)
    spec = [Modification("adapter", "ffn"), Modification("lora", "value"), Modification("adapter", "attention")]
    attach(model, spec, seed=0)
    assert not torch.allclose(model(x), before, atol=1e-7)
    assert torch.equal(detach(model)(x), before)
    with pytest.raises(InterfaceError, match=r"0.attn \(TimmAttention\) does not compute its heads through transformers' attention"):
        attach(model, [Modification("prefix", "heads", composition="concatenated")])
    assert torch.equal(model(x), before)


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(InterfaceError, match="Sequential has no transformer layer with attention of a known structure: BERT, RoBERTa"):
        attach(nn.Sequential(nn.Conv2d(3, 4, 3)), [Modification("prefix", "heads", composition="concatenated")])
