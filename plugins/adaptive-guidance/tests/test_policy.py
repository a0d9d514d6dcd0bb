from __future__ import annotations

import pytest
import torch

from graftwork_adaptive_guidance import (
    Choice,
    costs,
    default_options,
    expected_cost,
    hard_policy,
    parse_policy,
    pattern_policy,
    shares,
    weights,
)


def test_entries_are_read_and_written_alike() -> None:
    entries = ["uncond", "cond", "cfg", "cfg(7.5)", "cfg(1e1)", "cfg( 3.125 )"]
    found = parse_policy(entries)
    assert found == (Choice("uncond"), Choice("cond"), Choice("cfg"), Choice("cfg", 7.5), Choice("cfg", 10.0), Choice("cfg", 3.125))
    assert parse_policy([str(one) for one in found]) == found
    assert parse_policy([str(Choice("cfg", 1 / 3))]) == (Choice("cfg", 1 / 3),)


@pytest.mark.parametrize("entry", ["conditional", "cfg()", "cond(2)", "cfg(nan)", "cfg(1e999)", ""])
def test_an_unknown_entry_is_named_with_its_step(entry: str) -> None:
    with pytest.raises(ValueError, match=r'policy, step 1: .*is "uncond", "cond", "cfg" or "cfg\(SCALE\)"; found'):
        parse_policy(["cfg", entry])


def test_a_policy_without_entries_is_refused() -> None:
    with pytest.raises(ValueError, match="policy has no entry"):
        parse_policy([])


def kinds(policy: tuple[Choice, ...]) -> str:
    return "".join({"cfg": "G", "cond": "c", "uncond": "u"}[one.kind] for one in policy)


def test_patterns_guide_the_steps_that_they_name() -> None:
    assert kinds(pattern_policy("first", 6, 2)) == "GGcccc"
    assert kinds(pattern_policy("last", 6, 2)) == "ccccGG"
    assert kinds(pattern_policy("last", 6, 0)) == "cccccc"
    assert kinds(pattern_policy("alternate", 5)) == "GcGcG"
    assert kinds(pattern_policy("alternate", 6, 2)) == "GcGccc"
    assert kinds(pattern_policy("first", 7)) == "GGGcccc"


def test_a_pattern_cannot_guide_more_steps_than_there_are() -> None:
    with pytest.raises(ValueError, match="guided is between 0 and the 4 steps; found 5"):
        pattern_policy("first", 4, 5)
    with pytest.raises(ValueError, match="pattern is first, last or alternate; found 'late'"):
        pattern_policy("late", 4)  # type: ignore[arg-type]


def test_every_option_is_a_weight_of_the_difference_and_costs_its_rows() -> None:
    options = default_options(6.0)
    assert weights(options, 6.0).tolist() == [0, 1, 3, 6, 12]
    assert weights([Choice("cfg")], 4.0).tolist() == [4]
    assert costs(options).tolist() == [1, 1, 2, 2, 2]


def test_the_expected_cost_is_the_sum_over_steps_and_edges() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cost = costs(default_options(2.0))
    by_hand = sum(float(p) * float(c) for row in (logits / 0.5).softmax(1) for p, c in zip(row, cost, strict=True))
    assert float(expected_cost(logits, cost, 0.5)) == pytest.approx(by_hand, abs=1e-12)
    assert float(expected_cost(torch.zeros(20, 5), cost)) == pytest.approx(1.6 * 20)


def test_the_likeliest_edge_of_each_step_is_the_policy() -> None:
    options = default_options(4.0)
    logits = torch.eye(5)[[3, 0, 1, 4]]
    assert hard_policy(logits, options) == tuple(options[index] for index in (3, 0, 1, 4))
    with pytest.raises(ValueError, match=r"logits are \(T, 5\), a column an option; found \(4, 4\)"):
        hard_policy(logits[:, :4], options)


def test_shares_count_each_half_by_itself() -> None:
    found = shares(parse_policy(["cfg", "cfg(2)", "cond", "uncond", "cond"]))
    assert found["guided-first-half"] == 1
    assert found["conditional-second-half"] == pytest.approx(2 / 3)
    assert found["unconditional-second-half"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="policy has 1 step: there are no halves"):
        shares(parse_policy(["cfg"]))
