"""Coefficients to try, the search over them, and the registered merges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork_fisher_merging import (
    Merger,
    coefficient_set,
    diagonal_fisher,
    grid_coefficients,
    merge_models,
    random_coefficients,
    search_coefficients,
)


class Distance(gw.Evaluator):
    """How near the body is to what it should be, and the head's number of classes."""

    def __init__(self, aim: torch.Tensor, split: str = "val"):
        self.aim, self.split, self.seen = aim, split, []

    def evaluate(self, model, data, run=None) -> gw.Report:
        self.seen.append(model)
        return gw.Report({"nearness": -(model.body[0].weight - self.aim).square().mean().item(), "classes": float(model.num_classes)})


def aim(models, share: float) -> torch.Tensor:
    return (models[0].body[0].weight.lerp(models[1].body[0].weight, share)).detach()


# -- coefficients ----------------------------------------------------------------------------------------------------------------


def test_a_grid_is_even_and_has_both_ends() -> None:
    grid = grid_coefficients(51)
    assert len(grid) == 51
    assert grid[0] == (1.0, 0.0)
    assert grid[-1] == (0.0, 1.0)
    assert all(sum(pair) == pytest.approx(1) for pair in grid)
    assert [pair[1] for pair in grid] == pytest.approx([index / 50 for index in range(51)])


def test_random_coefficients_are_uniform_on_the_simplex_and_follow_their_seed() -> None:
    drawn = torch.tensor(random_coefficients(3, 4000, seed=1), dtype=torch.float64)
    torch.testing.assert_close(drawn.sum(dim=1), torch.ones(4000, dtype=torch.float64))
    assert (drawn >= 0).all()
    # Dirichlet(1, 1, 1): means 1/3, variances 1/18; five standard errors
    assert ((drawn.mean(dim=0) - 1 / 3).abs() < 5 * math.sqrt(1 / 18 / 4000)).all()
    torch.testing.assert_close(drawn.var(dim=0), torch.full((3,), 1 / 18, dtype=torch.float64), rtol=0.1, atol=0)
    assert random_coefficients(3, 5, seed=1) == random_coefficients(3, 5, seed=1) != random_coefficients(3, 5, seed=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("grid", 3, 5), 'mode "grid" takes 2 models; found 3: use mode "random"'),
        (("grid", 2, 1), "a grid with both ends has at least 2 points; found n_coeffs 1"),
        (("random", 3, 0), "models and n_coeffs are at least 1; found 3 and 0"),
        (("even", 2, 5), 'mode is "grid" or "random"; found "even"'),
    ],
)
def test_coefficient_sets_that_make_no_sense_are_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        coefficient_set(*arguments)


# -- the search ------------------------------------------------------------------------------------------------------------------


def test_the_best_merge_is_found_and_handed_back_with_the_whole_table(net) -> None:
    models = [net(0), net(1)]
    scores = Distance(aim(models, 0.3))
    best, search = search_coefficients(Merger(models), grid_coefficients(11), lambda m: scores.evaluate(m, None).metrics, ["nearness"])
    assert search.winner.coefficients == pytest.approx((0.7, 0.3))
    assert len(search.trials) == 11
    assert set(search.winner.metrics) == {"nearness", "classes"}
    torch.testing.assert_close(best.body[0].weight.detach(), aim(models, 0.3))
    assert search.isotropic


def test_one_module_is_written_in_place_for_all_merges(net, monkeypatch) -> None:
    models = [net(0), net(1)]
    scores = Distance(aim(models, 0.5))
    best, _ = search_coefficients(Merger(models), grid_coefficients(5), lambda m: scores.evaluate(m, None).metrics, ["nearness"])
    assert len(scores.seen) == 5
    assert all(one is best for one in scores.seen)
    assert best is not models[0]


def test_each_merge_in_place_is_what_a_merge_anew_gives(net, fisher_of) -> None:
    models = [net(0), net(1)]
    fishers = [fisher_of(model, seed) for seed, model in enumerate(models)]
    found = []

    def score(model: nn.Module) -> dict[str, float]:
        found.append([one.detach().clone() for one in model.parameters()])
        return {"score": 0.0}

    search_coefficients(Merger(models, fishers), grid_coefficients(4), score)
    for pair, parameters in zip(grid_coefficients(4), found, strict=True):
        fresh = merge_models(models, fishers, pair)
        assert all(torch.equal(a, b) for a, b in zip(parameters, fresh.parameters(), strict=True))


def test_the_score_is_the_mean_of_the_named_metrics_and_the_first_of_equals_wins(net) -> None:
    given = iter([{"a": 1.0, "b": 3.0}, {"a": 4.0, "b": 0.0}, {"a": 0.0, "b": 9.0}, {"a": math.nan, "b": 9.0}])
    _, search = search_coefficients(Merger([net(0), net(1)]), grid_coefficients(4), lambda model: next(given), ["a", "b"])
    assert [trial.score for trial in search.trials[:3]] == [2.0, 2.0, 4.5]
    assert search.best == 2
    given = iter([{"a": 1.0}, {"a": 0.5}, {"a": 0.5}])
    _, search = search_coefficients(Merger([net(0), net(1)]), grid_coefficients(3), lambda model: next(given), direction="lower")
    assert (search.best, search.metrics) == (1, ("a",))


def test_what_finishes_a_merge_is_done_before_each_score_and_on_the_best(net) -> None:
    order = []
    search_coefficients(
        Merger([net(0), net(1)]),
        grid_coefficients(2),
        lambda model: (order.append("score"), {"a": 1.0})[1],
        finish=lambda model: order.append("finish"),
    )
    assert order == ["finish", "score", "finish", "score", "finish"]


