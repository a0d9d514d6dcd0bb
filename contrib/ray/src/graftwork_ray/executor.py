"""Trials on a Ray cluster, by Ray Tune: as many as there is room for, early stopping, and others in place of processes that die."""

from __future__ import annotations

import json
import math
import os
import queue
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from graftwork.errors import ConfigError, GraftworkError
from graftwork.spec import StopSpec
from graftwork.trials import Outcome, Resources, Trial, run_trial
from graftwork_ray.plugin import listening

__all__ = ["RayTune"]

TUNE = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer reporter prints a table however quiet it is to be
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a pipeline names files from where the command was given
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run directory has the logs
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial's last word is its outcome, without the metric that may stop it
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
OWN_CLUSTER = {
    "RAY_USAGE_STATS_ENABLED": "0",  # a cluster of one's own machine calls nobody
    "RAY_worker_niceness": "0",  # trials are what it is started for; at Ray's 15 they starve where others compute
}
"""Where the environment does not say otherwise."""

PASSED = ("GRAFTWORK_", "HF_", "TRANSFORMERS_", "MLFLOW_", "OMP_WAIT_POLICY")
STATE = ".ray"
"""Tune's own folder beside the trials, while it works."""

ANSWER = 10.0
"""Seconds in which the head of a cluster is to answer."""

FAR = 10**12
"""Steps that no training reaches: Tune ends a trial that has come to its longest, and ours end by themselves."""

STEP, VALUE, OUTCOME = "graftwork_step", "graftwork_value", "graftwork_outcome"


class RayTune:
    """Runs each trial as a trial of Ray Tune, on the cluster that RAY_ADDRESS names, else on one that is started on this machine.

    Trials are written to the folders that they name, and a trial whose process or machine is lost goes on there from its checkpoint:
    on several machines that is storage which all of them share. So are, for stages that trials have alike, the folder that
    GRAFTWORK_CACHE names.
    """

    def __init__(self) -> None:
        self._started = False

    def __enter__(self) -> Self:
        """Join the cluster, or start one; a cluster that this process has joined already is used."""
        if not ray.is_initialized():
            address = os.environ.get("RAY_ADDRESS")
            settings: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
            if address is None:  # its processes have this one's environment
                settings |= {"address": "local", "include_dashboard": False, "num_cpus": _cores()}
            else:
                passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
                settings |= {"address": address, "runtime_env": {"env_vars": passed}}
                _answers(address)
            try:
                with _environment({name: os.environ.get(name, value) for name, value in OWN_CLUSTER.items()} if address is None else {}):
                    ray.init(**settings)
            except (ConnectionError, RuntimeError, ValueError) as error:
                where = f"the cluster at RAY_ADDRESS={address} cannot be joined" if address else "no cluster can be started here"
                raise GraftworkError(f"{where}: {error}") from None
            self._started = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._started:
            ray.shutdown()
            self._started = False

    def run(
        self,
        trials: Sequence[Trial],
        resources: Resources,
        *,
        stop: StopSpec | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> Iterator[Outcome]:
        """As `graftwork.trials.Executor.run`.

        Raises:
            ConfigError: if the cluster has no such resources.
        """
        if not trials:
            return
        share = _share(resources, [trial.device for trial in trials])
        ends: queue.Queue[Outcome | BaseException | None] = queue.Queue()
        watch = _Watch(trials, ends, note)
        with tempfile.TemporaryDirectory() as scratch, _environment(TUNE):
            folder = _storage(trials, Path(scratch))
            work = tune.with_parameters(_work, trials=list(trials), stop=stop, folder=os.getcwd(), threads=resources.cpus or 1)
            tuner = tune.Tuner(
                tune.with_resources(work, share),
                param_space={"number": tune.grid_search(list(range(len(trials))))},
                tune_config=tune.TuneConfig(scheduler=_scheduler(stop), max_concurrent_trials=resources.workers or 0),
                run_config=tune.RunConfig(
                    name=STATE,
                    storage_path=str(folder),
                    failure_config=tune.FailureConfig(max_failures=resources.retries),
                    callbacks=[watch],
                    stop=watch.stopper,
                    verbose=0,
                ),
            )
            thread = threading.Thread(target=_fit, args=(tuner, ends), daemon=True)
            thread.start()
            try:
                while (found := ends.get()) is not None:
                    if isinstance(found, BaseException):
                        raise GraftworkError(f"Ray Tune failed: {type(found).__name__}: {found}") from found
                    yield found
                for trial in watch.unheard():
                    yield Outcome(trial, "lost", message="Ray Tune ended without a word of it")
            finally:
                watch.stopper.all = True
                thread.join(30)
                shutil.rmtree(folder / STATE, ignore_errors=True)  # a sweep is gone on with by what its trials wrote


def _answers(address: str) -> None:
    """Fail at once where nobody listens, which Ray finds out after minutes.

    Raises:
        GraftworkError: if HOST:PORT does not answer; other kinds of addresses are left to Ray.
    """
    host, colon, port = address.rpartition(":")
    if not colon or "/" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, OverflowError) as error:
        raise GraftworkError(f"the cluster at RAY_ADDRESS={address} cannot be joined: {error}") from None


