"""Run directories written by hand, so that no test here has to train, and a browser to read their pages with."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml

MAKE = Callable[..., Path]


def png(width: int = 8, height: int = 8) -> bytes:
    """A grey picture."""
    rows = b"".join(b"\0" + b"\x80" * width for _ in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def curve(stage: str, count: int = 40, **metrics: Callable[[int], float | None]) -> list[dict[str, Any]]:
    """Rows of the log: each metric a function of the step."""
    named = metrics or {"loss": lambda step: 2.0 / (1 + step)}
    return [{"stage": stage, "step": step, "time": step / 10, **{name: f(step) for name, f in named.items()}} for step in range(count)]


CLAIM = {
    "text": "The method beats the baseline",
    "compare": {"method": "method/accuracy", "baseline": "baseline/accuracy"},
    "seeds": 3,
    "paper": {"baseline": 0.5, "method": 0.7},
}


def write_run(
    folder: Path,
    *,
    results: dict[str, dict[str, float | None]] | None = None,
    rows: list[dict[str, Any]] | None = None,
    status: str | None = "finished",
    seed: int = 0,
    claim: dict[str, Any] | None = CLAIM,
    stage: dict[str, Any] | None = None,
    unfinished: tuple[str, ...] = (),
) -> Path:
    """A run directory as `Run` leaves it; a status of None leaves no results.json, as a kill does."""
    results = {"baseline": {"accuracy": 0.5}, "method": {"accuracy": 0.75}} if results is None else results
    block = stage or {"dataset": "blobs", "model": {"use": "net", "width": 8}, "objective": "fit", "evaluate": ["hits"]}
    folder.mkdir(parents=True)
    pipeline = {"name": "tiny", "seed": seed, "stages": dict.fromkeys(results, block), **({"claim": claim} if claim else {})}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    environment = {"python": "3.11.2", "platform": "Linux", "gpus": [], "command": ["graft", "run"], "seed": seed, "device": "cpu"}
    (folder / "environment.json").write_text(json.dumps({**environment, "versions": {"torch": "2.13.0", "graftwork": "0.1.0"}}))
    logged = [row for name in results for row in curve(name)] if rows is None else rows
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logged))
    for name, found in results.items():
        place = folder / "stages" / name
        place.mkdir(parents=True)
        phases = {"model": {"seconds": 0.5, "host_bytes": 2**29, "device_bytes": None}}
        phases["train"] = {"seconds": 75.0, "host_bytes": 2**31, "device_bytes": 3 * 2**30}
        record = {"phases": phases, "results": found, "finished": name not in unfinished, "taken_from": ""}
        (place / "stage.json").write_text(json.dumps(record))
    if status is not None:
        (folder / "results.json").write_text(json.dumps({"name": "tiny", "seed": seed, "status": status, "results": results}))
    return folder


def add_evaluation(run: Path, stage: str, label: str, *, caption: str = "What is seen", table: dict[str, Any] | None = None) -> Path:
    """A figure with a caption and a table, as `Run.add_report` leaves them."""
    place = run / "stages" / stage / label
    place.mkdir(parents=True)
    (place / "picture.png").write_bytes(png(900, 40))
    (place / "captions.json").write_text(json.dumps({"picture": caption}))
    (place / "classes.json").write_text(json.dumps(table or {"columns": ["class", "share"], "rows": [["a", 0.25]], "caption": "By class"}))
    return place


@pytest.fixture
def make_run() -> MAKE:
    """make_run(folder, ...): write a run directory."""
    return write_run


@pytest.fixture
def evaluated() -> MAKE:
    """evaluated(run, stage, label, ...): add what an evaluator leaves."""
    return add_evaluation


@pytest.fixture
def logged() -> Callable[..., list[dict[str, Any]]]:
    """logged(stage, count, metric=function, ...): rows of a log."""
    return curve


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """picture(width, height): a PNG's bytes."""
    return png


@pytest.fixture
def words() -> Callable[[Path], str]:
    """words(page): what is read on a page, in one line."""

    def read(page: Path) -> str:
        text = re.sub(r"<(script|style)\b.*?</\1>", " ", page.read_text(), flags=re.S)
        return " ".join(unescape(re.sub(r"<[^>]+>", " ", text)).split())

    return read


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, headless."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if executable is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with driver.sync_playwright() as started:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses its sandbox to root
        browser = started.chromium.launch(executable_path=executable, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Any]]:
    """visit(path, width=1200, ...): the page in a tab of its own, `said` its console and `asked` its requests beyond the file itself."""
    contexts = []

    def open_page(path: Path, width: int = 1200, **settings: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 800}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        address = path.resolve().as_uri()
        context.on("request", lambda request: None if request.url.startswith((address, "data:")) else page.asked.append(request.url))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
