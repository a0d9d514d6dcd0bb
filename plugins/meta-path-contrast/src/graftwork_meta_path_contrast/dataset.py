"""The registered dataset: a typed graph from the authors' folders, another dataset, or offline."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from graftwork import DataError, Dataset
from graftwork_meta_path_contrast.labelled import labelled_graph
from graftwork_meta_path_contrast.official import OfficialFormat, read_official_folder
from graftwork_meta_path_contrast.offline import PYDOC_PATHS, SCENE_PATHS, pydoc_graph, scene_graph
from graftwork_meta_path_contrast.views import Spelling

__all__ = ["hetero_graph"]

Count = Annotated[int, Field(ge=1)]


def hetero_graph(
    graph: Literal["digit-scenes", "pydoc-topics"] | None = None,
    folder: str | None = None,
    format: OfficialFormat | None = None,
    data: Dataset | None = None,
    target: str | None = None,
    meta_paths: dict[str, Spelling] | None = None,
    per_class: list[Count] | None = None,
    val_nodes: Count = 1000,
    test_nodes: Count = 1000,
    scenes: Annotated[int, Field(ge=12)] = 900,
    noise: Annotated[float, Field(ge=0, le=1)] = 0.3,
    seed: Annotated[int, Field(ge=0)] = 0,
) -> Dataset:
    """A typed graph with the labels of one type, split as 20, 40 or 60 labelled nodes of each class. Exactly one source is named.

    A sample a split: `graph` (a `HeteroData` without labels), `nodes` (n,), `label` (n,). The splits are "20/train", "20/val", "20/test",
    "40/train", ...; "train", "val" and "test" are those of the first number. A `HeteroData` of your own becomes such a dataset by
    `labelled_graph`.

    Args:
        graph: offline: "digit-scenes" (scenes with digits, colours, textures; the class is the texture, through noisy links) or
            "pydoc-topics" (help topics with words and cross-references; the class is the area).
        folder: a data folder of the authors' repository (acm, dblp, aminer, imdb), with its own splits.
        format: which of the four the folder is; by default its name or its files say.
        data: a dataset of one typed graph, such as `pyg-dataset` or `academic-network`, whose labels are split anew.
        target: type of the labelled nodes; by default the source says.
        meta_paths: the graph's meta-paths by name; by default the source's own.
        per_class: labelled nodes of each class; by default those of 20, 40 and 60 that leave two of each class to the others, or else 1.
        val_nodes: at most so many nodes to choose by.
        test_nodes: at most so many nodes to test on.
        scenes: how many, of digit-scenes.
        noise: how many of their links to textures are drawn at random, of digit-scenes.
        seed: of the splits, and of what is drawn.

    Raises:
        ValueError: if not exactly one source is named, or a number is out of range.
        DataError: if a file is missing, or sizes do not fit.
    """
    named = [name for name, value in (("graph", graph), ("folder", folder), ("data", data)) if value is not None]
    if len(named) != 1:
        raise ValueError(f"name one of graph, folder and data; found {' and '.join(named) or 'none'}")
    common: dict[str, Any] = {"per_class": per_class, "val_nodes": val_nodes, "test_nodes": test_nodes, "seed": seed}
    if folder is not None:
        read = read_official_folder(folder, format)
        parts = read.parts if per_class is None else None
        common |= {"classes": read.layout.classes, "parts": parts or None, "description": f"The authors' {read.layout.target} graph"}
        return labelled_graph(
            read.graph, target or read.layout.target, read.labels, meta_paths=meta_paths or read.layout.meta_paths, **common
        )
    if data is not None:
        found, labels, known = _of(data, target)
        common |= {"classes": data.info.classes, "description": data.info.description}
        return labelled_graph(found, known, labels, meta_paths=meta_paths, **common)
    if graph == "digit-scenes":
        made, labels, classes = scene_graph(scenes, noise, seed)
        about, own, kind = "Scenes with their digits, colours and textures; the class is the texture", SCENE_PATHS, "scene"
    elif graph == "pydoc-topics":
        made, labels, classes = pydoc_graph()
        about, own, kind = "CPython's help topics with their words; the class is the area of the language", PYDOC_PATHS, "topic"
    else:
        raise ValueError(f"graph is digit-scenes or pydoc-topics; found {graph!r}")
    return labelled_graph(made, target or kind, labels, classes=classes, meta_paths=meta_paths or own, description=about, **common)


def _of(data: Dataset, target: str | None) -> tuple[Any, Tensor, str]:
    """The graph of a dataset of nodes, all labels that its splits hold, and the type that they are of."""
    graph: Any = None
    rows: list[tuple[Tensor, Tensor]] = []
    for samples in data.values():
        sample: Any = samples[0]
        graph = sample.get("graph")
        if not hasattr(graph, "node_types"):
            raise DataError(f"the dataset holds no typed graph: its samples have {', '.join(sample)}")
        if "label" in sample:
            rows.append((sample["nodes"], sample["label"]))
    kind = target or getattr(graph, "target_type", None)
    if kind is None or not rows:
        raise DataError("the dataset says neither target_type nor labels: name target, and take one whose nodes are classified")
    labels = torch.full((int(graph[kind].num_nodes),), -1, dtype=torch.long)
    for nodes, known in rows:
        labels[nodes] = known
    return graph, labels, kind
