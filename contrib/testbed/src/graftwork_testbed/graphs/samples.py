"""What graph data sets share: samples of nodes and of graphs, how they join into batches, and how nodes are split.

A graph is a PyG `Data` or `HeteroData` under the key `graph`, and it never holds `y`: what a method may know of the classes is the
`label` of its own split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from graftwork import DataError, Dataset, DatasetInfo, TensorSamples
from graftwork.kinds.dataset import Batch, collate
from graftwork_testbed.graphs.extra import need
from graftwork_testbed.splits import stratified_split

__all__ = ["TrainPerClass", "graph_dataset", "join_graphs", "join_nodes", "node_dataset", "split_nodes", "within"]

TrainPerClass: TypeAlias = Annotated[int, Field(ge=1)] | None
"""Labelled training nodes of each class; none leaves the size of the training split to the fractions."""


def join_graphs(samples: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> Batch:
    """Join samples that are one graph each: `graph` becomes a PyG `Batch`, numbers become (B,).

    Args:
        samples: dict samples, or columns with a list of graphs, as `TensorSamples.__getitems__` gives them.
    """
    batch = collate(samples)
    batch["graph"] = need("torch_geometric.data").Batch.from_data_list(list(batch["graph"]))
    return batch


def join_nodes(samples: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> Batch:
    """Join samples that are nodes of a graph: (n,) `nodes` and (n,) `label` or `target` of all the samples' nodes.

    The one sample of a one-graph data set keeps its graph as it is; several graphs become a PyG `Batch`, into which `nodes` count.

    Args:
        samples: dict samples, or columns with a list of graphs, as `TensorSamples.__getitems__` gives them.

    Raises:
        DataError: if the samples are of several heterogeneous graphs.
    """
    batch = collate(samples)
    graphs, parts = list(batch["graph"]), list(batch["nodes"])
    starts: Sequence[int] = (0,)
    if len(graphs) > 1:
        if hasattr(graphs[0], "node_types"):
            raise DataError(f"nodes of heterogeneous graphs come one graph a batch; found {len(graphs)}")
        batch["graph"] = need("torch_geometric.data").Batch.from_data_list(graphs)
        starts = batch["graph"].ptr[:-1].tolist()
    else:
        batch["graph"] = graphs[0]
    batch["nodes"] = torch.cat([part + start for part, start in zip(parts, starts, strict=True)])
    for key in {"label", "target"} & set(batch):
        batch[key] = torch.cat(list(batch[key]))
    return batch


def node_dataset(graph: Any, values: Tensor | None, parts: Mapping[str, Tensor], info: DatasetInfo, key: str = "label") -> Dataset:
    """A data set of one graph, each of whose splits is one sample: the graph, its nodes that the split labels, and their labels.

    Args:
        graph: PyG `Data` or `HeteroData` without `y`; a `HeteroData` names the type of the nodes in `target_type`.
        values: (N,) long classes, or (N, ...) targets, of all nodes of that type; None where nothing is known of them.
        parts: split name -> (n,) long nodes.
        info: of the data set.
        key: "label" for classes, "target" for numbers to regress.
    """
    splits = {}
    for name, nodes in parts.items():
        known = {} if values is None else {key: [values[nodes]]}
        splits[name] = TensorSamples(graph=[graph], nodes=[nodes], **known, index=torch.zeros(1, dtype=torch.long))
    return Dataset(splits, info, join_nodes)


def graph_dataset(graphs: Sequence[Any], values: Tensor, parts: Mapping[str, Tensor], info: DatasetInfo, key: str = "label") -> Dataset:
    """A data set of many graphs, a sample each.

    Args:
        graphs: N PyG `Data` without `y`.
        values: (N,) long classes, or (N, ...) targets.
        parts: split name -> (n,) long positions.
        info: of the data set.
        key: "label" for classes, "target" for numbers to regress.
    """
    splits = {
        name: TensorSamples(graph=[graphs[row] for row in rows.tolist()], **{key: values[rows]}, index=rows) for name, rows in parts.items()
    }
    return Dataset(splits, info, join_graphs)


def split_nodes(
    labels: Tensor, val_fraction: float, test_fraction: float, train_per_class: int | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Train, val and test nodes, each class shared out alike; a negative label is of a node that no split holds.

    With `train_per_class`, the usual protocol of semi-supervised learning on graphs (20 of each class in Yang et al., 2016,
    https://arxiv.org/abs/1603.08861; 20, 40 or 60 in work on heterogeneous graphs), train has that many of each class and all
    the others are val and test, in the proportion of the two fractions.

    Args:
        labels: (N,) long.
        val_fraction: share of each class that goes to val, in (0, 1).
        test_fraction: share of each class that goes to test, in (0, 1).
        train_per_class: training nodes of each class; None leaves them what the fractions leave.
        seed: non-negative.

    Returns:
        split name -> (n,) long, ascending.

    Raises:
        ValueError: if a parameter is out of range, a split would be empty, or a class has no node beyond `train_per_class`.
    """
    nodes = (labels >= 0).nonzero().squeeze(1)
    if train_per_class is None:
        return {name: nodes[part] for name, part in stratified_split(labels[nodes], val_fraction, test_fraction, seed).items()}
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < fraction < 1:
            raise ValueError(f"{name} must be between 0 and 1; found {fraction}")
    within("train_per_class", train_per_class, 1)
    within("seed", seed, 0)
    present, counts = labels[nodes].unique(return_counts=True)
    if (counts <= train_per_class).any():
        fewest = counts.argmin()
        raise ValueError(f"train_per_class {train_per_class} leaves class {present[fewest]} none of its {counts[fewest]} nodes to test")
    order = nodes[torch.randperm(len(nodes), generator=torch.Generator().manual_seed(seed))]
    order = order[labels[order].argsort(stable=True)]  # by class, shuffled inside each
    rank = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    rest = order[rank >= train_per_class].sort().values
    halves = stratified_split(labels[rest], val_fraction / (val_fraction + test_fraction), 0.0, seed)
    return {"train": order[rank < train_per_class].sort().values, "val": rest[halves["val"]], "test": rest[halves["train"]]}


def within(name: str, value: float, low: float, high: float | None = None) -> None:
    """Raise ValueError, naming the parameter and the value found, unless low <= value (<= high)."""
    if not low <= value or (high is not None and not value <= high):
        span = f"at least {low:,}" if high is None else f"{low:,} to {high:,}"
        raise ValueError(f"{name} must be {span}; found {value}")
