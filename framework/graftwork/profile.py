"""Profiles: a torch profiler's trace and its slowest operators, over a few steps of each phase of a run."""

from __future__ import annotations

import gzip
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.profiler import ProfilerActivity, profile, schedule, supported_activities

from graftwork.files import replaced, write_text
from graftwork.run import Run

__all__ = ["ACTIVE", "LARGE", "WAIT", "WARMUP", "Profiles", "Window", "profiled_calls", "profiled_steps"]

WAIT, WARMUP, ACTIVE = 2, 1, 4
"""Steps of a training that are passed over, that the profiler runs in on, and that are recorded; of other phases ACTIVE calls are."""

LARGE = 4 * 2**20
"""A trace of more bytes is compressed; Perfetto, Chrome and TensorBoard read both."""

ROWS = 30
"""Operators in the table."""


class Window:
    """The profiler over a bounded number of steps, which are written when they are over; what comes after costs nothing.

    Args:
        stem: path of the files without their endings: `.trace.json` (or `.trace.json.gz`), `.json`, `.txt`.
        device: whose kernels are recorded beside the host's operators.
        wait: steps that are passed over.
        warmup: steps that the profiler runs in on.
        active: steps that are recorded.

    Attributes:
        written: whether the files are there; what ends before a step of the window is whole leaves none.
    """

    def __init__(self, stem: Path, device: torch.device, wait: int = WAIT, warmup: int = WARMUP, active: int = ACTIVE):
        self.stem, self.device, self.wait, self.warmup, self.active = stem, device, wait, warmup, active
        self.written = False
        self._profiler: Any = None
        self._steps = 0

    def start(self) -> None:
        """Begin to count steps."""
        known: set[ProfilerActivity] = supported_activities()  # type: ignore[no-untyped-call]
        kinds = {ProfilerActivity.CPU} | {kind for kind in known if kind.name.lower() == self.device.type}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Profiler won't be using warmup")
            plan = schedule(wait=self.wait, warmup=self.warmup, active=self.active, repeat=1)
        self._profiler = profile(
            activities=kinds, schedule=plan, on_trace_ready=self._write, record_shapes=True, profile_memory=True, acc_events=True
        )
        self._profiler.start()

    def step(self) -> None:
        """A step has ended."""
        if self._profiler is None:
            return
        self._steps += 1
        self._profiler.step()
        if self._steps == self.wait + self.warmup + self.active:
            self.stop()

    def stop(self, keep: bool = True) -> None:
        """End it, if it runs; what was recorded so far is written, unless it is not to be kept."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        if not keep:
            profiler.on_trace_ready = None
        profiler.stop()

    def _write(self, profiler: Any) -> None:
        steps = self._steps - self.wait - self.warmup
        if steps <= 0 and self.wait + self.warmup > 0:
            return
        self.stem.parent.mkdir(parents=True, exist_ok=True)
        for old in (".trace.json", ".trace.json.gz"):
            Path(f"{self.stem}{old}").unlink(missing_ok=True)
        plain = Path(f"{self.stem}.trace.json")
        with replaced(plain) as beside:
            profiler.export_chrome_trace(str(beside))
        if plain.stat().st_size > LARGE:
            with replaced(Path(f"{plain}.gz")) as beside, plain.open("rb") as source, gzip.open(beside, "wb", compresslevel=6) as target:
                shutil.copyfileobj(source, target)
            plain.unlink()
        averages = profiler.key_averages()
        on_device = self.device.type != "cpu"
        named = [_operator(event) for event in averages if not event.key.startswith("ProfilerStep")]
        operators = sorted(named, key=lambda one: -one["device_self_us" if on_device else "host_self_us"])
        found = {"device": str(self.device), "skipped": self.wait + self.warmup, "steps": steps, "operators": operators[:ROWS]}
        write_text(Path(f"{self.stem}.json"), json.dumps(found, indent=1))
        order = f"self_{self.device.type}_time_total" if on_device else "self_cpu_time_total"
        write_text(Path(f"{self.stem}.txt"), averages.table(sort_by=order, row_limit=ROWS, max_name_column_width=60) + "\n")
        self.written = True


def _operator(event: Any) -> dict[str, Any]:
    """One operator: microseconds with and without what it calls, bytes that it allocated and did not free, over all recorded steps."""
    return {
        "name": event.key,
        "calls": event.count,
        "host_us": round(event.cpu_time_total, 1),
        "host_self_us": round(event.self_cpu_time_total, 1),
        "device_us": round(event.device_time_total, 1),
        "device_self_us": round(event.self_device_time_total, 1),
        "host_self_bytes": event.self_cpu_memory_usage,
        "device_self_bytes": event.self_device_memory_usage,
    }


@contextmanager
def profiled_steps(stem: Path, device: torch.device) -> Iterator[Window]:
    """Profile the first steps of a training, after a few to settle; the window's `step` is to be called after each.

    Args:
        stem: as for `Window`.
        device: where it trains.
    """
    window = Window(stem, device)
    window.start()
    with _ended(window):
        yield window


@contextmanager
def profiled_calls(stem: Path, device: torch.device) -> Iterator[Window]:
    """Profile the first calls of modules made inside, such as a denoiser's or a classifier's; a module called by another is no call.

    Nothing is recorded before the first call, and nothing at all where no module is called.

    Args:
        stem: as for `Window`.
        device: where they run.
    """
    window = Window(stem, device, wait=0, warmup=0)
    depth, calls = 0, 0

    def enter(module: nn.Module, arguments: Any) -> None:
        nonlocal depth, calls
        if depth == 0:
            calls += 1
            if calls == 1:
                window.start()
        depth += 1

    def leave(module: nn.Module, arguments: Any, output: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            window.step()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        with _ended(window):
            yield window
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _ended(window: Window) -> Iterator[None]:
    try:
        yield
    except BaseException:
        window.stop(keep=False)
        raise
    window.stop()


class Profiles:
    """Profiles of a run, in `profile/STAGE/PHASE.*` of its directory; of several processes the one that writes is profiled.

    Args:
        run: which.
        wanted: whether there are to be any.
    """

    def __init__(self, run: Run, wanted: bool):
        self._run, self._wanted = run, wanted and run.path is not None

    @contextmanager
    def steps(self, stage: str, restored: bool = False) -> Iterator[Callable[[], None] | None]:
        """Profile a training; what is given is to be called after each step, or is None. One that is only restored is not profiled."""
        if not self._wanted or restored:
            yield None
            return
        with profiled_steps(self._stem(stage, "train"), self._run.device) as window:
            yield window.step
        self._tell(stage, "train", window)

    @contextmanager
    def calls(self, stage: str, phase: str) -> Iterator[None]:
        """Profile sampling or an evaluation."""
        if not self._wanted:
            yield
            return
        with profiled_calls(self._stem(stage, phase), self._run.device) as window:
            yield
        self._tell(stage, phase, window)

    def _stem(self, stage: str, phase: str) -> Path:
        assert self._run.path is not None
        return self._run.path / "profile" / stage / phase.replace("/", "-").replace("\\", "-")

    def _tell(self, stage: str, phase: str, window: Window) -> None:
        if not window.written:
            why = f"it had fewer than {WAIT + WARMUP + 1} steps" if phase == "train" else "it called no module"
            self._run.observer.note(stage, f"{phase} leaves no profile: {why}")
