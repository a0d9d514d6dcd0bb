"""PyTorch Geometric's data sets from files that are already there, without downloading and without running what a file says.

PyG's own classes unpickle what lies in their folder: `processed/pre_transform.pt` always, `processed/data.pt` wherever restricted
loading refuses it (`torch_geometric.io.fs.torch_load` then loads it again without restriction), and some raw files. A pickle runs
the code it names, so nothing of that happens here:

- a class is only asked where its files are: its constructor is stopped before it touches the disk;
- processed files are read by `torch.load(..., weights_only=True)`, which builds tensors, plain containers and PyG's data classes and
  refuses all else, and by nothing after that; on torch before 2.6 they are not read, as restricted loading could be escaped there
  (CVE-2025-32434);
- raw files are read only of the classes in `RAW`, whose `process` reads text, JSON, .npy and .npz without pickled objects.
"""

from __future__ import annotations

import inspect
import os
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from graftwork import DataError
from graftwork.errors import nearest
from graftwork_testbed.graphs.extra import need

__all__ = ["PROCESSED", "RAW", "PygFiles", "locate", "read_processed", "read_raw"]

RAW = (
    "Actor",
    "Airports",
    "Amazon",
    "CitationFull",
    "Coauthor",
    "CoraFull",
    "DBLP",
    "HGBDataset",
    "HeterophilousGraphDataset",
    "IMDB",
    "PolBlogs",
    "TUDataset",
    "WebKB",
    "WikiCS",
)
"""Classes of `torch_geometric.datasets` that are read from their raw files, or from their processed ones where those are there."""

PROCESSED = (
    "AQSOL",
    "AmazonProducts",
    "BA2MotifDataset",
    "BAMultiShapesDataset",
    "DeezerEurope",
    "EmailEUCore",
    "FacebookPagePage",
    "Flickr",
    "GNNBenchmarkDataset",
    "GitHub",
    "LINKXDataset",
    "LRGBDataset",
    "LastFMAsia",
    "MNISTSuperpixels",
    "MoleculeNet",
    "OGB_MAG",
    "PPI",
    "Planetoid",
    "QM9",
    "Reddit",
    "Reddit2",
    "Twitch",
    "UPFD",
    "WikipediaNetwork",
    "Yelp",
    "ZINC",
)
"""Classes that are read from their processed files alone: their raw files are pickles, or need more than PyG to be read."""

CALLABLES = ("transform", "pre_transform", "pre_filter", "force_reload", "log")
"""Arguments of PyG's classes that are no settings: they are functions, or would have the class write to its folder."""

SAFE_TORCH = (2, 6)
"""The first torch whose restricted loading holds."""


@dataclass(frozen=True)
class PygFiles:
    """Where a data set of PyG keeps its files.

    Args:
        name: the class in `torch_geometric.datasets`.
        settings: its arguments beside `root`.
        raw: paths of the raw files.
        processed: paths of the processed files.
        source: the class's object, stopped before it touched the disk.
    """

    name: str
    settings: Mapping[str, Any]
    raw: tuple[Path, ...]
    processed: tuple[Path, ...]
    source: Any

    def missing(self) -> str:
        """What to say where neither kind of file is there: the folders, the files, and how to make them."""
        wanted = ", ".join(path.name for path in self.processed)
        message = f"{self.name} has no files here: {self.processed[0].parent} lacks {wanted}"
        if self.name in RAW:
            message += f", and {self.raw[0].parent} lacks {', '.join(path.name for path in self.raw if not path.is_file())}"
        return f"{message}. Nothing is downloaded: {self.recipe()}"

    def recipe(self) -> str:
        """How to make the processed files on another machine."""
        arguments = "".join(f", {key}={value!r}" for key, value in self.settings.items())
        call = f'torch_geometric.datasets.{self.name}("FOLDER"{arguments})'
        return f"on a machine with a network, where you trust what it fetches, run {call} and copy FOLDER here"


class _StoppedError(Exception):
    """Ends a constructor where PyG would begin to look for files."""


def locate(root: str, name: str, settings: Mapping[str, Any]) -> PygFiles:
    """Ask a class of `torch_geometric.datasets` where its files are, without letting it read or write any.

    Args:
        root: the folder that the class would take.
        name: of the class.
        settings: its other arguments.

    Raises:
        DataError: if the class is not among those that are read here.
        ValueError: if the settings do not fit it.
    """
    if name not in (*RAW, *PROCESSED):
        known = sorted({*RAW, *PROCESSED})
        raise DataError(f'"{name}" is not among the data sets of PyG that are read here{nearest(name, known)}: {", ".join(known)}')
    kind = getattr(need("torch_geometric.datasets"), name, None)
    if kind is None:
        raise DataError(f"the installed torch_geometric has no {name}; upgrade it")
    allowed = [key for key in inspect.signature(kind.__init__).parameters if key not in ("self", "root", *CALLABLES)]
    strangers = [key for key in settings if key not in allowed]
    if strangers:
        raise ValueError(f"{name} takes no setting {', '.join(strangers)}; it takes {', '.join(allowed) or 'none'}")
    folder = Path(root).expanduser().absolute()
    source = _stopped(kind, str(folder), settings)
    try:
        raw, processed = (tuple(Path(os.path.normpath(path)) for path in paths) for paths in (source.raw_paths, source.processed_paths))
    except (AttributeError, TypeError, KeyError, NotImplementedError):  # a setting of the wrong type ends up in a path
        raise ValueError(f"{name} finds no files with the settings {dict(settings)}") from None
    if outside := [path for path in (*raw, *processed) if not path.is_relative_to(os.path.normpath(folder))]:
        raise DataError(f"the settings {dict(settings)} lead out of {folder}, to {outside[0]}")
    return PygFiles(name, dict(settings), raw, processed, source)


