"""Registered components from Python: `gw.model("small-cnn", num_classes=10)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from graftwork import config
from graftwork.artifact import Artifact
from graftwork.errors import ConfigError
from graftwork.kinds.dataset import Dataset
from graftwork.kinds.evaluator import Evaluator
from graftwork.kinds.guidance import Guidance
from graftwork.kinds.objective import Objective
from graftwork.registry import installed

__all__ = ["dataset", "evaluator", "guidance", "make", "model", "objective"]


def make(kind: str, name: str, /, **parameters: Any) -> Any:
    """Build a registered component.

    Args:
        kind: one of `component.KINDS`.
        name: as `graft list` shows it.
        parameters: its parameters; a reference to another component is an object, a name, or a mapping with `use`; to an artifact an
            object, or a mapping with `load`.

    Raises:
        UnknownComponentError: if nothing installed has that name.
        ConfigError: if a parameter is unknown, missing, of the wrong type or out of range; each is named.
    """
    registered = installed().find(kind, name)
    target = registered.load()
    known = config.parameters(target)
    given = {
        key: _referred(value, known[key].reference) if key in known and known[key].reference else value for key, value in parameters.items()
    }
    values, invalid = config.validate(target, given)
    if invalid:
        raise ConfigError("\n".join([f'{kind} "{name}":', *(f"  {'.'.join(map(str, one.path))}: {one.message}" for one in invalid)]))
    return config.build(target, values, f'{kind} "{name}"')


def _referred(value: Any, kind: str | None) -> Any:
    if kind is None:
        return value
    if isinstance(value, dict) and "load" in value and kind == "artifact":
        return Artifact.load(Path(value["load"]))
    if isinstance(value, str) and kind != "artifact":
        return make(kind, value)
    if isinstance(value, dict) and "use" in value and kind != "artifact":
        return make(kind, value["use"], **{key: item for key, item in value.items() if key != "use"})
    if isinstance(value, dict) and "from" in value:
        raise ConfigError(f"`from: {value['from']}` takes a pipeline's earlier stage; outside one, give the object itself")
    if isinstance(value, (list, tuple)):
        return [_referred(item, kind) for item in value]
    return {key: _referred(item, kind) for key, item in value.items()} if isinstance(value, dict) else value


def dataset(name: str, /, **parameters: Any) -> Dataset:
    """A registered dataset; as `make`."""
    return cast(Dataset, make("dataset", name, **parameters))


def model(name: str, /, **parameters: Any) -> Any:
    """A registered model; as `make`."""
    return make("model", name, **parameters)


def objective(name: str, /, **parameters: Any) -> Objective:
    """A registered objective; as `make`."""
    return cast(Objective, make("objective", name, **parameters))


def guidance(name: str, /, **parameters: Any) -> Guidance:
    """A registered guidance; as `make`."""
    return cast(Guidance, make("guidance", name, **parameters))


def evaluator(name: str, /, **parameters: Any) -> Evaluator:
    """A registered evaluator; as `make`."""
    return cast(Evaluator, make("evaluator", name, **parameters))
