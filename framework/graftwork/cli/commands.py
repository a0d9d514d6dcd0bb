"""The commands of `graft`. What imports torch is imported by the command that needs it."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftwork.cli import sweeping
from graftwork.component import KINDS
from graftwork.errors import ConfigError, GraftworkError, PipelineError, UnknownComponentError
from graftwork.registry import Registered, Registry, installed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from graftwork.cli.progress import Silent

__all__ = ["app"]

app = typer.Typer(
    help="Graft what one trained network knows onto another task, domain, style or model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[str | None, typer.Option(help="Such as cpu, cuda or cuda:1; by default the GPU where there is one.")]
Out = Annotated[Path | None, typer.Option(help="Directory of the run, new or empty; by default runs/NAME-TIME.")]
Resume = Annotated[Path | None, typer.Option(help="Go on in this directory, which an interrupted run left; it ends as an unbroken one.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Run every stage: take none from earlier runs.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings such as stages.dann.train.epochs=5.", show_default=False)]


def _complete(incomplete: str) -> list[str]:
    return sorted({one.name for one in installed() if one.name.startswith(incomplete)})


@app.command("list")
def list_components(
    kind: Annotated[str | None, typer.Argument(help=f"One of {', '.join(KINDS)}.", autocompletion=lambda: list(KINDS))] = None,
    as_json: Json = False,
) -> None:
    """List the components that are installed."""
    singular = {"datasets": "dataset", "models": "model", "objectives": "objective", "guidances": "guidance", "evaluators": "evaluator"}
    kind = singular.get(kind, kind) if kind else None
    if kind is not None and kind not in KINDS:
        raise UnknownComponentError(f'there is no kind "{kind}"; the kinds are {", ".join(KINDS)}')
    registry = installed()
    chosen = [one for one in registry if kind in (None, one.kind)]
    if as_json:
        print(json.dumps([_as_object(one) for one in chosen], indent=1))
    else:
        from graftwork.cli.display import component_table

        component_table(chosen)
    _warn_of_failures(registry)


def _warn_of_failures(registry: Registry) -> None:
    if registry.failures:
        names = ", ".join(sorted({failure.distribution for failure in registry.failures}))
        print(f"graft: warning: something is wrong with {names}; see: graft doctor", file=sys.stderr)


def _as_object(one: Registered) -> dict[str, Any]:
    paper = one.component.paper
    described = {"title": paper.title, "arxiv": paper.arxiv, "year": paper.year, "url": paper.link} if paper else None
    return {"kind": one.kind, "name": one.name, "distribution": one.distribution, "summary": one.component.summary, "paper": described}


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a component, or distribution/name.", autocompletion=_complete)],
    overrides: Annotated[list[str] | None, typer.Argument(help="With --figure: parameters, such as size=96.", show_default=False)] = None,
    kind: Annotated[str | None, typer.Option(help="Where several kinds have the name.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw a dataset into this file, such as out.png or out.svg.")] = None,
    split: Annotated[str | None, typer.Option(help="With --figure: what to draw; by default the first split.")] = None,
    as_json: Json = False,
) -> None:
    """Show a component: what it does, its paper, its parameters. With --figure, draw a dataset."""
    from graftwork import config

    if figure is not None:
        drawn = _draw(name, overrides or [], kind, split, figure)
        print(json.dumps({"figure": str(figure), "split": drawn}, indent=1) if as_json else figure)
        return
    if overrides or split:
        asked = " ".join([*(overrides or []), *([f"--split {split}"] if split else [])])
        raise ConfigError(f"{asked}: parameters and a split are for drawing a dataset; add --figure out.png")
    registry = installed()
    bare = name.rpartition("/")[2]
    kinds = [kind] if kind else [one for one in KINDS if bare in registry.names(one)]
    if not kinds:
        _explain_unknown(registry, name)
    found = [registry.find(one, name) for one in kinds]
    if as_json:
        print(json.dumps([{**_as_object(one), "parameters": config.json_schema(one.load())} for one in found], indent=1))
        return
    from graftwork.cli.display import component_page

    for one in found:
        component_page(one, config.parameters(one.load()))


def _draw(name: str, overrides: list[str], kind: str | None, split: str | None, path: Path) -> str:
    """Build a dataset, let a plugin draw one of its splits, write the figure; give the split's name."""
    from matplotlib.backend_bases import FigureCanvasBase

    suffix, formats = path.suffix.removeprefix(".").lower(), FigureCanvasBase.get_supported_filetypes()
    if suffix not in formats:
        raise ConfigError(f"--figure {path}: a figure's file ends in one of {', '.join(f'.{one}' for one in sorted(formats))}")
    if kind not in (None, "dataset"):
        raise ConfigError(f"--figure draws datasets; found --kind {kind}")
    registry = installed()
    registry.find("dataset", name)
    from graftwork.document import Document
    from graftwork.make import make

    document = Document({})
    try:
        document.override(overrides)
        data = make("dataset", name, **document.data)
    except (ConfigError, PipelineError) as error:
        said = "\n".join(map(str, error.problems)) if isinstance(error, PipelineError) else error
        raise ConfigError(f"{said}\nparameters stand after the name: graft show {name} key=value --figure {path}") from None
    chosen = split or next(iter(data), "")
    data[chosen]  # an unknown split is an error before anything is drawn
    drawn = registry.hooks.graftwork_dataset_figure(dataset=data, split=chosen)
    if drawn is None:
        raise GraftworkError(f"no installed plugin draws {name}: pip install graftwork-testbed")
    _write_figure(drawn, path, suffix)
    return str(chosen)


