"""LEEP and its sums and averages: closed forms, and the definition written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from graftwork_osborn import e_leep, expected_empirical_prediction, leep, ms_leep


def drawn(count: int, classes: int, seed: int) -> Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(dim=1)


LABELS = torch.arange(60) % 4
"""Of four classes, 15 samples each."""


def written_out(probabilities: Tensor, labels: Tensor) -> float:
    n, classes, source = len(labels), int(labels.max()) + 1, probabilities.shape[1]
    joint = [[sum(float(probabilities[i, z]) for i in range(n) if labels[i] == y) / n for z in range(source)] for y in range(classes)]
    total = [sum(joint[y][z] for y in range(classes)) for z in range(source)]
    return sum(math.log(sum(joint[labels[i]][z] / total[z] * float(probabilities[i, z]) for z in range(source))) for i in range(n)) / n


def test_leep_is_its_definition() -> None:
    probabilities = drawn(60, 7, 0)
    assert float(leep(probabilities, LABELS)) == pytest.approx(written_out(probabilities, LABELS), abs=1e-12)


def test_leep_is_zero_where_predictions_determine_the_label() -> None:
    certain = torch.eye(6)[LABELS + 1]
    assert leep(certain, LABELS) == 0
    torch.testing.assert_close(expected_empirical_prediction(certain, LABELS), torch.eye(4, dtype=torch.float64)[LABELS])


def test_leep_of_constant_predictions_is_minus_the_entropy_of_the_labels() -> None:
    labels = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    constant = torch.tensor([0.7, 0.2, 0.1]).expand(10, 3)
    assert float(leep(constant, labels)) == pytest.approx(float((shares * shares.log()).sum()), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_leep_is_at_most_zero_and_blind_to_the_order_of_source_classes(seed) -> None:
    probabilities = drawn(60, 5, seed)
    found = leep(probabilities, LABELS)
    assert found <= 0
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(leep(probabilities[:, order], LABELS), found)


def test_predictions_of_the_target_sum_to_one_even_without_a_source_class() -> None:
    probabilities = torch.cat([drawn(60, 5, 0), torch.zeros(60, 1)], dim=1)
    eep = expected_empirical_prediction(probabilities, LABELS, 6)
    assert eep.shape == (60, 6)
    torch.testing.assert_close(eep.sum(dim=1), torch.ones(60, dtype=torch.float64))
    assert not eep[:, 4:].any()


def test_copies_of_a_model_add_in_ms_leep_and_change_nothing_in_e_leep() -> None:
    probabilities = drawn(60, 5, 0)
    single = leep(probabilities, LABELS)
    torch.testing.assert_close(ms_leep([probabilities] * 3, LABELS), 3 * single)
    torch.testing.assert_close(e_leep([probabilities] * 3, LABELS), single)


@pytest.mark.parametrize("seed", range(4))
def test_averaging_before_the_logarithm_is_at_least_averaging_after(seed) -> None:
    members = [drawn(60, 3 + index, 10 * seed + index) for index in range(3)]
    singles = [leep(one, LABELS) for one in members]
    torch.testing.assert_close(ms_leep(members, LABELS), sum(singles))
    likelihoods = [expected_empirical_prediction(one, LABELS)[torch.arange(60), LABELS] for one in members]
    torch.testing.assert_close(e_leep(members, LABELS), torch.stack(likelihoods).mean(dim=0).log().mean())
    assert e_leep(members, LABELS) > ms_leep(members, LABELS) / 3


def test_half_precision_is_counted_in_full() -> None:
    probabilities = drawn(60, 5, 0).to(torch.bfloat16)
    assert leep(probabilities, LABELS).dtype is torch.float64
    torch.testing.assert_close(leep(probabilities, LABELS), leep(probabilities.double(), LABELS))


def test_shapes_that_do_not_fit_are_told() -> None:
    with pytest.raises(ValueError, match=r"probabilities are \(n, C_source\) and labels \(n,\), n at least 1; found \(60, 5\), \(59,\)"):
        leep(drawn(60, 5, 0), LABELS[:59])
    with pytest.raises(ValueError, match="probabilities are of at least one model; found none"):
        e_leep([], LABELS)
