"""Trials: runs that are made elsewhere than in this process, by an executor, and what came of them."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from graftwork.errors import GraftworkError, PluginError, UnknownComponentError, nearest
from graftwork.files import write_text
from graftwork.metrics import metric_of
from graftwork.run import Observer
from graftwork.spec import StopSpec

__all__ = [
    "GROUP",
    "Executor",
    "Outcome",
    "Resources",
    "Trial",
    "find_executor",
    "finished_before",
    "metric_of",
    "refuse_used",
    "run_trial",
]

GROUP = "graftwork.executors"
PROVIDERS = {"ray": "graftwork-ray"}
"""Executors of graftwork's own distributions, for the message about a missing one."""

PATIENCE = 60.0
"""Seconds that a trial which is begun again waits for the last process of its former attempt to let go of the run."""


@dataclass(frozen=True)
class Trial:
    """One run that is to be made.

    Args:
        name: says which, and names its folder.
        data: the pipeline, as YAML would give it.
        seed: of the run.
        out: the run directory, absolute; on a cluster it is on storage that all machines share. None keeps nothing.
        overrides: what this trial has of its own, for the reader; `data` has it already.
        device: as for `Pipeline.run`.
        reuse: as for `Pipeline.run`.
        stages: run only these; None runs all.
    """

    name: str
    data: Mapping[str, Any]
    seed: int
    out: Path | None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None
    reuse: bool = False
    stages: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a trial. A failure is a value too.

    Args:
        trial: which.
        status: "finished"; "failed" (it raised); "lost" (its process died too often); "stopped" (it fell behind and was ended).
        metrics: "stage/metric" -> number.
        message: why it did not finish.
        attempts: processes that worked at it.
        seconds: of wall time that the last of them took.
    """

    trial: Trial
    status: Literal["finished", "failed", "lost", "stopped"]
    metrics: Mapping[str, float] = field(default_factory=dict)
    message: str = ""
    attempts: int = 1
    seconds: float = 0.0


@dataclass(frozen=True)
class Resources:
    """What trials may take.

    Args:
        workers: trials at a time; as many as there is room for by default.
        cpus: cores, which are torch's threads, of each trial.
        gpus: of each trial; a fraction lets several share one. One by default, where there are some.
        retries: how often a trial whose process dies is gone on with by another.
    """

    workers: int | None = None
    cpus: int | None = None
    gpus: float | None = None
    retries: int = 2


class Executor(Protocol):
    """Runs trials somewhere; an entry point of the group `graftwork.executors` names its class, which is called without arguments.

    It is entered before its first `run` and left after its last; leaving ends whatever is still at work.
    """

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End."""

    def run(
        self,
        trials: Sequence[Trial],
        resources: Resources,
        *,
        stop: StopSpec | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> Iterator[Outcome]:
        """Outcomes, in the order in which trials end. Closing the iterator ends those that still run.

        Args:
            trials: each is run by `run_trial`, in a process of its own, and goes on in its folder when its process dies.
            resources: what they may take.
            stop: when to end trials early.
            note: told in a sentence of what the user should know, such as a trial that was lost.

        Raises:
            GraftworkError: if there are no such resources, or it cannot stop trials early.
        """


def find_executor(name: str) -> Executor:
    """The executor that is installed under a name.

    Raises:
        UnknownComponentError: if there is none; what would provide it is named.
        PluginError: if it cannot be loaded.
    """
    known: dict[str, EntryPoint] = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in known:
        provider = f"; {PROVIDERS[name]} provides it: pip install {PROVIDERS[name]}" if name in PROVIDERS else nearest(name, known)
        raise UnknownComponentError(f'no executor "{name}" is installed{provider}; there are {", ".join(sorted(known)) or "none"}')
    entry = known[name]
    try:
        return entry.load()()  # type: ignore[no-any-return]
    except Exception as error:
        owner = entry.dist.name if entry.dist else entry.value
        needed = f"; what it needs comes with: pip install {owner}" if isinstance(error, ImportError) and entry.dist else ""
        raise PluginError(f'executor "{name}" of {owner} cannot be loaded: {type(error).__name__}: {error}{needed}') from error


def refuse_used(trials: Sequence[Trial]) -> None:
    """Refuse folders that hold something: trials go on in theirs, which must be asked for.

    Raises:
        GraftworkError: naming the first.
    """
    for trial in trials:
        if trial.out is not None and trial.out.exists() and (not trial.out.is_dir() or any(trial.out.iterdir())):
            what = "a trial needs a directory of its own; choose another --out, or go on with --resume"
            raise GraftworkError(f"{trial.out} is not empty: {what}")


def run_trial(trial: Trial) -> Outcome:
    """Run a trial in this process, going on with what its folder holds. An error is an outcome; its traceback goes to `<folder>.log`."""
    from graftwork.pipeline import Pipeline

    started = time.monotonic()
    try:
        if trial.out is not None:
            _await_former(trial.out)
        result = Pipeline.from_dict(trial.data).run(
            trial.out,
            seed=trial.seed,
            device=trial.device,
            stages=trial.stages,
            observer=_Labels(trial),
            resume=trial.out is not None,
            reuse=trial.reuse and trial.out is not None,
        )
    except Exception as error:
        message = str(error) if isinstance(error, GraftworkError) else f"{type(error).__name__}: {error}"
        if trial.out is not None and not isinstance(error, GraftworkError):
            log = log_of(trial.out)
            message += f"; see {log}"
            with log.open("a", encoding="utf-8") as stream:
                traceback.print_exc(file=stream)
        return Outcome(trial, "failed", message=message, seconds=time.monotonic() - started)
    return Outcome(trial, "finished", result.metrics, seconds=time.monotonic() - started)


def log_of(out: Path) -> Path:
    """The file beside a trial's folder that has what its processes said."""
    return out.with_name(f"{out.name}.log")


class _Labels(Observer):
    """Writes what a trial has of its own into its folder, once the run has made that."""

    def __init__(self, trial: Trial):
        self.trial = trial

    def stage_started(self, stage: str, index: int, count: int) -> None:
        if index == 0 and self.trial.out is not None:
            about = {"name": self.trial.name, "seed": self.trial.seed, "overrides": dict(self.trial.overrides)}
            write_text(self.trial.out / "trial.json", json.dumps(about, indent=1))


def _await_former(out: Path) -> None:
    """Wait until no process of a former attempt holds the log: those that load data outlive a process that was killed by seconds."""
    try:
        import fcntl

        log = (out / "metrics.jsonl").open("ab" if (out / "metrics.jsonl").exists() else "rb")
    except (ImportError, OSError):
        return
    deadline = time.monotonic() + PATIENCE
    with log:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                time.sleep(0.1)


def finished_before(trial: Trial) -> Outcome | None:
    """The outcome of a trial whose folder holds a finished run of its seed and pipeline; None when it has to be run."""
    if trial.out is None:
        return None
    from graftwork.document import Document

    try:
        found = json.loads((trial.out / "results.json").read_text(encoding="utf-8"))
        if found["status"] != "finished" or Document.read(trial.out / "pipeline.yaml").data != {**trial.data, "seed": trial.seed}:
            return None
        metrics = {
            f"{stage}/{name}": math.nan if value is None else value
            for stage, measured in found["results"].items()
            for name, value in measured.items()
        }
        return Outcome(trial, "finished", metrics, seconds=sum(found["seconds"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, GraftworkError):
        return None
