"""PyTorch Geometric's data sets as graftwork data sets: what they are made of, and who may see which label."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from graftwork import DataError, Dataset, DatasetInfo, TensorSamples
from graftwork_testbed.graphs.pyg_files import RAW, PygFiles, locate, read_processed, read_raw
from graftwork_testbed.graphs.samples import TrainPerClass, graph_dataset, join_nodes, node_dataset, split_nodes, within
from graftwork_testbed.splits import SPLITS, Fraction, Seed, stratified_split

__all__ = ["pyg_dataset"]


@dataclass(frozen=True)
class Division:
    """How nodes or graphs are divided where the data set does not say, or is not to.

    Args:
        own: whether the data set's own splits count.
        fold: which of several own splits.
        train_per_class, val_fraction, test_fraction, seed: as `split_nodes` takes them.
    """

    own: bool
    fold: int
    train_per_class: int | None
    val_fraction: float
    test_fraction: float
    seed: int


def pyg_dataset(
    root: str,
    name: str,
    settings: dict[str, str | int | float | bool] | None = None,
    split: Literal["own", "stratified"] = "own",
    fold: Annotated[int, Field(ge=0)] = 0,
    target: str | None = None,
    train_per_class: TrainPerClass = None,
    val_fraction: Fraction = 0.1,
    test_fraction: Fraction = 0.25,
    seed: Seed = 0,
) -> Dataset:
    """A data set of PyTorch Geometric from a folder on this machine; nothing is downloaded, written, or unpickled.

    Files are where PyG's class would have them in `root`. See `graftwork_testbed.graphs.pyg_files` for what is read and why it is
    safe: the classes in `RAW` from raw or processed files, those in `PROCESSED` from processed ones.

    One graph gives nodes to classify: `graph`, `nodes`, `label`. Many graphs with a class each give graphs to classify: `graph`,
    `label`. Several graphs whose nodes have labels (PPI) are several samples of nodes. What is no single class (numbers, or several
    binary labels at once) comes as `target` instead of `label`. Labels and masks are taken off the graph. Classes are numbered, as
    PyG has no names for them.

    Args:
        root: the folder that PyG's class takes.
        name: class in `torch_geometric.datasets`, such as "Planetoid", "DBLP", "IMDB" or "TUDataset".
        settings: its further arguments, such as {name: Cora}; transforms are not among them.
        split: "own" takes the data set's masks or files, or, where it has none, "stratified": by class and the fractions.
        fold: which of the data set's own splits, where it has several.
        target: type of the nodes with labels, where a heterogeneous graph has labels of several types.
        train_per_class: with a stratified split of nodes, training nodes of each class.
        val_fraction: share of each class that goes to val; of train, where the data set has no val of its own.
        test_fraction: share of each class that goes to test.
        seed: of the stratified split.

    Raises:
        DataError: if the class is not among those that are read, its files are missing, damaged or could run code, or it has no labels.
        ValueError: if the settings do not fit the class, or a parameter is out of range.
    """
    if split not in ("own", "stratified"):
        raise ValueError(f"split must be own or stratified; found {split!r}")
    within("fold", fold, 0)
    files = locate(root, name, settings or {})
    _refuse_post_processing(files)
    division = Division(split == "own", fold, train_per_class, val_fraction, test_fraction, seed)
    parts = _read(files)
    first = next(iter(parts.values()))[0]
    if hasattr(first, "node_types"):
        return _one_hetero_graph(files, parts, target, division)
    if target is not None:
        raise ValueError(f"target names a type of node, and the graphs of {name} have one type; found {target!r}")
    known = [graph.get("y") for graphs in parts.values() for graph in graphs]
    if not all(isinstance(y, Tensor) and y.ndim for y in known):
        raise DataError(f"{name} has no labels")
    sizes = [graph.num_nodes for graphs in parts.values() for graph in graphs]
    if sizes != [len(y) for y in known] or (len(sizes) > 1 and set(sizes) == {1}):
        return _many_graphs(files, parts, division)
    return _one_graph(files, first, division) if len(sizes) == 1 else _nodes_of_many_graphs(files, parts, division)


def _refuse_post_processing(files: PygFiles) -> None:
    """Settings that PyG obeys after loading, which is not done here, must not seem to have been obeyed."""
    if files.name == "Planetoid" and files.settings.get("split") in ("full", "random"):
        raise ValueError(f"Planetoid draws its split {files.settings['split']!r} when it has loaded: set split to stratified instead")
    by_file = [path.stem for path in files.processed if path.stem.partition("_")[0] in SPLITS]
    if by_file and (chosen := sorted({"split", "train"} & set(files.settings))):
        raise ValueError(f"{files.name} has a file a split, and all of them are read: leave the setting {', '.join(chosen)} out")


def _read(files: PygFiles) -> dict[str, list[Any]]:
    """Split -> graphs where there is a file a split, otherwise "" -> graphs."""
    if all(path.is_file() for path in files.processed):
        if len(files.processed) == 1:
            return {"": read_processed(files.processed[0], files)}
        by_split = {path.stem.partition("_")[0]: path for path in files.processed}
        if not {"train", "test"} <= set(by_split) <= set(SPLITS):
            raise DataError(f"{files.name} has files that are no splits: {', '.join(path.name for path in files.processed)}")
        return {split: read_processed(by_split[split], files) for split in SPLITS if split in by_split}
    if files.name in RAW and all(path.is_file() for path in files.raw):
        return {"": read_raw(files)}
    raise DataError(files.missing())


def _values(y: Tensor) -> tuple[str, Tensor, tuple[str, ...]]:
    """Whether these are "label" or "target"; (N,) long labels, -1 where there is none, or (N, ...) targets; and the classes."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y.squeeze(1)
    binary = y.is_floating_point() and bool(((y == 0) | (y == 1) | y.isnan()).all())  # how MoleculeNet writes two classes
    if y.ndim > 1 or (y.is_floating_point() and not binary):
        return "target", y.float(), ()
    labels = y.nan_to_num(-1).long()
    return "label", labels, tuple(str(number) for number in range(int(labels.max()) + 1))


