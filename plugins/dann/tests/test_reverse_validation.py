from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import graftwork as gw
from graftwork_dann import ReverseValidation, reverse_risk


def samples(count: int, labelled: bool = True) -> gw.TensorSamples:
    generator = torch.Generator().manual_seed(count)
    columns = {"features": torch.randn(count, 2, generator=generator)}
    return gw.TensorSamples(**columns, **({"label": torch.arange(count) % 2} if labelled else {}))


def test_each_training_sees_what_the_paper_gives_it() -> None:
    calls: list[tuple[Any, ...]] = []

    def fit(source: gw.TensorSamples, target: gw.TensorSamples, validation: gw.TensorSamples, start: Any) -> str:
        calls.append((source, target, validation, start))
        return f"model {len(calls)}"

    def predict(model: str, rows: gw.TensorSamples) -> torch.Tensor:
        return torch.full((len(rows),), 0 if model == "model 1" else 1)

    source, target = samples(40), samples(30)
    found = reverse_risk(fit, predict, source, target)
    (first_source, first_target, first_held, first_start), (second_source, second_target, second_held, second_start) = calls
    assert (len(first_source), len(first_target), len(first_held), first_start) == (36, 27, 4, None)
    assert "label" not in first_target.columns
    assert second_start == "model 1"  # its weights are where the second training begins
    assert torch.equal(second_source.columns["features"], first_target.columns["features"])
    assert torch.equal(second_target.columns["features"], first_source.columns["features"])
    assert "label" not in second_target.columns
    assert len(second_held) == 3
    assert second_source.columns["label"].unique().tolist() == second_held.columns["label"].unique().tolist() == [0]
    held = first_held.columns["label"]
    assert found.forward == pytest.approx((held != 0).float().mean().item())
    assert found.reverse == pytest.approx((held != 1).float().mean().item())
    split = torch.cat([first_source.columns["features"], first_held.columns["features"]])
    assert {tuple(row) for row in split.tolist()} == {tuple(row) for row in source.columns["features"].tolist()}


def test_parts_without_a_sample_and_sources_without_labels_are_refused() -> None:
    with pytest.raises(gw.DataError, match=r"3 samples cannot be split at 0\.1"):
        reverse_risk(lambda *_: None, lambda *_: torch.zeros(1), samples(40), samples(3))
    with pytest.raises(gw.DataError, match="needs source labels; the source has features"):
        reverse_risk(lambda *_: None, lambda *_: torch.zeros(1), samples(40, labelled=False), samples(40))


def evaluator(steps: int = 30, **parameters: Any) -> ReverseValidation:
    train = {"steps": steps, "batch_size": 16, "optimizer": {"use": "sgd", "lr": 0.05, "momentum": 0.9}}
    settings = {"none": {"high": 0.0}, "paper": {"hidden": [8], "lr": 0.1}}
    chosen = {"settings": settings, "train": gw.TrainConfig.model_validate(train), **parameters}
    return ReverseValidation("source/train", "target/train", **chosen)


def test_every_setting_gets_a_risk_and_the_least_is_chosen(towers: type[nn.Module], data: gw.Dataset) -> None:
    torch.manual_seed(0)
    model = towers()
    before = gw.fingerprint(model)
    report = evaluator(steps=8).evaluate(model, data)
    risks = {name: report.metrics[f"reverse-risk/{name}"] for name in ("none", "paper")}
    assert report.metrics["reverse-risk"] == min(risks.values())
    chosen = report.artifacts["setting"].data
    assert risks[chosen["name"]] == min(risks.values())
    assert chosen["parameters"] == {"none": {"high": 0.0}, "paper": {"hidden": [8], "lr": 0.1}}[chosen["name"]]
    assert gw.fingerprint(model) == before


def test_target_labels_change_nothing(towers: type[nn.Module], data: gw.Dataset) -> None:
    torch.manual_seed(0)
    model = towers()
    wrong = gw.TensorSamples(features=data["target/train"].columns["features"], label=torch.zeros(48, dtype=torch.long))
    first, second = (
        evaluator(steps=8).evaluate(model, gw.Dataset({**data, "target/train": target}, data.info)).metrics
        for target in (data["target/train"], wrong)
    )
    assert first == second


def test_a_setting_that_cannot_learn_is_not_chosen(towers: type[nn.Module], data: gw.Dataset) -> None:
    torch.manual_seed(0)
    settings = {"fair": {"high": 0.1, "lr": 0.05}, "drowned": {"low": 50.0, "high": 50.0, "lr": 1.0}}
    report = evaluator(settings=settings).evaluate(towers(), data)
    assert report.artifacts["setting"].data["name"] == "fair"
    assert report.metrics["reverse-risk/drowned"] > report.metrics["reverse-risk/fair"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"settings": {}}, "settings is empty"),
        ({"settings": {"a": {"hihg": 1.0}}}, 'setting "a": .*unknown parameter "hihg"'),
        ({"settings": {"a": {"gamma": -1.0}}}, 'setting "a": gamma'),
        ({"settings": {"a": {"domains": ["x", "y"]}}}, 'setting "a": domains cannot be a setting'),
        ({"settings": {"a": {"lr": 0.0}}}, 'setting "a": lr: a number above 0'),
        ({"held_out": 1.0}, r"held_out in \(0, 1\)"),
        ({"train": gw.TrainConfig(epochs=1, feeds={"source": "x"})}, "train.feeds and train.validate are set by reverse validation"),
    ],
)
def test_bad_values_are_refused(parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluator(**parameters)
