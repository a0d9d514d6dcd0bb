from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from graftwork_unified_petl import Adapter, LowRank, PrefixBank

BOTH = pytest.mark.parametrize("kind", [Adapter, LowRank])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_adapter_is_its_formula() -> None:
    adapter, x = Adapter(5, 3, 4, init="bert", scale=2.0, generator=generator()).double(), torch.randn(2, 6, 5, dtype=torch.float64)
    nn.init.normal_(adapter.down.bias)
    nn.init.normal_(adapter.up.bias)
    hidden = (x @ adapter.down.weight.T + adapter.down.bias).clamp(min=0)
    torch.testing.assert_close(adapter(x), 2 * (hidden @ adapter.up.weight.T + adapter.up.bias))


def test_low_rank_is_linear_without_biases() -> None:
    low, x = LowRank(5, 3, 4, init="bert", scale=0.5, generator=generator()), torch.randn(6, 5)
    assert low.down.bias is None
    assert low.up.bias is None
    torch.testing.assert_close(low(x), 0.5 * x @ low.down.weight.T @ low.up.weight.T)
    torch.testing.assert_close(x @ low.delta().T, low(x))


def test_a_layernorm_is_on_what_is_read_or_on_the_scaled_change() -> None:
    x = torch.randn(6, 5)
    inside, outside = (Adapter(5, 3, init="bert", scale=3.0, layernorm=where, generator=generator()) for where in ("in", "out"))
    plain = Adapter(5, 3, init="bert", scale=3.0, generator=generator())
    torch.testing.assert_close(inside(x), plain(nn.functional.layer_norm(x, (5,))))
    torch.testing.assert_close(outside(x), nn.functional.layer_norm(plain(x), (5,)))


@BOTH
def test_bert_draws_both_small_and_lora_starts_at_exactly_zero(kind: type) -> None:
    bert, lora = (kind(400, 300, init=init, generator=generator()) for init in ("bert", "lora"))
    for weight in (bert.down.weight, bert.up.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    bound = 1 / math.sqrt(400)  # Kaiming-uniform with a = sqrt 5
    assert lora.down.weight.abs().max() <= bound
    assert lora.down.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not lora(torch.randn(2, 400)).any()


@BOTH
def test_a_seed_draws_the_same_and_leaves_the_global_stream(kind: type) -> None:
    state = torch.get_rng_state()
    one, other = (kind(8, 4, init="bert", generator=generator(3)) for _ in range(2))
    assert torch.equal(one.down.weight, other.down.weight)
    bank, again = (PrefixBank(2, 3, 2, 4, 8, reparameterisation=5, generator=generator(3)) for _ in range(2))
    assert torch.equal(bank.outputs[1].weight, again.outputs[1].weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_learnable_scale_starts_at_one_and_gets_a_gradient() -> None:
    adapter, x = Adapter(4, 3, init="bert", scale="learnable", generator=generator()).double(), torch.randn(3, 4, dtype=torch.float64)
    assert adapter.scale.tolist() == [1.0]
    assert torch.equal(adapter(x), Adapter(4, 3, init="bert", generator=generator()).double()(x))
    names, values = zip(*adapter.named_parameters(), strict=True)
    assert "scale" in names
    values = [torch.randn_like(one).requires_grad_() for one in values]
    assert torch.autograd.gradcheck(lambda *w: torch.func.functional_call(adapter, dict(zip(names, w, strict=True)), (x,)), values)


def test_dropout_is_on_hidden_units_of_adapters_and_on_what_lora_reads_and_off_in_eval() -> None:
    x = torch.ones(500, 4)
    adapter, low = (kind(4, 3, init="bert", dropout=0.5, generator=generator()) for kind in (Adapter, LowRank))
    kept = adapter.down(x).relu()
    assert {0.0, 2.0} >= set((adapter.hidden(x)[:, kept[0] > 0] / kept[:, kept[0] > 0]).round(decimals=3).flatten().tolist())
    assert torch.equal(adapter.eval().hidden(x), kept)
    rows = low.hidden(x).unique(dim=0)
    assert len(rows) == 2**4  # each of the four inputs is there twice over, or not at all
    assert torch.equal(low.eval().hidden(x), low.down(x))


@pytest.mark.parametrize(("settings", "message"), [
    ({"scale": "learnable"}, 'scale "learnable" cannot be merged'),
    ({"layernorm": "in"}, "not linear and cannot be merged"),
])  # fmt: skip
def test_what_is_not_one_fixed_map_has_no_delta(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LowRank(4, 2, **settings).delta()


@BOTH
def test_impossible_sizes_are_named(kind: type) -> None:
    with pytest.raises(ValueError, match="widths and bottleneck are at least 1; found 4 and 0"):
        kind(4, 0)
    with pytest.raises(ValueError, match=r"dropout is in \[0, 1\); found 1.0"):
        kind(4, 2, dropout=1.0)


def test_a_generated_prefix_is_its_network_and_survives_folding_bit_for_bit() -> None:
    bank = PrefixBank(2, 3, 2, 4, 6, reparameterisation=5, generator=generator())
    hidden = torch.tanh(bank.embedding @ bank.hidden.weight.T + bank.hidden.bias)
    both = (hidden @ bank.outputs[1].weight.T + bank.outputs[1].bias).view(3, 2, 2, 4)
    key, value = bank(1)
    torch.testing.assert_close(key, both[:, 0].transpose(0, 1))
    torch.testing.assert_close(value, both[:, 1].transpose(0, 1))
    before = [part.clone() for part in (*bank(0), *bank(1))]
    bank.fold()
    assert bank.folded
    assert all(torch.equal(one, other) for one, other in zip(before, (*bank(0), *bank(1)), strict=True))
    assert [name for name, _ in bank.named_parameters()] == ["direct.0", "direct.1"]
    assert all(one.requires_grad for one in bank.parameters())


def test_a_direct_prefix_is_small_noise_or_has_values_of_zero() -> None:
    bert, lora = (PrefixBank(1, 300, 4, 16, 64, init=init, generator=generator()) for init in ("bert", "lora"))
    for part in bert(0):
        assert part.std().item() == pytest.approx(0.02, rel=0.02)
    assert lora(0)[0].abs().max() <= 1 / math.sqrt(64)
    assert not lora(0)[1].any()


def test_a_prefix_is_dropped_out_while_training_alone() -> None:
    bank = PrefixBank(1, 40, 2, 4, 8, dropout=0.5, generator=generator())
    assert 100 < int((bank(0)[0] == 0).sum()) < 220
    assert int((bank.eval()(0)[0] == 0).sum()) == 0


def test_a_bank_without_size_is_refused() -> None:
    with pytest.raises(ValueError, match="length is at least 1; found 0"):
        PrefixBank(2, 0, 2, 4, 8)
