from __future__ import annotations

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork_dann import ProxyADistance, proxy_a_distance
from graftwork_dann.proxy_a_distance import STRENGTHS


def cloud(count: int, shift: float, seed: int) -> torch.Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize("probe", ["svm", "logistic"])
def test_domains_that_a_plane_separates_are_two_apart(probe: str) -> None:
    assert proxy_a_distance(cloud(300, -4, 0), cloud(300, 4, 1), probe)[0] == 2


@pytest.mark.parametrize("probe", ["svm", "logistic"])
def test_domains_of_one_distribution_are_near_zero(probe: str) -> None:
    distance, results = proxy_a_distance(cloud(600, 0, 0), cloud(600, 0, 1), probe)
    assert 0 <= distance < 0.3
    assert all(result.test_error <= 0.5 for result in results)


def test_the_least_error_over_c_counts() -> None:
    distance, results = proxy_a_distance(cloud(80, 0, 0), cloud(80, 0.7, 1))
    assert [result.strength for result in results] == pytest.approx([10.0**power for power in range(-5, 5)])
    assert distance == 2 * (1 - 2 * min(result.test_error for result in results))


@pytest.mark.parametrize("probe", ["svm", "logistic"])
def test_exchanging_the_domains_changes_nothing(probe: str) -> None:
    source, target = cloud(50, 0, 0), cloud(70, 0.5, 1)
    assert proxy_a_distance(source, target, probe)[0] == pytest.approx(proxy_a_distance(target, source, probe)[0], abs=0.03)


def test_half_of_each_domain_trains_and_half_is_held_out() -> None:
    """Points that lie in pairs of opposite domains: a memorised training half says nothing of the other."""
    from graftwork_dann.proxy_a_distance import _halves

    source, target = torch.arange(10.0)[:, None], 100 + torch.arange(7.0)[:, None]
    train, train_domain, test, test_domain = _halves(source, target, 0.5, seed=3)
    assert (len(train), len(test)) == (5 + 3, 5 + 4)
    assert set(train.flatten().tolist()) | set(test.flatten().tolist()) == {*source.flatten().tolist(), *target.flatten().tolist()}
    assert train_domain.tolist() == [0] * 5 + [1] * 3
    assert test_domain.tolist() == [0] * 5 + [1] * 4


def test_a_solver_that_stops_early_says_so() -> None:
    _, results = proxy_a_distance(cloud(100, 0, 0), cloud(100, 0.2, 1), max_iterations=20)
    assert not results[-1].converged


def test_few_samples_and_bad_features_are_refused() -> None:
    with pytest.raises(gw.DataError, match="at least 4 samples a domain; the target has 3"):
        proxy_a_distance(cloud(9, 0, 0), cloud(3, 0, 1))
    with pytest.raises(gw.DataError, match="the source's features are not finite"):
        proxy_a_distance(cloud(9, float("nan"), 0), cloud(9, 0, 1))
    with pytest.raises(gw.DataError, match="source features are 6 wide, target features 5"):
        proxy_a_distance(cloud(9, 0, 0), cloud(9, 0, 1)[:, :5])
    with pytest.raises(ValueError, match="limit is at least 4"):
        ProxyADistance("a", "b", limit=3)


def test_the_evaluator_measures_features_or_inputs_and_draws_the_errors(tower: nn.Module, data: gw.Dataset) -> None:
    report = ProxyADistance("source/test", "target/test").evaluate(tower.float(), data)
    assert set(report.metrics) == {"proxy-a-distance", "domain-error"}
    assert len(report.tables["errors"].rows) == len(STRENGTHS)
    assert report.figures["errors"].figure.axes
    rows = [data[split].columns["features"] for split in ("source/test", "target/test")]
    on_input = ProxyADistance("source/test", "target/test", on="input").evaluate(tower, data)
    assert on_input.metrics["proxy-a-distance"] == proxy_a_distance(*rows)[0]
    assert not ProxyADistance("source/test", "target/test", probe="logistic").evaluate(tower, data).figures


def test_distance_on_the_input_does_not_depend_on_the_model(towers: type[nn.Module], data: gw.Dataset) -> None:
    distances = set()
    for seed in range(2):
        torch.manual_seed(seed)
        distances.add(ProxyADistance("source/test", "target/test", on="input").evaluate(towers(), data).metrics["proxy-a-distance"])
    assert len(distances) == 1


def test_the_model_is_left_as_it_was(tower: nn.Module, data: gw.Dataset) -> None:
    tower.float().train()
    before = gw.fingerprint(tower)
    ProxyADistance("source/test", "target/test").evaluate(tower, data)
    assert tower.training
    assert gw.fingerprint(tower) == before
