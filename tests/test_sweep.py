"""Sweeps and trials elsewhere: what is drawn and shared, that it is the same as in one process, what happens to those that fail or die."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import graftwork as gw
from graftwork import pool
from graftwork.cli import main
from graftwork.reproduce import reproduce
from graftwork.schema import pipeline_schema
from graftwork.sharing import shared_stages
from graftwork.spec import StopSpec, SweepSpec
from graftwork.sweep import sweep
from graftwork.trials import Resources, Trial, find_executor, run_trial

PARTS = '''
import os
import signal
from pathlib import Path

from toy_parts import Fit


class Frail(Fit):
    """Cross-entropy whose process is killed at some steps, once each; or that raises."""

    def __init__(self, deaths: list[int] | None = None, marks: str = "", fails: bool = False):
        super().__init__()
        self.deaths, self.marks, self.fails, self.steps = deaths or [], marks, fails, 0

    def forward(self, model, batches, progress):
        if self.fails:
            raise RuntimeError("this setting is no good")
        return super().forward(model, batches, progress)

    def after_step(self, model):
        self.steps += 1
        mark = Path(self.marks, f"died-{self.steps}")
        if self.steps in self.deaths and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def get_extra_state(self):
        return {"steps": self.steps}

    def set_extra_state(self, state):
        self.steps = state["steps"]
'''

PLUGIN = """
from graftwork import Component, hookimpl


@hookimpl
def graftwork_objectives():
    yield Component("frail", "frail_parts:Frail", "Dies")
