"""Each site against an independent recomputation of the layer from its own modules, and the finite differences through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork_unified_petl import Modification, attach, petl_of


def bert_layer(layer: Any, x: Tensor, changes: dict[str, Callable[[Tensor], Tensor]]) -> Tensor:
    """One post-norm layer, by its own matrices, with a change at each site that has one."""
    inner, attention = layer.attention.self, layer.attention
    zero: Callable[[Tensor], Any] = lambda _: 0.0  # noqa: E731
    change = {site: changes.get(site, zero) for site in ("parallel-attention", "attention", "parallel-ffn", "ffn", "layer")}
    query, key, value = (nn.functional.linear(x, one.weight, one.bias).unflatten(-1, (4, 4)).transpose(1, 2) for one in (
        inner.query, inner.key, inner.value))  # fmt: skip
    heads = ((query @ key.mT / 2).softmax(-1) @ value).transpose(1, 2).flatten(2) + change["parallel-attention"](x)
    out = nn.functional.linear(heads, attention.output.dense.weight, attention.output.dense.bias)
    middle = attention.output.LayerNorm(out + change["attention"](out) + x)
    hidden = nn.functional.gelu(nn.functional.linear(middle, layer.intermediate.dense.weight, layer.intermediate.dense.bias))
    out = nn.functional.linear(hidden, layer.output.dense.weight, layer.output.dense.bias)
    out = out + change["parallel-ffn"](middle) + change["ffn"](out)
    last = layer.output.LayerNorm(out + middle)
    return last + change["layer"](last)


SITES = {
    "parallel-attention": Modification("adapter", "attention", layernorm="in"),
    "attention": Modification("adapter", "attention", insertion="sequential"),
    "parallel-ffn": Modification("adapter", "ffn", composition="scaled", scale=4.0),
    "ffn": Modification("adapter", "ffn", insertion="sequential"),
    "layer": Modification("adapter", "layer", insertion="sequential"),
}


@pytest.mark.parametrize("site", SITES)
def test_an_adapter_in_a_post_norm_layer_is_where_the_paper_has_it(site: str, make: Callable, learned: Callable) -> None:
    model = learned(attach(make("bert").double(), [SITES[site]], seed=0))
    layer, x = model.bert.encoder.layer[0], torch.randn(2, 5, 16, dtype=torch.float64)
    change = petl_of(model).grafts[0].change
    expected = bert_layer(layer, x, {site: change})
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)
    assert (expected - bert_layer(layer, x, {})).abs().max() > 1e-3


@pytest.mark.parametrize("site", ["ffn", "attention"])
def test_beside_a_pre_norm_sub_layer_the_normalised_input_is_read(site: str, make: Callable, learned: Callable) -> None:
    model = learned(attach(make("vit").double(), [Modification("adapter", site)], seed=0))
    layer, x = model.vit.layers[0], torch.randn(2, 5, 16, dtype=torch.float64)
    change = petl_of(model).grafts[0].change
    found = layer(x)
    model.vit.layers[0].attention.o_proj._forward_pre_hooks.clear()
    layer.mlp.fc2._forward_hooks.clear()
    if site == "ffn":
        middle = x + layer.attention(layer.layernorm_before(x))[0]
        expected = layer(x) + change(layer.layernorm_after(middle))
    else:
        inner = layer.attention(layer.layernorm_before(x))[0]
        middle = x + inner + nn.functional.linear(change(layer.layernorm_before(x)), layer.attention.o_proj.weight)
        expected = middle + layer.mlp(layer.layernorm_after(middle))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_lora_adds_its_product_to_query_and_value(name: str, make: Callable, run: Callable, learned: Callable) -> None:
    spec = [Modification("lora", site, composition="scaled", scale=2.0, init="lora") for site in ("query", "value")]
    model, plain = learned(attach(make(name).double(), spec, seed=0)), make(name).double()
    grafts = petl_of(model).grafts
    with torch.no_grad():
        for index in (0, 1):
            products = [(2 * grafts[at * 2 + index].change.up.weight @ grafts[at * 2 + index].change.down.weight) for at in (0, 1)]
            if name == "bert":
                inner = plain.bert.encoder.layer[index].attention.self
                inner.query.weight += products[0]
                inner.value.weight += products[1]
            else:
                weight = plain.transformer.h[index].attn.c_attn.weight
                weight[:, :16] += products[0].T
                weight[:, 32:] += products[1].T
    torch.testing.assert_close(run(model, name), run(plain, name), rtol=0, atol=1e-10)


def test_one_head_of_a_multi_head_adapter_is_a_parallel_adapter_before_the_output_matrix(
    make: Callable, run: Callable, learned: Callable
) -> None:
    one_head = make("bert", num_attention_heads=1).double()
    model = learned(attach(one_head, [Modification("multi-head", "heads", bottleneck=3)], seed=0))
    other = attach(make("bert", num_attention_heads=1).double(), [Modification("adapter", "attention", bottleneck=3)], seed=0)
    (bank,) = petl_of(model).banks.values()
    with torch.no_grad():
        for index in (0, 1):
            query, change = other.bert.encoder.layer[index].attention.self.query, petl_of(other).grafts[index].change
            key, value = (part[0] for part in bank(index))
            change.down.weight.copy_(key @ query.weight)  # W_down = W_q P_k^T, and its bias b_q P_k^T
            change.down.bias.copy_(key @ query.bias)
            change.up.weight.copy_(value.T)
    assert (run(model, "bert") - run(other, "bert")).abs().max() < 1e-10


def test_gradients_through_a_model_are_those_of_finite_differences(make: Callable, run: Callable) -> None:
    spec = [
        Modification("prefix", "heads", composition="gated", bottleneck=2, layernorm="in", layers=(0,)),
        Modification("prefix", "heads", composition="concatenated", bottleneck=1, layers=(1,)),
        Modification("adapter", "ffn", composition="scaled", scale="learnable", bottleneck=1, layers=(1,)),
    ]
    model = attach(make("vit").double(), spec, seed=0)
    names, values = zip(*petl_of(model).named_parameters(), strict=True)
    assert any(name.endswith("scale") for name in names)

    def output(*given: Tensor) -> Tensor:
        named = {f"petl.{name}": one for name, one in zip(names, given, strict=True)}
        image = torch.linspace(0, 1, 192, dtype=torch.float64).view(1, 3, 8, 8)
        return torch.func.functional_call(model, named, kwargs={"pixel_values": image}).logits

    assert torch.autograd.gradcheck(output, [one.detach().clone().requires_grad_() for one in values], fast_mode=True)
