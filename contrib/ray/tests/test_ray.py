"""Trials on a Ray cluster of this machine: the same figures as without, whatever dies; and what is stopped early."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import graftwork as gw
from graftwork.pool import LocalPool
from graftwork.spec import StopSpec
from graftwork.trials import Outcome, Resources, Trial, find_executor
from graftwork_ray.executor import RayTune, _share

TRAIN = {"steps": 12, "batch_size": 16, "optimizer": {"use": "sgd", "lr": 0.1}, "checkpoint": 3, "log_every": 2}
STAGE = {"dataset": "blobs", "model": "net", "objective": "frail", "train": TRAIN, "evaluate": ["hits"]}
DOCUMENT: dict[str, Any] = {"name": "toys", "seed": 3, "stages": {"only": STAGE}}
LR = "stages.only.train.optimizer.lr"


def trial(out: Path, *overrides: str) -> Trial:
    data = gw.Pipeline.from_dict(json.loads(json.dumps(DOCUMENT)), overrides).document.data
    return Trial(out.name, data, 3, out, device="cpu")


def content(run: Path) -> dict[str, Any]:
    """Weights, figures and rows of a run."""
    rows = [{k: v for k, v in json.loads(line).items() if k != "time"} for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = {
        path.name: {name: tensor.tolist() for name, tensor in load_file(path).items()} for path in run.glob("stages/*/model/*.safetensors")
    }
    assert weights
    return {"rows": rows, "weights": weights, "results": json.loads((run / "results.json").read_text())["results"]}


def by_name(outcomes: Any) -> dict[str, Outcome]:
    return {outcome.trial.name: outcome for outcome in outcomes}


@pytest.mark.slow  # a cluster is started, and a process for each trial
def test_trials_on_ray_are_those_of_the_local_pool_bit_for_bit_and_leave_nothing_of_tune(cluster: RayTune, tmp_path: Path) -> None:
    resources = Resources(workers=2, cpus=1)
    rates = {"slow": 0.01, "fast": 0.3}
    there, here = (
        by_name(executor.run([trial(tmp_path / where / name, f"{LR}={rate}") for name, rate in rates.items()], resources))
        for where, executor in (("there", cluster), ("here", LocalPool()))
    )
    for name in rates:
        assert there[name].status == "finished"
        assert there[name].metrics == here[name].metrics
        assert content(tmp_path / "there" / name) == content(tmp_path / "here" / name)
    assert content(tmp_path / "there/slow") != content(tmp_path / "there/fast")
    assert {path.name for path in (tmp_path / "there").iterdir()} == set(rates)


@pytest.mark.slow  # seven processes in turn import torch
def test_a_killed_trial_goes_on_from_its_checkpoint_one_that_dies_too_often_is_lost_and_an_error_is_not_tried_again(
    cluster: RayTune, tmp_path: Path
) -> None:
    marks, attempts = tmp_path / "marks", tmp_path / "attempts"
    marks.mkdir()
    attempts.mkdir()
    dies = trial(tmp_path / "out/dies", f"stages.only.objective.marks={marks}", "stages.only.objective.deaths=[5, 11]")
    hopeless = trial(tmp_path / "out/hopeless", "stages.only.objective.deaths=[2]", f"stages.only.objective.attempts={attempts}")
    wrong = trial(tmp_path / "out/wrong", "stages.only.objective.fails=true")
    notes: list[str] = []
    outcomes = by_name(cluster.run([dies, hopeless, wrong], Resources(cpus=1, retries=2), note=notes.append))

    assert (outcomes["dies"].status, outcomes["dies"].attempts) == ("finished", 3)
    assert {path.name for path in marks.iterdir()} == {"died-5", "died-11"}
    unbroken = tmp_path / "unbroken"
    gw.Pipeline.from_dict(dies.data).run(unbroken, device="cpu")  # the marks are there, so nothing dies
    assert content(tmp_path / "out/dies") == content(unbroken)
    assert outcomes["dies"].metrics == {"only/hits": content(unbroken)["results"]["only"]["hits"]}

    assert (outcomes["hopeless"].status, outcomes["hopeless"].attempts) == ("lost", 3)
    assert len(list(attempts.iterdir())) == 3  # processes
    assert "3 processes in turn died" in outcomes["hopeless"].message
    assert sorted(notes) == sorted(f"{name}: its process was lost; another goes on with it" for name in ("dies", "hopeless") * 2)

    assert (outcomes["wrong"].status, outcomes["wrong"].attempts) == ("failed", 1)
    assert outcomes["wrong"].message.startswith("RuntimeError: this setting is no good; see ")


@pytest.mark.slow  # three processes in turn import torch
def test_a_trial_that_falls_behind_is_stopped_at_its_rung_and_a_good_one_goes_on(cluster: RayTune, tmp_path: Path) -> None:
    rates = {"good": 0.3, "bad": 1e-6, "as-good": 0.3}
    trials = [trial(tmp_path / name, f"{LR}={rate}", "stages.only.train.log_every=1") for name, rate in rates.items()]
    stop = StopSpec(metric="only/loss", direction="lower", grace=4, reduction=2)
    outcomes = by_name(cluster.run(trials, Resources(workers=1, cpus=1), stop=stop))
    assert {name: outcome.status for name, outcome in outcomes.items()} == {"good": "finished", "bad": "stopped", "as-good": "finished"}
    assert "ended at step 4" in outcomes["bad"].message
    steps = [row["step"] for row in map(json.loads, (tmp_path / "bad/metrics.jsonl").read_text().splitlines()) if "loss" in row]
    assert max(steps) < 12
    assert not (tmp_path / "bad/results.json").exists() or json.loads((tmp_path / "bad/results.json").read_text())["status"] != "finished"


@pytest.mark.slow  # two processes import torch, and the one that is ended is waited for
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for the process in /proc")
def test_leaving_the_executor_ends_what_still_runs(cluster: RayTune, tmp_path: Path) -> None:
    attempts = tmp_path / "attempts"
    attempts.mkdir()
    long = trial(tmp_path / "out/long", "stages.only.train.steps=10000000", f"stages.only.objective.attempts={attempts}")
    quick = trial(tmp_path / "out/quick")
    outcomes = cluster.run([long, quick], Resources(workers=2, cpus=1))
    assert next(outcomes).trial.name == "quick"
    outcomes.close()  # type: ignore[attr-defined]
    (process,) = (int(path.name) for path in attempts.iterdir())
    limit = time.monotonic() + 60  # Ray asks before it kills
    while (alive := Path(f"/proc/{process}").exists()) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not alive


def test_more_than_the_whole_cluster_has_is_refused_at_once(cluster: RayTune, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(gw.ConfigError, match="a trial is to have 1000 CPUs, and the whole cluster has"):
        list(cluster.run([trial(tmp_path / "t")], Resources(cpus=1000)))
    with pytest.raises(gw.ConfigError, match=r"a trial is to have 0.5 GPUs, and the whole cluster has 0"):
        list(cluster.run([trial(tmp_path / "t")], Resources(gpus=0.5)))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    assert _share(Resources(), [None]) == {"cpu": 1.0, "gpu": 1.0}
    assert _share(Resources(gpus=0.25, cpus=2), [None]) == {"cpu": 2.0, "gpu": 0.25}
    assert _share(Resources(), ["cpu"]) == {"cpu": 1.0}


def test_a_missing_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "graftwork_ray.executor")
    with pytest.raises(gw.PluginError, match=r'executor "ray" of graftwork-ray cannot be loaded.*pip install graftwork-ray'):
        find_executor("ray")


def test_a_cluster_that_does_not_answer_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(gw.GraftworkError, match=r"the cluster at RAY_ADDRESS=127.0.0.1:1 cannot be joined: .*refused"), RayTune():
        pass


@pytest.mark.slow  # two clusters are started, with a process for each of seven runs
@pytest.mark.timeout(600)
def test_the_commands_sweep_and_reproduce_on_ray_and_give_what_local_processes_give(parts: Path, tmp_path: Path) -> None:
    first = {**STAGE, "train": {**TRAIN, "steps": 4}}
    document = {**DOCUMENT, "stages": {"first": first, "second": {**STAGE, "model": {"from": "first"}}}}
    claim = {"text": "more is more", "compare": {"method": "second/hits", "baseline": "first/hits"}, "seeds": 2}
    (tmp_path / "p.yaml").write_text(json.dumps({**document, "claim": claim}))

    def graft(*arguments: str) -> str:
        command = [sys.executable, "-m", "graftwork", *arguments, "--device", "cpu", "--cpus", "1", "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for command in (
        ("sweep", "p.yaml", "--grid", "stages.second.train.optimizer.lr=0.001,0.3", "--metric", "second/hits"),
        ("reproduce", "p.yaml"),
    ):
        there, here = (json.loads(graft(*command, "--on", on, "--out", f"{command[0]}-{on}")) for on in ("ray", "local"))
        for found in (there, here):
            for setting in found.get("settings", []):
                for one in setting["trials"]:
                    del one["seconds"]
        assert there == here
    record = json.loads((tmp_path / "sweep-ray/trial-001/stages/first/stage.json").read_text())
    assert "sweep-ray/shared/first-0" in record["taken_from"]
    assert not (tmp_path / "sweep-ray/.ray").exists()
