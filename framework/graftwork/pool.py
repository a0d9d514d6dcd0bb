"""A pool of local processes, one a trial: the executor that needs nothing but this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from graftwork.errors import ConfigError
from graftwork.spec import StopSpec
from graftwork.trials import Outcome, Resources, Trial, log_of, run_trial

__all__ = ["LocalPool"]

PRELOADED = ["graftwork.pipeline", "graftwork.execution", "graftwork.report", "graftwork.pool", "matplotlib.figure"]
GRACE = 5.0
"""Seconds that a process is given to end before it is killed."""


class LocalPool:
    """Runs each trial in a process of its own. One whose process dies is gone on with by another, in its folder.

    Where GPUs are to be used they are dealt out in turn, by CUDA_VISIBLE_DEVICES. On the CPU a trial computes with as many threads as
    `Resources.cpus` says, by default with its share of the cores: with the same number of threads the figures are those of a run in
    this process, bit for bit. A script that uses this needs the `if __name__ == "__main__":` of all that starts processes.
    """

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End; closing the iterator has ended the processes."""

    def run(
        self,
        trials: Sequence[Trial],
        resources: Resources,
        *,
        stop: StopSpec | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> Iterator[Outcome]:
        """As `Executor.run`.

        Raises:
            ConfigError: if there are no such resources, or trials are to be stopped early.
        """
        if stop is not None:
            raise ConfigError(
                "`sweep.stop` ends trials early, which local processes cannot: use --on ray (pip install graftwork-ray), or leave it away"
            )
        slots = _slots(trials, resources)
        waiting = deque((trial, 1) for trial in trials)
        working: dict[int, _Worker] = {}
        try:
            while waiting or working:
                for slot in range(len(slots)):
                    if waiting and slot not in working:
                        working[slot] = _Worker(*waiting.popleft(), slots[slot])
                ended = wait([handle for worker in working.values() for handle in (worker.connection, worker.process.sentinel)])
                for slot, worker in list(working.items()):
                    if worker.connection in ended or worker.process.sentinel in ended:
                        del working[slot]
                        outcome = worker.outcome()
                        if outcome is None and worker.attempt <= resources.retries:
                            note(f"{worker.trial.name}: its process {worker.death}; another goes on with it")
                            waiting.appendleft((worker.trial, worker.attempt + 1))
                        else:
                            yield outcome or Outcome(worker.trial, "lost", message=worker.loss, attempts=worker.attempt)
        finally:
            for worker in working.values():
                worker.process.terminate()
            for worker in working.values():
                worker.end()


class _Worker:
    """A process that works at a trial."""

    def __init__(self, trial: Trial, attempt: int, environment: Mapping[str, str]):
        self.trial, self.attempt = trial, attempt
        self.connection, theirs = _context().Pipe(duplex=False)
        if trial.out is not None:
            trial.out.parent.mkdir(parents=True, exist_ok=True)
        self.process = _context().Process(
            target=_work, args=(trial, attempt, theirs, {**os.environ, **environment}, os.getcwd()), name=trial.name
        )
        self.process.start()
        theirs.close()

    def outcome(self) -> Outcome | None:
        """What came of it; None when the process died before it could tell."""
        try:
            found: Outcome | None = self.connection.recv() if self.connection.poll() else None
        except (EOFError, OSError):
            found = None
        self.end()
        return found

    def end(self) -> None:
        """Wait for the process, and kill one that does not end."""
        self.process.join(GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()

    @property
    def death(self) -> str:
        """How the process died, in words."""
        code = self.process.exitcode or 0
        if code >= 0:
            return f"ended with status {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"

    @property
    def loss(self) -> str:
        """Why nothing came of the trial."""
        times = f"{self.attempt} processes in turn died" if self.attempt > 1 else "its process died"
        seen = f"; see {log_of(self.trial.out)}" if self.trial.out is not None else ""
        memory = " (the kernel does that when memory runs out)" if self.process.exitcode == -signal.SIGKILL else ""
        return f"{times}; the last {self.death}{memory}{seen}"


def _context() -> Any:
    """Processes that fork from a clean one which has imported torch; where the system has none, they start anew."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _work(trial: Trial, attempt: int, connection: Connection, environment: Mapping[str, str], folder: str) -> None:
    """What a process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to every process of the terminal; the pool ends this one
    os.environ.clear()  # the process that this one was forked from knows an older environment
    os.environ.update(environment)
    os.chdir(folder)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if trial.out is not None:
        _speak_into(log_of(trial.out))
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    outcome = run_trial(trial)
    connection.send(Outcome(**{**vars(outcome), "attempts": attempt}))


def _end_with_parent() -> None:
    """Die when the process that asked for the trial is gone: nobody waits for the outcome then."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _speak_into(log: Path) -> None:
    """Let whatever this process prints go to a file."""
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))


def _slots(trials: Sequence[Trial], resources: Resources) -> list[dict[str, str]]:
    """The environment of each process that may work at a time: its GPUs, its threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = _devices(trials, resources)
    share = resources.gpus or 1
    room = int(len(devices) / share) if devices else cores // (resources.cpus or 1)
    if room < 1 and resources.workers is None:
        short = (
            f"{share:g} GPUs a trial are more than the {len(devices)}"
            if devices
            else f"{resources.cpus} cores a trial are more than the {cores}"
        )
        raise ConfigError(f"{short} of this machine")
    workers = max(1, min(resources.workers or room, len(trials)))
    threads = resources.cpus or max(1, min(torch.get_num_threads(), cores // workers))
    found = []
    for slot in range(workers):
        first = int(slot * share) if share <= 1 else slot * int(share)
        dealt = [devices[(first + more) % len(devices)] for more in range(max(1, int(share)))] if devices else []
        found.append({"OMP_NUM_THREADS": str(threads), **({"CUDA_VISIBLE_DEVICES": ",".join(dealt)} if dealt else {})})
    return found


def _devices(trials: Sequence[Trial], resources: Resources) -> list[str]:
    """The GPUs that are dealt out: those that this process sees, unless the trials name a device."""
    named = {trial.device for trial in trials} - {None, "cuda"}
    count = 0 if named or resources.gpus == 0 else torch.cuda.device_count()
    if resources.gpus and not count:
        raise ConfigError(
            f"there is no GPU to give {resources.gpus:g} of to each trial{' on ' + ', '.join(map(str, named)) if named else ''}"
        )
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [one.strip() for one in seen.split(",")][:count] if seen and count else [str(index) for index in range(count)]