def test_a_search_that_cannot_choose_is_refused(net) -> None:
    merger = Merger([net(0), net(1)])
    with pytest.raises(gw.ConfigError, match="metrics is needed: the evaluator gives a, b"):
        search_coefficients(merger, grid_coefficients(2), lambda model: {"a": 1.0, "b": 2.0})
    with pytest.raises(
        gw.ConfigError, match=r'metrics: the evaluator gives no "accuracies" \(did you mean "accuracy"\?\); it gives accuracy'
    ):
        search_coefficients(merger, grid_coefficients(2), lambda model: {"accuracy": 1.0}, ["accuracies"])
    with pytest.raises(gw.DataError, match="the mean of a is finite for none of 2 merged models"):
        search_coefficients(merger, grid_coefficients(2), lambda model: {"a": math.nan})
    with pytest.raises(ValueError, match="there are no coefficients to try"):
        search_coefficients(merger, [], lambda model: {"a": 1.0})


# -- the components --------------------------------------------------------------------------------------------------------------


def artifacts(models) -> list[gw.Artifact]:
    return [diagonal_fisher(model, [torch.randn(16, 4)]).artifact(model) for model in models]


def test_the_registered_merges_are_the_functions(net, tmp_path) -> None:
    models = [net(0), net(1)]
    made = artifacts(models)
    for index, artifact in enumerate(made):
        artifact.save(tmp_path / str(index))
    merged = gw.model("fisher-merge", models=models, fishers=made, coefficients=[0.2, 0.8])
    stored = gw.model("fisher-merge", models=models, fisher_folders=[str(tmp_path / "0"), str(tmp_path / "1")], coefficients=[0.2, 0.8])
    expected = merge_models(models, made, [0.2, 0.8])
    for a, b, c in zip(merged.parameters(), stored.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, c)
    plain, none = gw.model("isotropic-merge", models=models), gw.model("fisher-merge", models=models)
    torch.testing.assert_close(plain.body[0].weight.detach(), aim(models, 0.5))
    assert torch.equal(plain.body[0].weight, none.body[0].weight)


def test_the_settings_of_the_registered_merge_reach_the_merge(net) -> None:
    models = [net(0), net(1)]
    made = artifacts(models)
    settings = {"fisher_floor": 10.0, "favor_target_model": False, "normalize_fishers": False, "mergeable": "^body.0"}
    merged = gw.model("fisher-merge", models=models, fishers=made, **settings)
    torch.testing.assert_close(merged.body[0].weight.detach(), aim(models, 0.5))  # the floor is above every Fisher
    assert torch.equal(merged.body[2].weight, models[0].body[2].weight)
    favoured = gw.model("fisher-merge", models=models, fishers=made, **{**settings, "favor_target_model": True})
    torch.testing.assert_close(favoured.body[0].weight.detach(), models[0].body[0].weight.detach(), rtol=0, atol=0.05)


def test_batch_norm_is_estimated_anew_where_a_split_is_named(net) -> None:
    models = [net(seed, batch_norm=True) for seed in range(2)]
    data = gw.Dataset({"train": gw.TensorSamples(features=torch.randn(64, 4) + 3)})
    merged = gw.model("isotropic-merge", models=models, data=data, batch_norm_split="train")
    hidden = merged.body[0](data["train"].columns["features"])
    torch.testing.assert_close(merged.body[1].running_mean, hidden.mean(dim=0).detach())
    with pytest.raises(gw.ConfigError, match="data and batch_norm_split belong together: give both, or neither"):
        gw.model("isotropic-merge", models=models, data=data)


def test_the_registered_search_carries_its_table(net) -> None:
    models = [net(0), net(1)]
    made = artifacts(models)
    data = gw.Dataset({})
    best = gw.model(
        "fisher-merge-search", models=models, evaluator=Distance(aim(models, 0.5)), data=data, metrics=["nearness"], fishers=made
    )
    assert len(best.merge_search.trials) == 51
    assert not best.merge_search.isotropic
    three = gw.model(
        "fisher-merge-search",
        models=[net(0), net(1), net(2)],
        evaluator=Distance(aim(models, 0.5)),
        data=data,
        metrics=["nearness"],
        mode="random",
        n_coeffs=4,
    )
    assert [len(trial.coefficients) for trial in three.merge_search.trials] == [3] * 4
    assert three.merge_search.isotropic


def test_the_registered_search_refuses_test_splits_and_grids_of_three(net) -> None:
    models, data = [net(0), net(1)], gw.Dataset({})
    with pytest.raises(gw.ConfigError, match='never on a test split; the evaluator reads "clean/test"'):
        gw.model("fisher-merge-search", models=models, evaluator=Distance(aim(models, 0.5), "clean/test"), data=data)
    with pytest.raises(gw.ConfigError, match='mode "grid" takes 2 models; found 3: use mode "random"'):
        gw.model("fisher-merge-search", models=[*models, net(2)], evaluator=Distance(aim(models, 0.5)), data=data)
    with pytest.raises(gw.ConfigError, match="fishers and fisher_folders are both given"):
        gw.model("fisher-merge", models=models, fishers=artifacts(models), fisher_folders=["a", "b"])
    with pytest.raises(gw.ConfigError, match=r"coefficients\.1: input should be greater than or equal to 0; found -1"):
        gw.model("fisher-merge", models=models, coefficients=[1, -1])
    with pytest.raises(gw.ArtifactError, match="holds no artifact"):
        gw.model("fisher-merge", models=models, fisher_folders=["nowhere", "else"])
