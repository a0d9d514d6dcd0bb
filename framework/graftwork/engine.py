"""The training loop, on Accelerate: one wrapped module, any number of feeds and optimisers, one device or many."""

from __future__ import annotations

import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from graftwork.errors import ConfigError, DataError, nearest
from graftwork.interfaces import input_keys, require
from graftwork.kinds.dataset import Batch, Dataset, to_device
from graftwork.kinds.evaluator import Evaluator, evaluating
from graftwork.kinds.objective import INPUTS, Loss, Objective
from graftwork.training import OptimizerFactory, TrainConfig, make_schedule

__all__ = ["Engine", "feed_splits", "missing_keys", "pick_device", "seed_everything"]


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, on every device."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)  # noqa: NPY002 - the libraries that plugins call draw from the global one
    torch.manual_seed(seed)


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


def feed_splits(objective: Objective | type[Objective], data: Dataset, feeds: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Which split each feed draws from, and what is wrong with that.

    Args:
        objective: what will be trained (its class, where it cannot be built yet).
        data: the dataset.
        feeds: `train.feeds`; a feed that it leaves out takes the split of its own name.
    """
    names = tuple(objective.feeds) or tuple(feeds) or ("train",)
    label = objective.__name__ if isinstance(objective, type) else type(objective).__name__
    problems = [
        f'{label} has no feed "{feed}"{nearest(feed, names)}; it draws from {", ".join(names)}' for feed in feeds if feed not in names
    ]
    splits = {feed: feeds.get(feed, feed) for feed in names}
    for feed, split in splits.items():
        if split not in data:
            how = "" if feed in feeds else f"; name one: feeds: {{{feed}: SPLIT}}"
            problems.append(f'feed "{feed}" draws from split "{split}", which the dataset lacks; it has {", ".join(data)}{how}')
        elif len(data[split]) == 0:
            problems.append(f'feed "{feed}" draws from split "{split}", which is empty')
    return splits, problems


def missing_keys(wanted: Sequence[str], model: Any, data: Dataset, split: str) -> list[str]:
    """Keys that the first sample of a split lacks, `INPUTS` standing for the model's own (unknown while `model` is None)."""
    keys = [key for name in wanted for key in ((() if model is None else input_keys(model)) if name == INPUTS else (name,))]
    sample = data[split][0]
    return [key for key in keys if key not in sample]


class _Joined(nn.Module):
    """Model and objective as one module, so that DDP and FSDP see every parameter whichever methods an objective calls."""

    def __init__(self, model: Any, objective: Objective):
        super().__init__()
        components = getattr(model, "components", {})  # a diffusers pipeline is no module but holds some
        self.model = (
            model if isinstance(model, nn.Module) else nn.ModuleDict({k: v for k, v in components.items() if isinstance(v, nn.Module)})
        )
        self.objective = objective
        self._called = (model,)  # a tuple: not registered twice

    def forward(self, batches: Mapping[str, Batch], progress: float) -> Loss:
        result = self.objective(self._called[0], batches, progress)
        return result if isinstance(result, Loss) else Loss(result)


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
        checkpoints: folder for the best weights; a temporary one by default.

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
        checkpoints: Path | None = None,
    ):
        require(model, objective.needs, type(objective).__name__)
        self.model, self.objective, self.data, self.train, self.seed = model, objective, data, train, seed
        self.validator, self._log, self._tick, self._checkpoints = validator, log, tick, checkpoints
        self.steps_done, self.total_steps = 0, 0
        self.history: list[tuple[int, float]] = []
        self._figures: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._stop = False
        self._best_value, self._unimproved = -math.inf, 0
        self.accelerator = _accelerator(train, device)
        self._splits = self._check_feeds()
        seed_everything(seed)
        objective.setup(model, data)
        self.joined = _Joined(model, objective).to(self.device)
        make = OptimizerFactory(train.optimizer)
        made = objective.optimizers(model, make)
        named: dict[str, Optimizer] = dict(made) if isinstance(made, Mapping) else {"": made}
        wrapped = self.accelerator.prepare(self.joined, *named.values())
        self.wrapped, *prepared = wrapped if named else (wrapped,)
        self.optimizers = dict(zip(named, prepared, strict=True))
        self._loaders = {feed: self._loader(index, feed, split) for index, (feed, split) in enumerate(self._splits.items())}
        longest = max((len(loader) for loader in self._loaders.values()), default=1)
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
        seed_everything(self.seed)
        self.joined.train()
        with tempfile.TemporaryDirectory() as folder:
            self._best = (self._checkpoints or Path(folder)) / "best.safetensors"
            self.objective.fit(self)
            self._flush()
            if self._best.exists():
                state = load_file(self._best, device=str(self.device))
                self.joined.load_state_dict(state, strict=False)
        self.joined.eval()
        return self.objective.export(self.model)

    # -- what an objective calls -----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End training after this step, for objectives that know by themselves when they are done."""
        self._stop = True

    def batches(self) -> Iterator[dict[str, Batch]]:
        """One dict of feed -> batch for each backward pass, until training is done; a shorter feed begins anew."""
        streams = {feed: self._cycle(feed) for feed in self._loaders}
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
        chosen = list(parameters) if parameters is not None else [p for p in self.joined.model.parameters() if p.requires_grad]
        found = {}
        for name, part in parts.items():
            raw = torch.autograd.grad(part, chosen, retain_graph=True, allow_unused=True)
            filled = [torch.zeros_like(p) if g is None else g for p, g in zip(chosen, raw, strict=True)]
            found[name] = [self.accelerator.reduce(g, "mean") for g in filled] if self.accelerator.num_processes > 1 else filled
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

    def _loader(self, index: int, feed: str, split: str) -> DataLoader[Any]:
        samples: Any = self.data[split]
        size = self.train.batch_size_of(feed)
        generator = torch.Generator().manual_seed((self.seed << 8) + index)
        composed = self.data.batch_sampler(split, size, generator)
        how: dict[str, Any] = (
            {"batch_sampler": composed}
            if composed is not None
            else {"batch_size": size, "shuffle": True, "drop_last": len(samples) >= size * self.accelerator.num_processes}
        )
        loader: DataLoader[Any] = DataLoader(
            samples,
            collate_fn=self.data.collate,
            generator=generator,
            num_workers=self.train.workers,
            persistent_workers=self.train.workers > 0,
            pin_memory=self.device.type == "cuda",
            **how,
        )
        return self.accelerator.prepare_data_loader(loader) if self.accelerator.num_processes > 1 else loader

    def _cycle(self, feed: str) -> Iterator[Batch]:
        """A feed's batches without end, with no key but those that the objective reads."""
        wanted = self.objective.keys.get(feed)
        keys = None if wanted is None else [key for name in wanted for key in (input_keys(self.model) if name == INPUTS else (name,))]
        while True:
            count = 0
            for count, batch in enumerate(self._loaders[feed], start=1):  # noqa: B007
                yield to_device(batch if keys is None else {key: batch[key] for key in keys}, self.device)
            if not count:
                raise DataError(f'feed "{feed}" gave no batch: its sampler is empty')

    def _after_step(self) -> None:
        now = time.monotonic()
        if self.steps_done % self.train.log_every == 0:
            self._flush()
        if self._tick is not None and (now - getattr(self, "_ticked", 0.0) > 0.1 or self.steps_done == self.total_steps):
            self._ticked = now
            self._tick(self.steps_done, self.total_steps, getattr(self, "_shown", {}))
        ended = self.steps_done % self.steps_per_epoch == 0
        if ended:
            self.data.refresh(self.model)
        every = self.train.validate_.every if self.train.validate_ else 0
        unit = 1 if self.train.steps is not None else self.steps_per_epoch
        if self.validator is not None and (self.steps_done % (every * unit) == 0 or self.steps_done == self.total_steps):
            self._validate()

    def _flush(self) -> None:
        """Hand the means since the last row to the log: the one place where training waits for the device."""
        if not self._figures:
            return
        sums = torch.stack(list(self._figures.values())).tolist()
        self._shown = {name: value / self._counts[name] for name, value in zip(self._figures, sums, strict=True)}
        first = next(iter(self.optimizers.values()), None)
        rates = {} if first is None else {"lr": first.param_groups[0]["lr"]}
        self._figures, self._counts = {}, {}
        if self._log is not None:
            self._log(self.steps_done, {**self._shown, **rates})

    def _validate(self) -> None:
        """Measure on the validation split, keep the weights if they are the best, stop when patience has run out."""
        assert self.validator is not None
        assert self.train.validate_ is not None
        spec = self.train.validate_
        exported = self.objective.export(self.model)
        with evaluating(self.joined):
            metrics = self.validator.evaluate(exported, self.data).metrics
        if spec.metric is None and len(metrics) != 1:
            raise ConfigError(f"validate.metric is needed: the evaluator gives {', '.join(metrics)}")
        name = spec.metric or next(iter(metrics))
        if name not in metrics:
            raise ConfigError(f'validate.metric: the evaluator gives no "{name}"{nearest(name, metrics)}; it gives {", ".join(metrics)}')
        value = metrics[name] if spec.direction == "higher" else -metrics[name]
        if math.isfinite(value) and value > self._best_value:
            self._best_value, self._unimproved = value, 0
            state = {
                key: held.detach().clone(memory_format=torch.contiguous_format)
                for key, held in self.joined.state_dict().items()
                if isinstance(held, Tensor)
            }
            self._best.parent.mkdir(parents=True, exist_ok=True)
            save_file(state, self._best)
        else:
            self._unimproved += 1
        self.history.append((self.steps_done, metrics[name]))
        if spec.patience is not None and self._unimproved >= spec.patience:
            self.stop()
        if self._log is not None:
            self._log(self.steps_done, {f"validate/{key}": float(number) for key, number in metrics.items()})


def _accelerator(train: TrainConfig, device: str | torch.device | None) -> Accelerator:
    """A fresh Accelerator: its state is shared in a process, so that of an earlier stage is let go first."""
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    AcceleratorState._reset_state(reset_partial_state=not launched)
    chosen = pick_device(None if device is None else str(device))
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)
    return Accelerator(
        cpu=chosen.type == "cpu",
        mixed_precision=train.precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=train.accumulate, sync_with_dataloader=False),
        step_scheduler_with_optimizer=False,
    )
