"""The whole extension surface: five hooks that register components, one that draws datasets, three that watch runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from graftwork.component import Component
    from graftwork.kinds.dataset import Dataset
    from graftwork.run import Run

__all__ = ["HOOKS", "hookimpl", "hookspec"]

hookspec = pluggy.HookspecMarker("graftwork")
hookimpl = pluggy.HookimplMarker("graftwork")

HOOKS = {
    "dataset": "graftwork_datasets",
    "model": "graftwork_models",
    "objective": "graftwork_objectives",
    "guidance": "graftwork_guidance",
    "evaluator": "graftwork_evaluators",
}
"""Kind of component -> name of the hook that registers it."""


@hookspec
def graftwork_datasets() -> Iterable[Component]:  # type: ignore[empty-body]
    """Yield the datasets that this plugin offers."""


@hookspec
def graftwork_models() -> Iterable[Component]:  # type: ignore[empty-body]
    """Yield the models that this plugin offers."""


@hookspec
def graftwork_objectives() -> Iterable[Component]:  # type: ignore[empty-body]
    """Yield the objectives that this plugin offers."""


@hookspec
def graftwork_guidance() -> Iterable[Component]:  # type: ignore[empty-body]
    """Yield the guidances that this plugin offers."""


@hookspec
def graftwork_evaluators() -> Iterable[Component]:  # type: ignore[empty-body]
    """Yield the evaluators that this plugin offers."""


@hookspec(firstresult=True)
def graftwork_dataset_figure(dataset: Dataset, split: str) -> Figure | None:
    """Draw a split for `graft show NAME --figure`; the first plugin that gives a figure draws it, one that cannot gives None."""


@hookspec
def graftwork_run_started(run: Run) -> None:
    """A run directory exists and its first stage is about to start."""


@hookspec
def graftwork_metrics_logged(run: Run, stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """Numbers were written to metrics.jsonl."""


@hookspec
def graftwork_run_finished(run: Run, status: str) -> None:
    """A run ended; status is "finished", "failed", or "interrupted" (by hand). Its directory has all but manifest.json."""
