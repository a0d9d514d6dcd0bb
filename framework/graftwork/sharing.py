"""Stages that several trials of a sweep have alike: each is run once, before the trials, which take it from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from graftwork.assembly import stages_behind
from graftwork.trials import Trial

__all__ = ["shared_by", "shared_stages"]

TRAINING = ("dataset", "model", "objective", "train", "seed")


def shared_stages(trials: Sequence[Trial], folder: Path) -> list[list[Trial]]:
    """Runs of the stages that more than one trial has alike, in groups: a group's runs may go at once, and take from those before.

    What is evaluated or sampled may differ where a stage trains: each trial then does that itself. That trials take the stage, and
    these runs from one another, is the doing of `StageCache`.

    Args:
        trials: of a sweep.
        folder: these runs get folders `stage-N` in it.
    """
    first: dict[str, tuple[Trial, str]] = {}
    several: dict[str, None] = {}
    for trial in trials:
        for stage in trial.data["stages"]:
            key = _key(trial, stage)
            if key in first:
                several[key] = None
            first.setdefault(key, (trial, stage))
    groups: dict[int, list[Trial]] = {}
    numbers: dict[str, int] = {}
    for key in several:
        trial, stage = first[key]
        number = numbers[stage] = numbers.get(stage, -1) + 1
        name = f"{folder.name}/{stage}-{number}"
        run = replace(trial, name=name, out=folder / f"{stage}-{number}", stages=(stage,), overrides={})
        groups.setdefault(len(stages_behind(trial.data["stages"], stage)), []).append(run)
    return [groups[depth] for depth in sorted(groups)]


def shared_by(run: Trial, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that have the stage of a shared run."""
    assert run.stages is not None
    (stage,) = run.stages
    return [trial for trial in trials if _key(trial, stage) == _key(run, stage)]


def _key(trial: Trial, stage: str) -> str:
    """Digest of what the training of a stage depends on; of a stage without training, of the whole of it."""
    stages: dict[str, Any] = trial.data["stages"]
    block = stages[stage]
    own = {part: block[part] for part in TRAINING if part in block} if "objective" in block else block
    behind = {name: stages[name] for name in stages_behind(stages, stage) - {stage}}
    described = json.dumps([trial.seed, stage, own, behind], sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()
