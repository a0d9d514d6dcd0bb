"""graftwork's names and values as MLflow takes them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from graftwork.reuse import flat

__all__ = ["KEY", "PARAMETER", "TAG", "key_of", "parameters_of", "shortened"]

KEY, PARAMETER, TAG = 250, 6000, 8000
"""Longest key, parameter and tag that every MLflow server takes, in characters."""


def key_of(name: str) -> str:
    """A name of a metric, parameter or tag with nothing in it that MLflow refuses: "retrieval/recall@1" becomes "retrieval/recall_1"."""
    parts = [re.sub(r"[^\w.\- ]", "_", part) for part in name.split("/")]
    kept = "/".join("_" if part in ("", ".", "..") else part for part in parts)
    return kept if len(kept) <= KEY else f"{kept[: KEY - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def shortened(value: Any, limit: int) -> str:
    """The text of a value, cut where it is longer than MLflow takes."""
    text = str(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def parameters_of(resolved: Mapping[str, Any], seed: int) -> dict[str, str]:
    """Dotted key -> value, of a pipeline as it is run; the claim is no setting."""
    settings = {key: value for key, value in resolved.items() if key not in ("claim", "name")}
    return {key_of(key): shortened(value, PARAMETER) for key, value in flat({**settings, "seed": seed})}
