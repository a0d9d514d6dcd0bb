"""Optional packages, asked for where they are needed, with word of how to install them."""

from __future__ import annotations

from typing import Any

from graftwork.builtin import hub

__all__ = ["need"]


def need(module: str, extra: str) -> Any:
    """A module of an optional package.

    Args:
        module: full name.
        extra: of this distribution, that installs it.

    Raises:
        GraftworkError: if it cannot be imported.
    """
    return hub.need(module, extra, "graftwork-google-landmarks")
