"""Where the files lie on the public server, and how to fetch them: `python -m graftwork_google_landmarks.download train --to gldv2`."""

from __future__ import annotations

import argparse
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from graftwork import DataError, GraftworkError
from graftwork_google_landmarks.archives import expected_md5, md5_of

__all__ = ["ARCHIVES", "BASE_URL", "METADATA", "Source", "fetch", "fetch_split", "sources"]

BASE_URL = "https://s3.amazonaws.com/google-landmark"
ARCHIVES = {"train": 500, "index": 100, "test": 20}
"""Split -> how many tar files it has, of about 1 GB, 850 MB and 500 MB each."""

METADATA = {
    "train": (
        "metadata/train.csv",
        "metadata/train_clean.csv",
        "metadata/train_attribution.csv",
        "metadata/train_label_to_category.csv",
        "metadata/train_label_to_hierarchical.csv",
    ),
    "index": (
        "metadata/index.csv",
        "metadata/index_image_to_landmark.csv",
        "metadata/index_label_to_category.csv",
        "metadata/index_label_to_hierarchical.csv",
    ),
    "test": (
        "metadata/test.csv",
        "ground_truth/recognition_solution_v2.1.csv",
        "ground_truth/retrieval_solution_v2.1.csv",
    ),
}
"""Split -> its CSV files, relative to the server's root and to the folder that the loader opens."""


class Source(NamedTuple):
    """A file on the server, and where it goes.

    Args:
        url: its address.
        path: relative to the root folder.
    """

    url: str
    path: str


def sources(split: str, archives: range | None = None, base_url: str = BASE_URL) -> Iterator[Source]:
    """A split's CSV files, then each archive's MD5 file and the archive.

    Args:
        split: "train", "index" or "test".
        archives: numbers of the tar files; all by default.
        base_url: of the server, or of a mirror of it.

    Raises:
        ValueError: if there is no such split or archive.
    """
    if split not in ARCHIVES:
        raise ValueError(f"split is one of {', '.join(ARCHIVES)}; found {split!r}")
    numbers = range(ARCHIVES[split]) if archives is None else archives
    if any(not 0 <= number < ARCHIVES[split] for number in numbers):
        raise ValueError(f"{split} has the archives 0 to {ARCHIVES[split] - 1}; found {list(numbers)[:5]}")
    for path in METADATA[split]:
        yield Source(f"{base_url}/{path}", path)
    for number in numbers:
        yield Source(f"{base_url}/md5sum/{split}/md5.images_{number:03d}.txt", f"md5sum/{split}/md5.images_{number:03d}.txt")
        yield Source(f"{base_url}/{split}/images_{number:03d}.tar", f"{split}/images_{number:03d}.tar")


def fetch(url: str, path: Path, timeout: float = 60.0) -> None:
    """Fetch one file; what an earlier attempt left in `path.part` is gone on with. The file has its name when it is whole.

    Raises:
        GraftworkError: if the server refuses or the connection breaks; what has come so far stays in the part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            resumed = answer.status == 206
            expected = answer.headers.get("Content-Length")
            with part.open("ab" if resumed else "wb") as file:
                came = 0
                while block := answer.read(2**20):
                    came += file.write(block)
    except urllib.error.HTTPError as error:
        if not have or error.code != 416:
            raise GraftworkError(f"{url} cannot be fetched: {error}") from None
        expected = None  # nothing lies beyond what has come: the part is whole
    except OSError as error:
        raise GraftworkError(f"{url} cannot be fetched: {error}; run it again to go on at byte {have}") from None
    if expected is not None and came != int(expected):
        raise GraftworkError(f"{url} broke off after {came} of {expected} bytes; run it again to go on")
    part.replace(path)


def fetch_split(root: Path, split: str, archives: range | None = None, base_url: str = BASE_URL) -> None:
    """Fetch a split's files into `root`, checking each archive; files that are whole already are passed over.

    Raises:
        GraftworkError: if a file cannot be fetched.
        DataError: if an archive's MD5 is wrong twice.
    """
    for source in sources(split, archives, base_url):
        path = root / source.path
        for attempt in (1, 2):
            if not path.is_file():
                fetch(source.url, path)
            if path.suffix != ".tar" or md5_of(path) == expected_md5(path):
                break
            path.unlink()
            if attempt == 2:
                raise DataError(f"{source.url} came damaged twice: its MD5 is not that of md5.{path.stem}.txt")


def main(arguments: list[str] | None = None) -> int:
    """The command line: print the addresses, or fetch them."""
    parser = argparse.ArgumentParser(prog="python -m graftwork_google_landmarks.download", description=__doc__)
    parser.add_argument("split", choices=list(ARCHIVES))
    parser.add_argument("--to", type=Path, help="root folder to fetch into; without it the addresses are printed")
    parser.add_argument("--archives", type=int, nargs=2, metavar=("FIRST", "LAST"), help="only these tar files")
    parser.add_argument("--base-url", default=BASE_URL, help="a mirror with the same layout")
    given = parser.parse_args(arguments)
    chosen = range(given.archives[0], given.archives[1] + 1) if given.archives else None
    if given.to is None:
        for source in sources(given.split, chosen, given.base_url):
            print(source.url)
    else:
        fetch_split(given.to, given.split, chosen, given.base_url)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
