"""What the command line draws, with Rich: the list, a component's page, results, what is wrong."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from rich.console import Console
from rich.table import Table

import graftwork
from graftwork.cli.terminal import literal

if TYPE_CHECKING:
    from graftwork.config import Parameter
    from graftwork.registry import Failure, Registered, Registry
    from graftwork.reproduce import Reproduction

__all__ = ["component_page", "component_table", "doctor_report", "reproduction_table", "result_table"]

console = Console(emoji=False, highlight=False)


def component_table(components: Sequence[Registered]) -> None:
    """The installed components, a table a kind."""
    for kind in dict.fromkeys(one.kind for one in components):
        table = Table(title=f"{kind}s" if kind != "guidance" else kind, title_justify="left", title_style="bold", expand=False)
        table.add_column("name", style="cyan", no_wrap=True)
        table.add_column("distribution", no_wrap=True)
        table.add_column("summary")
        for one in components:
            if one.kind == kind:
                year = f" ({one.component.paper.year})" if one.component.paper and one.component.paper.year else ""
                table.add_row(one.name, literal(one.distribution), literal(one.component.summary + year))
        console.print(table)
    if not components:
        console.print("nothing is installed of that kind")


def component_page(one: Registered, parameters: Mapping[str, Parameter]) -> None:
    """What a component does, where it is from, and its parameters."""
    console.print(f"[bold cyan]{one.name}[/]  {one.kind} of {literal(one.distribution)} ({literal(one.component.target)})")
    console.print(literal(one.component.summary))
    paper = one.component.paper
    if paper:
        console.print(literal(", ".join(str(part) for part in (paper.title, paper.venue, paper.year, paper.link) if part)), style="dim")
    if not parameters:
        console.print("It takes no parameters.")
        return
    table = Table(expand=False)
    for heading in ("parameter", "type", "default", "description"):
        table.add_column(heading, no_wrap=heading == "parameter")
    for name, parameter in _with_fields(parameters):
        default = "required" if parameter.required else repr(parameter.default)
        table.add_row(literal(name), literal(_type_name(parameter.annotation)), literal(default), literal(parameter.description))
    console.print(table)


def _with_fields(parameters: Mapping[str, Parameter], prefix: str = "") -> Iterator[tuple[str, Parameter]]:
    """Each parameter by name, followed by the fields of the dataclass that it takes, such as "policy.temperature"."""
    from graftwork import config

    for name, parameter in parameters.items():
        yield f"{prefix}{name}", parameter
        record = _record(parameter.annotation)
        if record is not None:
            yield from _with_fields(config.parameters(record), f"{prefix}{name}.")


def _record(annotation: Any) -> type | None:
    """The dataclass that is written as a mapping where this type is asked for."""
    from graftwork.config import reference_kind

    if isinstance(annotation, type) and is_dataclass(annotation):
        return None if reference_kind(annotation) else annotation
    inside = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return next((found for one in inside if (found := _record(one)) is not None), None)


def _type_name(annotation: Any) -> str:
    """A parameter's type as a person would write it, its range behind it: "int >= 1", "list[float] | None", "model (Backbone)"."""
    from graftwork.config import reference_kind
    from graftwork.kinds.dataset import SplitName

    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = [limit for extra in inside[1:] for limit in getattr(extra, "metadata", ())]
        signs = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
        bounds = [f"{sign} {getattr(limit, name)}" for limit in limits for name, sign in signs if hasattr(limit, name)]
        named = "split" if any(isinstance(extra, SplitName) for extra in inside[1:]) else _type_name(inside[0])
        return " ".join([named, *bounds])
    if origin in (Union, UnionType):
        return " | ".join(_type_name(one) for one in inside)
    if origin is Literal:
        return " | ".join(map(str, inside))
    kind = reference_kind(annotation)
    if kind:
        return f"model ({annotation.__name__})" if kind == "model" else kind
    name = "None" if annotation is type(None) else getattr(origin or annotation, "__name__", str(annotation))
    return f"{name}[{', '.join('...' if one is ... else _type_name(one) for one in inside)}]" if inside and origin is not None else name


def result_table(metrics: Mapping[str, float]) -> None:
    """The metrics of a run, a row each."""
    table = Table(title="results", title_justify="left", title_style="bold")
    table.add_column("stage")
    table.add_column("metric")
    table.add_column("value", justify="right")
    last = None
    for name, value in metrics.items():
        stage, _, metric = name.partition("/")
        table.add_row(literal(stage) if stage != last else "", literal(metric), f"{value:.4f}")
        last = stage
    console.print(table)


def reproduction_table(found: Reproduction) -> None:
    """A claim's comparisons with mean, standard error, test and verdict."""
    from graftwork.reproduce import shown

    table = Table(title=literal(f"{found.recipe}: {found.claim}"), title_justify="left", title_style="bold")
    for heading in ("comparison", "baseline", "method", "p", "verdict"):
        table.add_column(heading)
    colours = {"holds": "green", "does not hold": "red"}
    for one in found.verdicts:
        p = "-" if one.p_value is None else f"{one.p_value:.2g}"
        verdict = f"[{colours.get(one.verdict, 'yellow')}]{one.verdict}[/]"
        table.add_row(
            literal(f"{one.method} {'>' if one.direction == 'higher' else '<'} {one.baseline}"),
            shown(one.baseline_values),
            shown(one.method_values),
            p,
            verdict,
        )
    console.print(table)
    console.print(f"mean ± standard error over {len(found.seeds)} seeds; paired one-sided t-test")
    if found.paper:
        console.print(literal(f"the paper: {', '.join(f'{key} {value}' for key, value in found.paper.items())}"), style="dim")


def doctor_report(registry: Registry, failures: Iterable[Failure]) -> None:
    """What is installed, and each fault with its distribution and reason."""
    from importlib.metadata import PackageNotFoundError, version

    def version_of(name: str) -> str:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            return f"{name} is missing"

    failures = list(failures)
    plugins = sorted({one.distribution for one in registry})
    console.print(
        f"graftwork {graftwork.__version__}, Python {platform.python_version()}, {version_of('torch')}, {version_of('accelerate')}"
    )
    console.print(f"{len(registry.components)} components of {len(plugins)} distributions: {literal(', '.join(plugins))}")
    for failure in failures:
        console.print(
            f"[red]✗[/] [bold]{literal(failure.distribution)}[/] (plugin {literal(failure.plugin)}): {literal(failure.reason)}",
            soft_wrap=True,
        )
    if not failures:
        console.print("[green]✓[/] nothing is wrong")
