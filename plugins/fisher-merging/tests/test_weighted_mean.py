"""The merge of tensors: closed forms, the optimum, limits, floors, memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor

import graftwork as gw
from graftwork_fisher_merging import fisher_weighted_mean, merged_tensors
from graftwork_fisher_merging.weighted_mean import check_coefficients, fisher_norms, normalized


def tensors(count: int, dtype: torch.dtype = torch.float32, size: int = 500) -> list[Tensor]:
    return [torch.randn(size, dtype=dtype) for _ in range(count)]


def fishers(count: int, size: int = 500) -> list[Tensor]:
    return [torch.rand(size) ** 4 for _ in range(count)]


def test_two_gaussians_of_one_dimension_meet_at_a_quarter() -> None:
    found = fisher_weighted_mean([torch.tensor([0.0]), torch.tensor([1.0])], [0.5, 0.5], [torch.tensor([3.0]), torch.tensor([1.0])])
    assert found.item() == 0.25


def test_the_merge_is_the_closed_form() -> None:
    values, weights, coefficients = tensors(4), fishers(4), [0.1, 0.2, 0.3, 0.4]
    products = [c * f.double() for c, f in zip(coefficients, weights, strict=True)]
    expected = sum(p * v.double() for p, v in zip(products, values, strict=True)) / sum(products)
    torch.testing.assert_close(fisher_weighted_mean(values, coefficients, weights, floor=0), expected.float(), rtol=1e-5, atol=1e-6)


def test_the_gradient_of_the_weighted_log_posteriors_is_0_at_the_merge() -> None:
    values, weights, coefficients = tensors(3, torch.float64), [one.double() + 0.1 for one in fishers(3)], [0.2, 0.5, 0.3]
    theta = fisher_weighted_mean(values, coefficients, weights, floor=0).requires_grad_()
    log_posteriors = [
        torch.distributions.Normal(v, w.rsqrt()).log_prob(theta).sum() * c for v, w, c in zip(values, weights, coefficients, strict=True)
    ]
    (gradient,) = torch.autograd.grad(sum(log_posteriors), theta)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize("weights", [None, [torch.full((500,), 0.7)] * 3])
def test_the_merge_of_equal_fishers_is_the_mean(weights) -> None:
    values = tensors(3)
    found = fisher_weighted_mean(values, [1 / 3] * 3, weights)
    torch.testing.assert_close(found, torch.stack(values).mean(dim=0), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("weights", [None, "fishers"])
def test_all_the_weight_on_one_model_gives_that_model_exactly(dtype, weights) -> None:
    values = tensors(3, dtype)
    given = None if weights is None else [one + 1e-3 for one in fishers(3)]
    for index in range(3):
        coefficients = [float(index == position) for position in range(3)]
        assert torch.equal(fisher_weighted_mean(values, coefficients, given), values[index])


def test_copies_of_one_model_give_that_model_exactly() -> None:
    (value,) = tensors(1)
    assert torch.equal(fisher_weighted_mean([value] * 4, [0.1, 0.2, 0.3, 0.4], fishers(4)), value)


def test_no_entry_leaves_the_range_of_the_models() -> None:
    for seed in range(50):
        torch.manual_seed(seed)
        values = [1 + 1e-6 * one for one in tensors(3)]  # where rounding matters
        found = fisher_weighted_mean(values, torch.rand(3).tolist(), fishers(3))
        stacked = torch.stack(values)
        assert (found >= stacked.amin(dim=0)).all()
        assert (found <= stacked.amax(dim=0)).all()


def test_where_no_fisher_says_anything_the_target_wins_or_the_mean() -> None:
    values, zero = tensors(3), [torch.zeros(500)] * 3
    mean = torch.stack(values).mean(dim=0)
    for floor in (1e-6, 0.0):
        assert torch.equal(fisher_weighted_mean(values, [1 / 3] * 3, zero, floor), values[0])
        found = fisher_weighted_mean(values, [1 / 3] * 3, zero, floor, favor_target=False)
        torch.testing.assert_close(found, mean, rtol=1e-6, atol=1e-7)
    assert torch.equal(fisher_weighted_mean(values, [0.0, 0.5, 0.5], zero), values[0])  # without a weight of its own, too


def test_the_floor_holds_for_the_target_alone_or_for_all() -> None:
    values, weights = [torch.zeros(1), torch.ones(1)], [torch.zeros(1), torch.tensor([0.25])]
    assert fisher_weighted_mean(values, [0.5, 0.5], weights, floor=0.75).item() == 0.25
    assert fisher_weighted_mean(values, [0.5, 0.5], weights, floor=0.75, favor_target=False).item() == 0.5
    weights = [torch.tensor([0.25]), torch.zeros(1)]
    assert fisher_weighted_mean(values, [0.5, 0.5], weights, floor=0.75).item() == 0.0


def test_half_precision_is_averaged_in_float32() -> None:
    values = [torch.full((1,), 2048.0, dtype=torch.float16), torch.full((1,), 2050.0, dtype=torch.float16)] * 8
    assert fisher_weighted_mean(values, [1 / 16] * 16).item() in (2048.0, 2050.0)  # 2049 is no float16; its sum would be infinite
    found = fisher_weighted_mean([one.bfloat16() for one in values], [1.0] * 16)
    assert found.dtype == torch.bfloat16


def test_scaling_one_fisher_changes_nothing_once_norms_are_divided_out() -> None:
    values, weights, coefficients = tensors(2), fishers(2), [0.5, 0.5]
    scaled = [weights[0], 1000 * weights[1]]

    def merge(some: list[Tensor], normalize: bool) -> Tensor:
        norms = fisher_norms([{"a": one} for one in some], ["a"])
        return fisher_weighted_mean(values, normalized(coefficients, norms) if normalize else coefficients, some, floor=0)

    torch.testing.assert_close(merge(weights, True), merge(scaled, True), rtol=1e-4, atol=1e-6)
    before, after = ((merge(some, False) - values[1]).abs() for some in (weights, scaled))
    assert (after <= before).all()
    assert (after[before > 0.01] < before[before > 0.01]).all()


def test_norms_are_over_everything_that_is_merged_and_nothing_else() -> None:
    fisher = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]]), "head": torch.tensor([100.0])}
    assert fisher_norms([fisher], ["a", "b"]) == [5.0]
    assert normalized([0.5, 0.5], [5.0, 0.0]) == [0.1, 0.5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e-3])
def test_a_damaged_fisher_is_named(bad) -> None:
    with pytest.raises(gw.ArtifactError, match='the Fisher of model 1 has numbers that are negative or not finite in "b": compute it anew'):
        fisher_norms([{"a": torch.ones(2), "b": torch.ones(2)}, {"a": torch.ones(2), "b": torch.tensor([1.0, bad])}], ["a", "b"])
    with pytest.raises(gw.ArtifactError, match='the Fisher of model 0 has no "b", which is to be merged'):
        fisher_norms([{"a": torch.ones(2)}], ["a", "b"])


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ([0.5, -0.1], r"coefficients are not negative and not all 0; found \[0.5, -0.1\]"),
        ([0.0, 0.0], "not all 0"),
        ([0.5, float("nan")], "not negative"),
        ([1.0], r"there are 2 models but 1 coefficients: \[1.0\]"),
    ],
)
def test_bad_coefficients_are_refused(coefficients, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_coefficients(coefficients, 2)


def test_fewer_tensors_than_coefficients_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 3 coefficients, but fewer values or Fishers"):
        fisher_weighted_mean(tensors(2), [0.3, 0.3, 0.4])
    with pytest.raises(ValueError, match="there are 2 coefficients, but fewer values or Fishers"):
        fisher_weighted_mean(tensors(2), [0.5, 0.5], fishers(1))


class Watched(Mapping[str, Tensor]):
    """A checkpoint that counts how many of the tensors it gave are held at once."""

    alive: weakref.WeakSet = weakref.WeakSet()
    most = 0

    def __getitem__(self, key: str) -> Tensor:
        found = torch.rand(10)
        Watched.alive.add(found)
        Watched.most = max(Watched.most, len(Watched.alive))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter("abcdefgh")

    def __len__(self) -> int:
        return 8


def test_merging_key_by_key_holds_a_few_tensors_whatever_the_number_of_models() -> None:
    models, weights = [Watched() for _ in range(10)], [Watched() for _ in range(10)]
    for _ in merged_tensors(models, list(models[0]), [0.1] * 10, weights):
        pass
    assert Watched.most <= 5  # of 20 that were given for each key