def _unlabelled(graph: Any) -> Any:
    """A shallow copy without labels and masks, of any type of node."""
    graph = copy.copy(graph)
    for store in graph.stores:
        for key in [key for key in store if key in ("y", "y_index") or key.endswith("_mask")]:
            del store[key]
    return graph


def _one_graph(files: PygFiles, graph: Any, division: Division) -> Dataset:
    key, values, classes = _values(graph.y)
    info = DatasetInfo(classes=classes, features=graph.num_features, description=_described(files, "nodes"))
    return node_dataset(_unlabelled(graph), values, _node_parts(graph, values, key, division), info, key)


def _one_hetero_graph(files: PygFiles, parts: Mapping[str, Sequence[Any]], target: str | None, division: Division) -> Dataset:
    graphs = [graph for some in parts.values() for graph in some]
    if len(graphs) != 1:
        raise DataError(f"{files.name} has {len(graphs)} heterogeneous graphs; one is expected")
    found = [kind for kind in graphs[0].node_types if isinstance(graphs[0][kind].get("y"), Tensor)]
    if target is None and len(found) != 1:
        raise DataError(f"{files.name} has labels of {', '.join(found)}: name one as target" if found else f"{files.name} has no labels")
    target = target or found[0]
    if target not in found:
        raise ValueError(f"target {target!r} has no labels in {files.name}; {', '.join(found) or 'no type'} has")
    nodes = graphs[0][target]
    if len(nodes.y) != nodes.num_nodes:
        raise DataError(f"{files.name} has {len(nodes.y)} labels of {nodes.num_nodes} nodes of type {target}")
    key, values, classes = _values(nodes.y)
    graph = _unlabelled(graphs[0])
    graph.target_type = target
    info = DatasetInfo(classes=classes, features=graph[target].num_features, description=_described(files, f"{target} nodes"))
    return node_dataset(graph, values, _node_parts(nodes, values, key, division), info, key)


