from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from graftwork_unified_petl import concatenated_attention, gated_attention, multi_head_adapter, prefix_attention, prefix_gate
from graftwork_unified_petl.attention import gate_from_shares, origin_values

B, H, N, M, L, D = 2, 4, 5, 7, 3, 6
SCALING = 1 / math.sqrt(D)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def masks(kind: str) -> torch.Tensor | None:
    low = torch.finfo(torch.float64).min
    if kind == "causal":
        return torch.full((N, M), low, dtype=torch.float64).triu(M - N + 1)
    if kind == "padding":
        mask = torch.zeros(B, 1, N, M, dtype=torch.float64)
        mask[1, ..., 4:] = low
        return mask
    return None


@pytest.mark.parametrize("kind", ["none", "causal", "padding"])
@pytest.mark.parametrize("groups", [1, 2])
def test_one_attention_over_prefix_and_keys_is_the_gated_sum_of_two(kind: str, groups: int) -> None:
    given = drawn(B, H, N, D), drawn(B, H, M, D), drawn(B, H, M, D), 3 * drawn(H // groups, L, D), drawn(H // groups, L, D)
    one = concatenated_attention(*given, masks(kind), SCALING)
    two = gated_attention(*given, masks(kind), SCALING)
    assert (one - two).abs().max() < 1e-10


def test_the_gate_is_the_ratio_of_softmax_sums_of_each_token_and_head() -> None:
    prefix, keys = drawn(B, H, N, L), drawn(B, H, N, M)
    expected = prefix.exp().sum(-1) / (prefix.exp().sum(-1) + keys.exp().sum(-1))
    torch.testing.assert_close(prefix_gate(prefix, keys)[..., 0], expected)
    assert prefix_gate(prefix, keys).flatten().unique().numel() == B * H * N


def test_the_gate_holds_where_exponentials_would_overflow() -> None:
    assert prefix_gate(torch.full((1, 2), 2000.0), torch.full((1, 2), 2000.0)).item() == 0.5
    assert prefix_gate(torch.full((1, 2), 2000.0), torch.full((1, 2), -2000.0)).item() == 1.0


def test_logits_of_other_queries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prefix_logits \(2, 3\) and key_logits \(4, 3\) differ in their queries"):
        prefix_gate(torch.zeros(2, 3), torch.zeros(4, 3))


@pytest.mark.parametrize("renewed", [False, True])
def test_any_kernel_shows_the_gate_through_values_that_say_where_they_come_from(renewed: bool) -> None:
    query, key, prefix_key = drawn(B, H, N, D), drawn(B, H, M, D), drawn(H, L, D)
    other = drawn(B, H, N, D) if renewed else None
    values = origin_values(L, M, D, key).expand(B, H, -1, -1)
    shares = nn.functional.scaled_dot_product_attention(
        query, torch.cat([prefix_key.expand(B, -1, -1, -1), key], dim=2), values, scale=SCALING
    )
    found = gate_from_shares(shares, query, other, prefix_key, SCALING)
    reads = query if other is None else other
    expected = prefix_gate(reads @ prefix_key.mT * SCALING, query @ key.mT * SCALING)
    torch.testing.assert_close(found, expected)


def test_a_multi_head_adapter_is_a_relu_bottleneck_whose_down_projection_is_the_frozen_query() -> None:
    x, w_q, b_q, prefix_key, prefix_value = drawn(B, N, D), drawn(D, D), drawn(D), drawn(1, L, D), drawn(1, L, D)
    found = multi_head_adapter((x @ w_q + b_q)[:, None], prefix_key, prefix_value)[:, 0]
    down, bias = w_q @ prefix_key[0].T, b_q @ prefix_key[0].T
    torch.testing.assert_close(found, (x @ down + bias).relu() @ prefix_value[0])


def test_dropout_falls_on_the_weights_and_keeps_their_mean() -> None:
    query, prefix_key, ones = drawn(1, 1, 4000, D), drawn(1, 1, D), torch.ones(1, 1, 1, dtype=torch.float64)
    found = prefix_attention(query, prefix_key, ones, SCALING, dropout=0.25)
    assert set(found.flatten().tolist()) == {0.0, 1 / 0.75}
    assert 0.95 < found.mean() < 1.05
    assert torch.equal(prefix_attention(query, prefix_key, ones, SCALING), torch.ones_like(found))


def test_gradients_of_the_prefix_are_those_of_finite_differences() -> None:
    given = [drawn(1, 2, 3, 4).requires_grad_() for _ in range(3)] + [drawn(2, 2, 4).requires_grad_() for _ in range(2)]
    for function in (concatenated_attention, gated_attention):
        assert torch.autograd.gradcheck(function, given)
    query, prefix_key, prefix_value = given[0], given[3], given[4]
    assert torch.autograd.gradcheck(multi_head_adapter, (query, prefix_key, prefix_value))
