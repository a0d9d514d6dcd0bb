"""What it costs to be able to go on: checkpoints while training, and the time that a resumed run needs before its first step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import graftwork as gw
from graftwork.checkpoint import Checkpoints
from graftwork.run import Observer

BATCH, STEPS, EVERY, ROUNDS = 64, 200, 100, 5


def dataset() -> gw.Dataset:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (BATCH * 100, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return gw.Dataset({"train": gw.TensorSamples(image=image, label=torch.randint(0, 10, (BATCH * 100,), generator=generator))})


def seconds(data: gw.Dataset, kept: Checkpoints | None) -> float:
    torch.manual_seed(0)
    settings = gw.TrainConfig(steps=STEPS, batch_size=BATCH, optimizer={"use": "adamw", "lr": 1e-3})
    engine = gw.Engine(gw.model("small-cnn"), gw.objective("cross-entropy"), data, settings, device="cpu", checkpoints=kept)
    started = time.perf_counter()
    engine.fit()
    return time.perf_counter() - started


@pytest.mark.bench
@pytest.mark.timeout(900)
def test_a_checkpoint_every_hundred_steps_costs_at_most_3_percent_of_a_run_on_small_cnn(tmp_path: Path) -> None:
    data = dataset()
    seconds(data, None)
    pairs = [(seconds(data, Checkpoints(tmp_path / str(number), steps=EVERY)), seconds(data, None)) for number in range(ROUNDS)]
    assert len(list((tmp_path / "0").glob("step-*"))) == 2
    ratio = statistics.median(kept / bare for kept, bare in pairs)
    bare = statistics.median(bare for _, bare in pairs)
    each = statistics.median(kept - bare for kept, bare in pairs) / (STEPS // EVERY + 1)
    print(f"\ncheckpoints every {EVERY} of {STEPS} steps: {ratio:.4f} of the run's {bare:.2f} s without; {1000 * each:.0f} ms each")
    assert ratio <= 1.03


class First(Observer):
    """Notes when the first step has been made."""

    def __init__(self) -> None:
        self.began, self.seconds = time.perf_counter(), 0.0

    def tick(self, stage: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        self.seconds = self.seconds or time.perf_counter() - self.began


class Enough(First):
    """Ends the run, as Ctrl-C does, in the middle of training."""

    def tick(self, stage: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        super().tick(stage, step, total, metrics)
        if step >= total // 2:
            raise KeyboardInterrupt


@pytest.mark.bench
def test_a_resumed_run_makes_its_first_step_within_three_seconds_of_a_fresh_one(tmp_path: Path) -> None:
    pytest.importorskip("graftwork_testbed", reason="needs the digits")
    train = {"steps": 400, "batch_size": 64, "checkpoint": 50}
    stages = {
        "first": {"dataset": "digits", "model": "small-cnn", "objective": "cross-entropy", "train": {**train, "steps": 20}},
        "second": {"dataset": "digits", "model": {"from": "first"}, "objective": "cross-entropy", "train": train},
    }
    pipeline = gw.Pipeline.from_dict({"stages": stages})
    fresh, again = Enough(), First()
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(tmp_path / "run", device="cpu", observer=fresh)
    again.began = time.perf_counter()
    pipeline.run(tmp_path / "run", device="cpu", observer=again, resume=True)
    print(f"\nfirst step after {fresh.seconds:.2f} s in a fresh run, {again.seconds:.2f} s in one that goes on in its second stage")
    assert again.seconds <= fresh.seconds + 3
