"""The registered components: what each reports, hands on and refuses."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import weightedtau

import graftwork as gw
from graftwork_osborn import AveragedEnsemble, EnsembleAccuracy, e_leep, leep, subset_accuracies, transferability_correlation
from graftwork_osborn.plugin import graftwork_evaluators, graftwork_models


@pytest.fixture
def logits(pool, data) -> list[torch.Tensor]:
    x = data["train"].columns["features"]
    return [model(x).detach() for model in pool.values()]


def labels_of(data: gw.Dataset, split: str = "train") -> torch.Tensor:
    return data[split].columns["label"]


def test_leep_reports_the_eep_and_draws_what_source_classes_say(net, data, pool, logits) -> None:
    report = gw.evaluator("leep").evaluate(pool["model-2"], data)
    assert report.metrics["leep"] == pytest.approx(float(leep(logits[2].softmax(dim=1), labels_of(data))), abs=1e-6)
    eep = report.artifacts["eep"].tensors["eep"]
    assert eep.shape == (24, 3)
    torch.testing.assert_close(eep.sum(dim=1), torch.ones(24, dtype=torch.float64))
    assert [row[0] for row in report.tables["classes"].rows] == ["a", "b", "c"]
    image = report.figures["conditional"].figure.axes[0].images[0].get_array()
    assert image.shape == (3, 4)
    assert image.sum(axis=0).tolist() == pytest.approx([1] * 4)


def test_ms_leep_and_e_leep_score_the_pool_and_all_subsets(pool, data, logits) -> None:
    probabilities, labels = [one.softmax(dim=1) for one in logits], labels_of(data)
    singles = [float(leep(one, labels)) for one in probabilities]
    summed = gw.evaluator("ms-leep", pool=pool, k=2).evaluate(None, data)
    averaged = gw.evaluator("e-leep", pool=pool, k=2).evaluate(None, data)
    assert summed.metrics["ms-leep"] == pytest.approx(sum(singles), abs=1e-6)
    assert averaged.metrics["e-leep"] == pytest.approx(float(e_leep(probabilities, labels)), abs=1e-6)
    for report, of in (
        (summed, lambda one: sum(singles[i] for i in one)),
        (averaged, lambda one: e_leep([probabilities[i] for i in one], labels)),
    ):
        scores = report.artifacts["scores"]
        assert scores.data == {"names": list(pool), "higher_is_better": True}
        for subset, value in zip(scores.tensors["subsets"].tolist(), scores.tensors["values"].tolist(), strict=True):
            assert value == pytest.approx(float(of(subset)), abs=1e-6)
        assert len(report.tables["ranking"].rows) == 3
    assert "scores" not in gw.evaluator("e-leep", pool=pool).evaluate(None, data).artifacts


def test_otce_is_the_plain_sum_of_its_models(pool, data, sources) -> None:
    report = gw.evaluator("otce", pool=pool, sources=sources, k=2, weights=(0.5, 2)).evaluate(None, data)
    rows = report.tables["models"].rows
    assert report.metrics["domain"] == pytest.approx(sum(row[1] for row in rows))
    assert report.metrics["task"] == pytest.approx(sum(row[2] for row in rows))
    assert all(row[3] == pytest.approx(0.5 * row[1] + 2 * row[2]) for row in rows)
    scores = report.artifacts["scores"]
    assert scores.data["higher_is_better"] is False
    for subset, value in zip(scores.tensors["subsets"].tolist(), scores.tensors["values"].tolist(), strict=True):
        assert value == pytest.approx(sum(rows[index][3] for index in subset))
    other = gw.evaluator("otce", pool=pool, sources=sources, task={"given": "target"}).evaluate(None, data)
    assert other.metrics["task"] != pytest.approx(report.metrics["task"])


def test_osborn_measures_ranks_selects_and_hands_its_table_on(pool, data, sources) -> None:
    evaluator = gw.evaluator("osborn", pool=pool, sources=sources, k=2)
    report = evaluator.evaluate(None, data)
    score = evaluator.score(evaluator.table(data))
    assert report.metrics["best-score"] == pytest.approx(min(score.score(pair) for pair in itertools.combinations(range(3), 2)))
    selection = report.tables["selection"].rows
    assert [row[0] for row in selection] == [1, 2]
    assert report.metrics["greedy-score"] == pytest.approx(-sum(row[2] for row in selection))
    assert 0 <= report.metrics["greedy-share"] <= 1
    assert (report.metrics["greedy-rank"] == 1) == (report.metrics["greedy-share"] == 1)
    assert report.tables["cohesion"].columns == ["H(row | column)", *pool]
    bars, heat = report.figures["pool"].figure.axes[:2]
    assert [text.get_text() for text in bars.texts] == ["1", "2"]
    assert heat.images[0].get_array().shape == (3, 3)

    measured = report.artifacts["table"]
    again = gw.evaluator("osborn", measured=measured, k=2)
    assert again.evaluate(None, gw.Dataset({})).metrics == report.metrics
    baseline = gw.evaluator("osborn", measured=measured, k=2, terms=["leep"], standardise=False).evaluate(None, gw.Dataset({}))
    summed = gw.evaluator("ms-leep", pool=pool, k=2).evaluate(None, data).artifacts["scores"]
    torch.testing.assert_close(baseline.artifacts["scores"].tensors["values"], -summed.tensors["values"])
    assert baseline.artifacts["scores"].dataset == data.fingerprint()


def test_source_sets_may_lie_in_datasets_of_their_own(pool, data, sources) -> None:
    elsewhere = {"model-1": gw.Dataset({"mine": data["source-1"]})}
    split = gw.evaluator("osborn", pool=pool, sources={**sources, "model-1": "mine"}, source_data=elsewhere, k=1).evaluate(None, data)
    assert split.metrics == gw.evaluator("osborn", pool=pool, sources=sources, k=1).evaluate(None, data).metrics


def test_every_subset_is_the_mean_of_its_members_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    tables, labels = torch.rand(5, 40, 3, generator=generator).softmax(dim=2), torch.randint(3, (40,), generator=generator)
    subsets = torch.tensor(list(itertools.combinations(range(5), 3)))
    found = subset_accuracies(tables, labels, subsets)
    for subset, accuracy in zip(subsets.tolist(), found.tolist(), strict=True):
        assert accuracy == pytest.approx((tables[subset].mean(dim=0).argmax(dim=1) == labels).double().mean().item())
    assert torch.equal(subset_accuracies(tables, labels, subsets, budget=1), found)
    with pytest.raises(ValueError, match=r"probabilities are \(M, n, C\), labels \(n,\) and subsets \(N, k\)"):
        subset_accuracies(tables[0], labels, subsets)


def test_ensemble_accuracy_is_measured_for_every_subset_by_one_pass_of_each_model(net, data) -> None:
    pool, passes = {f"m{seed}": net(3, seed=seed) for seed in range(4)}, []
    for model in pool.values():
        model.body.register_forward_hook(lambda *_: passes.append(1))
    report = EnsembleAccuracy(pool, k=2).evaluate(None, data)
    assert len(passes) == 4
    artifact = report.artifacts["accuracies"]
    x, y = (data["test"].columns[key] for key in ("features", "label"))
    for subset, accuracy in zip(artifact.tensors["subsets"].tolist(), artifact.tensors["values"].tolist(), strict=True):
        ensemble = AveragedEnsemble([list(pool.values())[index] for index in subset])
        assert accuracy == pytest.approx((ensemble(x).argmax(dim=1) == y).double().mean().item())
    assert report.metrics["best-accuracy"] == max(artifact.tensors["values"])
    with pytest.raises(gw.DataError, match="an ensemble's models tell the same classes apart; found 3, 4 of them"):
        EnsembleAccuracy({"a": net(3), "b": net(4)}, k=1).evaluate(None, data)


def test_the_averaged_ensemble_is_the_log_of_the_mean_softmax(net) -> None:
    members = [net(seed=seed) for seed in range(3)]
    ensemble, x = gw.model("averaged-ensemble", models=members), torch.randn(6, 4)
    torch.testing.assert_close(ensemble(x).exp(), torch.stack([one(x).softmax(dim=1) for one in members]).mean(dim=0))
    assert (ensemble.inputs, ensemble.num_classes) == (("features",), 3)
    ensemble(x).sum().backward()
    assert members[2].body.weight.grad is not None
    assert AveragedEnsemble([net(seed=9) for _ in range(3)]).load_state_dict(ensemble.state_dict())
    assert ensemble.bfloat16()(x.bfloat16()).dtype is torch.float32


def test_members_that_do_not_fit_are_refused(net, pixel_net) -> None:
    with pytest.raises(gw.InterfaceError, match="the members of an averaged-ensemble have one num_classes; found 3 and 4"):
        AveragedEnsemble([net(3), net(4)])
    with pytest.raises(gw.InterfaceError, match=r"have one inputs; found \('features',\) and \('image',\)"):
        AveragedEnsemble([net(3), pixel_net(3)])
    with pytest.raises(ValueError, match="models names at least one classifier"):
        AveragedEnsemble([])


def test_correlations_are_those_of_scipy_with_the_sign_turned_for_costs() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, generator=generator, dtype=torch.float64)
    accuracies = scores + torch.randn(50, generator=generator, dtype=torch.float64)
    found = transferability_correlation(scores, accuracies)
    assert found.pearson == pytest.approx(float(torch.corrcoef(torch.stack([scores, accuracies]))[0, 1]))
    assert found.weighted_kendall == pytest.approx(weightedtau(scores.numpy(), accuracies.numpy()).statistic)
    agree = sum(((scores[i] - scores[j]) * (accuracies[i] - accuracies[j])).sign() for i, j in itertools.combinations(range(50), 2))
    assert found.kendall == pytest.approx(float(agree) / 1225)
    assert found.selected_accuracy == accuracies[scores.argmax()]
    assert transferability_correlation(-scores, accuracies, higher_is_better=False) == found
    for given, truth, message in (
        ([1.0], [1.0], "two vectors of one length, at least 2"),
        ([1.0, 2.0], [0.5, 0.5], "all 2 accuracies are 0.5: there is no order to find"),
        ([1.0, float("nan")], [0.5, 0.6], "the scores are not finite"),
    ):
        with pytest.raises(gw.DataError, match=message):
            transferability_correlation(given, truth)


def subset_values(kind: str, names: list[str], values: list[float], **settings) -> gw.Artifact:
    pairs = torch.tensor(list(itertools.combinations(range(len(names)), 2)))
    data = {"names": names, "higher_is_better": settings.pop("higher_is_better", True)}
    tensors = {"subsets": pairs, "values": torch.tensor(values, dtype=torch.float64)}
    return gw.Artifact(f"subset-{kind}", tensors, data, **settings)


def test_subsets_are_aligned_by_the_names_of_their_models() -> None:
    accuracies = subset_values("accuracies", ["a", "b", "c"], [0.1, 0.2, 0.3])  # ab, ac, bc
    costs = subset_values("scores", ["c", "a", "b"], [-2.0, -3.0, -1.0], higher_is_better=False)  # ca, cb, ab
    report = gw.evaluator("transferability-correlation", scores=[costs] * 2, accuracies=[accuracies] * 2).evaluate(None, gw.Dataset({}))
    assert report.metrics["pearson"] == pytest.approx(1)
    assert report.metrics["kendall"] == report.metrics["weighted-kendall"] == pytest.approx(1)
    assert report.metrics["selected-accuracy"] == pytest.approx(0.3)
    assert report.metrics["share-of-best"] == 1
    assert len(report.figures["correlation"].figure.axes) == 2


def test_metrics_are_means_over_targets() -> None:
    accuracies = subset_values("accuracies", ["a", "b", "c"], [0.1, 0.2, 0.3])
    right, wrong = (subset_values("scores", ["a", "b", "c"], values) for values in ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]))
    evaluator = gw.evaluator("transferability-correlation", scores=[right, wrong], accuracies=[accuracies] * 2, targets=["scenes", "faces"])
    report = evaluator.evaluate(None, gw.Dataset({}))
    assert report.metrics["pearson"] == pytest.approx(0)
    assert report.metrics["selected-accuracy"] == pytest.approx(0.2)
    assert [row[:2] for row in report.tables["targets"].rows] == [["scenes", pytest.approx(1)], ["faces", pytest.approx(-1)]]


def test_scores_and_accuracies_of_other_pools_subsets_or_data_are_refused() -> None:
    def evaluated(scores: gw.Artifact, accuracies: gw.Artifact) -> gw.Report:
        return gw.evaluator("transferability-correlation", scores=[scores], accuracies=[accuracies]).evaluate(None, gw.Dataset({}))

    accuracies = subset_values("accuracies", ["a", "b", "c"], [0.1, 0.2, 0.3], dataset="1" * 64)
    with pytest.raises(gw.DataError, match='target "1": scores are of a, b, d; accuracies of a, b, c'):
        evaluated(subset_values("scores", ["a", "b", "d"], [1.0, 2.0, 3.0]), accuracies)
    with pytest.raises(gw.DataError, match='target "1": scores are of data 222222222222, accuracies of 111111111111'):
        evaluated(subset_values("scores", ["a", "b", "c"], [1.0, 2.0, 3.0], dataset="2" * 64), accuracies)
    with pytest.raises(gw.ArtifactError, match='"subset-scores" is expected; this one is "subset-accuracies"'):
        evaluated(accuracies, accuracies)
    part = subset_values("scores", ["a", "b", "c"], [1.0, 2.0, 3.0])
    part.tensors["subsets"][0] = part.tensors["subsets"][1]
    with pytest.raises(gw.DataError, match='target "1": the subset a, c has no accuracy'):
        evaluated(part, subset_values("accuracies", ["a", "b", "c"], [0.1, 0.2, 0.3]))
    with pytest.raises(gw.ConfigError, match="scores, accuracies and targets are one a target; found 1, 2 and 1"):
        gw.evaluator("transferability-correlation", scores=[part], accuracies=[accuracies] * 2)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"k": 4}, "k is 1 to 3, the number of models in the pool; found 4"),
        ({"k": 0}, "k: input should be greater than or equal to 1; found 0"),
        ({"sources": {"model-0": "source-0"}}, "osborn needs each model's source dataset to measure W_D; sources has no split for model-1"),
        ({"pool": {}}, "pool names at least one model"),
        ({"weights": [1.0]}, "with a weight each; found"),
        ({"terms": ["domain", "domain"]}, "each once, with a weight each"),
        ({"transport": {"solver": "simplex"}}, "transport.*input should be 'emd', 'sinkhorn' or 'frobenius'; found 'simplex'"),
        ({"measured": gw.Artifact("transferability-table")}, "give a pool to measure, or what was measured, and not both"),
    ],
)
def test_parameters_that_do_not_fit_are_told_before_anything_runs(pool, sources, parameters, message) -> None:
    with pytest.raises(gw.ConfigError, match=message):
        gw.evaluator("osborn", **{"pool": pool, "sources": sources, **parameters})


def test_a_source_set_of_no_model_is_told(pool, sources) -> None:
    with pytest.raises(gw.ConfigError, match="sources are given for stranger, which the pool lacks; it has model-0, model-1, model-2"):
        gw.evaluator("otce", pool=pool, sources={**sources, "stranger": "train"})


def test_every_evaluator_says_which_direction_is_better() -> None:
    costs = {"otce", "osborn"}
    components = list(graftwork_evaluators())
    assert len(components) == 8
    for component in components:
        module, name = component.target.split(":")
        evaluator = getattr(__import__(module, fromlist=[name]), name)
        assert evaluator.higher_is_better is (component.name not in costs)
        assert component.paper is not None
    assert [component.name for component in graftwork_models()] == ["averaged-ensemble"]
