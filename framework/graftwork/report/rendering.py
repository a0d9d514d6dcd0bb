"""From a template to a file: one HTML document that needs nothing else, and may ask for nothing else."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import math
import os
import statistics
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from graftwork.errors import GraftworkError
from graftwork.files import write_text

__all__ = ["GENERATOR", "address", "brief", "check_target", "mean_and_error", "render", "unique_ends", "unique_tails", "write_html"]

GENERATOR = '<meta name="generator" content="graftwork">'
"""In every page, so that no other file is ever replaced by one."""
DASH = "\N{EN DASH}"


def render(template: str, **context: Any) -> str:
    """A page from one of the templates. Style and script stand in it, and its policy allows these two by their hashes and no other.

    Args:
        template: file name.
        context: what it shows; everything is escaped.
    """
    style, script = _asset("style.css"), _asset("page.js")
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src 'sha256-{_hash(style)}'",
            f"script-src 'sha256-{_hash(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    page = _environment().get_template(template)
    return page.render(style=Markup(style), script=Markup(script), policy=policy, generator=Markup(GENERATOR), **context)


def check_target(path: Path) -> None:
    """Refuse a place that holds something other than a page.

    Raises:
        GraftworkError: if its name does not end in .html, it lies in no directory, or what stands there was not written by graftwork.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise GraftworkError(f"--out {path}: a page's file ends in .html")
    if path.is_dir():
        raise GraftworkError(f"--out {path} is a directory: name a file in it")
    around = next((one for one in path.parents if one.exists()), None)
    if around is not None and not around.is_dir():
        raise GraftworkError(f"--out {path}: {around} is no directory")
    if path.is_file():
        with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
            if GENERATOR in file.read(4096):
                return
        raise GraftworkError(f"{path} is not a page of graftwork: it is left as it is; choose another --out")


def write_html(path: Path, html: str) -> Path:
    """Write a page; where it stands in a finished run, its sum in the run's manifest follows. Give its path."""
    write_text(path, html)
    manifest = path.parent / "manifest.json"
    try:
        sums = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return path
    if isinstance(sums, dict) and (path.parent / "pipeline.yaml").is_file():
        write_text(manifest, json.dumps(sums | {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}, indent=1))
    return path


@functools.cache
def _asset(name: str) -> str:
    return files("graftwork.report").joinpath("templates", name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("graftwork.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"figure": figure, "cell": cell, "brief": brief, "written": written}
    environment.filters |= {"duration": duration, "memory": memory, "png": _png}
    environment.globals["bar"] = _bar
    return environment


def figure(value: float | None) -> str:
    """A result: four decimals, or four digits where that shows more; "not finite" for None."""
    if value is None:
        return "not finite"
    small = value != 0 and (abs(value) < 0.01 or abs(value) >= 1e6)
    return f"{value:.4g}" if small else f"{value:.4f}"


def mean_and_error(values: Sequence[float]) -> str:
    """Mean and standard error, such as "0.623 ± 0.011"; of one value no error."""
    mean = statistics.fmean(values)
    return f"{mean:.4g} ± {statistics.stdev(values) / math.sqrt(len(values)):.2g}" if len(values) > 1 else f"{mean:.4g}"


def cell(value: Any) -> str:
    """What stands in a cell of a table: numbers in four digits, everything else as it is."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return DASH if value is None else str(value)


def written(value: Any) -> str:
    """A setting as a command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def brief(value: Any) -> str:
    """A setting as it is read: a number in five digits, everything else as it is written."""
    return f"{value:.5g}" if isinstance(value, float) else written(value)


def duration(seconds: float) -> str:
    """Seconds as they are read: 3.21 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def memory(count: int | None) -> str:
    """Bytes as they are read; a dash where they are not known."""
    if count is None:
        return DASH
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"


def _png(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _bar(value: float, most: float) -> float:
    """Length of a bar in percent."""
    return round(100 * value / most, 1) if most > 0 else 0.0


def address(page: Path, target: Path) -> str:
    """How a page at `target` links to another."""
    return quote(Path(os.path.relpath(page.resolve(), target.resolve().parent)).as_posix())


def unique_tails(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart."""
    return unique_ends([path.resolve().parts for path in paths], "/")


def unique_ends(names: Sequence[Sequence[str]], joint: str) -> list[str]:
    """The shortest ends of names, given as their parts, that tell them apart; of as many parts each."""
    for count in range(1, max(map(len, names), default=0) + 1):
        ends = [joint.join(one[-count:]) for one in names]
        if len(set(ends)) == len({tuple(one) for one in names}):
            return ends
    return [joint.join(one) for one in names]
