"""Runs that graftwork-mlflow follows, read back from a real store."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from matplotlib.figure import Figure as MatplotlibFigure
from mlflow.entities import Run as Tracked
from torch import nn

from graftwork import Figure, GraftworkError, Pipeline, Report
from graftwork.registry import installed
from graftwork.run import Run
from graftwork_mlflow.names import key_of, parameters_of
from graftwork_mlflow.points import About, Point
from graftwork_mlflow.sender import Sender

ANEW = multiprocessing.get_context("forkserver")

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A store as MLflow makes it, made once: its migrations take seconds."""
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: bytes) -> str:
    """URI of a store of the test's own, which MLflow's environment variable names."""
    (tmp_path / "mlflow.db").write_bytes(empty_database)
    monkeypatch.chdir(tmp_path)  # artifacts go to ./mlruns
    for name in ("GRAFTWORK_TRACKERS", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture
def runs(store: str) -> Callable[[], list[Tracked]]:
    """runs(): all runs in the store, oldest first."""

    def found() -> list[Tracked]:
        client = mlflow.MlflowClient(store)
        experiments = [one.experiment_id for one in client.search_experiments()]
        return list(reversed(client.search_runs(experiments)))

    return found


@pytest.fixture
def history(store: str) -> Callable[[str, str], list[tuple[int, float]]]:
    """history(run_id, key): (step, value) of each row in the store, by step."""
    return lambda run_id, key: sorted((one.step, one.value) for one in mlflow.MlflowClient(store).get_metric_history(run_id, key))


def begin(path: Path | None, resume: bool = False, seed: int = 7, name: str = "toy") -> Run:
    resolved = {"seed": 0, "name": name, "stages": {"first": {"train": {"lr": 0.5, "epochs": 3}}}, "claim": {"text": "better"}}
    return Run(path, name, seed, torch.device("cpu"), resolved, None, installed().hooks, resume)


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition() and time.monotonic() < limit:
        time.sleep(0.05)
    assert condition()


def test_a_run_has_its_parameters_metrics_tags_and_status(tmp_path: Path, runs: Any, history: Any) -> None:
    run = begin(tmp_path / "mine")
    run.log("first", 5, {"loss": 2.0, "accuracy": 0.9})
    run.log("first", 10, {"loss": 1.0})
    run.log("first", 10, {"validate/hits": 0.25})
    run.add_report("first", "retrieval", Report({"recall@1": 0.5}), "")
    run.finish()
    (found,) = runs()
    assert (found.info.run_name, found.info.status) == ("mine", "FINISHED")
    assert mlflow.get_experiment(found.info.experiment_id).name == "toy"
    assert found.data.params == {"seed": "7", "stages.first.train.lr": "0.5", "stages.first.train.epochs": "3"}
    assert history(found.info.run_id, "first/train/loss") == [(5, 2.0), (10, 1.0)]
    assert history(found.info.run_id, "first/train/accuracy") == [(5, 0.9)]
    assert history(found.info.run_id, "first/validate/hits") == [(10, 0.25)]
    assert history(found.info.run_id, "first/recall_1") == [(10, 0.5)]
    environment = json.loads((tmp_path / "mine/environment.json").read_text())
    assert found.data.tags["version.torch"] == environment["versions"]["torch"]
    assert found.data.tags["seed"] == "7"
    assert found.data.tags["python"] == environment["python"]


def test_the_commit_of_the_working_directory_is_a_tag(tmp_path: Path, runs: Any) -> None:
    identity = "-c user.name=a -c user.email=a@b.c"
    assert os.system(f"git init -q . && echo 1 > f && git add f && git {identity} commit -qm first && echo 2 > f") == 0
    begin(tmp_path / "mine").finish()
    (found,) = runs()
    assert found.data.tags["mlflow.source.git.commit"] == os.popen("git rev-parse HEAD").read().strip()
    assert found.data.tags["git.changed"] == "true"


def test_page_results_pipeline_figures_and_on_request_models_are_artifacts(
    tmp_path: Path, runs: Any, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uploaded(run: Tracked, folder: str = "") -> list[str]:
        client, found = mlflow.MlflowClient(store), []
        for one in client.list_artifacts(run.info.run_id, folder):
            found += uploaded(run, one.path) if one.is_dir else [one.path]
        return sorted(found)

    for name, models in (("plain", "0"), ("all", "1")):
        monkeypatch.setenv("GRAFTWORK_MLFLOW_MODELS", models)
        run = begin(tmp_path / name)
        (tmp_path / name / "report.html").write_text("page")
        drawing = MatplotlibFigure(figsize=(1, 1))
        run.add_report("first", "saliency", Report({"area": 0.5}, figures={"maps": Figure(drawing, "Where it looks")}), "")
        run.save_model("first", nn.Linear(2, 2))
        run.finish()
    plain, everything = (uploaded(run) for run in runs())
    assert plain == [
        "environment.json",
        "metrics.jsonl",
        "pipeline.yaml",
        "report.html",
        "results.json",
        "stages/first/saliency/captions.json",
        "stages/first/saliency/maps.png",
    ]
    assert set(everything) - set(plain) == {"stages/first/model/model.safetensors"}


@pytest.mark.parametrize(("status", "expected"), [("finished", "FINISHED"), ("failed", "FAILED"), ("interrupted", "KILLED")])
def test_how_a_run_ended_is_its_status(tmp_path: Path, runs: Any, status: str, expected: str) -> None:
    begin(tmp_path / "run").finish(status)
    assert [run.info.status for run in runs()] == [expected]


def test_a_resumed_run_goes_on_in_its_own_run_and_has_each_step_once(tmp_path: Path, runs: Any, history: Any) -> None:
    run = begin(tmp_path / "run")
    run.log("first", 2, {"loss": 2.0})
    mark = run.mark()
    run.log("first", 4, {"loss": 4.0})
    run.finish("interrupted")
    again = begin(tmp_path / "run", resume=True)
    wait_until(lambda: runs()[0].info.status == "RUNNING")
    again.rewind(int(mark["log_bytes"]), mark["elapsed"])
    for step in (4, 6):
        again.log("first", step, {"loss": float(step)})
    again.add_report("first", "accuracy", Report({"accuracy": 0.5}), "")
    again.finish()
    (found,) = runs()
    assert found.info.status == "FINISHED"
    assert history(found.info.run_id, "first/train/loss") == [(2, 2.0), (4, 4.0), (6, 6.0)]
    assert history(found.info.run_id, "first/accuracy") == [(6, 0.5)]


def log_and_die(path: Path, uri: str) -> None:
    os.chdir(path.parent)
    os.environ["MLFLOW_TRACKING_URI"] = uri  # the server that processes are forked from may be older than this test
    run = begin(path)
    for step in range(1, 41):
        run.log("first", step, {"loss": float(step)})
    while not (path / "mlflow.json").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def test_numbers_that_a_kill_kept_from_being_sent_are_sent_when_the_run_goes_on(
    tmp_path: Path, runs: Any, history: Any, store: str
) -> None:
    process = ANEW.Process(target=log_and_die, args=(tmp_path / "run", store))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    again = begin(tmp_path / "run", resume=True)
    again.rewind((tmp_path / "run/metrics.jsonl").stat().st_size, 1.0)
    again.log("first", 41, {"loss": 41.0})
    again.finish()
    (found,) = runs()
    assert history(found.info.run_id, "first/train/loss") == [(step, float(step)) for step in range(1, 42)]


def test_a_server_that_is_away_is_warned_of_twice_and_sent_everything_later(
    tmp_path: Path, runs: Any, history: Any, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    monkeypatch.setattr("graftwork_mlflow.sender.PAUSES", (0.05,))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = begin(tmp_path / "run")
        failing = lambda: any("tried again" in str(one.message) for one in caught)  # noqa: E731
        limit = time.monotonic() + 60
        step = 0
        while not failing() and time.monotonic() < limit:
            step += 1
            run.log("first", step, {"loss": float(step)})
            time.sleep(0.01)
        for _ in range(200):
            step += 1
            run.log("first", step, {"loss": float(step)})
        run.finish()
    said = [str(one.message) for one in caught if "(mlflow" in str(one.message)]
    assert len(said) == 2, said
    assert f"MLflow has not got all of the run ({step} numbers are left)" in said[1]
    assert f"graft run --resume {tmp_path / 'run'} sends what is missing" in said[1]
    assert json.loads((tmp_path / "run/results.json").read_text())["status"] == "finished"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    again = begin(tmp_path / "run", resume=True)
    again.rewind((tmp_path / "run/metrics.jsonl").stat().st_size, 1.0)
    again.finish()
    (found,) = runs()
    assert history(found.info.run_id, "first/train/loss") == [(one, float(one)) for one in range(1, step + 1)]


def test_a_server_that_never_answers_does_not_hold_a_run_that_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("GRAFTWORK_MLFLOW_PATIENCE", "0.5")
        run = begin(tmp_path / "run")
        started = time.monotonic()
        with pytest.warns(UserWarning, match="no answer for 0.5 s"):
            run.finish()
        assert time.monotonic() - started < 20


def test_what_mlflow_refuses_is_named_and_costs_nothing_else(tmp_path: Path, runs: Any, history: Any) -> None:
    points = [Point("s", "good" if step != 7 else "a/../b", float(step), step, 0) for step in range(20)]
    sender = Sender(About(tmp_path, "toy", "refusing", 0), points)
    with pytest.raises(GraftworkError, match=r"refused 1 numbers, of a/\.\./b"):
        sender.end([], "FINISHED")
    (found,) = runs()
    assert [step for step, _ in history(found.info.run_id, "good")] == [step for step in range(20) if step != 7]
    assert found.info.status == "FINISHED"


def test_the_seeds_of_a_reproduction_nest_in_one_run(tmp_path: Path, runs: Any) -> None:
    for seed in (3, 4):
        begin(tmp_path / f"dann-repro/seed-{seed}", seed=seed).finish()
    by_name = {run.info.run_name: run for run in runs()}
    assert sorted(by_name) == ["dann-repro", "seed-3", "seed-4"]
    parent = by_name["dann-repro"]
    assert parent.info.status == "FINISHED"
    assert {by_name[f"seed-{seed}"].data.tags["mlflow.parentRunId"] for seed in (3, 4)} == {parent.info.run_id}
    assert "mlflow.parentRunId" not in parent.data.tags


def test_a_run_inside_a_users_own_mlflow_run_nests_in_it(tmp_path: Path, runs: Any) -> None:
    with mlflow.start_run(run_name="outer") as outer:
        begin(tmp_path / "run").finish()
        assert mlflow.active_run().info.run_id == outer.info.run_id
    by_name = {run.info.run_name: run for run in runs()}
    assert by_name["run"].data.tags["mlflow.parentRunId"] == outer.info.run_id
    assert by_name["run"].info.experiment_id == outer.info.experiment_id
    assert by_name["outer"].info.status == "FINISHED"


def test_mlflows_own_variables_name_the_experiment(tmp_path: Path, runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "chosen")
    begin(tmp_path / "run").finish()
    assert [mlflow.get_experiment(run.info.experiment_id).name for run in runs()] == ["chosen"]


@pytest.mark.parametrize(
    ("trackers", "uri", "followed"),
    [
        (None, False, False),
        (None, True, True),
        ("none", True, False),
        ("", True, False),
        ("tensorboard", True, False),
        ("mlflow", True, True),
    ],
)
def test_who_is_asked_for_follows(
    tmp_path: Path, runs: Any, monkeypatch: pytest.MonkeyPatch, trackers: str | None, uri: bool, followed: bool
) -> None:
    if trackers == "tensorboard":
        pytest.importorskip("graftwork_tensorboard")
    if trackers is not None:
        monkeypatch.setenv("GRAFTWORK_TRACKERS", trackers)
    if not uri:
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
    begin(tmp_path / "run").finish()
    assert (len(runs()) == 1) == followed
    assert (tmp_path / "run/mlflow.json").exists() == followed


def test_a_whole_pipeline_is_followed_and_gives_the_same_weights(
    tmp_path: Path, runs: Any, history: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {
        "dataset": "digits",
        "model": {"use": "small-cnn", "num_classes": 10},
        "objective": "cross-entropy",
        "train": {"steps": 6, "log_every": 2, "batch_size": 8},
        "evaluate": [{"use": "accuracy", "split": "test"}],
    }
    weights, states = [], []
    for choice in ("none", "mlflow"):
        monkeypatch.setenv("GRAFTWORK_TRACKERS", choice)
        result = Pipeline.from_dict({"name": "digits", "stages": {"learn": stage}}).run(tmp_path / choice, device="cpu")
        weights.append({name: value.clone() for name, value in result.models["learn"].state_dict().items()})
        states.append((random.getstate(), torch.get_rng_state().tolist()))
    assert states[0] == states[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    (found,) = runs()
    rows = [json.loads(line) for line in (tmp_path / "mlflow/metrics.jsonl").read_text().splitlines()]
    assert history(found.info.run_id, "learn/train/loss") == [(row["step"], row["loss"]) for row in rows if row["step"] >= 0]
    assert history(found.info.run_id, "learn/accuracy") == [(6, result.metrics["learn/accuracy"])]
    assert found.data.params["stages.learn.train.batch_size"] == "8"
    assert "mlflow.json" in json.loads((tmp_path / "mlflow/manifest.json").read_text())


def test_a_pipeline_that_is_stopped_by_hand_is_killed_in_mlflow(tmp_path: Path, runs: Any) -> None:
    from graftwork.run import Observer

    class Stops(Observer):
        def phase(self, stage: str, phase: str) -> None:
            raise KeyboardInterrupt

    stage = {"dataset": "digits", "model": {"use": "small-cnn", "num_classes": 10}, "evaluate": [{"use": "accuracy", "split": "test"}]}
    with pytest.raises(KeyboardInterrupt):
        Pipeline.from_dict({"stages": {"s": stage}}).run(tmp_path / "run", device="cpu", observer=Stops())
    assert [run.info.status for run in runs()] == ["KILLED"]
    assert json.loads((tmp_path / "run/results.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("first/recall@1", "first/recall_1"),
        ("a//b", "a/_/b"),
        ("../up", "_/up"),
        ("s/F1 (macro)", "s/F1 _macro_"),
        ("s/größe", "s/größe"),
    ],
)
def test_names_lose_what_mlflow_refuses(name: str, expected: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert key_of(name) == expected
    _validate_metric_name(key_of(name))


def test_long_names_stay_apart_and_long_values_are_cut() -> None:
    one, other = key_of("s/" + "a" * 300 + "b"), key_of("s/" + "a" * 300 + "c")
    assert one != other
    assert max(len(one), len(other)) <= 250
    found = parameters_of({"stages": {"s": {"text": "x" * 7000}}}, 1)
    assert len(found["stages.s.text"]) == 6000
    assert found["stages.s.text"].endswith("...")
    assert found["seed"] == "1"
