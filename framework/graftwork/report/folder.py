"""Files of a directory that comes from anybody: read as text, JSON or pictures, never from outside it; what cannot be read is noted."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["FolderReader", "Picture", "finite", "is_number", "of_kind"]

PNG = b"\x89PNG\r\n\x1a\n"
LARGEST_PICTURE = 10 * 2**20


@dataclass(frozen=True)
class Picture:
    """A PNG file: its bytes, its size in pixels and what is said about it."""

    name: str
    png: bytes
    width: int
    height: int
    caption: str = ""


@dataclass
class FolderReader:
    """Reads files of one directory.

    Args:
        folder: the directory.
        damage: what could not be read, in words; grows.
    """

    folder: Path
    damage: list[str] = field(default_factory=list)

    def inside(self, path: Path) -> bool:
        """Whether a path is in the directory, links followed: a page must not carry files from elsewhere."""
        return path.resolve().is_relative_to(self.folder.resolve())

    def text(self, path: Path, limit: int | None = None) -> str | None:
        """A file's text; None when it is not there or cannot be read, which is noted unless it is simply missing."""
        name = path.relative_to(self.folder).as_posix()
        try:
            if not self.inside(path):
                raise ValueError("it lies outside the directory")
            if limit is not None and path.stat().st_size > limit:
                raise ValueError(f"it is larger than {limit} bytes")
            return path.read_text(encoding="utf-8", errors="strict")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.damage.append(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}")
            return None

    def json(self, name: str, kind: type) -> Any:
        """A JSON file of one kind; an empty one of that kind when there is none."""
        text = self.text(self.folder / name)
        if text is None:
            return kind()
        try:
            found = json.loads(text)
            if isinstance(found, kind):
                return found
            self.damage.append(f"{name} holds {type(found).__name__} where {kind.__name__} is expected")
        except (ValueError, RecursionError) as error:
            self.damage.append(f"{name} is no JSON: {error}")
        return kind()

    def picture(self, path: Path, caption: str = "") -> Picture | None:
        """A PNG file; None when it is none, is too large for a page, or lies outside, which is noted."""
        name = path.relative_to(self.folder).as_posix()
        try:
            if not self.inside(path):
                raise ValueError("it lies outside the directory")
            if path.stat().st_size > LARGEST_PICTURE:
                raise ValueError(f"it is larger than {LARGEST_PICTURE >> 20} MB; see the file")
            data = path.read_bytes()
            if not data.startswith(PNG) or len(data) < 24:
                raise ValueError("it is no PNG")
        except (OSError, ValueError) as error:
            self.damage.append(f"{name} is not shown: {getattr(error, 'strerror', None) or error}")
            return None
        return Picture(path.stem, data, int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"), caption)


def of_kind(value: Any, kind: type) -> Any:
    """The value if it is of that kind, else an empty one."""
    return value if isinstance(value, kind) else kind()


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a number, finite or not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def finite(value: Any) -> float | None:
    """The value as a float if it is a finite number, else None."""
    try:
        return float(value) if is_number(value) and math.isfinite(value) else None
    except OverflowError:  # an integer that no float holds
        return None
