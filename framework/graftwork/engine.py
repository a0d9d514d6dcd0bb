"""The training loop, on Accelerate: one wrapped module, any number of feeds and optimisers, one device or many."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from torch import Tensor
from torch.optim import Optimizer

from graftwork import processes
from graftwork.checkpoint import Checkpoints
from graftwork.errors import CheckpointError, ConfigError, DataError, nearest
from graftwork.feeds import Feed, feed_keys, feed_splits, missing_keys
from graftwork.interfaces import require
from graftwork.kinds.dataset import Batch, Dataset
from graftwork.kinds.evaluator import Evaluator, evaluating
from graftwork.kinds.objective import Loss, Objective
from graftwork.randomness import preserved, random_state, seed_everything, set_random_state
from graftwork.training import OptimizerFactory, TrainConfig, make_schedule
from graftwork.weights import Joined, Weights

__all__ = ["Engine", "pick_device"]

STRIDE = 1_000_003
"""Between the seeds of processes."""


def pick_device(name: str | None) -> torch.device:
    """The device that a name means; None is the GPU where there is one.

    Raises:
        ConfigError: if this machine has no such device.
    """
    if name is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if accelerator is None else torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", 0)))
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(f'device "{name}" is not to be had here: {str(error).splitlines()[0]}') from None
    return device


class Engine:
    """Trains one model with one objective.

    Args:
        model: a module or a diffusers pipeline; it is moved to the device and trained in place.
        objective: what to optimise.
        data: where the feeds come from.
        train: length, batches, optimiser and so on.
        seed: of initialisation in `setup`, and of the order of the samples.
        device: where to train; None is the GPU where there is one.
        validator: an evaluator on a validation split; needs `train.validate`.
        log: called with (step, metrics) for each row of figures.
        tick: called with (step, total, metrics) about ten times a second, for a progress bar.
        checkpoints: where checkpoints and the best weights are kept, and what to go on from; none, and a temporary folder, by default.
        stepped: called after each step, for a profiler.

    Attributes:
        progress: share of training done, in [0, 1].
        steps_done: optimiser steps so far.
        total_steps: optimiser steps in all.
        optimizers: name -> optimiser, as the objective made them.
        history: what validation measured: (step, value) pairs.

    Raises:
        InterfaceError: if the model lacks what the objective needs.
        DataError: if a feed has no split, or a sample lacks a key that is read.
    """

    def __init__(
        self,
        model: Any,
        objective: Objective,
        data: Dataset,
        train: TrainConfig,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        validator: Evaluator | None = None,
        log: Callable[[int, dict[str, float]], None] | None = None,
        tick: Callable[[int, int, dict[str, float]], None] | None = None,
        checkpoints: Checkpoints | None = None,
        stepped: Callable[[], None] | None = None,
    ):
        require(model, objective.needs, type(objective).__name__)
        self.model, self.objective, self.data, self.train, self.seed = model, objective, data, train, seed
        self.validator, self._log, self._tick, self._checkpoints = validator, log, tick, checkpoints
        self._stepped = stepped
        self.steps_done, self.total_steps = 0, 0
        self.history: list[tuple[int, float]] = []
        self._figures: dict[str, Tensor] = {}
        self._shown: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._stop = False
        self._best_value, self._unimproved = -math.inf, 0
        self.accelerator = _accelerator(train, device)
        self._splits = self._check_feeds()
        seed_everything(seed)
        objective.setup(model, data)
        self.joined = Joined(model, objective).to(self.device)
        make = OptimizerFactory(train.optimizer)
        made = objective.optimizers(model, make)
        named: dict[str, Optimizer] = dict(made) if isinstance(made, Mapping) else {"": made}
        self.weights = Weights.of(self.accelerator, self.joined)
        wrapped = self.accelerator.prepare(self.joined, *named.values())
        self.wrapped, *prepared = wrapped if named else (wrapped,)
        self.weights.wrapped = self.wrapped
        self.optimizers = dict(zip(named, prepared, strict=True))
        self._feeds = {name: self._feed(index, name, split) for index, (name, split) in enumerate(self._splits.items())}
        longest = max((len(feed) for feed in self._feeds.values()), default=1)
        self.steps_per_epoch = max(1, longest // train.accumulate)
        self.total_steps = train.steps if train.steps is not None else (train.epochs or 0) * self.steps_per_epoch
        self._schedules = {name: make_schedule(optimizer, train.schedule, self.total_steps) for name, optimizer in named.items()}

    @property
    def device(self) -> torch.device:
        """Where batches and model are."""
        return self.accelerator.device  # type: ignore[no-any-return]

    @property
    def progress(self) -> float:
        """Share of training done, in [0, 1]."""
        return min(1.0, self.steps_done / self.total_steps) if self.total_steps else 1.0

    def fit(self) -> Any:
        """Train; give what the objective exports, holding the best weights where a validation split selects them."""
        seed_everything(self.seed + STRIDE * processes.index())  # processes drop units and add noise apart
        self.joined.train()
        with tempfile.TemporaryDirectory() as folder:
            self._kept = self._checkpoints or Checkpoints(Path(folder) if processes.is_first() else None, minutes=None)
            held = processes.from_first(self._kept.latest)
            if held is None:
                self._kept.clear()
            else:
                self.load_state_dict(held)
            if held is None or not held["finished"]:
                self.objective.fit(self)
                self._flush()
                if self._checkpoints is not None:
                    self._kept.save(self.steps_done, {"finished": True, **self.state_dict(optimizers=False)})
            best = processes.from_first(self._kept.best)
            if best is not None:
                self.weights.load_state_dict(best, strict=False)
        whole = self.weights.whole().eval()
        return whole.export()

    def state_dict(self, optimizers: bool = True) -> dict[str, Any]:
        """Everything that training carries from step to step: weights, optimisers, schedules, positions, random states, figures.

        Args:
            optimizers: with optimisers and schedules; without, the state of a training that is over.
        """
        state = {
            "joined": self.weights.state_dict(),
            "feeds": {name: feed.state_dict() for name, feed in self._feeds.items()},
            "data": self.data.state_dict(),
            "random": processes.gathered(random_state()),
            "steps": self.steps_done,
            "stopped": self._stop,
            "history": self.history,
            "best": [self._best_value, self._unimproved],
            "figures": self._figures,
            "counts": self._counts,
            "shown": self._shown,
        }
        if optimizers:
            state["optimizers"] = {name: self.weights.optimizer_state(one) for name, one in self.optimizers.items()}
            state["schedules"] = {name: schedule.state_dict() for name, schedule in self._schedules.items()}
            if self.accelerator.scaler is not None:
                state["scaler"] = self.accelerator.scaler.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: of the same objective, model, data and settings.

        Raises:
            CheckpointError: if weights or optimisers are others than these.
        """
        try:
            self.weights.load_state_dict(state["joined"])
            for name, optimizer in state.get("optimizers", {}).items():
                self.weights.load_optimizer_state(self.optimizers[name], optimizer)
            for name, schedule in state.get("schedules", {}).items():
                self._schedules[name].load_state_dict(schedule)
            if "scaler" in state and self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            for name, feed in self._feeds.items():
                feed.load_state_dict(state["feeds"][name])
            self.data.load_state_dict(state["data"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise CheckpointError(f"the checkpoint is of another training: {error}") from None
        self.steps_done, self._stop, self.history = state["steps"], state["stopped"], [tuple(one) for one in state["history"]]
        self._best_value, self._unimproved = state["best"]
        self._figures = {name: figure.to(self.device) for name, figure in state["figures"].items()}
        self._counts, self._shown = dict(state["counts"]), dict(state["shown"])
        if len(state["random"]) != processes.count():
            raise CheckpointError(
                f"the checkpoint was written by {len(state['random'])} processes, and there are {processes.count()}: launch as many"
            )
        set_random_state(state["random"][processes.index()])

    # -- what an objective calls -----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End training after this step, for objectives that know by themselves when they are done."""
        self._stop = True

    def batches(self) -> Iterator[dict[str, Batch]]:
        """One dict of feed -> batch for each backward pass, until training is done; a shorter feed begins anew."""
        streams = {name: iter(feed) for name, feed in self._feeds.items()}
        while self.steps_done < self.total_steps and not self._stop:
            batches = {feed: next(stream) for feed, stream in streams.items()}
            with self.accelerator.accumulate(self.wrapped):
                yield batches
                stepped = self.accelerator.sync_gradients
            if stepped:
                self.steps_done += 1
                self.objective.after_step(self.model)
                self._after_step()

    def loss(self, batches: Mapping[str, Batch]) -> Loss:
        """The objective's loss, through the wrapped module: under autocast and synchronised where that is on."""
        result: Loss = self.wrapped(batches, self.progress)
        return result

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to the parameters', scaled for mixed precision and accumulation."""
        self.accelerator.backward(loss)

    def gradients(self, parts: Mapping[str, Tensor], parameters: Sequence[Tensor] | None = None) -> dict[str, list[Tensor]]:
        """Each part's gradients, averaged over processes; the graph is kept and no parameter's `.grad` changes.

        Args:
            parts: name -> 0-d tensor.
            parameters: with respect to what; the model's trainable parameters by default. An unused one gets zeros.
        """
        self.weights.refuse("a gradient for each part of a loss")
        chosen = list(parameters) if parameters is not None else [p for p in self.joined.model.parameters() if p.requires_grad]
        found = {}
        for name, part in parts.items():
            raw = torch.autograd.grad(part, chosen, retain_graph=True, allow_unused=True)
            filled = [torch.zeros_like(p) if g is None else g for p, g in zip(chosen, raw, strict=True)]
            found[name] = processes.means(filled)
        return found

    def step(self, *names: str) -> None:
        """Clip, step and clear the named optimisers, or all; with accumulation only the last batch of a group does."""
        for name in names or self.optimizers:
            optimizer = self.optimizers[name]
            if self.accelerator.sync_gradients and self.train.clip_norm is not None:
                owned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
                self.accelerator.clip_grad_norm_(owned, self.train.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                self._schedules[name].step()

    def record(self, loss: Loss) -> None:
        """Add a loss and its parts to the figures that are logged every `train.log_every` steps, each as a mean over where it was given."""
        for name, value in {"loss": loss.total, **loss.parts}.items():
            held = self._figures.get(name)
            self._figures[name] = value.detach().float() if held is None else held + value.detach()
            self._counts[name] = self._counts.get(name, 0) + 1

    # -- inside ----------------------------------------------------------------------------------------------------------------

    def _check_feeds(self) -> dict[str, str]:
        splits, problems = feed_splits(self.objective, self.data, self.train.feeds)
        for feed, split in splits.items() if not problems else ():
            wanted = self.objective.keys.get(feed, ())
            have = ", ".join(self.data[split][0])
            for key in missing_keys(wanted, self.model, self.data, split):
                problems.append(f'{type(self.objective).__name__} reads "{key}" from feed "{feed}"; the samples of "{split}" have {have}')
        if problems:
            raise DataError("; ".join(problems))
        return splits

    def _feed(self, index: int, name: str, split: str) -> Feed:
        return Feed(
            name,
            self.data,
            split,
            batch_size=self.train.batch_size_of(name),
            seed=(self.seed << 8) + index,
            workers=self.train.workers,
            accelerator=self.accelerator,
            keys=feed_keys(self.objective, name, self.model),
        )

    def _after_step(self) -> None:
        now = time.monotonic()
        if self.steps_done % self.train.log_every == 0:
            self._flush()
        if self._tick is not None and (now - getattr(self, "_ticked", 0.0) > 0.1 or self.steps_done == self.total_steps):
            self._ticked = now
            self._tick(self.steps_done, self.total_steps, self._shown)
        ended = self.steps_done % self.steps_per_epoch == 0
        if ended:
            self.data.refresh(self.model)
        every = self.train.validate_.every if self.train.validate_ else 0
        unit = 1 if self.train.steps is not None else self.steps_per_epoch
        if self.validator is not None and (self.steps_done % (every * unit) == 0 or self.steps_done == self.total_steps):
            self._validate()
        if self._checkpoints is not None and self.objective.resumable and self._due(self._checkpoints):
            self._checkpoints.save(self.steps_done, {"finished": False, **self.state_dict()})
        if self._stepped is not None:
            self._stepped()

    def _due(self, checkpoints: Checkpoints) -> bool:
        """Whether a checkpoint is to be written now; of several processes the first looks at its clock, where they meet anyway."""
        if checkpoints.steps is not None or processes.count() == 1:
            return checkpoints.due(self.steps_done)
        return self.steps_done % self.train.log_every == 0 and processes.from_first(lambda: checkpoints.due(self.steps_done))

    def _flush(self) -> None:
        """Hand the means since the last row to the log: the one place where training waits for the device."""
        if not self._figures:
            return
        sums = processes.mean(torch.stack(list(self._figures.values()))).tolist()
        self._shown = {name: value / self._counts[name] for name, value in zip(self._figures, sums, strict=True)}
        first = next(iter(self.optimizers.values()), None)
        rates = {} if first is None else {"lr": first.param_groups[0]["lr"]}
        self._figures, self._counts = {}, {}
        if self._log is not None:
            self._log(self.steps_done, {**self._shown, **rates})

    def _validate(self) -> None:
        """Measure on the validation split, keep the weights if they are the best, stop when patience has run out."""
        validator, spec = self.validator, self.train.validate_
        assert validator is not None
        assert spec is not None
        whole = self.weights.whole()
        exported = whole.export()
        with evaluating(whole), preserved():
            metrics = processes.from_first(lambda: dict(validator.evaluate(exported, self.data).metrics))
        if spec.metric is None and len(metrics) != 1:
            raise ConfigError(f"validate.metric is needed: the evaluator gives {', '.join(metrics)}")
        name = spec.metric or next(iter(metrics))
        if name not in metrics:
            raise ConfigError(f'validate.metric: the evaluator gives no "{name}"{nearest(name, metrics)}; it gives {", ".join(metrics)}')
        value = metrics[name] if spec.direction == "higher" else -metrics[name]
        if math.isfinite(value) and value > self._best_value:
            self._best_value, self._unimproved = value, 0
            self._kept.save_best(self.weights.state_dict())
        else:
            self._unimproved += 1
        self.history.append((self.steps_done, metrics[name]))
        if spec.patience is not None and self._unimproved >= spec.patience:
            self.stop()
        if self._log is not None:
            self._log(self.steps_done, {f"validate/{key}": float(number) for key, number in metrics.items()})


def _accelerator(train: TrainConfig, device: str | torch.device | None) -> Accelerator:
    """A fresh Accelerator: its state is shared in a process, so that of an earlier stage is let go first."""
    chosen = pick_device(None if device is None else str(device))
    processes.join(chosen)
    AcceleratorState._reset_state(reset_partial_state=processes.count() == 1)
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)
    return Accelerator(
        cpu=chosen.type == "cpu",
        mixed_precision=train.precision,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # objectives may leave heads unused
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=train.accumulate, sync_with_dataloader=False),
        step_scheduler_with_optimizer=False,
    )
