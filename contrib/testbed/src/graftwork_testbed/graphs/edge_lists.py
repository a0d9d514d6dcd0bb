"""A user's own graph from plain tables: a CSV of edges, and optionally one of labels and one of features."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from graftwork import DataError, Dataset, DatasetInfo
from graftwork_testbed.graphs.extra import need
from graftwork_testbed.graphs.features import Features, FeatureWidth, check_features, node_features
from graftwork_testbed.graphs.samples import TrainPerClass, node_dataset, split_nodes, within
from graftwork_testbed.splits import Fraction, Seed, stratified_split

__all__ = ["edge_list"]


def edge_list(
    edges: str,
    labels: str | None = None,
    attributes: str | None = None,
    directed: bool = False,
    features: Features = "degree",
    feature_width: FeatureWidth = 16,
    train_per_class: TrainPerClass = None,
    val_fraction: Fraction = 0.2,
    test_fraction: Fraction = 0.4,
    max_edges: Annotated[int, Field(ge=1)] = 20_000_000,
    seed: Seed = 0,
) -> Dataset:
    """One graph from tables with a header, separated by commas, or by tabs in files named .tsv or .tab.

    Nodes are numbered in the order of their names, as numbers if all of them are whole numbers; `graph.names` holds the names.
    A node that only `labels` or `attributes` names has no edges. Edges named twice are one, their weights added; of an undirected
    graph, u,v and v,u are the same edge.

    Args:
        edges: file with columns `source`, `target` and, if there is a third, `weight`, which becomes `graph.edge_weight`.
        labels: file with columns `node` and `label`; classes are the sorted labels, and a node with none is in no split. Without
            this file samples have no `label`, and all nodes are split at random.
        attributes: file with a column `node` and further columns of numbers, which become `x` in their order; every node has a row.
        directed: keep the edges as they are written; otherwise both directions of each are there.
        features: what stands in for features where there are no attributes; see `graftwork_testbed.graphs.node_features`.
        feature_width: of random features.
        train_per_class: training nodes of each class, the others being val and test; by default the fractions say.
        val_fraction: share of each class that goes to val.
        test_fraction: share of each class that goes to test.
        max_edges: a file with more lines is refused.
        seed: of the split and of random features.

    Raises:
        DataError: if a file is missing, is no such table, or names a node twice; the message has its line.
        ValueError: if a parameter is out of range.
    """
    check_features(features, feature_width)
    within("max_edges", max_edges, 1)
    if labels is None and train_per_class is not None:
        raise ValueError(f"train_per_class {train_per_class} needs labels, and no file of labels is given")
    header, rows = _table(edges, ("source", "target"), max_edges)
    if header not in (["source", "target"], ["source", "target", "weight"]):
        raise DataError(f"{edges}: the columns are source, target and optionally weight; found {', '.join(header)}")
    known = {name: row[0] for name, row in _keyed(labels, max_edges, ["label"]).items() if row[0]} if labels else {}
    described = _keyed(attributes, max_edges) if attributes else {}
    names = _ordered({name for row in rows for name in row[:2]} | set(known) | set(described))
    number = {name: position for position, name in enumerate(names)}
    pairs = torch.tensor([(number[row[0]], number[row[1]]) for row in rows], dtype=torch.long).view(-1, 2).T
    weights = _numbers(edges, [row[2:] for row in rows]).squeeze(1) if len(header) == 3 else None
    pairs, weights = _merged(pairs, weights, len(names), directed)
    if attributes:
        made: Tensor | None = _attributes(attributes, described, names)
    else:
        made = node_features(features, torch.bincount(pairs[0], minlength=len(names)), torch.Generator().manual_seed(seed), feature_width)
    graph = need("torch_geometric.data").Data(x=made, edge_index=pairs, num_nodes=len(names), names=names)
    if weights is not None:
        graph.edge_weight = weights
    return _dataset(graph, known, edges, (train_per_class, val_fraction, test_fraction, seed))


def _dataset(graph: Any, known: dict[str, str], source: str, split: tuple[int | None, float, float, int]) -> Dataset:
    train_per_class, val_fraction, test_fraction, seed = split
    classes = tuple(_ordered(set(known.values())))
    info = DatasetInfo(classes=classes, features=graph.num_features, description=f"The graph in {Path(source).name}")
    if not known:
        every = torch.zeros(graph.num_nodes, dtype=torch.long)
        return node_dataset(graph, None, stratified_split(every, val_fraction, test_fraction, seed), info)
    place = {label: position for position, label in enumerate(classes)}
    labels = torch.tensor([place[known[name]] if name in known else -1 for name in graph.names])
    return node_dataset(graph, labels, split_nodes(labels, val_fraction, test_fraction, train_per_class, seed), info)


def _table(path: str, first: tuple[str, ...], most: int) -> tuple[list[str], list[list[str]]]:
    """The header and rows of a table whose first columns are known.

    Raises:
        DataError: if it cannot be read, has too many rows, or a row of another length.
    """
    file = Path(path).expanduser()
    delimiter = "\t" if file.suffix in (".tsv", ".tab") else ","
    rows: list[list[str]] = []
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            if tuple(header[: len(first)]) != first:
                raise DataError(f"{path}: the first line must name the columns, beginning with {', '.join(first)}; found {header}")
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header) or not all(row[: len(first)]):
                    raise DataError(f"{path}, line {reader.line_num}: {len(header)} cells are expected, none of {', '.join(first)} empty")
                if len(rows) == most:
                    raise DataError(f"{path} has more than {most:,} rows, which is max_edges")
                rows.append([cell.strip() for cell in row])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from None
    if not rows:
        raise DataError(f"{path} has no rows")
    return header, rows


def _keyed(path: str, most: int, columns: list[str] | None = None) -> dict[str, list[str]]:
    header, rows = _table(path, ("node",), most)
    if len(header) < 2 or header[1:] != (columns or header[1:]):
        raise DataError(f"{path}: beside node the columns are {', '.join(columns or ['numbers'])}; found {', '.join(header[1:]) or 'none'}")
    found: dict[str, list[str]] = {}
    for name, *rest in rows:
        if name in found:
            raise DataError(f'{path} names node "{name}" twice')
        found[name] = rest
    return found


def _ordered(names: set[str]) -> list[str]:
    """Names in order; as numbers if all of them are whole numbers."""
    try:
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)


def _numbers(path: str, rows: list[list[str]]) -> Tensor:
    """(N, columns) float32.

    Raises:
        DataError: if a cell is no finite number.
    """
    try:
        values = np.array(rows, dtype=np.float32)
    except ValueError as error:
        raise DataError(f"{path}: every cell must be a number: {error}") from None
    if not np.isfinite(values).all():
        raise DataError(f"{path}: every number must be finite")
    return torch.from_numpy(values)


def _merged(pairs: Tensor, weights: Tensor | None, nodes: int, directed: bool) -> tuple[Tensor, Tensor | None]:
    """Distinct edges by source and then target, weights added; both directions unless directed."""
    if not directed:
        pairs = pairs.sort(0).values
    codes, place = (pairs[0] * nodes + pairs[1]).unique(return_inverse=True)
    pairs = torch.stack([codes // nodes, codes % nodes])
    if weights is not None:
        weights = torch.zeros(len(codes)).index_add_(0, place, weights)
    if directed:
        return pairs, weights
    crossing = pairs[0] != pairs[1]  # a loop is its own reverse
    pairs = torch.cat([pairs, pairs[:, crossing].flip(0)], dim=1)
    order = (pairs[0] * nodes + pairs[1]).argsort()
    return pairs[:, order], None if weights is None else torch.cat([weights, weights[crossing]])[order]


def _attributes(path: str, described: dict[str, list[str]], names: list[str]) -> Tensor:
    absent = [name for name in names if name not in described]
    if absent:
        raise DataError(f"{path} has no row for {len(absent)} of the {len(names)} nodes, such as {absent[0]!r}")
    return _numbers(path, [described[name] for name in names])
