"""The three ways in which people use graftwork, over the distributions of this repository."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import graftwork as gw
from graftwork.reproduce import recipes

RECIPES = recipes(gw.installed())
CLAIMS = {name: path for name, path in RECIPES.items() if "graftwork_testbed" not in path.parts}  # the zoo's recipes make networks


def test_nothing_of_this_repository_is_broken(graft: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = graft("doctor", "--json")
    assert json.loads(done.stdout) == []
    assert done.returncode == 0


@pytest.mark.parametrize("name", CLAIMS)
def test_every_recipe_assembles_and_makes_a_claim(name: str) -> None:
    assert gw.Pipeline.from_yaml(RECIPES[name]).assemble().claim is not None


def test_each_paper_plugin_has_a_recipe_of_its_name() -> None:
    papers = {one.plugin for one in gw.installed() if one.distribution not in ("graftwork", "graftwork-testbed")}
    assert papers <= set(RECIPES)


def test_the_demo_cut_short_draws_what_it_promises(tmp_path: Path, graft: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    short = [f"stages.{stage}.train.{setting}" for stage in ("source-only", "dann") for setting in ("epochs=null", "steps=3")]
    done = graft("run", "dann", *short, "--stage", "source-only", "--stage", "dann", "--out", "demo", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {"source-only/accuracy", "dann/accuracy"} <= set(told["metrics"])
    folder = tmp_path / "work/demo"
    assert (tmp_path / "work" / told["report"]) == folder / "report.html"
    assert list(folder.glob("stages/dann/grad-cam/*.png"))
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")  # self-contained


def test_one_pipeline_takes_components_of_three_distributions() -> None:
    data = {"use": "digits", "held_out_classes": [5, 6, 7, 8, 9]}
    stages = {
        "embed": {
            "dataset": {"use": "class-balanced-batches", "data": data, "classes": 3, "instances": 4},
            "model": {"use": "small-cnn", "width": 4},
            "objective": {"use": "multi-similarity", "embedding_dim": 8},
            "train": {"steps": 2},
            "evaluate": ["retrieval"],
        },
        "adapt": {
            "dataset": {"use": "digit-domains", "domains": ["clean", "photo"]},
            "model": {"use": "small-cnn", "width": 4},
            "objective": {"use": "domain-adversarial", "hidden": [8]},
            "train": {"steps": 2, "batch_size": 8, "feeds": {"source": "clean/train", "target": "photo/train"}},
            "evaluate": [{"use": "accuracy", "split": "photo/test", "limit": 32}, {"use": "grad-cam", "split": "photo/test", "limit": 4}],
        },
    }
    result = gw.Pipeline.from_dict({"stages": stages}).run(device="cpu")
    assert {"embed/recall@1", "adapt/accuracy"} <= set(result.metrics)
    assert result.run.reports["adapt"]["grad-cam"].figures


def test_the_target_labels_are_not_seen() -> None:
    data = gw.dataset("digit-domains", domains=["clean", "photo"])
    settings = gw.TrainConfig(steps=3, batch_size=16, feeds={"source": "clean/train", "target": "photo/train"})
    weights = []
    for shift in (0, 3):
        columns = data["photo/train"].columns
        changed = gw.TensorSamples(**{**columns, "label": (columns["label"] + shift) % 10})
        torch.manual_seed(0)
        model = gw.model("small-cnn", width=4)
        objective = gw.objective("domain-adversarial", hidden=[8])
        gw.Engine(model, objective, gw.Dataset({**data, "photo/train": changed}, data.info), settings, device="cpu").fit()
        weights.append(model.head.weight)
    assert torch.equal(*weights)