def _write_figure(figure: Figure, path: Path, suffix: str) -> None:
    """Write a figure beside its place and rename it there."""
    beside = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(beside, format=suffix)
        beside.replace(path)
    except (OSError, RuntimeError, ValueError) as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise GraftworkError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}") from None


def _explain_unknown(registry: Registry, name: str) -> None:
    """Raise the most helpful of the five kinds' errors."""
    messages = []
    for kind in KINDS:
        try:
            registry.find(kind, name)
        except UnknownComponentError as error:
            messages.append(str(error))
    best = next((text for text in messages if "pip install" in text or "set aside" in text), None)
    hinted = best or next((text for text in messages if "did you mean" in text), messages[0])
    raise UnknownComponentError(hinted)


@app.command()
def run(
    pipeline: Annotated[
        str | None, typer.Argument(help="A pipeline in YAML, or an installed recipe such as dann; with --resume it may be left out.")
    ] = None,
    overrides: Overrides = None,
    out: Out = None,
    resume: Resume = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of the pipeline's own.")] = None,
    device: Device = None,
    stage: Annotated[list[str] | None, typer.Option(help="Run this stage and what it takes from; may be repeated.")] = None,
    fresh: Fresh = False,
    profile: Annotated[bool, typer.Option("--profile", help="Write a profiler's traces into RUN/profile; runs every stage.")] = False,
    as_json: Json = False,
) -> None:
    """Run a pipeline and write its report. Stages that an earlier run has finished, and that nothing has changed for, are taken from it."""
    from graftwork import processes
    from graftwork.cli.display import result_table
    from graftwork.engine import pick_device
    from graftwork.pipeline import Pipeline
    from graftwork.reproduce import find_recipe

    if resume is not None and out is not None:
        raise ConfigError(f"--resume {resume} goes on in that directory: leave --out {out} away")
    if pipeline is not None:
        loaded = Pipeline.from_yaml(find_recipe(pipeline, installed()), overrides or ())
    elif resume is not None:
        loaded = Pipeline.of_run(resume)
    else:
        raise ConfigError("name a pipeline, or go on with a run: graft run --resume RUN")
    device = device or (_former_device(resume) if resume is not None else None)
    processes.join(pick_device(device))
    where = resume or out or processes.from_first(lambda: _run_directory(str(loaded.document.data.get("name", "pipeline"))))
    with _observer(as_json or not processes.is_first()) as observer:
        settings: dict[str, Any] = {"seed": seed, "device": device, "stages": stage or None, "observer": observer}
        result = loaded.run(where, resume=resume is not None, reuse=not fresh and not profile, profile=profile, **settings)
    processes.leave()
    if result.path is None:
        return  # the first process tells
    if as_json:
        print(json.dumps({"run": str(where), "report": str(where / "report.html"), "metrics": result.metrics}, indent=1))
        return
    result_table(result.metrics)
    print(f"report: {where / 'report.html'}")


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="A plugin, plugin/recipe, or a YAML file with a claim.")],
    overrides: Overrides = None,
    out: Out = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds, instead of the claim's own number.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The first seed.")] = None,
    device: Device = None,
    on: sweeping.On = None,
    workers: sweeping.Workers = None,
    cpus: sweeping.Cpus = None,
    gpus: sweeping.Gpus = None,
    retries: sweeping.Retries = 2,
    resume: Resume = None,
    fresh: Fresh = False,
    as_json: Json = False,
) -> None:
    """Run a plugin's recipe over its seeds and say whether its claim holds here."""
    from graftwork import processes
    from graftwork.cli.display import reproduction_table
    from graftwork.engine import pick_device
    from graftwork.reproduce import find_recipe
    from graftwork.reproduce import reproduce as over_seeds
    from graftwork.trials import Resources

    path = find_recipe(name, installed())
    settings = [*(overrides or ()), *([f"seed={seed}"] if seed is not None else [])]
    if resume is not None and out is not None:
        raise ConfigError(f"--resume {resume} goes on in that directory: leave --out {out} away")
    processes.join(pick_device(device))
    where = resume or out or processes.from_first(lambda: _run_directory(path.stem))
    common: dict[str, Any] = {"overrides": settings, "seeds": seeds, "device": device, "resume": resume is not None, "reuse": not fresh}
    if on is None and workers is None:
        with _observer(as_json or not processes.is_first()) as observer:
            found = over_seeds(path, where, observer=observer, **common)
    else:
        asked = Resources(workers, cpus, gpus, retries)
        with sweeping.TrialProgress(as_json) as progress:
            found = over_seeds(path, where, on=on or "local", resources=asked, ended=progress.ended, note=progress.note, **common)
    if not processes.is_first():
        pass
    elif as_json:
        print(found.to_json())
    else:
        reproduction_table(found)
        print(f"table: {where / 'reproduction.md'}")
    processes.leave()


