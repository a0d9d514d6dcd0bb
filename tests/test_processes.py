"""Two processes: their gradients are those of one on the joined batch, the first alone writes, and the failure of one ends both."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

PREAMBLE = """
import os, sys, traceback
sys.path[:0] = {paths!r}
os.environ.update({environment!r})
import torch
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
import graftwork as gw
from graftwork import processes
from torch import nn
out, rank, several = {out!r}, {rank!r}, {several!r}


class Net(nn.Module):
    inputs = ("features",)

    def __init__(self):
        super().__init__()
        self.num_features, self.num_classes = 8, 3
        self.trunk, self.head, self.spare = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward_features(self, x):
        return self.trunk(x).tanh()

    def forward_head(self, x, pre_logits=False):
        return x if pre_logits else self.head(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))

    def encode_image(self, image):
        return self.trunk(image)

    def encode_text(self, input_ids, attention_mask=None):
        return self.trunk(input_ids).tanh()


class Fit(gw.Objective):
    keys = {{"train": ("inputs", "label")}}

    def forward(self, model, batches, progress):
        batch = batches["train"]
        return gw.Loss(nn.functional.cross_entropy(model(batch["features"]), batch["label"]))


class Apart(Fit):
    '''Two losses, of which the step takes the sum of the directions.'''

    def forward(self, model, batches, progress):
        batch = batches["train"]
        first = nn.functional.cross_entropy(model(batch["features"]), batch["label"])
        return gw.Loss(first, {{"a": first, "b": model.spare(model.forward_features(batch["features"])).square().mean()}})

    def update(self, engine, batches):
        loss = engine.loss(batches)
        found = engine.gradients({{name: loss.parts[name] for name in ("a", "b")}})
        parameters = [p for p in engine.joined.model.parameters() if p.requires_grad]
        for index, parameter in enumerate(parameters):
            parameter.grad = sum(gradients[index] / (1 + gradients[index].norm()) for gradients in found.values())
        engine.step()
        return gw.Loss(loss.total.detach())


def data(count=64):
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(count) % 3
    features = torch.randn(count, 4, generator=generator) + nn.functional.one_hot(label, 4)
    columns = dict(features=features.double(), label=label, image=features.double(), input_ids=features.double().flip(1))
    samples = gw.TensorSamples(**columns, attention_mask=torch.ones(count, 4), index=torch.arange(count))
    return gw.Dataset({{"train": samples, "source": samples, "target": samples, "val": samples}}, gw.DatasetInfo(classes=("a", "b", "c")))


def train(objective, batch=16, **settings):
    torch.manual_seed(1)
    model = Net().double()
    size = batch // 2 if several else batch
    settings = {{"steps": 6, "batch_size": size, "optimizer": {{"use": "sgd", "lr": 0.2}}, "log_every": 2, **settings}}
    rows = []
    engine = gw.Engine(model, objective, data(), gw.TrainConfig(**settings), seed=5, device="cpu", log=lambda step, row: rows.append(row))
    engine.fit()
    return engine, rows


def keep(engine, rows):
    from safetensors.torch import save_file
    import json
    from pathlib import Path
    save_file({{k: v.contiguous() for k, v in engine.joined.state_dict().items() if torch.is_tensor(v)}}, out)
    Path(out + ".json").write_text(json.dumps(rows))

