"""What a folder of data may hold before a library that unpacks, follows and runs what it finds is let loose on it."""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from graftwork.errors import DataError

__all__ = ["check_folder"]

READ_AS_THEY_ARE = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".parquet", ".arrow"}
"""Suffixes of files that nothing unpacks, of which there may be millions."""

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\x04\x22\x4d\x18": "LZ4",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!\x1a\x07": "RAR",
}
"""How files begin that the library of datasets would unpack into its cache, whatever their name and however large they become."""


def check_folder(folder: Path) -> None:
    """Refuse a folder with a loading script, an archive or a compressed file, or a README that sends the loader elsewhere.

    Raises:
        DataError: naming the file, and what to do.
    """
    script = folder / f"{folder.name}.py"
    if script.is_file():
        raise DataError(f"{script} is a loading script, which is never run: keep the data alone, as parquet, CSV, JSON or images")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in READ_AS_THEY_ARE and path.is_file() and (form := _archive(path)):
            raise DataError(f"{path} is a {form} archive, which is not unpacked here: unpack it where you trust it, and take it away")
    for place in _places(folder / "README.md"):
        if "://" in place or PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts or place.startswith("~"):
            raise DataError(f"{folder / 'README.md'} takes its data from {place!r}, which leads out of the folder")


def _archive(path: Path) -> str | None:
    """What kind of archive a file is by its content; None when it is none."""
    try:
        with path.open("rb") as file:
            beginning = file.read(8)
        found = next((form for magic, form in COMPRESSED.items() if beginning.startswith(magic)), None)
        return found or ("zip" if zipfile.is_zipfile(path) else "tar" if tarfile.is_tarfile(path) else None)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _places(readme: Path) -> Iterator[str]:
    """Every file, folder and pattern that the head of a README names as data."""
    try:
        head = re.match(r"---\s*\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        found = yaml.safe_load(head[1]) if head else None
    except FileNotFoundError:
        return
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{readme} cannot be read: {error}") from None
    for one in found.get("configs") or () if isinstance(found, dict) else ():
        yield from _words({key: value for key, value in one.items() if key in ("data_files", "data_dir")} if isinstance(one, dict) else one)


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _words(item)
