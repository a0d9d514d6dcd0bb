"""The libraries that graph data sets need and images do not, imported when a data set is built."""

from __future__ import annotations

from typing import Any

from graftwork.builtin import hub

__all__ = ["need"]


def need(module: str) -> Any:
    """Import a module of PyTorch Geometric or networkx.

    Raises:
        GraftworkError: if it cannot be imported, naming the extra that installs it.
    """
    return hub.need(module, "graphs", "graftwork-testbed")
