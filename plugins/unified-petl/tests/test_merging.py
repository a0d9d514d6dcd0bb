from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from graftwork import GraftworkError
from graftwork_unified_petl import Modification, attach, detach, merge, unmerge

LORA = [
    Modification("lora", site, composition="scaled", scale=2.0, init="lora", dropout=0.1)
    for site in ("query", "key", "value", "attention-output", "ffn-in", "ffn-out")
]
PARALLEL = [Modification("adapter", "ffn", composition="scaled", scale=4.0, bottleneck=5, dropout=0.1)]


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "llama"])
def test_lora_merged_is_lora_unmerged(name: str, make: Callable, measure: Callable, learned: Callable) -> None:
    model = make(name)
    plain, keys = measure(model, name), {key: one.clone() for key, one in model.state_dict().items()}
    learned(attach(model, LORA, seed=0), std=0.05)
    before = measure(model, name)
    assert merge(model)
    torch.testing.assert_close(measure(model, name), before, rtol=1e-5, atol=2e-6)
    assert not torch.allclose(measure(model, name), plain)
    unmerge(model)
    assert torch.equal(measure(model, name), before)
    merge(model)
    detach(model)
    assert torch.equal(measure(model, name), plain)
    assert all(torch.equal(one, keys[key]) for key, one in model.state_dict().items())


@pytest.mark.parametrize(("name", "settings"), [
    ("bert", {"hidden_act": "relu"}),
    ("bart", {"activation_function": "relu"}),
    ("gpt2", {"activation_function": "relu"}),
    ("t5", {}),
    ("vit", {"hidden_act": "relu"}),
])  # fmt: skip
def test_a_parallel_adapter_is_a_wider_relu_feed_forward(
    name: str, settings: dict, make: Callable, measure: Callable, learned: Callable
) -> None:
    model = make(name, **settings).double()
    plain = measure(model, name)
    learned(attach(model, PARALLEL * 2, seed=0), std=0.2)
    before = measure(model, name)
    assert (before - plain).abs().max() > 1e-3
    merge(model)
    assert (measure(model, name) - before).abs().max() < 1e-10
    shapes = {tuple(one.shape) for one in model.parameters() if one.dim() == 2}
    assert shapes & {(34, 16), (16, 34)}  # 24 units of the FFN and twice 5 of the adapters
    assert torch.equal(measure(detach(model), name), plain)


@pytest.mark.parametrize(("spec", "message"), [
    (PARALLEL, "ReLU units join a plain ReLU FFN alone; this one has 1 x GELUActivation"),
    ([Modification("lora", "query", composition="scaled", scale="learnable")], 'scale "learnable" cannot be merged'),
    ([LORA[0], Modification("lora", "value", layernorm="in")], "not linear and cannot be merged"),
])  # fmt: skip
def test_what_cannot_be_merged_is_said_and_nothing_is_half_merged(
    spec: list, message: str, make: Callable, measure: Callable, learned: Callable
) -> None:
    model = learned(attach(make("bert"), spec, seed=0))
    before = measure(model, "bert")
    with pytest.raises(ValueError, match=message):
        merge(model)
    assert torch.equal(measure(model, "bert"), before)


def test_an_adapter_with_a_layernorm_cannot_be_merged(make: Callable) -> None:
    model = attach(make("bert", hidden_act="relu"), [Modification("adapter", "ffn", layernorm="in")])
    with pytest.raises(ValueError, match=r'layer.0.ffn: an adapter with a layernorm or scale "learnable" cannot be merged'):
        merge(model)


def test_merging_twice_or_nothing_is_refused(make: Callable) -> None:
    model = attach(make("bert"), LORA[:1])
    merge(model)
    with pytest.raises(GraftworkError, match="merged already"):
        merge(model)
    with pytest.raises(GraftworkError, match="nothing to merge"):
        merge(attach(make("bert"), [Modification("adapter", "ffn", insertion="sequential")]))