def _fit(tuner: tune.Tuner, ends: queue.Queue[Outcome | BaseException | None]) -> None:
    try:
        tuner.fit()
    except BaseException as error:
        ends.put(error)
    ends.put(None)


class _Stopper(tune.Stopper):
    """Ends all trials when nobody waits for them any more."""

    def __init__(self) -> None:
        self.all = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.all


class _Watch(tune.Callback):
    """Turns what Tune tells of its trials into outcomes."""

    def __init__(self, trials: Sequence[Trial], ends: queue.Queue[Outcome | BaseException | None], note: Callable[[str], None]):
        self.trials, self._ends, self._note = trials, ends, note
        self._attempts = dict.fromkeys(range(len(trials)), 1)
        self._heard: set[int] = set()
        self.stopper = _Stopper()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps its callbacks on disk, and this one's queue is of this process."""
        return {}

    def unheard(self) -> list[Trial]:
        """Trials of which no end was told."""
        return [trial for number, trial in enumerate(self.trials) if number not in self._heard]

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A process was lost, and Tune begins another."""
        number = trial.config["number"]
        self._attempts[number] += 1
        self._note(f"{self.trials[number].name}: its process was lost; another goes on with it")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The last process that was allowed was lost."""
        count = self._attempts[trial.config["number"]]
        times = f"{count} processes in turn died" if count > 1 else "its process died"
        self._end(trial, "lost", message=f"{times}; memory that ran out is the commonest reason")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial told its outcome, or was stopped."""
        last = trial.last_result or {}
        if OUTCOME in last:
            self._end(trial, **json.loads(last[OUTCOME]))
        elif not self.stopper.all:
            self._end(trial, "stopped", message=f"it fell behind the others and was ended at step {last.get(STEP)}")

    def _end(self, trial: Any, status: Any, **about: Any) -> None:
        number = trial.config["number"]
        self._heard.add(number)
        self._ends.put(Outcome(self.trials[number], status, attempts=self._attempts[number], **about))


def _work(config: Mapping[str, Any], trials: Sequence[Trial], stop: StopSpec | None, folder: str, threads: int) -> dict[str, str]:
    """What a process of the cluster does."""
    import torch

    if os.path.isdir(folder):
        os.chdir(folder)
    torch.set_num_threads(threads)
    trial = trials[config["number"]]
    stage, _, metric = stop.metric.partition("/") if stop else ("", "", "")

    def heard(of: str, step: int, metrics: Mapping[str, float]) -> None:
        if of == stage and step >= 0 and math.isfinite(metrics.get(metric, math.nan)):
            tune.report({STEP: step, VALUE: float(metrics[metric])})

    with listening(heard):
        outcome = run_trial(trial)
    told = {"status": outcome.status, "metrics": dict(outcome.metrics), "message": outcome.message, "seconds": outcome.seconds}
    return {OUTCOME: json.dumps(told)}


def _scheduler(stop: StopSpec | None) -> Any:
    if stop is None:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=STEP,
        metric=VALUE,
        mode="max" if stop.direction == "higher" else "min",
        max_t=FAR,
        grace_period=stop.grace,
        reduction_factor=stop.reduction,
        stop_last_trials=False,
    )


def _share(resources: Resources, devices: Sequence[str | None]) -> dict[str, float]:
    """What Ray sets aside for a trial; more than the cluster has would wait for ever."""
    here = ray.cluster_resources()
    named_cpu = all(device is not None and device.startswith("cpu") for device in devices)
    gpus = resources.gpus if resources.gpus is not None else 0.0 if named_cpu or not here.get("GPU") else 1.0
    share = {"CPU": float(resources.cpus or 1), "GPU": gpus}
    for name, wanted in share.items():
        if wanted > here.get(name, 0):
            raise ConfigError(f"a trial is to have {wanted:g} {name}s, and the whole cluster has {here.get(name, 0):g}")
    return {"cpu": share["CPU"], **({"gpu": gpus} if gpus else {})}


def _storage(trials: Sequence[Trial], scratch: Path) -> Path:
    """Where Tune keeps its own state: beside the trials, which every machine can reach."""
    out = trials[0].out
    if out is None:
        return scratch
    folder = out.parents[trials[0].name.count("/")]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process that Tune reads, put back afterwards."""
    held = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in held.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