app.command()(sweeping.sweep)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="A run, a reproduction over seeds, or a sweep; several runs are compared.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page's file; by default report.html in the directory, comparison.html here for several runs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the page of a run, finished or not, of a reproduction or of a sweep; of several runs, one that compares them."""
    from graftwork.report import check_target, write_comparison, write_page

    target = out or (Path("comparison.html") if len(runs) > 1 else None)
    if target is not None:
        check_target(target)
    page = write_page(runs[0], target) if target is None or len(runs) == 1 else write_comparison(runs, target)
    print(json.dumps({"report": str(page)}, indent=1) if as_json else f"report: {page}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check every installed plugin; say what is wrong with which distribution. Exit status 1 if anything is."""
    from graftwork.errors import PluginError
    from graftwork.registry import Failure

    registry = installed()
    failures = list(registry.failures)
    for one in registry:
        try:
            one.load()
        except PluginError as error:
            failures.append(Failure(one.distribution, one.plugin, str(error)))
    if as_json:
        print(json.dumps([{"distribution": f.distribution, "plugin": f.plugin, "reason": f.reason} for f in failures], indent=1))
    else:
        from graftwork.cli.display import doctor_report

        doctor_report(registry, failures)
    raise typer.Exit(1 if failures else 0)


@app.command()
def schema(out: Annotated[Path | None, typer.Option(help="Write to this file instead of printing.")] = None) -> None:
    """Print the JSON schema of a pipeline over what is installed, for editors."""
    from graftwork.files import write_text
    from graftwork.schema import pipeline_schema

    text = json.dumps(pipeline_schema(installed()), indent=1)
    if out is None:
        print(text)
    else:
        write_text(out, text + "\n")


def _former_device(run: Path) -> str | None:
    """The device that a run was begun on."""
    try:
        return str(json.loads((run / "environment.json").read_text(encoding="utf-8"))["device"])
    except (OSError, ValueError, KeyError):
        return None


def _observer(quiet: bool) -> Silent:
    """A progress display, or one that shows nothing."""
    from graftwork.cli.progress import Progress, Silent

    return Silent() if quiet else Progress()


def _run_directory(name: str) -> Path:
    """runs/NAME-TIME, numbered where that exists."""
    from datetime import datetime

    stem = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)[:100]}-{datetime.now():%Y%m%d-%H%M%S}"  # it is not checked yet
    for number in range(1000):
        path = Path("runs") / (stem if number == 0 else f"{stem}-{number}")
        if not path.exists():
            return path
    raise GraftworkError(f"runs/{stem} and 999 like it exist: name a directory with --out")
