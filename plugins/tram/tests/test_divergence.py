"""Divergences of predictions: against the card's numbers, torch's own KL, naive loops in float64, and their symmetries."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from graftwork_tram import Divergence, kl_divergence, l2_distance, mmd
from graftwork_tram.divergence import BANDWIDTHS, kl_rows

TARGET = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.2, 0.1]], dtype=torch.float64)
MODEL = torch.tensor([[0.8, 0.1, -0.5], [0.0, 0.4, 0.1]], dtype=torch.float64)
ALL = ("forward-kl", "reverse-kl", "symmetric-kl", "l2", "mmd")


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("kind", "value"), [("forward", 0.0361779845), ("reverse", 0.0365562834), ("symmetric", 0.0727342678)])
def test_kl_has_the_published_values(kind, value) -> None:
    assert kl_divergence(TARGET, MODEL, kind).item() == pytest.approx(value, abs=1e-9)


@pytest.mark.filterwarnings("ignore:reduction")
def test_the_codes_reduction_is_torchs_mean_divided_by_the_batch_again() -> None:
    found = kl_divergence(TARGET, MODEL, reduction="code")
    elements = functional.kl_div(MODEL.log_softmax(-1), TARGET.log_softmax(-1), log_target=True, reduction="none")
    torch.testing.assert_close(found, elements.mean() / 2)
    assert found.item() == pytest.approx(0.0060296641, abs=1e-9)


@pytest.mark.parametrize("name", ["l2", "mmd"])
def test_the_codes_reduction_divides_the_others_by_the_batch(name) -> None:
    torch.testing.assert_close(Divergence(name, "code")(TARGET, MODEL), Divergence(name)(TARGET, MODEL) / 2)


@pytest.mark.parametrize("kind", ["forward", "reverse", "symmetric"])
def test_kl_is_the_sum_over_classes_averaged_over_rows(kind) -> None:
    target, model = logits(7, 4), logits(7, 4, seed=1)
    expected = 0.0
    for a, b in zip(target.softmax(1).tolist(), model.softmax(1).tolist(), strict=True):
        forward = sum(p * math.log(p / q) for p, q in zip(a, b, strict=True))
        reverse = sum(q * math.log(q / p) for p, q in zip(a, b, strict=True))
        expected += {"forward": forward, "reverse": reverse, "symmetric": forward + reverse}[kind] / 7
    assert kl_divergence(target, model, kind).item() == pytest.approx(expected, rel=1e-12)
    assert kl_rows(target, model, kind).mean().item() == pytest.approx(expected, rel=1e-12)


def test_l2_is_the_mean_distance_of_rows() -> None:
    target, model = logits(7, 4), logits(7, 4, seed=1)
    expected = sum(math.dist(a, b) for a, b in zip(target.tolist(), model.tolist(), strict=True)) / 7
    assert l2_distance(target, model).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("kernel", "of"),
    [
        ("imq", lambda d, k: k / (k + d)),
        ("imq2", lambda d, k: 1 / math.sqrt(k * k + d)),
        ("imq3", lambda d, k: k * k / (k * k + d)),
        ("rbf", lambda d, k: math.exp(-0.5 * d / k)),
    ],
)
def test_mmd_is_the_mean_over_pairs_of_the_kernels_sum(kernel, of) -> None:
    target, model = logits(5, 3).tolist(), logits(5, 3, seed=1).tolist()

    def mean(first, second) -> float:
        return sum(of(math.dist(a, b) ** 2, k) for a in first for b in second for k in BANDWIDTHS) / 25

    expected = mean(target, target) + mean(model, model) - 2 * mean(target, model)
    assert mmd(torch.tensor(target).double(), torch.tensor(model).double(), kernel).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_it_is_zero_for_equal_predictions_and_above_otherwise(name) -> None:
    divergence, target, model = Divergence(name), logits(6, 4).float(), logits(6, 4, seed=1).float()
    assert divergence(target, target.clone()).item() == 0
    assert divergence(target, model).item() > 0


@pytest.mark.parametrize("name", ALL)
def test_rounding_never_makes_it_negative(name) -> None:
    target = logits(64, 50).float()
    for scale in (1e-8, 1e-7, 1e-6):
        assert Divergence(name)(target, target + scale * logits(64, 50, seed=1).float()).item() >= 0


@pytest.mark.parametrize("name", ALL)
def test_permuting_the_batch_changes_nothing(name) -> None:
    target, model, order = logits(9, 4), logits(9, 4, seed=1), torch.randperm(9, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(Divergence(name)(target[order], model[order]), Divergence(name)(target, model))


@pytest.mark.parametrize("reduction", ["batchmean", "code"])
@pytest.mark.parametrize("name", ALL)
def test_padding_does_not_count_and_tokens_count_alike(name, reduction) -> None:
    target, model = logits(2, 4, 5), logits(2, 4, 5, seed=1)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    divergence = Divergence(name, reduction)
    found = divergence(target, model, mask)
    kept = Divergence(name)(target[mask.bool()], model[mask.bool()])
    factor = {"batchmean": 1, "code": 2 if name in ("l2", "mmd") else 2 * 5}[reduction]
    torch.testing.assert_close(found, kept / factor)
    other = torch.where(mask[..., None].bool(), model, 100 * model)
    torch.testing.assert_close(divergence(target, other, mask), found)


@pytest.mark.parametrize("name", ALL)
def test_classes_of_maps_are_on_axis_one(name) -> None:
    target, model = logits(2, 5, 3, 3), logits(2, 5, 3, 3, seed=1)
    flat = [one.movedim(1, -1).reshape(-1, 5) for one in (target, model)]
    torch.testing.assert_close(Divergence(name)(target, model), Divergence(name)(*flat))
    moved = [one.movedim(1, 2) for one in (target, model)]
    torch.testing.assert_close(Divergence(name, dim=2)(*moved), Divergence(name)(*flat))


def test_a_class_that_the_target_rules_out_adds_nothing() -> None:
    target, model = TARGET.clone(), MODEL.clone()
    target[:, 2] = -torch.inf
    model[:, 2] = -torch.inf
    torch.testing.assert_close(kl_divergence(target, model), kl_divergence(target[:, :2], model[:, :2]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_half_precision_logits_are_compared_in_float32(name, dtype) -> None:
    target, model = logits(6, 4).to(dtype), logits(6, 4, seed=1).to(dtype)
    found = Divergence(name)(target, model)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, Divergence(name)(target.float(), model.float()))


def test_the_scale_multiplies() -> None:
    torch.testing.assert_close(Divergence(scale=3.0)(TARGET, MODEL), 3 * Divergence()(TARGET, MODEL))


@pytest.mark.parametrize("name", ALL)
def test_gradients_flow_to_both_sides(name) -> None:
    target, model = logits(4, 3).requires_grad_(), logits(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(Divergence(name), (target, model))


def test_the_distance_of_equal_predictions_has_the_gradient_zero() -> None:
    model = TARGET.clone().requires_grad_()
    l2_distance(TARGET, model).backward()
    assert not model.grad.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kl_divergence(TARGET, MODEL[:, :2]), r"target logits \(2, 3\) and logits \(2, 2\) differ in shape"),
        (lambda: kl_divergence(TARGET[0], MODEL[0]), r"logits are \(batch, ..., classes\); found \(3,\)"),
        (lambda: kl_divergence(TARGET, MODEL, "backward"), 'type is one of forward, reverse, symmetric; found "backward"'),
        (lambda: kl_divergence(TARGET, MODEL, reduction="sum"), 'reduction is one of batchmean, code; found "sum"'),
        (lambda: l2_distance(TARGET, MODEL, mask=torch.ones(3)), r"mask \(3,\) is not logits \(2, 3\) without the classes"),
        (lambda: mmd(TARGET, MODEL, "linear"), 'kernel is one of imq, imq2, imq3, rbf; found "linear"'),
        (lambda: mmd(TARGET, MODEL, bandwidths=[0.0]), r"bandwidths are one or more numbers above 0; found \[0.0\]"),
        (lambda: Divergence("kl"), 'divergence is one of forward-kl, .*; found "kl"'),
        (lambda: Divergence(scale=0.0), "logit_scale is above 0; found 0.0"),
    ],
)
def test_bad_input_is_named(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