"""
ANEW = multiprocessing.get_context("forkserver")

Launch = Callable[..., list[Path]]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """launch(code, number, paths): run code in so many processes; give where each keeps what it found."""

    def call(code: str, number: int = 2, paths: tuple[str, ...] = (), expected: tuple[int, ...] | None = None) -> list[Path]:
        world = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        started, kept = [], []
        for rank in range(number):
            environment = {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} if number > 1 else {}
            kept.append(tmp_path / f"{number}-{rank}.safetensors")
            source = PREAMBLE.format(paths=list(paths), environment=environment, out=str(kept[-1]), rank=rank, several=number > 1)
            process = ANEW.Process(target=exec, args=(source + code, {}))
            process.start()
            started.append(process)
        for process in started:
            process.join(120)
        assert tuple(process.exitcode for process in started) == (expected or (0,) * number)
        return kept

    return call


OBJECTIVES = {
    "plain": "Fit()",
    "unused": "type('Half', (Fit,), {'forward': lambda s, m, b, p: gw.Loss(m.forward_features(b['train']['features']).square().mean())})()",
    "gradients": "Apart()",
    "info-nce": "gw.objective('info-nce')",
    "dann": "gw.objective('domain-adversarial', dropout=0.0)",
    "two-pass": "gw.objective('sharpness-aware', rho=0.3)",
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_take_the_steps_of_one_on_the_joined_batch(launch: Launch, name: str) -> None:
    if name in ("dann", "two-pass"):
        pytest.importorskip("graftwork_dann" if name == "dann" else "graftwork_tram", reason="needs that plugin")
    code = f"keep(*train({OBJECTIVES[name]}))"
    (one,), two = launch(code, 1), launch(code, 2)
    expected = load_file(one)
    for found in map(load_file, two):
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-7, msg=lambda text, key=key: f"{key}: {text}")
    rows = [json.loads(Path(f"{path}.json").read_text()) for path in (one, *two)]
    assert rows[1] == rows[2]
    assert len(rows[0]) == len(rows[1]) == 3
    assert rows[1][-1]["loss"] == pytest.approx(rows[0][-1]["loss"], rel=1e-4)


def test_accumulated_batches_of_two_processes_are_one_batch(launch: Launch) -> None:
    (one,), two = launch("keep(*train(Fit()))", 1), launch("keep(*train(Fit(), batch=8, accumulate=2))", 2)
    expected = load_file(one)
    for key, value in load_file(two[0]).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-7)


def test_processes_drop_different_units(launch: Launch) -> None:
    code = """
drawn = []
class Draws(Fit):
    def forward(self, model, batches, progress):
        drawn.append(torch.rand(()).item())
        return super().forward(model, batches, progress)
train(Draws())
assert len(set(processes.gathered(tuple(drawn)))) == 2
"""
    launch(code, 2)


def test_a_training_of_two_processes_goes_on_from_its_checkpoint(launch: Launch, tmp_path: Path) -> None:
    code = """
from pathlib import Path
from graftwork.checkpoint import Checkpoints
class Stop(Fit):
    def update(self, engine, batches):
        if BREAK and engine.steps_done == 4:
            raise KeyboardInterrupt
        return super().update(engine, batches)
kept = Checkpoints(Path(FOLDER) if processes.is_first() else None, steps=3, resume=True)
torch.manual_seed(1)
model = Net().double()
config = gw.TrainConfig(steps=6, batch_size=8, optimizer={"use": "adamw", "lr": 0.1}, accumulate=1)
engine = gw.Engine(model, Stop(), data(), config, seed=5, device="cpu", checkpoints=kept)
try:
    engine.fit()
    keep(engine, [])
except KeyboardInterrupt:
    pass
"""
    code = "processes.join(torch.device('cpu'))\n" + code
    whole = load_file(launch(f"BREAK, FOLDER = False, {str(tmp_path / 'whole')!r}\n{code}")[1])
    launch(f"BREAK, FOLDER = True, {str(tmp_path / 'broken')!r}\n{code}")
    again = load_file(launch(f"BREAK, FOLDER = False, {str(tmp_path / 'broken')!r}\n{code}")[1])
    assert all(torch.equal(again[key], whole[key]) for key in whole)
    with pytest.raises(AssertionError):  # with another number of processes
        launch(f"BREAK, FOLDER = False, {str(tmp_path / 'broken')!r}\n{code}".replace("processes.join", "processes.count"), 1)


FSDP = """
import graftwork.engine
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
made = graftwork.engine._accelerator

def spread(train, device):  # Accelerate offers FSDP with accelerators alone; torch has it on the CPU
    accelerator = made(train, device)
    if several:
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")
    return accelerator

graftwork.engine._accelerator = spread
from pathlib import Path
from graftwork.checkpoint import Checkpoints

class Noted(Fit):
    def __init__(self):
        super().__init__()
        self.steps = 0

    def after_step(self, model):
        self.steps += 1

    def get_extra_state(self):
        return {"steps": self.steps}

    def set_extra_state(self, state):
        self.steps = state["steps"]

class Stop(Noted):
    def update(self, engine, batches):
        if BREAK and engine.steps_done == 4:
            raise KeyboardInterrupt
        return super().update(engine, batches)

