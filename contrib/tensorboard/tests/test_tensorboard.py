"""Event files that graftwork-tensorboard leaves, read back by TensorBoard itself."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from matplotlib.figure import Figure as MatplotlibFigure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from graftwork import Figure, Pipeline, Report
from graftwork.kinds.guidance import Samples
from graftwork.registry import installed
from graftwork.run import Run

ANEW = multiprocessing.get_context("forkserver")

DIGITS = {
    "name": "digits",
    "stages": {
        "learn": {
            "dataset": "digits",
            "model": {"use": "small-cnn", "num_classes": 10},
            "objective": "cross-entropy",
            "train": {"steps": 6, "log_every": 2, "batch_size": 8},
            "evaluate": [{"use": "accuracy", "split": "test"}],
        }
    },
}


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTWORK_TRACKERS", "tensorboard")


def begin(path: Path | None, resume: bool = False, **stages: Any) -> Run:
    resolved = {"seed": 7, "stages": stages or {"first": {"train": {"lr": 0.5, "epochs": None}}, "second": {}}}
    return Run(path, "toy", 7, torch.device("cpu"), resolved, None, installed().hooks, resume)


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(one.step, one.value) for one in read(folder).Scalars(name)]


def texts(found: EventAccumulator, name: str) -> str:
    return found.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()


def test_each_stage_has_a_folder_with_its_rows_at_their_steps_and_times(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.log("first", 5, {"loss": 2.0, "lr": 0.1})
    run.log("first", 10, {"loss": 1.0, "lr": 0.05})
    run.log("second", 5, {"loss": 3.0})
    run.finish()
    assert curve(tmp_path / "run/tensorboard/first", "train/loss") == [(5, 2.0), (10, 1.0)]
    assert curve(tmp_path / "run/tensorboard/second", "train/loss") == [(5, 3.0)]
    first, later = read(tmp_path / "run/tensorboard/first").Scalars("train/loss")
    assert abs(first.wall_time - (tmp_path / "run/pipeline.yaml").stat().st_mtime) < 30
    assert later.wall_time >= first.wall_time


def test_what_evaluators_measured_stands_at_the_last_step_apart_from_what_training_logs_by_that_name(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.log("first", 40, {"loss": 1.0, "accuracy": 1.0})
    run.log("first", 40, {"validate/accuracy": 0.5})
    run.log("first", -1, {"accuracy": 0.75})
    run.log("second", -1, {"accuracy": 0.5})
    run.finish()
    assert curve(tmp_path / "run/tensorboard/first", "accuracy") == [(40, 0.75)]
    assert curve(tmp_path / "run/tensorboard/first", "train/accuracy") == [(40, 1.0)]
    assert curve(tmp_path / "run/tensorboard/first", "validate/accuracy") == [(40, 0.5)]
    assert curve(tmp_path / "run/tensorboard/second", "accuracy") == [(0, 0.5)]


def test_a_resumed_run_purges_what_it_does_again_and_has_each_step_once(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    for step in (2, 4, 6):
        run.log("first", step, {"loss": float(step)})
    mark = run.mark()
    for step in (8, 10):
        run.log("first", step, {"loss": -1.0})
    run._log.close()  # as the end of the process would
    again = begin(tmp_path / "run", resume=True)
    again.rewind(int(mark["log_bytes"]), mark["elapsed"])
    for step in (8, 10, 12):
        again.log("first", step, {"loss": float(step)})
    again.finish()
    assert curve(tmp_path / "run/tensorboard/first", "train/loss") == [(step, float(step)) for step in (2, 4, 6, 8, 10, 12)]


def test_a_measurement_that_is_made_again_replaces_itself_alone(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.log("first", 9, {"loss": 2.0})
    run.log("first", 10, {"loss": 1.0})
    mark = run.mark()
    run.log("first", -1, {"accuracy": 0.25})
    run._log.close()
    again = begin(tmp_path / "run", resume=True)
    again.rewind(int(mark["log_bytes"]), mark["elapsed"])
    again.log("first", -1, {"accuracy": 0.75})
    again.finish()
    assert curve(tmp_path / "run/tensorboard/first", "accuracy") == [(10, 0.75)]
    assert curve(tmp_path / "run/tensorboard/first", "train/loss") == [(9, 2.0), (10, 1.0)]


def log_and_die(path: Path) -> None:
    os.environ["GRAFTWORK_TRACKERS"] = "tensorboard"  # the server that processes are forked from may be older than this test
    run = begin(path)
    for step in range(1, 51):
        run.log("first", step, {"loss": float(step)})
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_loses_no_row_that_was_logged(tmp_path: Path) -> None:
    process = ANEW.Process(target=log_and_die, args=(tmp_path / "run",))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert curve(tmp_path / "run/tensorboard/first", "train/loss") == [(step, float(step)) for step in range(1, 51)]


def test_figures_samples_and_texts_are_there_at_the_end_once_even_after_going_on(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.log("first", 3, {"loss": 1.0})
    drawing = MatplotlibFigure(figsize=(2, 1))
    drawing.subplots().plot([0, 1])
    run.add_report("first", "saliency", Report({"area": 0.5}, figures={"maps": Figure(drawing, "Where it looks")}), "")
    run.save_samples("second", Samples(images=torch.rand(3, 1, 4, 4), prompts=["a cat"], texts=["said"]))
    run.finish("failed")
    again = begin(tmp_path / "run", resume=True)
    again.rewind((tmp_path / "run/metrics.jsonl").stat().st_size, 1.0)
    again.finish()
    first, second = read(tmp_path / "run/tensorboard/first"), read(tmp_path / "run/tensorboard/second")
    assert [(one.step, one.width > one.height) for one in first.Images("saliency/maps")] == [(3, True)]
    assert "**saliency/maps**: Where it looks" in texts(first, "captions")
    assert curve(tmp_path / "run/tensorboard/first", "area") == [(3, 0.5)]
    grid = second.Images("samples")
    assert [(one.width, one.height) for one in grid] == [(12, 4)]  # three of 4 x 4
    assert "a cat" in texts(second, "samples/prompts")
    assert "said" in texts(second, "samples/texts")


def test_the_table_of_hyperparameters_has_every_setting_and_result(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.log("first", 3, {"loss": 1.0})
    run.add_report("first", "accuracy", Report({"accuracy": 0.75}), "")
    run.finish()
    found = read(tmp_path / "run/tensorboard")
    data = plugin_data_pb2.HParamsPluginData.FromString(found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    settings = data.session_start_info.hparams
    assert settings["stages.first.train.lr"].number_value == 0.5
    assert settings["stages.first.train.epochs"].string_value == "None"
    assert settings["seed"].number_value == 7
    assert [one.value for one in found.Scalars("first/accuracy")] == [0.75]
    assert "lr: 0.5" in texts(found, "pipeline")
    assert json.loads((tmp_path / "run/environment.json").read_text())["python"] in texts(found, "environment")


def test_stages_taken_from_another_run_are_written_from_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GRAFTWORK_TRACKERS", "none")
    Pipeline.from_dict(DIGITS).run(tmp_path / "one", device="cpu", reuse=True)
    monkeypatch.setenv("GRAFTWORK_TRACKERS", "tensorboard")
    taken = Pipeline.from_dict(DIGITS).run(tmp_path / "two", device="cpu", reuse=True)
    assert taken.run.records["learn"].taken_from
    rows = [json.loads(line) for line in (tmp_path / "one/metrics.jsonl").read_text().splitlines()]
    expected = [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in rows if row["step"] >= 0]
    assert curve(tmp_path / "two/tensorboard/learn", "train/loss") == expected
    assert curve(tmp_path / "two/tensorboard/learn", "accuracy") == [(6, pytest.approx(taken.metrics["learn/accuracy"], rel=1e-6))]


def test_a_run_that_is_followed_gives_the_same_weights_and_leaves_the_generators_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, states = [], []
    for choice in ("none", "tensorboard"):
        monkeypatch.setenv("GRAFTWORK_TRACKERS", choice)
        result = Pipeline.from_dict(DIGITS).run(tmp_path / choice, device="cpu")
        weights.append({name: value.clone() for name, value in result.models["learn"].state_dict().items()})
        states.append((random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()))  # noqa: NPY002
    assert states[0] == states[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not (tmp_path / "none/tensorboard").exists()
    assert "tensorboard/learn/" in (tmp_path / "tensorboard/manifest.json").read_text()


@pytest.mark.parametrize("choice", [None, "none", ""])
def test_it_is_silent_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str | None) -> None:
    monkeypatch.delenv("GRAFTWORK_TRACKERS")
    if choice is not None:
        monkeypatch.setenv("GRAFTWORK_TRACKERS", choice)
    run = begin(tmp_path / "run")
    run.log("first", 1, {"loss": 1.0})
    run.finish()
    assert not (tmp_path / "run/tensorboard").exists()


def test_a_run_that_is_kept_nowhere_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = begin(None)
    run.log("first", 1, {"loss": 1.0})
    run.finish()
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_warned_of_and_the_run_ends_well(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    run = begin(tmp_path / "run")
    run.log("first", 1, {"loss": 1.0})
    (tmp_path / "run/tensorboard/second").write_text("in the way")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(2, 102):
            run.log("second", step, {"loss": 1.0})
        run.finish()
    said = [str(one.message) for one in caught if "tensorboard" in str(one.message)]
    assert sum("graftwork_metrics_logged: " in text for text in said) == 1
    assert any("failed in graftwork_metrics_logged 100 times" in text for text in said)
    assert json.loads((tmp_path / "run/results.json").read_text())["status"] == "finished"
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 101
