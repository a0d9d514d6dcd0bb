"""`graft sweep`, and what trials that run elsewhere show on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import typer

from graftwork.errors import ConfigError
from graftwork.registry import installed

if TYPE_CHECKING:
    from graftwork.document import Document
    from graftwork.sweep_results import Sweep
    from graftwork.trials import Outcome

__all__ = ["Cpus", "Gpus", "On", "Retries", "TrialProgress", "Workers", "sweep"]

ON = "Where to run: local, or what a distribution offers, such as ray."
On = Annotated[str | None, typer.Option(help=f"{ON} By default here, one after another.")]
Workers = Annotated[int | None, typer.Option(min=1, help="How many run at a time; as many as there is room for by default.")]
Cpus = Annotated[int | None, typer.Option(min=1, help="Cores of each.")]
Gpus = Annotated[float | None, typer.Option(min=0, help="GPUs of each; a fraction lets several share one.")]
Retries = Annotated[int, typer.Option(min=0, help="How often one whose process dies is gone on with.")]


class TrialProgress:
    """A bar over trials on stderr, and a line for each that ends; quiet shows nothing."""

    def __init__(self, quiet: bool):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=self._console, disable=quiet or not self._console.is_terminal)
        self._task = self._bars.add_task("trials", total=None)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop drawing."""
        self._bars.stop()

    def ended(self, outcome: Outcome, done: int, count: int, metric: str | None = None) -> None:
        """Move the bar, and say what came of a trial."""
        from rich.text import Text

        from graftwork.trials import metric_of

        self._bars.update(self._task, completed=done, total=count)
        said = outcome.message
        if outcome.status == "finished":
            said = f"{metric} {metric_of(outcome.metrics, metric):.4g}" if metric else f"{outcome.seconds:.0f} s"
        own = ", ".join(f"{key}={value}" for key, value in outcome.trial.overrides.items())
        line = ": ".join(part for part in (f"{outcome.trial.name} {outcome.status}", own, said) if part)
        self._console.print(Text(line, style="" if outcome.status == "finished" else "yellow"), soft_wrap=True)

    def note(self, text: str) -> None:
        """Print it."""
        from rich.text import Text

        self._console.print(Text(text, style="dim"), soft_wrap=True)


def sweep(
    pipeline: Annotated[
        str | None, typer.Argument(help="A pipeline in YAML, or an installed recipe; with --resume it may be left out.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings such as stages.dann.train.epochs=5 or sweep.seeds=3.", show_default=False)
    ] = None,
    grid: Annotated[list[str] | None, typer.Option(help="KEY=a,b,c: every value is tried; may be repeated.", show_default=False)] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(help="'KEY=loguniform(1e-4, 1e-1)', uniform, randint or choice; may be repeated.", show_default=False),
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Draws from the space, 10 by default.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each setting.")] = None,
    metric: Annotated[str | None, typer.Option(help="STAGE/METRIC that ranks the settings.")] = None,
    direction: Annotated[Literal["higher", "lower"] | None, typer.Option(help="Which is better; higher by default.")] = None,
    on: Annotated[str, typer.Option(help=ON)] = "local",
    workers: Workers = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    retries: Retries = 2,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda; by default the GPU where there is one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the sweep, new or empty; by default runs/NAME-sweep-TIME.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on in this directory, which an interrupted sweep left.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run every stage in each trial: share none, take none from earlier runs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run a pipeline at every setting of a grid or search space. Stages that trials have alike are run once."""
    from graftwork.cli.commands import _run_directory
    from graftwork.pipeline import Pipeline
    from graftwork.reproduce import find_recipe
    from graftwork.sweep import of_sweep
    from graftwork.sweep import sweep as over_settings
    from graftwork.trials import Resources

    if resume is not None and out is not None:
        raise ConfigError(f"--resume {resume} goes on in that directory: leave --out {out} away")
    if pipeline is not None:
        loaded = Pipeline.from_yaml(find_recipe(pipeline, installed()), overrides or ())
    elif resume is not None:
        loaded = of_sweep(resume)
    else:
        raise ConfigError("name a pipeline, or go on with a sweep: graft sweep --resume DIR")
    _add(loaded.document, grid or (), space or (), trials=trials, seeds=seeds, metric=metric, direction=direction)
    where = resume or out or _run_directory(f"{loaded.document.data.get('name', 'pipeline')}-sweep")
    ranked_by = (loaded.document.data.get("sweep") or {}).get("metric")
    resources = Resources(workers, cpus, gpus, retries)
    with TrialProgress(as_json) as progress:

        def ended(outcome: Outcome, done: int, count: int) -> None:
            progress.ended(outcome, done, count, ranked_by)

        settings: dict[str, Any] = {"on": on, "resources": resources, "device": device, "resume": resume is not None, "reuse": not fresh}
        found = over_settings(loaded, where, **settings, ended=ended, note=progress.note)
    if as_json:
        print(found.to_json())
    else:
        _table(found, where)
    if found.best is None:
        raise typer.Exit(1)


def _add(document: Document, grid: Any, space: Any, **settings: Any) -> None:
    """Put the command line's part of a sweep into the pipeline."""
    given = {name: value for name, value in settings.items() if value is not None}
    if not (grid or space or given):
        return
    block = document.data.setdefault("sweep", {})
    block = document.data["sweep"] = {} if block is None else block
    if not isinstance(block, dict):
        return  # what is wrong with it is said where everything is
    for option, entries in (("grid", grid), ("space", space)):
        for entry in entries:
            key, equals, text = entry.partition("=")
            if not equals or not key or not text.strip():
                example = "a,b,c" if option == "grid" else "'loguniform(1e-4, 1e-1)'"
                raise ConfigError(f"--{option} {entry!r}: it is written KEY={example}")
            held = block.setdefault(option, {})
            if isinstance(held, dict):
                held[key] = _values(entry, text) if option == "grid" else text
    block.update(given)


def _values(entry: str, text: str) -> list[Any]:
    from graftwork.document import Document
    from graftwork.errors import PipelineError

    try:
        found = Document.parse(f"values: [{text}]").data["values"]
    except PipelineError:
        raise ConfigError(f"--grid {entry!r}: the values are no YAML list; quote those with commas or brackets") from None
    return list(found)


def _table(found: Sweep, out: Path) -> None:
    """The settings, best first, and where the rest is."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from graftwork.reproduce import shown

    console = Console(emoji=False, highlight=False)
    table = Table(title=Text(f"{found.name}: {found.metric} ({found.direction} is better)"), title_justify="left", title_style="bold")
    for heading in ("setting", *(_short(key, found.keys) for key in found.keys), found.metric, "status"):
        table.add_column(Text(heading))
    for entry in found.ranked:
        values = entry.values(found.metric)
        cells = [entry.name, *map(json.dumps, entry.overrides.values()), shown(values) if values else "-", entry.status]
        table.add_row(*map(Text, cells), style="bold green" if entry is found.best else "")
    console.print(table)
    for name, status, message in found.troubles:
        console.print(Text(f"{name} {status}: {message}", style="yellow"), soft_wrap=True)
    if found.best is not None:
        for trial in found.best.trials:
            print(f"best: {out / trial.name / 'report.html'}")
    print(f"table: {out / 'sweep.md'}")


def _short(key: str, keys: list[str]) -> str:
    """The end of a dotted key, as much of it as tells it from the others."""
    parts = key.split(".")
    for start in range(len(parts) - 1, -1, -1):
        tail = ".".join(parts[start:])
        if sum(other == tail or other.endswith(f".{tail}") for other in keys) == 1:
            return tail
    return key
