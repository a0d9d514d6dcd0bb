"""Images straight out of tar files or out of extracted trees: random access by id, without extracting, safe across worker processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from graftwork import DataError
from graftwork_google_landmarks.ids import ID_LENGTH, IdIndex, image_path

__all__ = ["ImageStore", "ImageTree", "TarImages", "archives_in", "check_archives", "expected_md5", "md5_of", "open_images"]

TAR = re.compile(r"images_\d{3}\.tar")
LARGEST = 64 * 2**20
"""Bytes of an image file beyond which it is refused."""


class ImageStore(Protocol):
    """Encoded images by id."""

    def read(self, image_id: str) -> bytes:
        """The bytes of an image file; DataError if it is not there."""
        ...


class ImageTree:
    """An extracted split: `folder/a/b/c/id.jpg`.

    Args:
        folder: of the split.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self, image_id: str) -> bytes:
        """The bytes of an image file.

        Raises:
            DataError: if it is not there.
        """
        path = self.folder / image_path(image_id)
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"image {image_id} cannot be read: {path}: {error.strerror or error}") from None


class TarImages:
    """A split's tar files, each member found by its offset. Members are read by position, so threads and forked workers share nothing.

    Args:
        archives: the tar files, uncompressed.
        cache: a file in which the offsets are kept; archives that have not changed since are not scanned again. None keeps nothing.

    Raises:
        DataError: if an archive is no tar file, or an image is in two.
    """

    def __init__(self, archives: Sequence[Path], cache: Path | None = None):
        self.archives = list(archives)
        kept = _kept(cache)
        parts = [kept.get(_stamp(path)) or _scan(path) for path in self.archives]
        if cache is not None and any(_stamp(path) not in kept for path in self.archives):
            _keep(cache, {_stamp(path): part for path, part in zip(self.archives, parts, strict=True)})
        self.ids: NDArray[np.bytes_] = np.concatenate([ids for ids, _ in parts]) if parts else np.zeros(0, f"S{ID_LENGTH}")
        self._places = np.concatenate([places for _, places in parts]) if parts else np.zeros((0, 2), np.int64)  # (N, 2) offset, size
        self._archive = np.repeat(np.arange(len(parts), dtype=np.int16), [len(ids) for ids, _ in parts])
        self._index = IdIndex(self.ids, f"the archives in {self.archives[0].parent}" if self.archives else "no archive")
        self._open: dict[int, int] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def archive_of(self, image_id: str) -> Path | None:
        """The archive that holds an image, or None."""
        at = int(self._index.find(np.array([image_id.encode()], f"S{ID_LENGTH}"))[0])
        return None if at < 0 else self.archives[int(self._archive[at])]

    def read(self, image_id: str) -> bytes:
        """The bytes of an image file.

        Raises:
            DataError: if no archive holds it, or its archive has been cut short; the image and the archive are named.
        """
        at = int(self._index.find(np.array([image_id.encode()], f"S{ID_LENGTH}"))[0])
        if at < 0:
            names = [path.name for path in self.archives]
            shown = ", ".join(names if len(names) < 4 else [names[0], "...", names[-1]])
            raise DataError(f"image {image_id} is in none of the archives in {self.archives[0].parent}: {shown}")
        number, (offset, size) = int(self._archive[at]), self._places[at].tolist()
        found = os.pread(self._descriptor(number), size, offset)
        if len(found) != size:
            raise DataError(f"image {image_id} is cut short in {self.archives[number]}: {len(found)} of {size} bytes; download it again")
        return found

    def _descriptor(self, number: int) -> int:
        if self._process != os.getpid():  # a forked worker opens its own
            self._open, self._process = {}, os.getpid()
        if number not in self._open:
            try:
                self._open[number] = os.open(self.archives[number], os.O_RDONLY)
            except OSError as error:
                raise DataError(f"{self.archives[number]} cannot be opened: {error.strerror}") from None
        return self._open[number]

    def __del__(self) -> None:
        if getattr(self, "_process", None) == os.getpid():
            for descriptor in self._open.values():
                with contextlib.suppress(OSError):
                    os.close(descriptor)


Part = tuple[NDArray[np.bytes_], NDArray[np.int64]]


def _scan(path: Path) -> Part:
    """Ids (n,) and (offset, size) (n, 2) of an archive's images, from its headers alone; nothing is unpacked."""
    ids, places = [], []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                _check_member(member, path)
                name = member.name.rpartition("/")[2]
                if member.isreg() and name.endswith(".jpg") and len(name) == ID_LENGTH + 4:
                    if member.size > LARGEST:
                        raise DataError(f"{path}: {member.name} has {member.size} bytes; an image has at most {LARGEST}")
                    ids.append(name[:ID_LENGTH].encode("ascii", "replace"))
                    places.append((member.offset_data, member.size))
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep an object a member
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path} cannot be read as a tar file: {error}") from None
    return np.array(ids, f"S{ID_LENGTH}"), np.array(places, np.int64).reshape(-1, 2)