def _many_graphs(files: PygFiles, parts: Mapping[str, Sequence[Any]], division: Division) -> Dataset:
    if division.train_per_class is not None:
        raise ValueError(f"train_per_class {division.train_per_class} is of nodes; {files.name} has graphs to divide")
    graphs = [graph for some in parts.values() for graph in some]
    known = [graph.y for graph in graphs]
    if any(y.shape != known[0].shape or len(y) != 1 for y in known):
        raise DataError(f"{files.name} has neither one label a graph nor one a node")
    key, values, classes = _values(torch.cat(known))
    labelled = values >= 0 if key == "label" else torch.ones(len(values), dtype=torch.bool)
    strata = values if key == "label" else torch.zeros(len(values), dtype=torch.long)
    info = DatasetInfo(classes=classes, features=graphs[0].num_features, description=_described(files, "graphs"))
    if division.own and "" not in parts:
        ends = torch.tensor([len(some) for some in parts.values()]).cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        rows = {split: torch.arange(start, end) for split, start, end in zip(parts, starts, ends, strict=True)}
        rows = _with_val({split: some[labelled[some]] for split, some in rows.items()}, strata, division)
    else:
        some = labelled.nonzero().squeeze(1)
        shared = stratified_split(strata[some], division.val_fraction, division.test_fraction, division.seed)
        rows = {split: some[part] for split, part in shared.items()}
    return graph_dataset([_unlabelled(graph) for graph in graphs], values, rows, info, key)


def _nodes_of_many_graphs(files: PygFiles, parts: Mapping[str, Sequence[Any]], division: Division) -> Dataset:
    if "" in parts or not division.own or "val" not in parts:
        raise DataError(f"{files.name} has labels of nodes in many graphs, which only its own files can divide: set split to own")
    key, values, classes = _values(torch.cat([graph.y for graphs in parts.values() for graph in graphs]))
    splits, start = {}, 0
    for split, graphs in parts.items():
        sizes = [graph.num_nodes for graph in graphs]
        known = values[start : start + sum(sizes)].split(sizes)
        start += sum(sizes)
        nodes = [(some >= 0).nonzero().squeeze(1) if key == "label" else torch.arange(len(some)) for some in known]
        columns = {key: [some[chosen] for some, chosen in zip(known, nodes, strict=True)]}
        bare = [_unlabelled(graph) for graph in graphs]
        splits[split] = TensorSamples(graph=bare, nodes=nodes, **columns, index=torch.arange(len(graphs)))
    first = next(iter(parts.values()))[0]
    info = DatasetInfo(classes=classes, features=first.num_features, description=_described(files, "nodes of many graphs"))
    return Dataset(splits, info, join_nodes)


def _described(files: PygFiles, what: str) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in files.settings.items())
    return f"{files.name}{f' ({settings})' if settings else ''} of PyTorch Geometric: {what} to classify or regress"


def _node_parts(store: Any, values: Tensor, key: str, division: Division) -> dict[str, Tensor]:
    """Split -> nodes: by the masks that lie beside the labels, or stratified."""
    strata = values if key == "label" else torch.zeros(len(values), dtype=torch.long)
    masks = {split: store.get(f"{split}_mask") for split in SPLITS}
    if not division.own or masks["train"] is None or masks["test"] is None:
        return split_nodes(strata, division.val_fraction, division.test_fraction, division.train_per_class, division.seed)
    _refuse_per_class(division)
    given = {split: mask.bool().view(len(mask), -1) for split, mask in masks.items() if mask is not None}
    folds = max(mask.shape[1] for mask in given.values())
    if division.fold >= folds:
        raise ValueError(f"fold must be 0 to {folds - 1}, as there are {folds} own splits; found {division.fold}")
    columns = {split: mask[:, division.fold if mask.shape[1] > 1 else 0] for split, mask in given.items()}  # WikiCS has one test for all
    return _with_val({split: (column & (strata >= 0)).nonzero().squeeze(1) for split, column in columns.items()}, strata, division)


def _refuse_per_class(division: Division) -> None:
    if division.train_per_class is not None:
        raise ValueError(f"train_per_class {division.train_per_class} divides nodes by class: set split to stratified")


def _with_val(parts: Mapping[str, Tensor], strata: Tensor, division: Division) -> dict[str, Tensor]:
    """The parts, with a share of train as val where there is none."""
    if empty := [split for split, rows in parts.items() if not len(rows)]:
        raise DataError(f"the data set's own splits leave {', '.join(empty)} empty: set split to stratified")
    if "val" in parts:
        return dict(parts)
    train = parts["train"]
    shared = stratified_split(strata[train], division.val_fraction, 0.0, division.seed)
    return {"train": train[shared["train"]], "val": train[shared["val"]], "test": parts["test"]}
