"""Claims over seeds: the statistics against scipy and closed forms, the verdicts, the files, the command."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy import stats

import graftwork as gw
from graftwork.reproduce import Reproduction, compare, find_recipe, mean_and_error, reproduce
from graftwork.spec import Comparison

RECIPE = """\
stages:
  short: {dataset: blobs, model: net, objective: fit, train: {steps: 1, optimizer: {use: sgd, lr: 0.001}}, evaluate: [hits]}
  long:
    dataset: {from: short}
    model: net
    objective: fit
    train: {epochs: 20, batch_size: 16, optimizer: {use: sgd, lr: 0.2}}
    evaluate: [hits]
claim:
  text: Training helps
  compare: {method: long/hits, baseline: short/hits, direction: higher}
  seeds: 3
  paper: {table: 1, baseline: 0.3, method: 0.9}
"""


def comparison(direction: str = "higher") -> Comparison:
    return Comparison(method="m/x", baseline="b/x", direction=direction)


@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_the_test_is_the_paired_one_sided_t_test(direction: str) -> None:
    method, baseline = [0.62, 0.60, 0.65, 0.58], [0.50, 0.55, 0.48, 0.57]
    found = compare(comparison(direction), method, baseline)
    gains = [(a - b) * (1 if direction == "higher" else -1) for a, b in zip(method, baseline, strict=True)]
    mean, error = mean_and_error(gains)
    assert found.p_value == pytest.approx(stats.t.sf(mean / error, df=3))


@pytest.mark.parametrize(
    ("method", "baseline", "verdict"),
    [
        ([0.9, 0.91, 0.92], [0.5, 0.52, 0.49], "holds"),
        ([0.6, 0.4, 0.61], [0.5, 0.5, 0.5], "not significant"),
        ([0.4, 0.4, 0.3], [0.5, 0.5, 0.5], "does not hold"),
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], "does not hold"),
        ([0.6, 0.6], [0.5, 0.5], "holds"),
        ([0.9], [0.1], "untested"),
        ([math.nan, 0.9], [0.1, 0.1], "does not hold"),
    ],
)
def test_verdicts(method: list[float], baseline: list[float], verdict: str) -> None:
    assert compare(comparison(), method, baseline).verdict == verdict


@pytest.mark.parametrize(("direction", "shift"), [("higher", -0.02), ("lower", 0.02)])
def test_within_a_margin_a_method_that_is_a_little_worse_holds_and_the_table_says_so(direction: str, shift: float) -> None:
    baseline = [0.50, 0.52, 0.49]
    method = [value + shift + noise for value, noise in zip(baseline, (0.001, -0.001, 0.0005), strict=True)]
    allowed = Comparison(method="m/x", baseline="b/x", direction=direction, margin=0.05)
    found = compare(allowed, method, baseline)
    assert (found.verdict, compare(comparison(direction), method, baseline).verdict) == ("holds", "does not hold")
    moved = [value + (0.05 if direction == "higher" else -0.05) for value in method]
    assert found.p_value == pytest.approx(compare(comparison(direction), moved, baseline).p_value)
    assert compare(allowed.model_copy(update={"margin": 0.01}), method, baseline).verdict == "does not hold"
    assert f"({direction} is better, 0.05 worse is allowed)" in Reproduction("r", "c", [0, 1, 2], [found], {}, None).to_markdown()


def test_mean_and_standard_error() -> None:
    assert mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / math.sqrt(3)))
    assert math.isnan(mean_and_error([1.0])[1])


def test_a_recipe_is_run_over_its_seeds_and_its_table_is_written(toy: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    found = reproduce(path, tmp_path / "out", device="cpu")
    assert found.seeds == [0, 1, 2]
    assert len(set(found.metrics["long/hits"])) > 1
    written = json.loads((tmp_path / "out/reproduction.json").read_text())
    assert written["verdicts"][0]["method_values"] == found.metrics["long/hits"]
    assert "| long/hits against short/hits" in (tmp_path / "out/reproduction.md").read_text()
    assert (tmp_path / "out/seed-2/report.html").exists()


def test_the_command_prints_the_verdict_and_json(toy: Path, tmp_path: Path, graft: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    (tmp_path / "work/r.yaml").write_text(RECIPE)
    done = graft("reproduce", "r.yaml", "--seeds", "2", "--device", "cpu", "--out", "here")
    assert done.returncode == 0, done.stderr
    assert "long/hits > short/hits" in done.stdout
    assert "paired one-sided t-test" in done.stdout
    found = json.loads(graft("reproduce", "r.yaml", "--seeds", "2", "--seed", "7", "--device", "cpu", "--json").stdout)
    assert found["seeds"] == [7, 8]
    assert found["summary"]["long/hits"]["mean"] == pytest.approx(sum(found["metrics"]["long/hits"]) / 2)


def test_a_plugins_recipe_is_found_by_plugin_distribution_component_and_path(install, tmp_path: Path) -> None:
    folder = install("graftwork-other", "")
    package = folder / "kitted"
    (package / "recipes").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    component = "yield Component('some-net', 'json:loads')"
    (package / "plugin.py").write_text(f"from graftwork import Component, hookimpl\n@hookimpl\ndef graftwork_models():\n    {component}\n")
    (folder / "graftwork_other-1.0.dist-info/entry_points.txt").write_text("[graftwork.plugins]\nkit = kitted.plugin\n")
    for recipe in ("kit", "more"):
        (package / f"recipes/{recipe}.yaml").write_text(RECIPE)
    registry = gw.installed()
    for name in ("kit", "graftwork-kit", "some-net"):
        assert find_recipe(name, registry) == package / "recipes/kit.yaml"
    assert find_recipe("kit/more", registry) == package / "recipes/more.yaml"
    with pytest.raises(gw.UnknownComponentError, match=r'no recipe "kitt" is installed \(did you mean "kit"\?\)'):
        find_recipe("kitt", registry)


def test_the_same_seed_gives_the_same_metrics_and_weights_in_two_processes(
    toy: Path, tmp_path: Path, graft: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "work/r.yaml").write_text(RECIPE)
    digests = []
    for out in ("one", "two"):
        done = graft("run", "r.yaml", "--seed", "3", "--device", "cpu", "--out", out)
        assert done.returncode == 0, done.stderr
        folder = tmp_path / "work" / out
        manifest = json.loads((folder / "manifest.json").read_text())
        results = json.loads((folder / "results.json").read_text())["results"]
        digests.append((manifest["stages/long/model/model.safetensors"], results))
    assert digests[0] == digests[1]
