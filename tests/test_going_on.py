"""Going on with a run: what is refused and why, what is said, and what a run tells of itself."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import graftwork as gw
from graftwork.cli.commands import app
from graftwork.run import Observer, Run
from graftwork.usage import measured

TRAIN = {"steps": 12, "batch_size": 16, "log_every": 4, "checkpoint": 5, "optimizer": {"use": "adamw", "lr": 0.05}}
DOCUMENT: dict[str, Any] = {
    "name": "going",
    "stages": {
        "first": {"dataset": "blobs", "model": {"use": "net", "dropout": 0.2}, "objective": "fit", "train": TRAIN, "evaluate": ["hits"]},
        "second": {"dataset": "blobs", "model": {"from": "first"}, "evaluate": ["hits"]},
    },
}

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTWORK_CACHE", str(tmp_path / "cache"))


class Ends(Observer):
    """Ends the run at a step, as Ctrl-C does, and hears what is said."""

    def __init__(self, step: int | None = None):
        self.step, self.notes, self.phases = step, [], []

    def tick(self, stage: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        if step == self.step:
            raise KeyboardInterrupt

    def note(self, stage: str, text: str) -> None:
        self.notes.append(f"{stage} {text}")

    def phase(self, stage: str, phase: str) -> None:
        self.phases.append((stage, phase))


@pytest.fixture
def every_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which a second passes between steps, so that each is told."""
    now = [0.0]

    def monotonic() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr("graftwork.engine.time.monotonic", monotonic)


@pytest.fixture
def broken(tmp_path: Path, every_tick: None) -> Path:
    """The directory of a run that was ended in its seventh step."""
    with pytest.raises(KeyboardInterrupt):
        gw.Pipeline.from_dict(DOCUMENT).run(tmp_path / "run", device="cpu", observer=Ends(7))
    return tmp_path / "run"


def weights(result: gw.Result) -> list[torch.Tensor]:
    return list(result.models["first"].state_dict().values())


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())  # type: ignore[no-any-return]


def test_an_interrupted_run_says_so_and_goes_on_from_its_checkpoint(broken: Path) -> None:
    assert summary(broken)["status"] == "interrupted"
    heard = Ends()
    again = gw.Pipeline.of_run(broken).run(broken, device="cpu", observer=heard, resume=True)
    assert heard.notes == ["first goes on from its checkpoint of step 5"]
    assert summary(broken)["status"] == "finished"
    assert all(map(torch.equal, weights(again), weights(gw.Pipeline.from_dict(DOCUMENT).run(device="cpu"))))


def test_a_run_that_was_begun_without_the_cache_goes_on_with_it_and_is_lent_to_none(broken: Path, tmp_path: Path) -> None:
    gw.Pipeline.of_run(broken).run(broken, device="cpu", resume=True, reuse=True)
    heard = Ends()
    gw.Pipeline.from_dict(DOCUMENT).run(tmp_path / "other", device="cpu", observer=heard, reuse=True)
    assert ("first", "train") in heard.phases


def test_an_objective_whose_fit_cannot_be_gone_on_with_trains_anew(
    tmp_path: Path, every_tick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gw.Objective, "resumable", False)
    with pytest.raises(KeyboardInterrupt):
        gw.Pipeline.from_dict(DOCUMENT).run(tmp_path / "run", device="cpu", observer=Ends(7))
    heard = Ends()
    again = gw.Pipeline.of_run(tmp_path / "run").run(tmp_path / "run", device="cpu", observer=heard, resume=True)
    assert heard.notes == []
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [4, 8, 12]
    assert all(map(torch.equal, weights(again), weights(gw.Pipeline.from_dict(DOCUMENT).run(device="cpu"))))


def test_another_pipeline_is_refused_with_what_differs(broken: Path) -> None:
    other = copy.deepcopy(DOCUMENT)
    other["stages"]["first"]["train"] = {**TRAIN, "steps": 13}
    with pytest.raises(gw.GraftworkError, match=r"run of another pipeline: stages\.first\.train\.steps was 12 and is 13\. Run"):
        gw.Pipeline.from_dict(other).run(broken, device="cpu", resume=True)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("dear")
    with pytest.raises(gw.GraftworkError, match=r"mine is no run: it has no pipeline\.yaml"):
        gw.Pipeline.from_dict(DOCUMENT).run(tmp_path / "mine", device="cpu", resume=True)
    assert (tmp_path / "mine/thesis.txt").read_text() == "dear"
    with pytest.raises(gw.GraftworkError, match="give `out`"):
        gw.Pipeline.from_dict(DOCUMENT).run(device="cpu", resume=True)


def test_a_run_that_another_process_is_writing_is_left_alone(broken: Path) -> None:
    writer = Run(broken, "going", 0, torch.device("cpu"), DOCUMENT, resume=True)
    with pytest.raises(gw.GraftworkError, match="is being written by another process"):
        gw.Pipeline.of_run(broken).run(broken, device="cpu", resume=True)
    writer.finish("failed")
    assert gw.Pipeline.of_run(broken).run(broken, device="cpu", resume=True).metrics


