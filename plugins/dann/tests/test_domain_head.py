from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from graftwork_dann import DomainHead, domain_accuracy, domain_loss


def test_the_default_is_1024_1024_1_with_relu_and_dropout() -> None:
    head = DomainHead(256)
    assert [tuple(p.shape) for p in head.parameters()] == [(1024, 256), (1024,), (1024, 1024), (1024,), (1, 1024), (1,)]
    assert [block[2].p for block in head.hidden] == [0.5, 0.5]
    assert head(torch.randn(3, 256)).shape == (3,)


def test_more_than_two_domains_get_a_logit_each() -> None:
    assert DomainHead(5, (7,), domains=4)(torch.randn(3, 5)).shape == (3, 4)


def test_the_gaussian_initialisation_has_the_caffe_networks_deviations() -> None:
    torch.manual_seed(0)
    head = DomainHead(256, gaussian=True)
    assert head.hidden[0][0].weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert head.output.weight.std().item() == pytest.approx(0.3, rel=0.1)
    assert head.output.bias.item() == 0


def test_each_domain_weighs_alike_whatever_its_size() -> None:
    logits = torch.tensor([0.2, -0.4, 1.0, 0.3, -2.0], dtype=torch.float64)
    domain = torch.tensor([0, 0, 0, 0, 1])
    rows = functional.binary_cross_entropy_with_logits(logits, domain.double(), reduction="none")
    assert domain_loss(logits, domain).item() == pytest.approx((rows[:4].mean() + rows[4]).item())
    assert domain_loss(logits, domain, reduction="samples").item() == pytest.approx(rows.mean().item())
    doubled = domain_loss(logits[[0, 0, 1, 1, 2, 2, 3, 3, 4]], domain[[0, 0, 1, 1, 2, 2, 3, 3, 4]])
    assert doubled.item() == pytest.approx(domain_loss(logits, domain).item())


def test_three_domains_are_told_apart_by_a_softmax() -> None:
    logits, domain = torch.zeros(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
    assert domain_loss(logits, domain, 3).item() == pytest.approx(3 * math.log(3))


def test_a_domain_that_the_batch_lacks_adds_nothing() -> None:
    logits, domain = torch.randn(4, 3), torch.tensor([0, 0, 2, 2])
    expected = functional.cross_entropy(logits[:2], domain[:2]) + functional.cross_entropy(logits[2:], domain[2:])
    assert torch.allclose(domain_loss(logits, domain, 3), expected)
    assert domain_accuracy(logits, domain, 3).isfinite()


def test_half_precision_is_summed_in_single() -> None:
    assert domain_loss(torch.zeros(4, dtype=torch.bfloat16), torch.tensor([0, 0, 1, 1])).dtype == torch.float32


def test_accuracy_is_balanced_over_domains() -> None:
    always_source = torch.full((10,), -1.0)
    domain = torch.tensor([0] * 9 + [1])
    assert domain_accuracy(always_source, domain).item() == 0.5


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"domains": 1}, "at least two domains; found 1"), ({"hidden": (0,)}, "widths are at least 1"), ({"dropout": 1.0}, r"in \[0, 1\)")],
)
def test_bad_values_are_refused(parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DomainHead(4, **parameters)
