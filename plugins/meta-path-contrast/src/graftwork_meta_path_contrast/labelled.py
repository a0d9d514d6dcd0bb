"""A typed graph with labels of one node type, in the splits of the field: so many labelled nodes of each class, and 1000 to test on."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from graftwork import DataError, Dataset, DatasetInfo
from graftwork_testbed.graphs.meta_paths import MetaPath
from graftwork_testbed.graphs.samples import node_dataset, split_nodes

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData  # type: ignore[import-untyped]

__all__ = ["PER_CLASS", "labelled_graph"]

PER_CLASS = (20, 40, 60)
"""Labelled nodes of each class, as HeCo (https://arxiv.org/abs/2105.09111) and those after it have them."""


def labelled_graph(
    graph: HeteroData,
    target: str,
    labels: Tensor | None = None,
    *,
    classes: Sequence[str] = (),
    per_class: Sequence[int] | None = None,
    val_nodes: int = 1000,
    test_nodes: int = 1000,
    parts: Mapping[str, Mapping[str, Tensor]] | None = None,
    meta_paths: Mapping[str, MetaPath] | None = None,
    description: str = "",
    seed: int = 0,
) -> Dataset:
    """A dataset of one typed graph: a sample a split, with `graph`, `nodes` (n,) and their `label` (n,).

    With n labelled nodes of each class the splits are "n/train", "n/val", "n/test"; "train", "val", "test" are those of the first n. No
    graph holds a label.

    Args:
        graph: a `HeteroData`; it is copied shallowly, and labels and masks are left out.
        target: type of the labelled nodes.
        labels: (N,) long, -1 where unknown; the graph's own `y` of the target by default.
        classes: their names, in the order of the labels; numbers by default.
        per_class: how many labelled nodes of each class; by default those of 20, 40 and 60 that leave two of each class, or else 1.
        val_nodes: at most so many, and at most half of what is left.
        test_nodes: at most so many.
        parts: the splits as they are given, instead of drawing them: "20" -> "train" -> (n,) nodes.
        meta_paths: what `meta-path-views` takes where none are asked for; the graph's own by default.
        description: one sentence.
        seed: of the draw.

    Raises:
        ValueError: if a number is out of range, or a class has too few nodes.
        DataError: if there is no such type or are no labels, or not one a node.
    """
    if target not in graph.node_types:
        raise DataError(f"the graph has no node type {target}; it has {', '.join(graph.node_types)}")
    labels = _labels(graph, target, labels)
    for name, number in (("val_nodes", val_nodes), ("test_nodes", test_nodes)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1; found {number}")
    drawn = parts or {str(n): _drawn(labels, n, val_nodes, test_nodes, seed) for n in per_class or _default(labels)}
    flat = {f"{n}/{split}": nodes for n, part in drawn.items() for split, nodes in part.items()}
    flat = {**next(iter(drawn.values())), **flat}
    for split, nodes in flat.items():
        if len(nodes) and (int(nodes.min()) < 0 or int(nodes.max()) >= len(labels)):
            raise DataError(f'split "{split}" names nodes up to {int(nodes.max())}; there are {len(labels)} {target} nodes')
    known = meta_paths if meta_paths is not None else getattr(graph, "meta_paths", None)
    bare = _unlabelled(graph)
    bare.target_type = target
    if known is not None:
        bare.meta_paths = dict(known)
    names = tuple(classes) or tuple(str(number) for number in range(int(labels.max()) + 1))
    x = graph[target].get("x")
    info = DatasetInfo(classes=names, features=0 if x is None else int(x.shape[-1]), description=description)
    return node_dataset(bare, labels, flat, info)


def _labels(graph: HeteroData, target: str, labels: Tensor | None) -> Tensor:
    found = labels if labels is not None else graph[target].get("y")
    if not isinstance(found, Tensor):
        raise DataError(f"{target} nodes have no labels: give labels, or a graph with y")
    found = found.squeeze(-1) if found.ndim == 2 and found.shape[1] == 1 else found
    if found.shape != (graph[target].num_nodes,):
        raise DataError(f"there are labels {tuple(found.shape)} for {graph[target].num_nodes} {target} nodes: one each is expected")
    if found.is_floating_point() or int(found.max()) < 1:
        raise DataError(f"labels are whole numbers of at least two classes; found {found.dtype} up to {float(found.max()):g}")
    return found.long()


def _default(labels: Tensor) -> list[int]:
    fewest = int(torch.unique(labels[labels >= 0], return_counts=True)[1].min())
    return [n for n in PER_CLASS if n + 2 <= fewest] or [1]


def _drawn(labels: Tensor, per_class: int, val_nodes: int, test_nodes: int, seed: int) -> dict[str, Tensor]:
    parts = split_nodes(labels, 0.5, 0.5, per_class, seed)
    generator = torch.Generator().manual_seed(seed)
    cut = {"val": val_nodes, "test": test_nodes}
    for split, most in cut.items():
        nodes = parts[split]
        parts[split] = nodes[torch.randperm(len(nodes), generator=generator)[:most]].sort().values
    return parts


def _unlabelled(graph: HeteroData) -> Any:
    bare = copy.copy(graph)
    for store in bare.stores:
        for key in [key for key in store if key in ("y", "y_index") or key.endswith("_mask")]:
            del store[key]
    return bare