def test_a_log_that_has_lost_rows_is_refused(broken: Path) -> None:
    log = broken / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    with pytest.raises(gw.GraftworkError, match=r"metrics\.jsonl has lost rows since it was written"):
        gw.Pipeline.of_run(broken).run(broken, device="cpu", resume=True)


def test_a_finished_stage_whose_file_was_changed_is_named_and_run_again_when_it_is_removed(broken: Path) -> None:
    whole = gw.Pipeline.of_run(broken).run(broken, device="cpu", resume=True)
    file = broken / "stages/second/hits.txt"
    model = broken / "stages/first/model/model.safetensors"
    model.write_bytes(b"x" + model.read_bytes()[1:])
    with pytest.raises(gw.GraftworkError, match=r"model\.safetensors was changed.*remove .*first and the stages after it"):
        gw.Pipeline.of_run(broken).run(broken, device="cpu", resume=True)
    assert not file.exists()
    for stage in ("first", "second"):
        (broken / "stages" / stage).rename(broken.parent / stage)
    assert gw.Pipeline.of_run(broken).run(broken, device="cpu", resume=True).metrics == whole.metrics


def test_a_finished_run_is_not_run_again(broken: Path) -> None:
    gw.Pipeline.of_run(broken).run(broken, device="cpu", resume=True)
    heard = Ends()
    gw.Pipeline.of_run(broken).run(broken, device="cpu", observer=heard, resume=True)
    assert heard.phases == []
    assert heard.notes == ["first was finished before", "second was finished before"]


def test_the_summary_has_seconds_and_peaks_of_each_phase(broken: Path) -> None:
    gw.Pipeline.of_run(broken).run(broken, device="cpu", resume=True)
    phases = summary(broken)["phases"]
    assert {stage: list(found) for stage, found in phases.items()} == {"first": ["model", "train", "hits"], "second": ["model", "hits"]}
    for phase in (*phases["first"].values(), *phases["second"].values()):
        assert 0 <= phase["seconds"] < 120
        assert phase["host_bytes"] > 2**25
        assert phase["device_bytes"] is None
    assert summary(broken)["seconds"]["first"] == pytest.approx(sum(phase["seconds"] for phase in phases["first"].values()), abs=0.002)


def test_a_peak_is_that_of_its_own_block() -> None:
    with measured(torch.device("cpu")) as much:
        held = torch.ones(2**27, dtype=torch.uint8)
    with measured(torch.device("cpu")) as more:
        held = torch.cat([held, held])
    del held
    with measured(torch.device("cpu")) as less:
        pass
    assert much.host_bytes is not None
    assert more.host_bytes is not None
    assert less.host_bytes is not None
    assert more.host_bytes - much.host_bytes > 2**26
    assert more.host_bytes - less.host_bytes > 2**26
    assert less.seconds < 1


class Draws(gw.Evaluator):
    def __init__(self, draws: int):
        self.draws = draws

    def evaluate(self, model: Any, data: gw.Dataset, run: Run | None = None) -> gw.Report:
        torch.rand(self.draws)
        return gw.Report({"nothing": 0.0})


def test_what_an_evaluator_draws_changes_no_training() -> None:
    found = []
    for draws in (0, 5):
        torch.manual_seed(0)
        settings = gw.TrainConfig(**{**TRAIN, "checkpoint": {"minutes": None}, "validate": {"evaluate": "hits"}})
        model = gw.model("net", dropout=0.3)
        gw.Engine(model, gw.objective("fit"), gw.dataset("blobs"), settings, device="cpu", validator=Draws(draws)).fit()
        found.append(list(model.state_dict().values()))
    assert all(map(torch.equal, *found))


def test_the_command_goes_on_with_a_run_and_says_what_is_wrong(
    broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    app(["run", "--resume", str(broken), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["run"] == str(broken)
    assert summary(broken)["status"] == "finished"
    for arguments, named in (
        (["run"], "name a pipeline, or go on with a run"),
        (["run", "--resume", "a", "--out", "b"], "leave --out b away"),
        (["reproduce", "x.yaml", "--resume", "a", "--out", "b"], "leave --out b away"),
        (["run", "--resume", str(tmp_path / "cache")], "is no run"),
    ):
        with pytest.raises(gw.GraftworkError, match=named):
            app(arguments, standalone_mode=False)


def test_a_metric_that_is_called_as_a_rows_own_field_takes_no_place_of_it(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", "going", 0, torch.device("cpu"), DOCUMENT)
    run.log("first", 3, {"step": 9.0, "stage": 1.0, "loss": 2.0})
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text())
    assert (row["stage"], row["step"], row["loss"]) == ("first", 3, 2.0)
    run.finish()


def test_a_block_that_python_puts_in_two_places_is_overridden_in_one() -> None:
    stages = {name: {"dataset": "blobs", "model": "net", "objective": "fit", "train": TRAIN, "evaluate": ["hits"]} for name in ("a", "b")}
    pipeline = gw.Pipeline.from_dict({"stages": stages}, ["stages.a.train.steps=1"])
    assert [pipeline.document.data["stages"][name]["train"]["steps"] for name in ("a", "b")] == [1, 12]
    assert TRAIN["steps"] == 12
