"""Datasets from files: images in class folders, and datasets by Hugging Face id or folder."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from graftwork.builtin.dataset_folders import check_folder
from graftwork.builtin.hub import load, need
from graftwork.errors import DataError, nearest
from graftwork.kinds.dataset import Dataset, DatasetInfo, Samples

__all__ = ["HuggingFaceDataset", "ImageFolder", "Pixels", "read_image"]

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
MOST = 50_000_000
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Size = tuple[Count, Count] | None
Channels = Literal[1, 3]


class Pixels(NamedTuple):
    """How images come out.

    Args:
        size: (height, width) to resize to, bilinear with antialiasing; None leaves it.
        channels: 3 for colour, 1 for grey; transparency is dropped.
        most: an image with more pixels is refused before it is decoded; as is one with more than `PIL.Image.MAX_IMAGE_PIXELS`, about
            89 million, which is Pillow's own switch: whoever trusts larger files sets it.
    """

    size: tuple[int, int] | None = None
    channels: int = 3
    most: int = MOST


def read_image(source: Path | bytes, name: str, pixels: Pixels) -> Tensor:
    """An image file as (C, H, W), float32 in [0, 1].

    Args:
        source: path or content.
        name: what to call it in messages.
        pixels: how it comes out.

    Raises:
        DataError: if it is too large, damaged or of no known format.
    """
    library = need("PIL.Image", "images")
    try:
        with library.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            width, height = image.size
            if width * height > pixels.most:
                raise DataError(f"{name} has {width} x {height} pixels; max_pixels is {pixels.most}")
            if library.MAX_IMAGE_PIXELS is not None and width * height > library.MAX_IMAGE_PIXELS:  # of which Pillow only warns
                raise DataError(f"{name} has {width} x {height} pixels; PIL.Image.MAX_IMAGE_PIXELS is {library.MAX_IMAGE_PIXELS}")
            deep = image.mode.startswith("I")  # 16 bits, which convert() would clip to 8
            array = numpy.asarray(image if deep else image.convert("RGB" if pixels.channels == 3 else "L"), dtype=numpy.float32)
    except DataError:
        raise
    except Exception as error:  # a decoder raises whatever a damaged file provokes
        raise DataError(f"{name} cannot be read as an image: {error}") from None
    tensor = torch.from_numpy(array / (65535 if deep else 255)).view(height, width, -1).permute(2, 0, 1).expand(pixels.channels, -1, -1)
    if pixels.size is not None and pixels.size != (height, width):
        tensor = interpolate(tensor[None], size=pixels.size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    return tensor.contiguous()


class _Files:
    """Samples of labelled image files; a file is read when its sample is asked for."""

    def __init__(self, files: list[tuple[Path, int]], pixels: Pixels):
        self.paths, self.pixels = [path for path, _ in files], pixels
        self.columns = {"label": torch.tensor([label for _, label in files], dtype=torch.long)}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"image": read_image(self.paths[index], str(self.paths[index]), self.pixels), "label": int(self.columns["label"][index])}


class ImageFolder(Dataset):
    """Images in `root/split/class/` or `root/class/`, whose classes are the sorted names of the class folders.

    Without split folders each class is divided at random into train, val and test. A link that leads out of the root is refused;
    files that are no images by their suffix are passed over.

    Args:
        root: the folder.
        size: (height, width) to resize to; needed where the images differ.
        channels: 3 for colour, 1 for grey.
        val: share of each class for validation, where there are no split folders.
        test: share of each class for testing, where there are no split folders.
        seed: of that division.
        max_pixels: an image with more is refused before it is decoded, as is one with more than `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        DataError: if there is no such folder, no image in it, or a link that leads out of it.
    """

    def __init__(
        self,
        root: str,
        size: Size = None,
        channels: Channels = 3,
        val: Share = 0.1,
        test: Share = 0.2,
        seed: int = 0,
        max_pixels: Count = MOST,
    ):
        folder = Path(root).expanduser().absolute()
        if not folder.is_dir():
            raise DataError(f"image-folder: there is no folder {folder}")
        if val + test >= 1:
            raise ValueError(f"val and test leave nothing to train on: {val} + {test}")
        layout = {split.name: found for split in _folders(folder) if (found := _images(split, folder))}
        layout = layout or _divided(_images(folder, folder), val, test, torch.Generator().manual_seed(seed))
        names = sorted(set().union(*layout.values()))
        if not names:
            raise DataError(
                f"image-folder: {folder} has no images in CLASS/ or SPLIT/CLASS/; an image ends in {', '.join(sorted(SUFFIXES))}"
            )
        splits: dict[str, Samples] = {}
        for split, classes in layout.items():
            files = [(path, names.index(name)) for name in sorted(classes) for path in classes[name]]
            splits[split] = _Files(files, Pixels(size, channels, max_pixels))
        super().__init__(splits, DatasetInfo(classes=tuple(names), channels=channels, size=size or (0, 0)))


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path, root: Path) -> dict[str, list[Path]]:
    """Class -> its image files, sorted, of the class folders in `folder` that have any."""
    found: dict[str, list[Path]] = {}
    inside = root.resolve()
    for path in (path for each in _folders(folder) for path in sorted(each.iterdir()) if path.suffix.lower() in SUFFIXES):
        if not path.resolve().is_relative_to(inside):
            raise DataError(f"image-folder: {path} leads out of {root}")
        found.setdefault(path.parent.name, []).append(path)
    return found


def _divided(classes: dict[str, list[Path]], val: float, test: float, generator: torch.Generator) -> dict[str, dict[str, list[Path]]]:
    """Split -> class -> files, each class divided at random."""
    splits: dict[str, dict[str, list[Path]]] = {"train": {}, "val": {}, "test": {}}
    for name, files in classes.items():
        order = torch.randperm(len(files), generator=generator).tolist()
        tested, validated = round(test * len(files)), round((test + val) * len(files))
        for split, part in (("test", order[:tested]), ("val", order[tested:validated]), ("train", order[validated:])):
            if part:
                splits[split][name] = [files[index] for index in sorted(part)]
    return {split: parts for split, parts in splits.items() if parts}


class _Rows:
    """Rows of a Hugging Face dataset as samples: images and numbers become tensors."""

    def __init__(self, rows: Any, name: str, pixels: Pixels, root: Path | None = None):
        self.root = root  # which image files lie in, when they are not in the rows
        image = need("datasets", "datasets").Image
        self.images = [key for key, feature in rows.features.items() if isinstance(feature, image)]
        for key in self.images:  # left encoded, so that what is too large is refused before it is decoded
            rows = rows.cast_column(key, image(decode=False))
        self.rows, self.name, self.pixels = rows.with_format("torch"), name, pixels

    @cached_property
    def columns(self) -> Mapping[str, Tensor]:
        """The labels, read without the rest of the rows."""
        return {"label": torch.as_tensor(self.rows["label"][:])} if "label" in self.rows.column_names else {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        row = dict(self.rows[index])
        for key in self.images:
            if row[key] is not None:
                source = row[key]["bytes"] or Path(row[key]["path"] or "")
                if isinstance(source, Path) and self.root is not None and not source.resolve().is_relative_to(self.root):
                    raise DataError(f"{key} of {self.name}, row {index}, leads out of {self.root}: {source}")
                row[key] = read_image(source, f"{key} of {self.name}, row {index},", self.pixels)
        return row


class HuggingFaceDataset(Dataset):
    """A dataset of the Hugging Face Hub, a folder that `save_to_disk` wrote, or a folder of parquet, CSV, JSON or image files.

    Of a folder, archives and compressed files are refused, as is what would lead out of it. Classes are those of the column that
    becomes `label`.

    Args:
        name: Hugging Face id or folder.
        config: which of the repository's configurations.
        columns: column -> sample key, such as {img: image}; the others keep their names.
        splits: split -> the repository's name of it; by default all, with "validation" as "val".
        size: (height, width) to resize images to; needed where they differ.
        channels: of images: 3 for colour, 1 for grey.
        max_pixels: an image with more is refused before it is decoded, as is one with more than `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        DataError: if it cannot be loaded, or has no such column or split.
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        columns: dict[str, str] = {},  # noqa: B006 - read only
        splits: dict[str, str] = {},  # noqa: B006 - read only
        size: Size = None,
        channels: Channels = 3,
        max_pixels: Count = MOST,
    ):
        library, folder = need("datasets", "datasets"), Path(name).expanduser()
        local = folder.resolve() if folder.is_dir() else None
        if local is not None:
            check_folder(local)
        saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
        found = load(name, library.load_from_disk if saved else lambda source: library.load_dataset(source, config), "dataset", DataError)
        given: dict[str, Any] = dict(found) if isinstance(found, dict) else {"train": found}
        made: dict[str, Samples] = {}
        classes: tuple[str, ...] = ()
        for split, theirs in (splits or {("val" if split == "validation" else split): split for split in given}).items():
            if theirs not in given:
                raise DataError(f'dataset "{name}" has no split "{theirs}"{nearest(theirs, given)}; it has {", ".join(given)}')
            rows, has = given[theirs], given[theirs].column_names
            for column in columns:
                if column not in has:
                    raise DataError(f'dataset "{name}" has no column "{column}"{nearest(column, has)}; it has {", ".join(has)}')
            rows = rows.rename_columns(columns)
            classes = tuple(getattr(rows.features.get("label"), "names", None) or classes)
            made[split] = _Rows(rows, f'dataset "{name}", split "{split}"', Pixels(size, channels, max_pixels), None if saved else local)
        pictured = any(rows.images for rows in made.values() if isinstance(rows, _Rows))
        super().__init__(made, DatasetInfo(classes=classes, channels=channels if pictured else 0, size=size or (0, 0)))
