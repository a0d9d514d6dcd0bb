"""The page of a run: claim, results, curves, figures, samples, time and memory, configuration, environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.component import KINDS
from graftwork.errors import GraftworkError
from graftwork.registry import Registry, installed
from graftwork.report.charts import charts
from graftwork.report.claims import judge
from graftwork.report.reading import RunFolder, is_run, read_run
from graftwork.report.rendering import address, render, write_html

__all__ = ["Used", "environment_rows", "linked_run", "pivot", "reached", "run_page", "write_page"]


def write_page(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run, of a reproduction over seeds, or of a sweep, from its files; give the page's path.

    Args:
        folder: its directory, finished or not.
        out: where to write; by default `report.html` in the directory.

    Raises:
        GraftworkError: if the directory is none of these, or the page cannot be written.
    """
    target = folder / "report.html" if out is None else out
    if is_run(folder):
        return write_html(target, run_page(read_run(folder)))
    from graftwork.report.reproduction import is_reproduction, reproduction_page
    from graftwork.report.sweep import is_sweep, sweep_page

    if is_sweep(folder):
        return write_html(target, sweep_page(folder, target))
    if is_reproduction(folder):
        return write_html(target, reproduction_page(folder, target))
    none = f"{folder} is no run, no reproduction and no sweep"
    if not folder.is_dir():
        raise GraftworkError(f"{none}: there is no such directory")
    inside = sorted(path for path in folder.glob("*") if is_run(path))
    hint = f"; there are runs in it: graft report {inside[0]}, or several to compare" if inside else ""
    raise GraftworkError(f"{none}: it has no pipeline.yaml, no sweep.json and no runs called seed-0, seed-1{hint}")


def linked_run(folder: Path, target: Path) -> tuple[RunFolder, str]:
    """A run, and the address of its page from the page at `target`; where it has none or is not finished, it is written first.

    Raises:
        GraftworkError: if the run cannot be read, or its page cannot be written.
    """
    run, page = read_run(folder), folder / "report.html"
    if run.status != "finished" or not page.is_file():
        write_html(page, run_page(run))
    return run, address(page, target)


def run_page(run: RunFolder) -> str:
    """The page of one run, as HTML."""
    names = [stage.name for stage in run.stages]
    series = [(one.stage, _place(names, one.stage), one) for one in run.series]
    return render(
        "run.html.j2",
        title=run.name,
        run=run,
        reached=reached(run),
        judgements=judge(run.claim, run.metrics) if run.claim else [],
        results=pivot(run.results),
        charts=charts(series),
        longest=max((cost.seconds for cost in run.costs), default=0.0),
        components=list(used(run.configuration, installed())),
        environment=environment_rows(run.environment),
    )


def reached(run: RunFolder) -> str:
    """How far a run came, in words; "" for one that is finished."""
    if run.status == "finished":
        return ""
    open_stages = [stage.name for stage in run.stages if not stage.finished]
    last = next((cost.phase for cost in reversed(run.costs) if open_stages and cost.stage == open_stages[0]), None)
    where = f'in stage "{open_stages[0]}"' if open_stages else "after its last stage"
    return f'{where}, after "{last}"' if last else where


def _place(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def pivot(results: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
    """Results as a table: metrics down and stages across, or the other way where that is narrower.

    Returns:
        `corner`, the heading of the first column; `columns`; `rows`, each a name and (whether it was measured, value) a column.
    """
    stages = list(results)
    metrics = list(dict.fromkeys(name for found in results.values() for name in found))
    if len(stages) <= max(4, len(metrics)):
        rows = [(metric, [(metric in results[stage], results[stage].get(metric)) for stage in stages]) for metric in metrics]
        return {"corner": "metric", "columns": stages, "rows": rows}
    rows = [(stage, [(metric in results[stage], results[stage].get(metric)) for metric in metrics]) for stage in stages]
    return {"corner": "stage", "columns": metrics, "rows": rows}


@dataclass(frozen=True)
class Used:
    """A component that a pipeline uses.

    Args:
        name: as the pipeline writes it.
        kind: one of the five; "" when it is not installed.
        stages: that use it.
        distribution: that it comes from.
        summary: one sentence.
        paper: title, year and arXiv identifier.
    """

    name: str
    kind: str
    stages: Sequence[str]
    distribution: str = ""
    summary: str = ""
    paper: str = ""


def used(configuration: Mapping[str, Any], registry: Registry) -> Iterator[Used]:
    """The components of a pipeline, in the order of their first use, with what their plugins say of them."""
    found: dict[tuple[str, str], list[str]] = {}
    stages = configuration.get("stages")
    for stage, block in stages.items() if isinstance(stages, dict) else ():
        if isinstance(block, dict):
            for kind, name in _named(block):
                found.setdefault((kind, name), []).append(str(stage))
    for (kind, name), where in found.items():
        kinds = [kind] if kind else [one for one in KINDS if name.rpartition("/")[2] in registry.names(one)]
        stages_of = list(dict.fromkeys(where))
        try:
            one = registry.find(kinds[0] if kinds else "model", name)
        except GraftworkError:
            yield Used(name, kind, stages_of, summary="not installed here")
            continue
        paper = one.component.paper
        told = [paper.title, str(paper.year or ""), f"arXiv:{paper.arxiv}" if paper.arxiv else ""] if paper else []
        yield Used(name, one.kind, stages_of, one.distribution, one.component.summary, ", ".join(part for part in told if part))


def _named(block: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(kind, name) of each component that a stage names; kind is "" for those within others."""
    sample = block.get("sample")
    listed = block.get("evaluate")
    parts = [(kind, block.get(kind)) for kind in ("dataset", "model", "objective")]
    parts.append(("guidance", sample.get("guidance") if isinstance(sample, dict) else None))
    parts.extend(("evaluator", one) for one in (listed if isinstance(listed, list) else [listed]))
    for kind, part in parts:
        if isinstance(part, str):
            yield kind, part
        elif isinstance(part, dict):
            if isinstance(part.get("use"), str):
                yield kind, part["use"]
            yield from _within(list(part.values()))


def _within(values: Sequence[Any]) -> Iterator[tuple[str, str]]:
    for value in values:
        if isinstance(value, dict):
            if isinstance(value.get("use"), str):
                yield "", value["use"]
            yield from _within(list(value.values()))
        elif isinstance(value, list):
            yield from _within(value)


def environment_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, value) of an environment, versions last."""
    versions = environment.get("versions")
    rows = [(name, _in_words(name, value)) for name, value in environment.items() if name != "versions"]
    return rows + [(str(name), str(version)) for name, version in (versions.items() if isinstance(versions, dict) else ())]


def _in_words(name: str, value: Any) -> str:
    if isinstance(value, list):
        return (" " if name == "command" else ", ").join(map(str, value)) or "none"
    return str(value)
