"""One self-contained HTML page from a run directory: results, curves, figures with captions, configuration, environment."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from graftwork.files import write_text

__all__ = ["write_page"]


def write_page(folder: Path, name: str = "report.html") -> Path:
    """Write the page of a run into its directory, from the files there; give its path.

    Args:
        folder: a run directory.
        name: of the page.
    """
    environment = json.loads((folder / "environment.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    pipeline = (folder / "pipeline.yaml").read_text()
    stages = list(yaml.safe_load(pipeline)["stages"])
    page = Environment(loader=PackageLoader("graftwork.report"), autoescape=True, undefined=StrictUndefined).get_template("page.html.j2")
    html = page.render(
        title=folder.name,
        environment=environment,
        pipeline=pipeline,
        results=[(stage, metric, value) for stage in stages for metric, value in _results(rows, stage).items()],
        curves=_curves(rows),
        stages=[(stage, _evaluations(folder / "stages" / stage), _samples(folder / "stages" / stage)) for stage in stages],
    )
    write_text(folder / name, html)
    return folder / name


def _results(rows: list[dict[str, Any]], stage: str) -> dict[str, Any]:
    """Metrics that evaluators gave: their rows have step -1."""
    found: dict[str, Any] = {}
    for row in rows:
        if row["stage"] == stage and row["step"] < 0:
            found.update({key: value for key, value in row.items() if key not in ("stage", "step", "time")})
    return found


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    """Each evaluator's tables and figures, in the order of their files."""
    found = []
    for place in sorted(path for path in folder.glob("*") if path.is_dir() and path.name not in ("model", "checkpoints", "samples")):
        tables = {path.stem: json.loads(path.read_text()) for path in sorted(place.glob("*.json"))}
        captions = tables.pop("captions", {})
        figures = [(path.stem, _embedded(path.read_bytes()), captions.get(path.stem, "")) for path in sorted(place.glob("*.png"))]
        if tables or figures:
            found.append({"name": place.name, "tables": tables, "figures": figures})
    return found


def _samples(folder: Path) -> list[str]:
    return [_embedded(path.read_bytes()) for path in sorted((folder / "samples").glob("*.png"))[:64]]


def _curves(rows: list[dict[str, Any]]) -> str:
    """The logged figures of every stage against the step, as an SVG drawing; "" when nothing was trained."""
    from matplotlib.figure import Figure

    trained = [row for row in rows if row["step"] >= 0]
    found = dict.fromkeys(key for row in trained for key in row)
    names = sorted((name for name in found if name not in ("stage", "step", "time")), key=lambda name: name.startswith("validate/"))
    if not names:
        return ""
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for axis, name in zip(axes, names, strict=False):
        for stage in dict.fromkeys(row["stage"] for row in trained):
            points = [(row["step"], row[name]) for row in trained if row["stage"] == stage and row.get(name) is not None]
            if points:
                axis.plot(*zip(*points[:: max(1, len(points) // 500)], strict=True), label=stage, marker="." if len(points) < 3 else None)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, frameon=False)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.getvalue().encode()).decode()


def _embedded(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
