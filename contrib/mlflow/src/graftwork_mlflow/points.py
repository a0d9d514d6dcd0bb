"""What is said to MLflow: numbers, and what a run is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["About", "Point"]

SEED, TRIAL = re.compile(r"seed-(\d+)"), re.compile(r"trial-\d+")


@dataclass(frozen=True)
class Point:
    """One number: its stage, MLflow's key, value, step, and milliseconds since 1970."""

    stage: str
    key: str
    value: float
    step: int
    when: int


@dataclass(frozen=True)
class About:
    """What a run is.

    Args:
        path: its directory; None keeps nothing on disk, and each time it is a new run.
        experiment: its name, unless MLflow's own environment variables name another.
        name: the run's.
        seed: the run's.
        parent: id of a run of MLflow that it is part of; "" when none is known.
        parameters: of the pipeline.
        tags: of the run.
    """

    path: Path | None
    experiment: str
    name: str
    seed: int
    parent: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def group(self) -> Path | None:
        """The folder of the reproduction or sweep that the run is one of, as its directory's name says."""
        if self.path is None:
            return None
        found = SEED.fullmatch(self.path.name)
        return self.path.parent if TRIAL.fullmatch(self.path.name) or (found and int(found[1]) == self.seed) else None
