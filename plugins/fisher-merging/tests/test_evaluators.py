"""The evaluators, and a pipeline from Fishers through a merge to its picture."""

from __future__ import annotations

import pytest
import torch
from matplotlib.figure import Figure as Canvas
from torch import nn

import graftwork as gw
from graftwork_fisher_merging import (
    MergeSearch,
    PredictionEnsemble,
    TaskHeads,
    Trial,
    diagonal_fisher,
    lend_body,
    merge_models,
)
from graftwork_fisher_merging.figures import draw_fisher, draw_search


def data(classes: int = 3, count: int = 60) -> gw.Dataset:
    generator = torch.Generator().manual_seed(0)
    splits = {
        split: gw.TensorSamples(features=torch.randn(count, 4, generator=generator), label=torch.arange(count) % classes)
        for split in ("train", "val", "test")
    }
    return gw.Dataset(splits, gw.DatasetInfo(classes=tuple("abc"), features=4))


# -- fisher-diagonal -------------------------------------------------------------------------------------------------------------


def test_the_evaluator_reports_the_fisher_as_an_artifact_of_this_model_and_data(net) -> None:
    model, given = net(0), data()
    report = gw.evaluator("fisher-diagonal", n_examples=50).evaluate(model, given)
    artifact = report.artifacts["fisher"].check("diagonal-fisher", model=model, dataset=given)
    expected = diagonal_fisher(model, [given["train"].columns["features"][:50]]).tensors
    for name, one in expected.items():
        torch.testing.assert_close(artifact.tensors[name], one)
    assert report.metrics["n-examples"] == 50
    assert report.metrics["fisher-trace"] == pytest.approx(sum(float(one.sum()) for one in expected.values()), rel=1e-5)
    assert report.metrics["fisher-norm"] == pytest.approx(sum(float(one.square().sum()) for one in expected.values()) ** 0.5, rel=1e-5)
    assert [row[0] for row in report.tables["parameters"].rows] == list(expected)
    assert report.tables["ways"].rows == [["layer", 6]]
    assert isinstance(report.figures["fisher"].figure, Canvas)


def test_labels_are_not_among_what_the_evaluator_reads_unless_it_is_empirical(net) -> None:
    assert gw.evaluator("fisher-diagonal").keys == ("inputs",)
    assert gw.evaluator("fisher-diagonal", estimator="empirical", predicts="class").keys == ("inputs", "label")
    assert gw.evaluator("fisher-diagonal", predicts="labelled-tokens").keys == ("inputs", "labels")
    features = {"train": gw.TensorSamples(features=torch.randn(8, 4))}
    assert gw.evaluator("fisher-diagonal").evaluate(net(0), gw.Dataset(features)).metrics["n-examples"] == 8


def test_an_empty_split_and_bad_parameters_are_told(net) -> None:
    empty = gw.Dataset({"train": gw.TensorSamples(features=torch.empty(0, 4))})
    with pytest.raises(gw.DataError, match="there is no example to compute a Fisher from"):
        gw.evaluator("fisher-diagonal").evaluate(net(0), empty)
    with pytest.raises(gw.ConfigError, match="draws: input should be greater than or equal to 1; found 0"):
        gw.evaluator("fisher-diagonal", draws=0)


def test_the_fisher_of_a_language_model_is_drawn_over_its_tokens() -> None:
    networks = pytest.importorskip("graftwork_testbed.zoo.networks", reason="needs the test bed's tiny language model")
    model = networks.tiny_lm()
    ids = torch.randint(5, 100, (6, 12), generator=torch.Generator().manual_seed(0))
    given = gw.Dataset({"train": gw.TensorSamples(input_ids=ids, attention_mask=torch.ones_like(ids))})
    report = gw.evaluator("fisher-diagonal", estimator="sampled", draws=2).evaluate(model, given)
    assert report.artifacts["fisher"].data["estimator"] == "sampled"
    tensors = report.artifacts["fisher"].tensors
    assert tensors["model.transformer.wte.weight"].any(dim=1).all()  # tied: every token is a possible output
    assert not tensors["model.transformer.wpe.weight"][12:].any()


# -- prediction-ensemble ---------------------------------------------------------------------------------------------------------


