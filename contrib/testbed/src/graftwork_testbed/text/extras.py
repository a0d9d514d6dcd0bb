"""What this part of the test bed needs and the rest does not."""

from __future__ import annotations

import importlib
from typing import Any

from graftwork.errors import GraftworkError

__all__ = ["need"]


def need(module: str, extra: str) -> Any:
    """Import an optional dependency.

    Raises:
        GraftworkError: if it cannot be imported, naming the extra of graftwork-testbed that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise GraftworkError(f'{module} cannot be imported ({error}): pip install "graftwork-testbed[{extra}]"') from error