processes.join(torch.device("cpu"))
kept = Checkpoints(Path(out).parent / FOLDER if processes.is_first() else None, steps=3, resume=True)
torch.manual_seed(1)
select = {"evaluate": {"use": "accuracy"}, "metric": "accuracy"}
config = gw.TrainConfig(steps=6, batch_size=8 if several else 16, optimizer={"use": "adamw", "lr": 0.1}, validate=select)
engine = gw.Engine(
    Net().double(), Stop(), data(), config, seed=5, device="cpu", checkpoints=kept, validator=gw.evaluator("accuracy", split="val")
)
try:
    model = engine.fit()
    assert type(model) is Net
    from safetensors.torch import save_file
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out)
    assert engine.weights.whole().objective.steps == max(engine.history, key=lambda one: (one[1], -one[0]))[0]  # the best weights'
    if several:
        try:
            engine.gradients({"a": torch.zeros(())})
        except gw.ConfigError as error:
            assert "which FSDP spreads: use DDP" in str(error)
        else:
            raise AssertionError
except KeyboardInterrupt:
    pass
"""


def test_weights_that_fsdp_spreads_end_as_those_of_one_process_also_after_going_on(launch: Launch) -> None:
    whole, broken = "BREAK, FOLDER = False, 'whole'", "BREAK, FOLDER = True, 'broken'"
    (one,) = launch(f"BREAK, FOLDER = False, 'one'\n{FSDP}", 1)
    expected = load_file(one)
    found = load_file(launch(f"{whole}\n{FSDP}")[1])
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-7)
    launch(f"{broken}\n{FSDP}")
    again = load_file(launch(f"{broken.replace('True', 'False')}\n{FSDP}")[1])
    assert all(torch.equal(again[key], found[key]) for key in found)


PIPELINE = """
seed: 0
stages:
  first:
    dataset: blobs
    model: net
    objective: fit
    train: {steps: 6, batch_size: 8, log_every: 2, checkpoint: 3, validate: {evaluate: {use: hits, split: val}, every: 3}}
    evaluate: [{use: notes, inner: hits}, counting]
  second:
    dataset: {from: first}
    model: net
    objective: {use: follow, teacher: {from: first}}
    train: {steps: 4, batch_size: 8}
    evaluate: [{use: notes, inner: hits, note: {from: first/note}}]
"""

COUNTING = '''
from graftwork import Component, Evaluator, Report, hookimpl, processes
from graftwork.kinds.evaluator import split_batches


class Counting(Evaluator):
    """Counts the samples that it sees, in a file, whatever process it is in."""

    def __init__(self, fail: int = -1):
        self.fail = fail

    def evaluate(self, model, data, run=None):
        if processes.index() == self.fail:
            raise RuntimeError("it broke here")
        seen = sum(len(batch["label"]) for batch in split_batches(data, "test", model))
        with open("seen.txt", "a") as stream:
            stream.write(f"{seen}\\\\n")
        return Report({"seen": seen})


class Breaks(Evaluator):
    """Cannot be made in the second process."""

    def __init__(self):
        if processes.index() == 1:
            raise RuntimeError("it broke here")

    def evaluate(self, model, data, run=None):
        return Report()


@hookimpl
def graftwork_evaluators():
    yield Component("counting", "graftwork_counting:Counting", "Counts")
    yield Component("breaks", "graftwork_counting:Breaks", "Breaks", deferred=True)
'''.replace("\\\\n", "\\n")


@pytest.fixture
def accelerate(toy: Path, install: Callable[..., Path], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """accelerate(*arguments): the command line under `accelerate launch`, in two processes."""
    install("graftwork-counting", COUNTING)
    (tmp_path / "p.yaml").write_text(PIPELINE)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(free_port()), "-m", "graftwork"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRAFTWORK_CACHE": str(tmp_path / "cache"), "COLUMNS": "300", "NO_COLOR": "1"}
        return subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)

    return call


Launched = Callable[..., subprocess.CompletedProcess[str]]


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())["results"]  # type: ignore[no-any-return]


def test_a_run_of_two_processes_is_one_run(accelerate: Launched, tmp_path: Path) -> None:
    done = accelerate("run", "p.yaml", "--out", "two", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: two/report.html") == 1
    assert (tmp_path / "seen.txt").read_text().splitlines() == ["96"]
    found = results(tmp_path / "two")
    assert found["first"]["seen"] == 96
    assert found["second"]["noted"] == 0
    rows = [json.loads(line) for line in (tmp_path / "two/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["stage"] == "first" and "loss" in row] == [2, 4, 6]
    assert not list((tmp_path / "two").rglob("*.part"))


def test_the_failure_of_one_process_ends_both_with_its_message(accelerate: Launched) -> None:
    done = accelerate("run", "p.yaml", "stages.first.evaluate=[breaks]", "--out", "two", "--device", "cpu")
    assert done.returncode != 0
    assert "it broke here" in done.stderr
