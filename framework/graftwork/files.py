"""Files that are whole or absent, and the rubbish that an interruption leaves."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graftwork.errors import GraftworkError

__all__ = ["PART", "cache_folder", "remove", "replaced", "sweep", "write_text"]

PART = ".part"
"""Ends the name of what is still being written; whatever has it is rubbish once its writer is dead."""


def cache_folder() -> Path:
    """Where graftwork keeps what can be made anew: `$GRAFTWORK_CACHE`, or the user's cache folder as the platform has it."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("GRAFTWORK_CACHE") or user_cache_dir("graftwork")).expanduser()


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place and rename it there.

    Raises:
        GraftworkError: if the disk refuses.
    """
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A place beside `path` to write a file or folder to; it takes the name, and the place of a former one, when the block ends well.

    Raises:
        GraftworkError: if the disk refuses; what was written is taken away.
    """
    beside = path.with_name(path.name + PART)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(beside)
        yield beside
        if path.is_dir() and not path.is_symlink():
            remove(path)
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # such as a file where a folder should be, which is what is told
            remove(beside)
        raise GraftworkError(f"{path} cannot be written: {error.strerror or error}") from None
    except BaseException:
        remove(beside)
        raise


def remove(path: Path) -> None:
    """Take a file or folder away, if it is there, so that at no instant half of it stands under its name."""
    if path.is_dir() and not path.is_symlink():
        going = path if path.name.endswith(PART) else path.with_name(f"{path.name}.old{PART}")
        if going != path:
            shutil.rmtree(going, ignore_errors=True)
            path.rename(going)
        shutil.rmtree(going, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Take away whatever was being written in a folder when its writer died."""
    for path in sorted(folder.rglob(f"*{PART}"), reverse=True):
        remove(path)
