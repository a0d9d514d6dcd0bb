"""The data folders of the authors' repository (jianxiangyu/MEOW, after HeCo's): acm, dblp, aminer, imdb. Nothing in them is unpickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from scipy.sparse import load_npz
from torch import Tensor

from graftwork import DataError
from graftwork_meta_path_contrast.labelled import PER_CLASS
from graftwork_testbed.graphs.extra import need

__all__ = ["FORMATS", "Official", "OfficialFormat", "read_official_folder"]

OfficialFormat: TypeAlias = Literal["acm", "dblp", "aminer", "imdb"]


@dataclass(frozen=True)
class Layout:
    """Which files hold what.

    Args:
        target: the labelled type.
        features: type -> files; several are one a meta-path; none for one-hot identity features.
        links: source type, target type and file: an .npz incidence, or a .txt of pairs.
        meta_paths: as the authors have them.
        classes: names of the labels.
    """

    target: str
    features: Mapping[str, Sequence[str]]
    links: Sequence[tuple[str, str, str]]
    meta_paths: Mapping[str, tuple[str, ...]]
    classes: tuple[str, ...]


FORMATS: Mapping[OfficialFormat, Layout] = {
    "acm": Layout(
        "paper",
        {"paper": ("p_feat.npz",), "author": ("a_feat.npz",), "subject": ()},
        [("paper", "author", "nei_a.npz"), ("paper", "subject", "nei_s.npz")],
        {"PAP": ("paper", "author", "paper"), "PSP": ("paper", "subject", "paper")},
        ("0", "1", "2"),
    ),
    "dblp": Layout(
        "author",
        {"author": ("a_feat.npz",), "paper": ("p_feat.npz",), "term": ("t_feat.npz",), "conference": ()},
        [("paper", "author", "pa.txt"), ("paper", "conference", "pc.txt"), ("paper", "term", "pt.txt")],
        {
            "APA": ("author", "paper", "author"),
            "APCPA": ("author", "paper", "conference", "paper", "author"),
            "APTPA": ("author", "paper", "term", "paper", "author"),
        },
        ("0", "1", "2", "3"),
    ),
    "aminer": Layout(
        "paper",
        {
            "paper": ("feat_p_pap.w1000.l100.npy", "feat_p_prp.w1000.l100.npy"),
            "author": ("feat_a.w1000.l100.npy",),
            "reference": ("feat_r.w1000.l100.npy",),
        },
        [("paper", "author", "nei_a.npz"), ("paper", "reference", "nei_r.npz")],
        {"PAP": ("paper", "author", "paper"), "PRP": ("paper", "reference", "paper")},
        ("0", "1", "2", "3"),
    ),
    "imdb": Layout(
        "movie",
        {"movie": ("m_feat.npz",), "actor": (), "director": (), "keyword": ()},
        [("movie", "actor", "nei_a.npz"), ("movie", "director", "nei_d.npz"), ("movie", "keyword", "nei_k.npz")],
        {"MAM": ("movie", "actor", "movie"), "MDM": ("movie", "director", "movie"), "MKM": ("movie", "keyword", "movie")},
        ("1", "2", "3"),
    ),
}


@dataclass(frozen=True)
class Official:
    """What a folder holds.

    Args:
        graph: a `HeteroData`, without labels.
        labels: (N,) long from 0.
        parts: "20" -> "train" -> (n,) long.
        layout: how it is laid out.
    """

    graph: Any
    labels: Tensor
    parts: Mapping[str, Mapping[str, Tensor]]
    layout: Layout


def read_official_folder(folder: str | Path, format: OfficialFormat | None = None) -> Official:
    """Read a folder of the authors' repository; the names of its files are those of their `load_data.py`.

    Meta-path adjacencies and contexts that lie there are not read: they are made from the links, and equal what lies there (Aminer's are
    there without their counts).

    Args:
        folder: such as "data/acm".
        format: which of the four; by default the folder's own name, or else what its files say.

    Raises:
        ValueError: if there is no such format.
        DataError: if a file is missing or damaged, or sizes do not fit.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"there is no folder {root}: the data lie in the authors' repository, jianxiangyu/MEOW, under data/")
    layout = FORMATS[_format(root, format)]
    labels = torch.from_numpy(_array(root / "labels.npy")).long()
    graph = need("torch_geometric.data").HeteroData()
    for source, target, name in layout.links:
        pairs, shape = _links(root / name)
        graph[source, "has", target].edge_index = pairs
        for kind, count in zip((source, target), shape, strict=True):
            graph[kind].num_nodes = max(count, graph[kind].get("num_nodes") or 0)
    for kind, names in layout.features.items():
        if names:
            parts = [_dense(root / name) for name in names]
            x = parts[0] if len(parts) == 1 else torch.stack(parts, dim=1)
            if len(x) < graph[kind].num_nodes:
                raise DataError(f"{root / names[0]} has {len(x)} rows for {graph[kind].num_nodes} {kind} nodes")
            graph[kind].num_nodes, graph[kind].x = len(x), x
    if len(labels) != graph[layout.target].num_nodes:
        raise DataError(f"{root / 'labels.npy'} has {len(labels)} labels for {graph[layout.target].num_nodes} {layout.target} nodes")
    known = [n for n in PER_CLASS if (root / f"train_{n}.npy").exists()]
    splits = ("train", "val", "test")
    parts_of = {str(n): {split: torch.from_numpy(_array(root / f"{split}_{n}.npy")).long() for split in splits} for n in known}
    return Official(graph, torch.unique(labels, return_inverse=True)[1], parts_of, layout)


def _format(root: Path, format: OfficialFormat | None) -> OfficialFormat:
    names: tuple[OfficialFormat, ...] = get_args(OfficialFormat)
    if format is not None and format not in names:
        raise ValueError(f"format is one of {', '.join(names)}; found {format!r}")
    if format is not None:
        return format
    fitting = [name for name in names if all((root / file).exists() for _, _, file in FORMATS[name].links)]
    named = [name for name in fitting if name == root.name.lower()] or fitting
    if not named:
        raise DataError(f"{root} holds the links of none of {', '.join(names)}; of acm they are nei_a.npz and nei_s.npz")
    return named[0]


def _array(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(_read(path, lambda: np.load(path, allow_pickle=False)))


def _dense(path: Path) -> Tensor:
    """(N, D) float32 of a sparse .npz, or of an array by whatever name."""
    try:
        table = load_npz(path).toarray()
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        table = _array(path)
    return torch.from_numpy(np.asarray(table, dtype=np.float32))


def _links(path: Path) -> tuple[Tensor, tuple[int, int]]:
    """(2, E) pairs, and how many nodes there are on either side."""
    if path.suffix == ".txt":
        pairs = _read(path, lambda: np.loadtxt(path, dtype=np.int64, ndmin=2))[:, :2].T
        shape = (int(pairs[0].max()) + 1, int(pairs[1].max()) + 1)
    else:
        table = _read(path, lambda: load_npz(path)).tocoo()
        present = table.data != 0
        pairs, shape = np.stack([table.row[present], table.col[present]]).astype(np.int64), table.shape
    order = np.lexsort((pairs[1], pairs[0]))
    return torch.from_numpy(np.ascontiguousarray(pairs[:, order])), shape


def _read(path: Path, reader: Any) -> Any:
    if not path.exists():
        raise DataError(f"{path} is missing: copy the whole folder of the authors' repository, jianxiangyu/MEOW")
    try:
        return reader()
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