def _stopped(kind: Any, root: str, settings: Mapping[str, Any]) -> Any:
    """An object of the class whose constructor ended in `torch_geometric.data.Dataset`, with its root set and no file touched."""

    def stop(self: Any) -> None:
        raise _StoppedError

    def keep(self: Any, graphs: Sequence[Any], path: str) -> None:
        self.saved = graphs

    body = {"has_download": True, "has_process": True, "_download": stop, "_process": stop, "save": keep, "__module__": __name__}
    source = type(kind.__name__, (kind,), body)
    found = source.__new__(source)
    try:
        with warnings.catch_warnings(action="ignore"):
            found.__init__(root=root, **settings)
    except _StoppedError:
        return found
    except (AssertionError, TypeError, ValueError, KeyError) as error:
        reason = f": {error}" if str(error) else ""
        raise ValueError(f"{kind.__name__} refuses the settings {dict(settings)}{reason}") from None
    raise DataError(f"{kind.__name__} of the installed torch_geometric keeps no files")


def read_processed(path: Path, files: PygFiles) -> list[Any]:
    """The graphs of one processed file, each on its own.

    Args:
        path: one of `files.processed`, written by PyG 2.4 or later.
        files: of the data set, for messages and settings.

    Returns:
        PyG `Data` or `HeteroData`.

    Raises:
        DataError: if it holds anything but tensors, plain containers and PyG's data classes, is damaged, or torch is too old.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_TORCH:
        raise DataError(f"{path} is read on torch 2.6 or later only, because of CVE-2025-32434; this is {torch.__version__}")
    need("torch_geometric.data")  # registers its classes with torch as safe to build
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        said = " ".join(str(error).split())[:300]
        raise DataError(
            f"{path} holds more than tensors, as files of PyG before 2.4 do, and could run code, "
            f"so it is not loaded: {said}; {files.recipe()}"
        ) from None
    except Exception as error:  # whatever a damaged archive provokes
        said = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path} cannot be read: {said}; {files.recipe()}") from None
    return _separate(found, path, files)


def read_raw(files: PygFiles) -> list[Any]:
    """The graphs of a class in `RAW`, made from its raw files in memory; nothing is written.

    Raises:
        DataError: if they are damaged.
    """
    try:
        if files.name == "TUDataset":
            data, slices, sizes = need("torch_geometric.io").read_tu_data(files.source.raw_dir, files.source.name)
            return _separate((data.to_dict(), slices, sizes, type(data)), files.raw[0].parent, files)
        files.source.process()
    except DataError:
        raise
    except Exception as error:  # a reader raises whatever a damaged file provokes
        said = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"the raw files in {files.raw[0].parent} cannot be read: {said}; {files.recipe()}") from None
    return _valid(list(files.source.saved), files.raw[0].parent)


def _separate(found: Any, where: Path, files: PygFiles) -> list[Any]:
    """Graphs out of what `InMemoryDataset.save` writes, (columns, slices, class), or a TUDataset, (columns, slices, sizes, class)."""
    library = need("torch_geometric.data")
    if not isinstance(found, tuple) or len(found) not in (3, 4) or found[-1] not in (library.Data, library.HeteroData):
        raise DataError(f"{where} does not hold what PyG 2.4 or later writes; {files.recipe()}")
    try:
        holder = library.InMemoryDataset()
        holder.data, holder.slices = found[-1].from_dict(found[0]), found[1]
        graphs = [holder.get(index) for index in range(holder.len())]
    except Exception as error:  # anything can stand in a file
        raise DataError(f"{where} holds no graphs: {error}; {files.recipe()}") from None
    if len(found) == 4:
        for key, unit, wanted in (("x", "node", "use_node_attr"), ("edge_attr", "edge", "use_edge_attr")):
            if not files.settings.get(wanted, False):
                _drop_columns(graphs, key, int(found[2][f"num_{unit}_attributes"]))
    return _valid(graphs, where)


def _drop_columns(graphs: Sequence[Any], key: str, count: int) -> None:
    """Leave out the continuous attributes, which come first; as TUDataset does unless it is told to use them."""
    for graph in graphs:
        if graph.get(key) is not None:
            graph[key] = graph[key][:, count:] if graph[key].shape[1] > count else None


def _valid(graphs: list[Any], where: Path) -> list[Any]:
    for graph in graphs:
        try:
            graph.validate(raise_on_error=True)
        except Exception as error:  # PyG's own checks raise several kinds
            raise DataError(f"{where} holds a graph that is not valid: {error}") from None
    if not graphs:
        raise DataError(f"{where} holds no graph")
    return graphs
