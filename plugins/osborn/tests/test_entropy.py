"""Conditional entropies: closed forms, and counting by hand."""

from __future__ import annotations

import math

import numpy
import pytest
import torch

from graftwork_osborn import (
    conditional_entropy,
    exact_coupling,
    joint_from_coupling,
    joint_from_predictions,
    pairwise_conditional_entropy,
)


def by_hand(joint: numpy.ndarray, axis: int) -> float:
    """H of the other axis given `axis`, term by term."""
    total = 0.0
    for z, y in numpy.ndindex(joint.shape):
        known = joint[:, y].sum() if axis == 1 else joint[z].sum()
        if joint[z, y] > 0:
            total -= joint[z, y] * math.log(joint[z, y] / known)
    return total


@pytest.mark.parametrize("seed", range(3))
def test_the_entropy_is_the_sum_in_either_direction(seed) -> None:
    joint = torch.rand(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    joint[0, 2] = joint[3] = 0
    joint /= joint.sum()
    assert float(conditional_entropy(joint)) == pytest.approx(by_hand(joint.numpy(), 1), abs=1e-12)
    assert float(conditional_entropy(joint, given="source")) == pytest.approx(by_hand(joint.numpy(), 0), abs=1e-12)
    assert not math.isclose(float(conditional_entropy(joint)), float(conditional_entropy(joint, "source")), rel_tol=1e-3)
    assert 0 <= conditional_entropy(joint) <= math.log(4)


def test_several_joints_at_once_give_an_entropy_each() -> None:
    joints = torch.rand(5, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    joints /= joints.sum(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(conditional_entropy(joints), torch.stack([conditional_entropy(one) for one in joints]))


def test_a_target_class_coupled_to_one_source_class_leaves_nothing_unknown() -> None:
    source, target = torch.arange(12) % 3, torch.tensor([2, 0, 1])[torch.arange(12) % 3]
    assert conditional_entropy(joint_from_coupling(torch.eye(12, dtype=torch.float64) / 12, source, target)) == 0
    cost = (torch.tensor([2, 0, 1])[source][:, None] != target).double()
    assert conditional_entropy(joint_from_coupling(exact_coupling(cost), source, target)) == pytest.approx(0, abs=1e-12)


def test_the_independent_coupling_tells_nothing_of_the_source_class() -> None:
    source, target = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([0, 1, 1, 1])
    joint = joint_from_coupling(torch.full((5, 4), 1 / 20, dtype=torch.float64), source, target)
    shares = torch.tensor([0.6, 0.2, 0.2], dtype=torch.float64)
    assert float(conditional_entropy(joint)) == pytest.approx(-float((shares * shares.log()).sum()), abs=1e-12)


def test_the_joint_sums_the_coupling_over_the_samples_of_both_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    coupling = torch.rand(9, 7, generator=generator, dtype=torch.float64)
    source, target = torch.randint(3, (9,), generator=generator), torch.randint(4, (7,), generator=generator)
    joint = joint_from_coupling(coupling, source, target, 3, 5)
    assert joint.shape == (3, 5)
    for z in range(3):
        for y in range(5):
            assert float(joint[z, y]) == pytest.approx(float(coupling[source == z][:, target == y].sum()))
    with pytest.raises(ValueError, match=r"for m source and n target labels; found \(9, 7\), 8 and 7"):
        joint_from_coupling(coupling, source[:8], target)


def test_the_joint_of_predictions_counts_samples() -> None:
    joint = joint_from_predictions(torch.tensor([0, 0, 2, 2]), torch.tensor([1, 1, 1, 0]), 3, 2)
    assert joint.tolist() == [[0, 0.5], [0, 0], [0.25, 0.25]]
    with pytest.raises(ValueError, match="predictions and labels are one a sample"):
        joint_from_predictions(torch.zeros(3, dtype=torch.long), torch.zeros(2, dtype=torch.long))


def test_every_pair_of_models_has_both_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = (2, 7, 1000)
    predictions = torch.stack([torch.randint(count, (200,), generator=generator) for count in classes])
    predictions[2] = predictions[1] * 100 + predictions[0]  # determines both of the others
    found = pairwise_conditional_entropy(predictions)
    for a in range(3):
        for b in range(3):
            table = joint_from_predictions(predictions[a], predictions[b])
            assert float(found[a, b]) == pytest.approx(by_hand(table.numpy(), 1) if a != b else 0, abs=1e-12)
    assert found[0, 2] == pytest.approx(0, abs=1e-12)
    assert found[2, 0] > 1
    torch.testing.assert_close(pairwise_conditional_entropy(predictions, budget=1), found, rtol=0, atol=0)


def test_equal_models_agree_and_names_of_classes_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(5, (300,), generator=generator) for _ in range(2))
    renamed = torch.tensor([40, 3, 17, 0, 9])[b]
    same, other = pairwise_conditional_entropy([a, a, b]), pairwise_conditional_entropy([a, a, renamed])
    assert same[0, 1] == same[1, 0] == 0
    torch.testing.assert_close(same, other)


def test_independent_even_predictions_leave_log_c_to_know() -> None:
    predictions = torch.randint(10, (4, 5000), generator=torch.Generator().manual_seed(0))
    found = pairwise_conditional_entropy(predictions)
    off = found[~torch.eye(4, dtype=torch.bool)]
    assert (off - math.log(10)).abs().max() < 0.02
    assert float(off.sum()) == pytest.approx(4 * 3 * math.log(10), abs=12 * 0.02)


def test_what_is_no_joint_and_no_prediction_is_told() -> None:
    for refused, message in (
        (lambda: conditional_entropy(torch.ones(3)), r"joint is \(..., C_source, C_target\); found \(3,\)"),
        (lambda: conditional_entropy(torch.ones(2, 2) / 4, given="both"), 'given is "target" or "source"; found \'both\''),
        (lambda: pairwise_conditional_entropy(torch.zeros(3, dtype=torch.long)), r"\(M, n\) with n at least 1; found \(3,\)"),
        (lambda: pairwise_conditional_entropy(torch.full((2, 3), -1)), "class numbers from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