"""

TRAIN = {"steps": 12, "batch_size": 16, "optimizer": {"use": "sgd", "lr": 0.1}, "checkpoint": 3, "log_every": 2}
DOCUMENT: dict[str, Any] = {
    "name": "toys",
    "seed": 3,
    "stages": {
        "first": {"dataset": "blobs", "model": {"use": "net", "dropout": 0.2}, "objective": "fit", "train": TRAIN, "evaluate": ["hits"]},
        "second": {"dataset": "blobs", "model": {"from": "first"}, "objective": "frail", "train": TRAIN, "evaluate": ["hits"]},
    },
}
DOCUMENT = json.loads(json.dumps(DOCUMENT))  # with no mapping in two places: an override changes one
LR = "stages.second.train.optimizer.lr"
RECIPE = {**DOCUMENT, "claim": {"text": "more is more", "compare": {"method": "second/hits", "baseline": "first/hits"}, "seeds": 3}}


@pytest.fixture
def frail(toy: Path, install: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (install("graftwork-frail", PLUGIN) / "frail_parts.py").write_text(PARTS)
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "cache"))


def swept(sweep_block: dict[str, Any], *overrides: str) -> gw.Pipeline:
    return gw.Pipeline.from_dict({**DOCUMENT, "sweep": {"metric": "second/hits", **sweep_block}}, overrides)


def content(run: Path) -> dict[str, Any]:
    """Weights, figures and rows of a run."""
    rows = [{k: v for k, v in json.loads(line).items() if k != "time"} for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = {
        str(path.relative_to(run)): {name: tensor.tolist() for name, tensor in load_file(path).items()}
        for path in sorted(run.glob("stages/*/model/*.safetensors"))
    }
    assert weights
    return {"rows": rows, "weights": weights, "results": json.loads((run / "results.json").read_text())["results"]}


# -- what is checked -----------------------------------------------------------------------------------------------------------------


def test_the_schema_that_editors_read_knows_every_key_of_a_sweep() -> None:
    schema = pipeline_schema(gw.installed())
    assert {"$ref": "#/$defs/SweepSpec"} in schema["properties"]["sweep"]["anyOf"]
    block, stop = schema["$defs"]["SweepSpec"], schema["$defs"]["StopSpec"]
    assert set(block["properties"]) == set(SweepSpec.model_fields)
    assert all(block["properties"][key]["description"] for key in SweepSpec.model_fields)
    assert block["additionalProperties"] is stop["additionalProperties"] is False  # a misspelt key is underlined
    assert block["properties"]["grid"]["additionalProperties"]["type"] == "array"
    assert block["properties"]["direction"]["enum"] == ["higher", "lower"]
    assert stop["required"] == ["metric"]


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("grid: {stages.secnd.train.steps: [1]}", r'p.yaml:5:\d+: sweep.grid.stages.secnd.train.steps: .*"secnd" \(did you mean "second"'),
        ("grid: {stages.second.train.stepz: [1]}", r'p.yaml:5:\d+: sweep.grid.*unknown key "stepz"|stepz'),
        (
            "grid: {stages.first.model.width: [8, 0]}",
            r"sweep.grid.stages.first.model.width.1: stages.first.model.width: .*greater than or equal",
        ),
        ("space: {stages.first.model.width: 'uniform(1.5, 2.5)'}", "stages.first.model.width: .*integer"),
        ("grid: {seed: [1, 2]}", "sweep.seeds"),
        ("grid: {stages.first.train.steps: []}", "empty"),
        ("{trials: 3, grid: {stages.first.train.steps: [1]}}", "of a grid every point is run"),
        ("{metric: third/hits, grid: {stages.first.train.steps: [1]}}", 'no stage "third"'),
        ("space: {stages.first.train.steps: 'randint(1, 2)'}\n  trials: 100000", "at most 10000"),
        ("gird: {}", 'unknown key "gird"'),
    ],
)
def test_what_is_wrong_with_a_sweep_is_told_with_its_place_before_anything_runs(frail: None, tmp_path: Path, block: str, said: str) -> None:
    path = tmp_path / "p.yaml"
    body = block if block.startswith("{") else f"\n  {block}"
    stages = json.dumps(DOCUMENT["stages"])
    path.write_text(f"name: toys\nseed: 3\nstages: {stages}\nsweep: {body}\n")
    with pytest.raises(gw.PipelineError, match=said):
        gw.Pipeline.from_yaml(path).assemble()


def test_a_pipeline_with_a_sweep_runs_as_it_stands(frail: None) -> None:
    plain = gw.Pipeline.from_dict(DOCUMENT).run(device="cpu").metrics
    assert swept({"grid": {LR: [0.5]}}).run(device="cpu").metrics == plain


def test_an_executor_that_is_not_there_is_told_with_what_would_provide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(find_executor("local"), pool.LocalPool)
    with pytest.raises(gw.UnknownComponentError, match=r'"lokal" is installed \(did you mean "local"\?\)'):
        find_executor("lokal")
    monkeypatch.setattr("graftwork.trials.entry_points", lambda group: [])
    with pytest.raises(gw.UnknownComponentError, match="pip install graftwork-ray"):
        find_executor("ray")


def test_local_processes_refuse_to_stop_trials_early_and_say_who_can() -> None:
    with pytest.raises(gw.ConfigError, match="graftwork-ray"):
        list(pool.LocalPool().run([], Resources(), stop=StopSpec(metric="a/b")))


# -- what is shared ------------------------------------------------------------------------------------------------------------------


def planned(tmp_path: Path, *overrides: str) -> list[Trial]:
    return [
        Trial(f"trial-{number}", gw.Pipeline.from_dict(DOCUMENT, [one]).document.data, 3, tmp_path / f"trial-{number}")
        for number, one in enumerate(overrides)
    ]


def test_stages_that_trials_have_alike_are_run_before_them_and_each_once(tmp_path: Path) -> None:
    trials = planned(tmp_path, f"{LR}=0.1", f"{LR}=0.2", f"{LR}=0.2")
    groups = shared_stages(trials, tmp_path / "shared")
    assert [[run.stages for run in group] for group in groups] == [[("first",)], [("second",)]]
    assert not shared_stages(planned(tmp_path, "stages.first.seed=1", "stages.first.seed=2"), tmp_path / "shared")
    differently_measured = planned(tmp_path, "stages.first.evaluate.0=hits", "stages.first.evaluate=[]")
    assert ("first",) in [run.stages for group in shared_stages(differently_measured, tmp_path) for run in group]


def test_a_sweep_ranks_its_settings_runs_the_shared_stage_once_and_each_trial_is_the_run_that_it_says(frail: None, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    found = sweep(swept({"grid": {LR: [1e-5, 0.3, 0.1]}, "seeds": 2}), out, resources=Resources(workers=3), device="cpu")
    assert [entry.status for entry in found.entries] == ["finished"] * 3
    means = [entry.mean("second/hits") for entry in found.entries]
    assert found.best is not None
    assert found.best.mean("second/hits") == max(means)
    record = json.loads((out / "trial-002/seed-4/stages/first/stage.json").read_text())
    assert "shared/first-" in record["taken_from"]
    trained_first = [path for path in out.rglob("stages/first/stage.json") if not json.loads(path.read_text())["taken_from"]]
    assert len(trained_first) == 2  # one a seed
    about = json.loads((out / "trial-001/seed-4/trial.json").read_text())
    assert about == {"name": "trial-001/seed-4", "seed": 4, "overrides": {LR: 0.3}}
    alone = tmp_path / "alone"
    gw.Pipeline.from_dict(DOCUMENT, [f"{LR}=0.3"]).run(alone, seed=4, device="cpu")
    assert content(out / "trial-001/seed-4") == content(alone)
    table = (out / "sweep.md").read_text()
    assert f"[seed-4]({found.best.name}/seed-4/report.html)" in table
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((out / "sweep.json").read_text())
    assert written["best"] == found.best.name
    assert [one["mean"] for one in written["settings"]] == means


# -- trials that fail or die ---------------------------------------------------------------------------------------------------------


def test_a_trial_that_raises_is_reported_the_others_go_on_and_only_it_is_run_again(frail: None, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    block = {"grid": {"stages.second.objective.fails": [True, False]}}
    found = sweep(swept(block), out, resources=Resources(workers=2), device="cpu")
    assert [entry.status for entry in found.entries] == ["failed", "finished"]
    assert "RuntimeError: this setting is no good" in found.troubles[0][2]
    assert "Traceback" in (out / "trial-000.log").read_text()
    before = (out / "trial-001/results.json").stat().st_mtime_ns
    ended: list[str] = []
    again = sweep(swept(block), out, resume=True, device="cpu", ended=lambda outcome, done, count: ended.append(outcome.trial.name))
    assert ended == ["trial-000"]
    assert (out / "trial-001/results.json").stat().st_mtime_ns == before
    assert again.best is not None
    with pytest.raises(gw.GraftworkError, match=r"is another sweep: sweep.grid.*fails.1 was False and is True"):
        sweep(swept({"grid": {"stages.second.objective.fails": [True, True]}}), out, resume=True)
    with pytest.raises(gw.GraftworkError, match="is not empty"):
        sweep(swept(block), out)


def test_a_trial_whose_process_is_killed_goes_on_in_another_and_ends_as_an_unbroken_one(frail: None, tmp_path: Path) -> None:
    unbroken, marks = tmp_path / "unbroken", tmp_path / "marks"
    marks.mkdir()
    pipeline = gw.Pipeline.from_dict(DOCUMENT, [f"stages.second.objective.marks={marks}", "stages.second.objective.deaths=[5, 11]"])
    trial = Trial("dies", pipeline.document.data, 3, tmp_path / "dies", device="cpu")
    notes: list[str] = []
    (outcome,) = pool.LocalPool().run([trial], Resources(workers=1), note=notes.append)
    assert (outcome.status, outcome.attempts) == ("finished", 3)
    assert notes == ["dies: its process was killed by SIGKILL; another goes on with it"] * 2
    assert {path.name for path in marks.iterdir()} == {"died-5", "died-11"}
    pipeline.run(unbroken, device="cpu")
    assert content(tmp_path / "dies") == content(unbroken)


def test_a_trial_that_dies_once_more_than_it_is_tried_again_is_lost_and_the_others_go_on(frail: None, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    overrides = [f"stages.second.objective.marks={marks}", "stages.second.objective.deaths=[1, 2]"]  # a third process would finish
    dying = Trial("dies", gw.Pipeline.from_dict(DOCUMENT, overrides).document.data, 3, tmp_path / "dies", device="cpu")
    sound = Trial("sound", DOCUMENT, 3, tmp_path / "sound", device="cpu")
    notes: list[str] = []
    ran = pool.LocalPool().run([dying, sound], Resources(workers=2, retries=1), note=notes.append)
    outcomes = {outcome.trial.name: outcome for outcome in ran}
    assert outcomes["sound"].status == "finished"
    assert (outcomes["dies"].status, outcomes["dies"].attempts, dict(outcomes["dies"].metrics)) == ("lost", 2, {})
    assert outcomes["dies"].message.startswith("2 processes in turn died; the last was killed by SIGKILL")
    assert notes == ["dies: its process was killed by SIGKILL; another goes on with it"]
    assert {path.name for path in marks.iterdir()} == {"died-1", "died-2"}


def test_leaving_the_pool_ends_its_processes(frail: None, tmp_path: Path) -> None:
    data = gw.Pipeline.from_dict(
        DOCUMENT, ["stages.second.train.steps=1000000", "stages.second.train.checkpoint={minutes: 60}"]
    ).document.data
    quick = Trial("quick", DOCUMENT, 3, tmp_path / "quick", device="cpu")
    endless = Trial("endless", data, 3, tmp_path / "endless", device="cpu")
    outcomes = pool.LocalPool().run([endless, quick], Resources(workers=2))
    assert next(outcomes).trial == quick
    outcomes.close()
    resumed = (tmp_path / "endless/metrics.jsonl").stat().st_size
    time.sleep(0.3)
    assert (tmp_path / "endless/metrics.jsonl").stat().st_size == resumed


# -- claims --------------------------------------------------------------------------------------------------------------------------


def test_a_claim_is_judged_the_same_by_a_pool_as_in_one_process(frail: None, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(RECIPE))
    here = reproduce(path, tmp_path / "here", device="cpu")
    there = reproduce(path, tmp_path / "there", device="cpu", on="local", resources=Resources(workers=2))
    assert there == here
    for seed in here.seeds:
        assert content(tmp_path / f"there/seed-{seed}") == content(tmp_path / f"here/seed-{seed}")
    again = reproduce(path, tmp_path / "there", device="cpu", on="local", resume=True)
    assert again == here


def test_a_seed_that_fails_ends_the_reproduction_and_is_named(frail: None, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(RECIPE))
    with pytest.raises(gw.GraftworkError, match=r"seed-3 has failed: RuntimeError: this setting is no good.*--resume"):
        reproduce(path, tmp_path / "out", overrides=["stages.second.objective.fails=true"], seeds=1, device="cpu", on="local")


# -- resources -----------------------------------------------------------------------------------------------------------------------


def test_gpus_are_dealt_out_in_turn_and_shared_by_fractions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    trials = [Trial(str(number), {}, 0, None) for number in range(8)]

    def dealt(resources: Resources) -> list[str]:
        return [slot["CUDA_VISIBLE_DEVICES"] for slot in pool._slots(trials, resources)]

    assert dealt(Resources()) == ["4", "6"]
    assert dealt(Resources(gpus=0.5)) == ["4", "4", "6", "6"]
    assert dealt(Resources(gpus=2)) == ["4,6"]
    assert dealt(Resources(workers=3)) == ["4", "6", "4"]
    with pytest.raises(gw.ConfigError, match="3 GPUs a trial are more than the 2"):
        dealt(Resources(gpus=3))
    on_cpu = pool._slots([Trial("a", {}, 0, None, device="cpu")], Resources(cpus=1))
    assert on_cpu == [{"OMP_NUM_THREADS": "1"}]


# -- the command line ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(frail: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """command(*arguments): `graft sweep` with them, in this process and a folder of its own; status, output and what went to stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    (tmp_path / "p.yaml").write_text(json.dumps(DOCUMENT))

    def call(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr("sys.argv", ["graft", "sweep", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code, *capfd.readouterr())

    return call


def test_the_command_prints_the_table_the_best_report_and_on_request_json(command: Callable[..., Any]) -> None:
    arguments = ("p.yaml", "--grid", f"{LR}=0.001,0.3", "--metric", "second/hits", "--device", "cpu")
    status, output, errors = command(*arguments, "--out", "s")
    assert status in (None, 0), errors
    assert output.index("trial-001") < output.index("trial-000")  # the best first
    assert "best: s/trial-001/report.html" in output
    assert "table: s/sweep.md" in output
    assert f"trial-000 finished: {LR}=0.001: second/hits 0." in errors
    status, output, errors = command("--resume", "s", "--json")
    assert status in (None, 0), errors
    assert json.loads(output) == json.loads(Path("s/sweep.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["p.yaml", "--metric", "second/hits"], "nothing to sweep"),
        (["p.yaml", "--grid", f"{LR}=1"], "--metric STAGE/METRIC"),
        (["p.yaml", "--grid", "nonsense"], "KEY=a,b,c"),
        (["p.yaml", "--grid", f"{LR}=1", "--metric", "second/hits", "--on", "moon"], 'no executor "moon"'),
        (["--resume", "nowhere"], "is no sweep"),
        ([], "name a pipeline"),
    ],
)
def test_a_mistake_on_the_command_line_is_a_message(command: Callable[..., Any], arguments: list[str], said: str) -> None:
    status, output, errors = command(*arguments)
    assert status == 2
    assert said in errors
    assert "Traceback" not in output + errors


@pytest.mark.slow  # the command and its processes each import torch anew; its parts are tested above
@pytest.mark.timeout(240)
def test_the_installed_command_runs_a_sweep(frail: None, tmp_path: Path, graft: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    (tmp_path / "work/p.yaml").write_text(json.dumps(DOCUMENT))
    done = graft("sweep", "p.yaml", "--grid", f"{LR}=0.001,0.3", "--metric", "second/hits", "--device", "cpu", "--out", "s")
    assert done.returncode == 0, done.stderr
    assert "best: s/trial-001/report.html" in done.stdout
    assert (tmp_path / "work/s/trial-001/report.html").is_file()


def test_run_trial_gives_an_error_as_a_value(frail: None, tmp_path: Path) -> None:
    data = gw.Pipeline.from_dict(DOCUMENT, ["stages.second.objective.fails=true"]).document.data
    outcome = run_trial(Trial("t", data, 3, tmp_path / "t", device="cpu"))
    assert (outcome.status, dict(outcome.metrics)) == ("failed", {})
    assert outcome.message.startswith("RuntimeError: this setting is no good; see ")
