"""A pipeline that passed every check, ready to run: its stages, and the parts that they are built of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from graftwork import config
from graftwork.artifact import Artifact
from graftwork.document import KeyPath
from graftwork.kinds.dataset import Dataset
from graftwork.registry import Registered
from graftwork.spec import Claim
from graftwork.training import TrainConfig

__all__ = ["From", "Load", "Part", "Plan", "Stage", "Use", "build", "parts_in", "splits_of"]


@dataclass(frozen=True, eq=False)
class Use:
    """A component with its checked parameters, in which references are again parts."""

    registered: Registered
    values: Mapping[str, Any]
    path: KeyPath
    label: str = ""
    prefix: str = ""

    @property
    def target(self) -> Any:
        """The class or factory."""
        return self.registered.load()

    @property
    def title(self) -> str:
        """For messages: 'objective "info-nce"'."""
        return f'{self.registered.kind} "{self.registered.name}"'


@dataclass(frozen=True, eq=False)
class From:
    """The output of an earlier stage: its dataset or model, or an artifact of that name."""

    kind: str
    stage: str
    name: str
    path: KeyPath


@dataclass(frozen=True, eq=False)
class Load:
    """An artifact that an earlier run left in a folder."""

    folder: Path
    path: KeyPath


Part = Use | From | Load


@dataclass
class Stage:
    """One stage, ready to run. `data` is built already where no trained model is needed for it."""

    name: str
    seed: int = 0
    dataset: Part | None = None
    model: Part | None = None
    objective: Use | None = None
    train: TrainConfig | None = None
    validate: Use | None = None
    guidance: Use | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    evaluate: list[Use] = field(default_factory=list)
    data: Dataset | None = None


@dataclass
class Plan:
    """A pipeline that passed every check."""

    name: str
    seed: int
    stages: dict[str, Stage]
    claim: Claim | None


def build(part: Part, fetch: Any, device: torch.device | None = None) -> Any:
    """Build a component, its references first.

    Args:
        part: what to build; for a `From`, `fetch(part)` gives it.
        fetch: gives an earlier stage's output.
        device: where models and loaded artifacts go, those that others refer to included; None leaves them where they are made.
    """
    if isinstance(part, From):
        return fetch(part)
    if isinstance(part, Load):
        return Artifact.load(part.folder, device or "cpu")
    made = config.build(part.target, {name: _resolved(value, fetch, device) for name, value in part.values.items()}, part.title)
    return made.to(device) if device is not None and part.registered.kind == "model" and hasattr(made, "to") else made


def _resolved(value: Any, fetch: Any, device: torch.device | None) -> Any:
    if isinstance(value, Part):
        return build(value, fetch, device)
    if isinstance(value, (list, tuple)) and any(isinstance(item, Part) for item in value):
        return type(value)(_resolved(item, fetch, device) for item in value)
    if isinstance(value, dict):
        return {key: _resolved(item, fetch, device) for key, item in value.items()}
    return value


def parts_in(value: Any) -> Iterator[Part]:
    """A part and every part inside its parameters."""
    if isinstance(value, Part):
        yield value
    inner = value.values.values() if isinstance(value, Use) else value.values() if isinstance(value, dict) else value
    for item in inner if isinstance(value, (Use, dict, list, tuple)) else ():
        yield from parts_in(item)


def splits_of(use: Use) -> Iterator[tuple[str, str]]:
    """(parameter, split) of each parameter that names a split, defaults included."""
    for name, parameter in config.parameters(use.target).items():
        value = use.values.get(name, parameter.default)
        for split in (value if isinstance(value, (list, tuple)) else [value]) if parameter.split else ():
            if isinstance(split, str):
                yield name, split