def test_the_ensemble_averages_probabilities_and_not_logits(net) -> None:
    models, given = [net(seed) for seed in range(3)], data()
    report = PredictionEnsemble(models).evaluate(None, given)
    x, y = (given["test"].columns[key] for key in ("features", "label"))
    mean = torch.stack([model(x).softmax(dim=1) for model in models]).mean(dim=0)
    assert report.metrics["accuracy"] == pytest.approx((mean.argmax(dim=1) == y).float().mean().item())
    expected = nn.functional.nll_loss(mean.log(), y).item()
    assert report.metrics["negative-log-likelihood"] == pytest.approx(expected, rel=1e-5)
    single = [(model(x).argmax(dim=1) == y).float().mean().item() for model in models]
    assert report.metrics["mean-accuracy"] == pytest.approx(sum(single) / 3)
    assert report.metrics["forward-passes"] == 3
    assert len(report.tables["members"].rows) == 4


def test_members_keep_their_modes_and_empty_splits_are_told(net) -> None:
    model = net(0).train()
    PredictionEnsemble([model]).evaluate(None, data())
    assert model.training
    with pytest.raises(gw.DataError, match='split "test" is empty'):
        PredictionEnsemble([model]).evaluate(None, gw.Dataset({"test": gw.TensorSamples(features=torch.empty(0, 4), label=torch.empty(0))}))
    with pytest.raises(ValueError, match="models names at least one model"):
        PredictionEnsemble([])


# -- task-heads ------------------------------------------------------------------------------------------------------------------


class Logits(gw.Evaluator):
    """The mean output of a model, and how many there are."""

    def __init__(self, split: str = "val"):
        self.split = split

    def evaluate(self, model, data, run=None) -> gw.Report:
        outputs = model(data[self.split].columns["features"])
        return gw.Report({"mean": outputs.mean().item(), f"width-{outputs.shape[1]}": 1.0})


def test_a_body_is_measured_under_each_tasks_own_head(net) -> None:
    models, given = [net(0), net(1, classes=7)], data()
    before = [gw.fingerprint(model) for model in models]
    merged = merge_models(models)
    report = TaskHeads(models, [Logits(), Logits("test")], ["digits", "letters"]).evaluate(merged, given)
    shells = [merged, merge_models(models[::-1])]
    means = [shell(given[split].columns["features"]).mean().item() for shell, split in zip(shells, ("val", "test"), strict=True)]
    assert report.metrics == pytest.approx(
        {"digits/mean": means[0], "digits/width-3": 1, "letters/mean": means[1], "letters/width-7": 1, "mean": sum(means) / 2}, rel=1e-4
    )
    assert report.tables["tasks"].columns == ["task", "mean"]
    assert [gw.fingerprint(model) for model in models] == before
    assert TaskHeads(models, [Logits(), Logits("test")]).split == ["val", "test"]


def test_a_body_is_lent_without_its_head_and_buffers(net) -> None:
    source, target = net(0, batch_norm=True), net(1, classes=7, batch_norm=True)
    target.body[1].running_mean.fill_(5.0)
    head = target.head.weight.clone()
    lend_body(source, target)
    assert torch.equal(target.body[0].weight, source.body[0].weight)
    assert torch.equal(target.head.weight, head)
    assert (target.body[1].running_mean == 5).all()


def test_tasks_without_an_evaluator_or_a_name_of_their_own_are_refused(net) -> None:
    models = [net(0), net(1)]
    for evaluators, tasks in (([Logits()], None), ([Logits(), Logits()], ["a", "a"]), ([Logits(), Logits()], ["a"])):
        with pytest.raises(ValueError, match="one evaluator and one name a model: 2 models"):
            TaskHeads(models, evaluators, tasks)


# -- merge-search ----------------------------------------------------------------------------------------------------------------


def searched(count: int) -> MergeSearch:
    vectors = [tuple(1.0 if index == place else 0.0 for index in range(count)) for place in range(count)]
    trials = [Trial(vector, float(place), {"a/x": float(place), "b/x": 1.0, "x": float(place)}) for place, vector in enumerate(vectors)]
    return MergeSearch(tuple(trials), count - 1, ("x",), "higher", False)


def test_what_a_search_tried_is_shown_and_handed_on(net) -> None:
    model = net(0)
    model.merge_search = searched(2)
    report = gw.evaluator("merge-search").evaluate(model, gw.Dataset({}))
    assert report.metrics == {"best-score": 1.0, "best-coefficient-0": 0.0, "best-coefficient-1": 1.0}
    assert report.tables["trials"].columns == ["lambda 0", "lambda 1", "score", "a/x", "b/x", "x"]
    artifact = report.artifacts["merge-coefficients"]
    assert artifact.tensors["coefficients"].tolist() == [[1, 0], [0, 1]]
    assert artifact.tensors["scores"].tolist() == [0, 1]
    assert artifact.data == {"metrics": ["x"], "direction": "higher", "best": 1, "isotropic": False}


