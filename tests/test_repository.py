"""What the repository promises of itself: the core's size, and that plugins import no torch to be listed."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "framework" / "graftwork"
SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank ones, comments or docstrings."""
    text = path.read_text()
    documents: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documents.update(range(node.lineno, node.end_lineno + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SKIPPED:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - documents)


APART = {"builtin", "toolkit", "testing", "report", "cli"}
"""What the framework itself never imports by itself: components, tools for plugins, the page, the command line."""

MANY = {"reproduce.py", "space.py", "trials.py", "pool.py", "sharing.py", "sweep.py", "sweep_results.py"}
"""Many runs at once: reproductions and sweeps, and where they run."""


def test_the_framework_stays_under_4000_lines_of_code_and_what_runs_many_under_1000() -> None:
    sizes = {path.relative_to(CORE): code_lines(path) for path in CORE.rglob("*.py")}
    assert sum(size for path, size in sizes.items() if not APART & set(path.parts) and path.name not in MANY) < 4000
    assert sum(sizes[Path(name)] for name in MANY) < 1000


@pytest.mark.parametrize("path", [path.relative_to(ROOT) for path in ROOT.glob("*/*/src/*/plugin.py")], ids=str)
def test_a_plugin_is_listed_without_torch(path: Path) -> None:
    heavy = ("torch", "transformers", "diffusers")
    code = f"import runpy, sys; runpy.run_path({str(ROOT / path)!r}); print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
