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


def test_the_core_stays_under_3000_lines_of_code() -> None:
    """The framework itself; what is in `builtin`, `toolkit` and `testing` it never imports by itself."""
    assert sum(code_lines(path) for path in CORE.rglob("*.py") if not {"builtin", "toolkit", "testing"} & set(path.parts)) < 3000


@pytest.mark.parametrize("path", [path.relative_to(ROOT) for path in ROOT.glob("*/*/src/*/plugin.py")], ids=str)
def test_a_plugin_is_listed_without_torch(path: Path) -> None:
    heavy = ("torch", "transformers", "diffusers")
    code = f"import runpy, sys; runpy.run_path({str(ROOT / path)!r}); print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