def test_a_search_is_drawn_as_a_curve_for_two_models_and_a_panel_each_for_more() -> None:
    (curve,) = draw_search(searched(2)).axes
    assert [line.get_label() for line in curve.lines] == ["a/x", "b/x", "mean"]
    assert curve.lines[-1].get_xdata().tolist() == [0, 1]
    assert len(draw_search(searched(4)).axes) == 4


def test_a_fisher_is_drawn_a_row_a_parameter_and_zero_is_told() -> None:
    (axes,) = draw_fisher({"a": torch.rand(50), "b": torch.zeros(5), "c": torch.full((3,), 1e-20)}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert [text.get_text() for text in axes.texts] == ["about 0", "about 0"]


# -- the declarations ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["fisher-merge", "isotropic-merge", "fisher-merge-search", "fisher-diagonal", "prediction-ensemble", "task-heads"]
)
def test_every_declared_example_can_be_built(name) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn's digits")
    pytest.importorskip("graftwork_testbed", reason="needs the test bed's digits")
    from graftwork_fisher_merging import plugin

    for kind, hook in (("model", plugin.graftwork_models), ("evaluator", plugin.graftwork_evaluators)):
        for component in hook():
            if component.name == name:
                assert component.paper is plugin.PAPER
                make = gw.model if kind == "model" else gw.evaluator
                assert make(name, **component.example) is not None


# -- all of it -------------------------------------------------------------------------------------------------------------------


def test_a_pipeline_hands_fishers_from_stage_to_stage_and_merges(tmp_path) -> None:
    pytest.importorskip("graftwork_testbed", reason="needs the test bed's digits")
    pytest.importorskip("sklearn", reason="needs scikit-learn's digits")
    model = {"use": "mlp", "in_features": 192, "hidden": [16], "input": "image"}
    train = {"steps": 8, "optimizer": {"use": "adam", "lr": 3e-3}}
    models, fishers = [{"from": "one"}, {"from": "other"}], [{"from": "one/fisher"}, {"from": "other/fisher"}]

    def stage(domain: str, dataset) -> dict:
        evaluate = [{"use": "fisher-diagonal", "split": f"{domain}/train", "n_examples": 200}]
        tuning = {**train, "feeds": {"train": f"{domain}/train"}}
        return {"dataset": dataset, "model": model, "objective": "cross-entropy", "train": tuning, "evaluate": evaluate}

    heads = {
        "use": "task-heads",
        "models": models,
        "tasks": ["clean", "inverted"],
        "evaluators": [{"use": "accuracy", "split": f"{domain}/val"} for domain in ("clean", "inverted")],
    }
    pipeline = gw.Pipeline.from_dict(
        {
            "stages": {
                "one": stage("clean", {"use": "digit-domains", "size": 8, "domains": ["clean", "inverted"]}),
                "other": stage("inverted", {"from": "one"}),
                "merged": {
                    "dataset": {"from": "one"},
                    "model": {
                        "use": "fisher-merge-search",
                        "models": models,
                        "fishers": fishers,
                        "data": {"from": "one"},
                        "evaluator": heads,
                        "metrics": ["accuracy"],
                        "n_coeffs": 3,
                    },
                    "evaluate": ["merge-search", heads, {"use": "prediction-ensemble", "models": models, "split": "clean/val"}],
                },
                "swapped": {
                    "dataset": {"from": "one"},
                    "model": {"use": "fisher-merge", "models": models, "fishers": fishers},
                    "evaluate": [{"use": "accuracy", "split": "clean/val"}],
                },
            }
        }
    )
    result = pipeline.run(tmp_path / "run", device="cpu")
    assert result.metrics["merged/best-score"] == pytest.approx(result.metrics["merged/accuracy"])
    assert (tmp_path / "run/stages/merged/merge-search/search.png").exists()
    found = gw.Artifact.load(tmp_path / "run/stages/one/fisher-diagonal/fisher").check("diagonal-fisher", model=result.models["one"])
    assert found.data["n_examples"] == 200
    data = pipeline.document.data
    del data["stages"]["merged"]
    data["stages"]["swapped"]["model"]["fishers"] = fishers[::-1]
    with pytest.raises(gw.ArtifactError, match="cannot be used with model"):
        gw.Pipeline.from_dict(data).run(device="cpu")
