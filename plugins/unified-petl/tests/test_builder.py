from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from graftwork import InterfaceError
from graftwork_unified_petl import BitFit, Modification, attach, count_by_formula, detach, petl_of

ZERO_START = [
    [Modification("adapter", "ffn", init="lora")],
    [Modification("adapter", "ffn", insertion="sequential", init="lora"), Modification("adapter", "attention", init="lora")],
    [Modification("adapter", "layer", insertion="sequential", init="lora")],
    [Modification("lora", site, init="lora") for site in ("query", "key", "value", "attention-output", "ffn-in", "ffn-out")],
    [Modification("multi-head", "heads", init="lora", bottleneck=3)],
]
OTHERS = [
    [Modification("prefix", "heads", composition="concatenated", bottleneck=3, reparameterisation=5)],
    [Modification("prefix", "heads", composition="gated", bottleneck=3, layernorm="in")],
    [Modification("prefix", "heads", bottleneck=3, layernorm="in"), Modification("adapter", "attention", layernorm="in")],
    [Modification("multi-head", "heads", bottleneck=3, composition="scaled", scale="learnable")],
]


@pytest.mark.parametrize("spec", range(len(ZERO_START)))
def test_what_starts_at_zero_leaves_the_output_bit_for_bit(every_model: str, spec: int, make: Callable, measure: Callable) -> None:
    model = make(every_model)
    before = measure(model, every_model)
    assert torch.equal(measure(attach(model, ZERO_START[spec], seed=0), every_model), before)


@pytest.mark.parametrize("spec", range(len(OTHERS)))
def test_others_change_it_from_the_start_and_detach_clean(every_model: str, spec: int, make: Callable, run: Callable) -> None:
    model = make(every_model)
    before, keys, tree = run(model, every_model), list(model.state_dict()), [type(one) for one in model.modules()]
    settings = model.config.to_dict()
    attach(model, OTHERS[spec], seed=0)
    assert (run(model, every_model) - before).abs().max() > 1e-6
    assert petl_of(model).count() == count_by_formula(model, OTHERS[spec])
    detach(model)
    assert torch.equal(run(model, every_model), before)
    assert list(model.state_dict()) == keys
    assert [type(one) for one in model.modules()] == tree
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())
    assert all(one.requires_grad for one in model.parameters())
    assert model.config.to_dict() == settings


def test_no_modification_leaves_the_model_and_freezes_it(every_model: str, make: Callable, measure: Callable) -> None:
    model = make(every_model)
    before = measure(model, every_model)
    assert torch.equal(measure(attach(model, []), every_model), before)
    assert all(one.requires_grad == name.startswith(("classifier", "pre_classifier")) for name, one in model.named_parameters())


def test_only_what_is_new_and_the_head_get_gradients(make: Callable, run: Callable) -> None:
    model = attach(make("roberta"), [*OTHERS[0], Modification("adapter", "ffn")], seed=0)
    run(model, "roberta").square().sum().backward()
    with_gradient = {name for name, one in model.named_parameters() if one.grad is not None}
    assert with_gradient == {name for name, one in model.named_parameters() if name.startswith(("petl.", "classifier."))}
    assert all(one.grad.abs().sum() > 0 for name, one in model.named_parameters() if "up.weight" in name)


def test_a_copy_has_grafts_of_its_own(make: Callable, run: Callable, learned: Callable) -> None:
    model = attach(make("bert"), [*OTHERS[1], Modification("adapter", "ffn")], seed=0)
    other = copy.deepcopy(model)
    before = run(model, "bert")
    assert torch.equal(run(other, "bert"), before)
    learned(other)
    assert not torch.allclose(run(other, "bert"), before)
    assert torch.equal(run(model, "bert"), before)
    detach(other)
    assert torch.equal(run(model, "bert"), before)


def test_a_second_set_of_modifications_is_refused(make: Callable) -> None:
    model = attach(make("bert"), ZERO_START[0])
    with pytest.raises(ValueError, match=r"is modified already: give all modifications at once, or detach\(model\) first"):
        attach(nn.Sequential(model), ZERO_START[0])


def test_what_is_not_modified_cannot_be_detached(make: Callable) -> None:
    with pytest.raises(InterfaceError, match="has no modifications"):
        detach(make("bert"))


@pytest.mark.parametrize(("layers", "expected"), [((0,), [0]), ((-1,), [1]), ((0, 1), [0, 1]), (None, [0, 1])])
def test_layers_are_chosen_by_index_from_either_end(layers: tuple | None, expected: list, make: Callable) -> None:
    model = attach(make("bert"), [Modification("adapter", "ffn", layers=layers)])
    assert [index for _, _, index in petl_of(model).sites] == expected


def test_attentions_are_chosen_by_kind(make: Callable) -> None:
    model = attach(make("bart"), [Modification("prefix", "heads", composition="concatenated", attentions=("cross",))])
    assert [path for _, path, _ in petl_of(model).sites] == [f"model.decoder.layers.{index}.encoder_attn" for index in (0, 1)]
    detach(model)
    attach(model, [Modification("adapter", "ffn", attentions=("encoder",))])
    assert [path for _, path, _ in petl_of(model).sites] == [f"model.encoder.layers.{index}.ffn" for index in (0, 1)]


@pytest.mark.parametrize(("change", "kind", "message"), [
    ({"layers": (2,)}, ValueError, "layers has 2; the model's stacks have 2 layers"),
    ({"attentions": ("cross",)}, InterfaceError, r"no layer for site ffn with attentions \('cross',\)"),
])  # fmt: skip
def test_layers_that_are_not_there_are_named(change: dict, kind: type, message: str, make: Callable) -> None:
    with pytest.raises(kind, match=message):
        attach(make("bert"), [Modification("adapter", "ffn", **change)])


def test_a_seed_decides_and_without_one_torchs_generator_does(make: Callable) -> None:
    def weights(seed: int | None) -> torch.Tensor:
        return petl_of(attach(make("bert"), [Modification("adapter", "ffn")], seed=seed)).grafts[0].change.down.weight

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))
    torch.manual_seed(7)
    one = weights(None)
    torch.manual_seed(7)
    assert torch.equal(one, weights(None))


def test_new_weights_have_the_type_of_those_beside_them(make: Callable, run: Callable) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        model = attach(make("vit").to(dtype), [*OTHERS[1], Modification("adapter", "ffn", layernorm="in")], seed=0)
        assert {one.dtype for one in petl_of(model).parameters()} == {dtype}
        assert run(model, "vit").dtype == dtype


def test_checkpointed_layers_give_the_same_gradients(make: Callable, run: Callable) -> None:
    found = []
    for checkpointed in (False, True):
        model = attach(make("gpt2", attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0), [*OTHERS[1], Modification("adapter", "ffn")], seed=0)
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        run(model.train(), "gpt2").square().sum().backward()
        found.append([one.grad for one in petl_of(model).parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_bitfit_trains_every_bias_and_detaching_gives_the_old_ones_back(make: Callable, run: Callable) -> None:
    model = make("bert")
    before = run(model, "bert")
    attach(model, [BitFit()])
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "bias" in name or name.startswith("classifier.")}
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.bias[0] += 1
    assert not torch.allclose(run(model, "bert"), before)
    assert torch.equal(run(detach(model), "bert"), before)


def test_bitfit_needs_biases(make: Callable, run: Callable) -> None:
    model = make("llama")
    with pytest.raises(InterfaceError, match="LlamaForCausalLM has none"):
        attach(model, [BitFit()])
    attach(model, ZERO_START[0])  # nothing was left behind
