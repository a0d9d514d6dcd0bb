"""What a stage's `train:` block may say, and the optimisers and schedules that it describes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from graftwork import config, schedules
from graftwork.errors import ConfigError, nearest

__all__ = ["CheckpointSpec", "OptimizerFactory", "OptimizerSpec", "ScheduleSpec", "TrainConfig", "Validation", "make_schedule"]

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    name.lower(): kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer
}
"""Every optimiser of `torch.optim`, by its name in lower case."""


def _shorthand(value: Any) -> Any:
    return {"use": value} if isinstance(value, str) else value


def _parameters_of(found: Any, extra: Mapping[str, Any] | None, skip: int, label: str) -> dict[str, Any]:
    """Check a spec's further keys against the signature behind it."""
    known = [name for name in config.parameters(found) if name != "params"][skip:]
    given = dict(extra or {})
    for name in given:
        if name not in known:
            raise ValueError(f'{label} takes no "{name}"{nearest(name, known)}; it takes {", ".join(known) or "no parameters"}')
    return given


class OptimizerSpec(BaseModel):
    """An optimiser of `torch.optim` by its lower-case name; further keys are its arguments."""

    model_config = ConfigDict(extra="allow")
    use: str = "adamw"
    lr: float = Field(1e-3, gt=0, description="base learning rate")

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.use not in OPTIMIZERS:
            raise ValueError(
                f'unknown optimizer "{self.use}"{nearest(self.use, OPTIMIZERS)}; torch.optim has {", ".join(sorted(OPTIMIZERS))}'
            )
        given = _parameters_of(OPTIMIZERS[self.use], self.model_extra, 0, self.use)
        for name, value in given.items():
            if isinstance(value, str):
                raise ValueError(f"{self.use}: {name} is a number or a flag; found {value!r}")
        try:
            OPTIMIZERS[self.use]([torch.nn.Parameter(torch.zeros(1))], lr=self.lr, **given)
        except Exception as error:  # each optimiser has its own way of refusing
            raise ValueError(f"{self.use}: {error}") from None
        return self


class ScheduleSpec(BaseModel):
    """A learning-rate schedule by name; further keys are its parameters."""

    model_config = ConfigDict(extra="allow")
    use: str = "constant"
    warmup: int | float = Field(0, ge=0, description="linear warm-up: steps if an integer, share of training if below 1")

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.use not in schedules.SCHEDULES:
            raise ValueError(
                f'unknown schedule "{self.use}"{nearest(self.use, schedules.SCHEDULES)}; there are {", ".join(schedules.SCHEDULES)}'
            )
        function = schedules.SCHEDULES[self.use]
        _parameters_of(function, self.model_extra, 1, self.use)
        _, invalid = config.validate(function, {"progress": 0.0, **(self.model_extra or {})})
        if invalid:
            raise ValueError("; ".join(f"{'.'.join(map(str, one.path))}: {one.message}" for one in invalid))
        return self


class Validation(BaseModel):
    """Measure on a validation split while training, and keep the best weights."""

    model_config = ConfigDict(extra="forbid")
    evaluate: Any = Field(description="an evaluator on a split that is no test split")
    metric: str | None = Field(None, description="which of its metrics selects; its only one by default")
    direction: Literal["higher", "lower"] = "higher"
    every: int = Field(1, ge=1, description="epochs between measurements; steps when training is given in steps")
    patience: int | None = Field(None, ge=1, description="stop after so many measurements without a better one")


class CheckpointSpec(BaseModel):
    """When a run keeps the state of its training; a bare number is the steps."""

    model_config = ConfigDict(extra="forbid")
    steps: int | None = Field(None, ge=1, description="write a checkpoint every so many steps, instead of by the clock")
    minutes: float | None = Field(5.0, gt=0, description="write a checkpoint when so many minutes have passed; none keeps only the end")
    keep: int = Field(2, ge=1, description="how many of the newest stay, beside the best weights")


def _steps(value: Any) -> Any:
    return {"steps": value} if isinstance(value, int) and not isinstance(value, bool) else value


class TrainConfig(BaseModel):
    """How a stage trains: length, batches, optimiser, schedule, precision, selection."""

    model_config = ConfigDict(extra="forbid")
    epochs: int | None = Field(None, ge=0, description="passes over the longest feed")
    steps: int | None = Field(None, ge=0, description="optimiser steps, instead of epochs")
    batch_size: Annotated[int, Field(ge=1)] | dict[str, Annotated[int, Field(ge=1)]] = Field(
        64, description="samples a process and step, or one number a feed"
    )
    feeds: dict[str, str] = Field(
        default_factory=dict, description="feed -> split; the objective's feeds take splits of their own names by default"
    )
    optimizer: Annotated[OptimizerSpec, BeforeValidator(_shorthand)] = OptimizerSpec(use="adamw", lr=1e-3)
    schedule: Annotated[ScheduleSpec, BeforeValidator(_shorthand)] = ScheduleSpec(use="constant", warmup=0)
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient")
    accumulate: int = Field(1, ge=1, description="batches whose gradients are averaged into one step")
    precision: Literal["no", "fp16", "bf16"] | None = Field(None, description="mixed precision; Accelerate's own configuration by default")
    workers: int = Field(0, ge=0, description="processes that load each feed")
    log_every: int = Field(50, ge=1, description="steps between rows of metrics.jsonl")
    validate_: Validation | None = Field(None, alias="validate")
    checkpoint: Annotated[CheckpointSpec, BeforeValidator(_steps)] = CheckpointSpec(steps=None, minutes=5.0, keep=2)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are both given; give one")
        if self.epochs is None and self.steps is None:
            raise ValueError("how long to train is missing: give epochs or steps")
        return self

    def batch_size_of(self, feed: str) -> int:
        """Samples a step of one feed.

        Raises:
            ConfigError: if batch sizes are given a feed and this one has none.
        """
        if isinstance(self.batch_size, int):
            return self.batch_size
        if feed not in self.batch_size:
            raise ConfigError(f'batch_size names {", ".join(self.batch_size)} and not the feed "{feed}"')
        return self.batch_size[feed]


class OptimizerFactory:
    """Builds the configured optimiser: `make(parameters_or_groups, **overrides)`.

    Attributes:
        lr: base learning rate.
    """

    def __init__(self, spec: OptimizerSpec):
        self.lr = spec.lr
        self._kind = OPTIMIZERS[spec.use]
        self._arguments: dict[str, Any] = {"lr": spec.lr, **(spec.model_extra or {})}

    def __call__(self, parameters: Iterable[Any], **overrides: Any) -> Optimizer:
        """An optimiser over parameters, or groups that may each have an `lr` and so on.

        Raises:
            ConfigError: if there is nothing to train.
        """
        groups = list(parameters)
        if not groups:
            raise ConfigError("there is nothing to train: no parameter of the model or the objective requires a gradient")
        return self._kind(groups, **{**self._arguments, **overrides})


def make_schedule(optimizer: Optimizer, spec: ScheduleSpec, total_steps: int) -> LambdaLR:
    """A schedule for one optimiser.

    Args:
        optimizer: each of its groups keeps its own base rate.
        spec: which schedule.
        total_steps: optimiser steps of the whole training.
    """
    function = schedules.SCHEDULES[spec.use]
    given = spec.model_extra or {}
    warmup = spec.warmup if isinstance(spec.warmup, int) or spec.warmup >= 1 else round(spec.warmup * total_steps)

    def factor(step: int) -> float:
        ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return ramp * function(min(1.0, step / max(1, total_steps)), **given)

    return LambdaLR(optimizer, factor)