def _check_member(member: tarfile.TarInfo, path: Path) -> None:
    """Refuse an archive that was made to harm whoever unpacks it, though it is not unpacked here: it is not what was published."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise DataError(f"{path} is not unpacked and not read: its member {member.name!r} leads out of the archive")
    if not (member.isreg() or member.isdir()) or member.issparse():
        kind = "link" if member.issym() or member.islnk() else "sparse file" if member.issparse() else "device"
        raise DataError(f"{path} is not unpacked and not read: its member {member.name!r} is a {kind}; an archive holds plain files")


def _stamp(path: Path) -> str:
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}") from None
    return f"{path.name}:{state.st_size}:{state.st_mtime_ns}"


def _kept(cache: Path | None) -> dict[str, Part]:
    if cache is None or not cache.is_file():
        return {}
    try:
        with safe_open(cache, framework="pt") as file:
            names = json.loads(file.metadata()["archives"])
            return {
                name: (file.get_tensor(f"ids.{i}").numpy().view(f"S{ID_LENGTH}")[:, 0], file.get_tensor(f"places.{i}").numpy())
                for i, name in enumerate(names)
            }
    except (SafetensorError, KeyError, TypeError, ValueError):
        return {}  # damaged: scanned anew


def _keep(cache: Path, parts: Mapping[str, Part]) -> None:
    """Write the offsets beside their place and rename them; a folder that cannot be written keeps nothing."""
    tensors = {}
    for i, (ids, places) in enumerate(parts.values()):
        tensors[f"ids.{i}"] = torch.from_numpy(np.ascontiguousarray(ids).view(np.uint8).reshape(-1, ID_LENGTH).copy())
        tensors[f"places.{i}"] = torch.from_numpy(places)
    with contextlib.suppress(OSError, SafetensorError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        beside = cache.with_name(f"{cache.name}.{os.getpid()}.part")
        save_file(tensors, beside, metadata={"archives": json.dumps(list(parts))})
        beside.replace(cache)


def md5_of(path: Path) -> str:
    """Hex MD5 of a file, a megabyte at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def expected_md5(archive: Path) -> str | None:
    """The first field of `md5.images_NNN.txt`, beside an archive or in the server's `md5sum/<split>/`; None without such a file."""
    name = f"md5.{archive.stem}.txt"
    for path in (archive.with_name(name), archive.parents[1] / "md5sum" / archive.parent.name / name):
        if path.is_file():
            fields = path.read_text(errors="replace").split()
            if not fields or not re.fullmatch(r"[0-9a-fA-F]{32}", fields[0]):
                raise DataError(f"{path} does not begin with an MD5; found {' '.join(fields)[:40]!r}")
            return fields[0].lower()
    return None


def check_archives(archives: Sequence[Path], ledger: Path | None = None) -> None:
    """Hold each archive's MD5 against its file; those that a ledger says passed, and that have not changed since, are passed over.

    Args:
        archives: the tar files.
        ledger: a JSON file of what has passed, brought up to date after each archive, so that a check that was stopped goes on
            where it was. None keeps nothing.

    Raises:
        DataError: if a sum differs, or there is none to hold an archive against; the archive is named.
    """
    passed: dict[str, str] = {}
    if ledger is not None and ledger.is_file():
        with contextlib.suppress(ValueError, OSError):
            passed = dict(json.loads(ledger.read_text()))
    for archive in archives:
        wanted = expected_md5(archive)
        if wanted is None:
            raise DataError(f"{archive} has no md5.{archive.stem}.txt beside it; download it, or open with verify: false")
        if passed.get(stamp := _stamp(archive)) == wanted:
            continue
        found = md5_of(archive)
        if found != wanted:
            raise DataError(f"{archive} is damaged: its MD5 is {found}, md5.{archive.stem}.txt says {wanted}; download it again")
        passed[stamp] = wanted
        if ledger is not None:
            with contextlib.suppress(OSError):
                ledger.parent.mkdir(parents=True, exist_ok=True)
                beside = ledger.with_name(f"{ledger.name}.part")
                beside.write_text(json.dumps(passed, indent=1))
                beside.replace(ledger)


def archives_in(folder: Path) -> list[Path]:
    """The `images_NNN.tar` of a folder, in order."""
    return sorted(path for path in folder.iterdir() if TAR.fullmatch(path.name)) if folder.is_dir() else []


def open_images(folder: Path, cache: Path | None = None, verify: bool = False) -> ImageStore:
    """A split's images: its tar files where it has any, else its extracted tree.

    Args:
        folder: of the split.
        cache: a folder for offsets and for what has been verified; None keeps neither.
        verify: whether the tar files' MD5 sums are checked first.

    Raises:
        DataError: if there is no such folder, or an archive is damaged.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder} of images; it holds images_000.tar, ... or the extracted a/b/c/id.jpg")
    archives = archives_in(folder)
    if not archives:
        return ImageTree(folder)
    if verify:
        check_archives(archives, cache / f"{folder.name}.verified.json" if cache else None)
    return TarImages(archives, cache / f"{folder.name}.tars.safetensors" if cache else None)
