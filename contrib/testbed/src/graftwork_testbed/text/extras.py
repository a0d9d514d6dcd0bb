"""What this part of the test bed needs and the rest does not."""

from __future__ import annotations

from typing import Any

from graftwork.builtin import hub

__all__ = ["need"]


def need(module: str, extra: str) -> Any:
    """Import an optional dependency.

    Raises:
        GraftworkError: if it cannot be imported, naming the extra of graftwork-testbed that installs it.
    """
    return hub.need(module, extra, "graftwork-testbed")
