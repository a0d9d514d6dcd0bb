"""The libraries that graph data sets need and images do not, imported when a data set is built."""

from __future__ import annotations

import importlib
from typing import Any

from graftwork.errors import GraftworkError

__all__ = ["need"]


def need(module: str) -> Any:
    """Import a module of PyTorch Geometric or networkx.

    Raises:
        GraftworkError: if it cannot be imported, naming the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise GraftworkError(f'{module} cannot be imported ({error}): pip install "graftwork-testbed[graphs]"') from error
