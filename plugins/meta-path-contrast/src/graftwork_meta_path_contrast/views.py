"""The two views of a typed graph that are contrasted, computed once: `meta_path_views`, and the dataset wrapper around it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import torch
from pydantic import Field
from scipy.sparse import eye_array

from graftwork import DataError, Dataset
from graftwork.kinds.dataset import Batch, TensorSamples
from graftwork_meta_path_contrast.meta_paths import (
    MetaPath,
    context_incidences,
    mask_edges,
    mask_features,
    mean_over_context,
    normalised,
    path_counts,
    path_name,
    path_types,
)
from graftwork_meta_path_contrast.propagation import Matrix, Propagation

if TYPE_CHECKING:
    from scipy.sparse import csr_array
    from torch_geometric.data import HeteroData  # type: ignore[import-untyped]

__all__ = ["MetaPathViewDataset", "MetaPathViews", "PathView", "meta_path_views"]

Layout: TypeAlias = Literal["sparse", "dense"]
Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
TopK: TypeAlias = Annotated[int, Field(ge=1)]
Spelling: TypeAlias = str | list[str] | list[tuple[str, str, str]]
"""A meta-path in YAML: initials ("PAP"), node types, or edge types."""

LARGEST_DENSE = 100_000_000
"""Entries of a dense adjacency, at most: 0.4 GB each, and there are two a path and two more."""


@dataclass(frozen=True)
class PathView:
    """One meta-path.

    Args:
        name: what it is called.
        types: node types along it.
        adjacency: (N, N) filtered by PathSim and normalised.
        masked: (N, N) the same without a fraction of its edges.
        contexts: node type and (N, N_type) averaging matrix of each node between its ends.
    """

    name: str
    types: tuple[str, ...]
    adjacency: Matrix
    masked: Matrix
    contexts: tuple[tuple[str, Matrix], ...]


@dataclass(frozen=True)
class MetaPathViews:
    """What the encoder reads: everything of a typed graph that training leaves as it is.

    Args:
        target: type of the N nodes that are embedded.
        paths: one a meta-path.
        coarse: (N, N) mean of the paths' adjacencies.
        masked_coarse: (N, N) mean of their masked adjacencies.
        features: type -> (N_type, D), dense or sparse; of the target also (N, P, D), one a path.
        masked_features: of the target.
    """

    target: str
    paths: tuple[PathView, ...]
    coarse: Matrix
    masked_coarse: Matrix
    features: Mapping[str, Matrix]
    masked_features: Matrix
    _moved: dict[Any, MetaPathViews] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_nodes(self) -> int:
        """N."""
        return int(self.coarse.shape[0])

    @property
    def widths(self) -> dict[str, int]:
        """Node type -> width of its features, of the types that are used."""
        return {kind: int(x.shape[-1]) for kind, x in self.features.items()}

    def to(self, device: Any, non_blocking: bool = False) -> MetaPathViews:
        """On another device or in another floating type; a copy is made once for each, and kept, as training asks at every step."""
        where = device if isinstance(device, torch.dtype) else torch.device(device)
        if where in (self.masked_features.device, self.masked_features.dtype):
            return self
        if where not in self._moved:
            self._moved[where] = self._copied(where)
        return self._moved[where]

    def _copied(self, where: Any) -> MetaPathViews:
        paths = tuple(
            PathView(p.name, p.types, p.adjacency.to(where), p.masked.to(where), tuple((t, m.to(where)) for t, m in p.contexts))
            for p in self.paths
        )
        features = {kind: x.to(where) for kind, x in self.features.items()}
        return MetaPathViews(
            self.target, paths, self.coarse.to(where), self.masked_coarse.to(where), features, self.masked_features.to(where)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for fingerprints."""
        tables = {path.name: [_digest(path.adjacency), _digest(path.masked), path.types] for path in self.paths}
        return {"target": self.target, "paths": tables, "features": {k: _digest(x) for k, x in self.features.items()}}


def _digest(matrix: Matrix) -> tuple[Any, ...]:
    values = matrix.table.values() if isinstance(matrix, Propagation) else matrix.flatten()
    ramp = torch.linspace(0.5, 1.5, len(values), dtype=torch.float64, device=values.device)  # so that order counts
    return (tuple(matrix.shape), float(values.double().sum()), float(values.double() @ ramp))


def meta_path_views(
    graph: HeteroData,
    target: str,
    meta_paths: Mapping[str, MetaPath] | Iterable[MetaPath],
    top_k: int | Sequence[int | None] | None = None,
    feature_mask: float = 0.3,
    edge_mask: float | Sequence[float] = 0.2,
    normalise_features: bool = True,
    layout: Layout = "sparse",
    seed: int = 0,
) -> MetaPathViews:
    """Adjacencies, contexts, and masks of a typed graph, once and for all (Yu et al., 2023; masks as in the authors' code).

    Args:
        graph: types without `x` get one-hot identity features.
        target: type of the nodes to embed.
        meta_paths: of any length, from `target` to `target`.
        top_k: neighbours that each node keeps by PathSim, itself included: one number, one a path, or None for all.
        feature_mask: fraction of the target's non-zero features that the masked copy lacks.
        edge_mask: fraction of edges that masked adjacencies lack: one number, or one a path.
        normalise_features: whether rows of features are divided by their sum; those with a negative entry never are.
        layout: "sparse", or "dense" where adjacencies are nearly full.
        seed: of the masks.

    Raises:
        ValueError: if a number is out of range, or there are not as many as paths.
        DataError: if a meta-path does not exist or does not lead from target to target, or a matrix would be too large.
    """
    named = _named(meta_paths)
    if target not in graph.node_types:
        raise DataError(f"the graph has no node type {target}; it has {', '.join(graph.node_types)}")
    nodes = int(graph[target].num_nodes)
    if layout == "dense" and nodes**2 > LARGEST_DENSE:
        raise DataError(f"dense adjacencies of {nodes:,} nodes are more than {LARGEST_DENSE:,} entries each: set layout to sparse")
    ks, edge_masks = _each("top_k", top_k, len(named)), _each("edge_mask", edge_mask, len(named))
    generator = torch.Generator().manual_seed(seed)
    used = {target, *(kind for path in named.values() for kind in path_types(graph, path, target)[1:-1])}
    features = {kind: _features(graph, kind, normalise_features) for kind in graph.node_types if kind in used}
    masked_features = mask_features(features[target], feature_mask, generator)
    paths, plain, masked = [], [], []
    for (name, path), k, fraction in zip(named.items(), ks, edge_masks, strict=True):
        counts = path_counts(graph, path, target, k, name)
        plain.append(normalised(counts))
        masked.append(normalised(mask_edges(counts, fraction, generator)))
        contexts = [(kind, _laid_out(mean_over_context(table), "sparse")) for kind, table in context_incidences(graph, path, target)]
        types = path_types(graph, path, target)
        paths.append(PathView(name, types, _laid_out(plain[-1], layout), _laid_out(masked[-1], layout), tuple(contexts)))
    coarse, masked_coarse = (_laid_out(sum(tables[1:], tables[0]) / len(tables), layout) for tables in (plain, masked))
    return MetaPathViews(target, tuple(paths), coarse, masked_coarse, features, masked_features)


def _named(meta_paths: Mapping[str, MetaPath] | Iterable[MetaPath]) -> dict[str, MetaPath]:
    if isinstance(meta_paths, str):
        raise ValueError(f'meta_paths is a list or mapping of paths; found the one path "{meta_paths}"')
    paths = list(meta_paths.items()) if isinstance(meta_paths, Mapping) else [(path_name(path), path) for path in meta_paths]
    named = dict(paths)
    if not named:
        raise ValueError("meta_paths names at least one meta-path")
    if len(named) < len(paths):
        raise ValueError(f"meta_paths has a path twice: {', '.join(name for name, _ in paths)}")
    return named


def _each(name: str, value: Any, count: int) -> list[Any]:
    """One value a path."""
    values = list(value) if isinstance(value, Sequence) else [value] * count
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} values for {count} meta-paths")
    return values


def _laid_out(matrix: csr_array, layout: Layout) -> Matrix:
    return torch.from_numpy(matrix.toarray()) if layout == "dense" else Propagation.of(matrix.tocsr())


def _features(graph: HeteroData, kind: str, normalise: bool) -> Matrix:
    x = graph[kind].get("x")
    nodes = int(graph[kind].num_nodes)
    if x is None:
        return Propagation.of(eye_array(nodes, format="csr"))
    x = torch.as_tensor(x).to_dense().float()
    if len(x) != nodes or x.ndim not in (2, 3):
        raise DataError(f"features of {kind} are {tuple(x.shape)}; {nodes} rows of numbers are expected, or one row a path for each node")
    if not bool(x.isfinite().all()):
        raise DataError(f"features of {kind} are not finite")
    if not normalise or bool((x < 0).any()):
        return x
    total = x.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, x / total.clamp(min=torch.finfo(x.dtype).tiny), 0.0)


class MetaPathViewDataset(Dataset):
    """A dataset of one typed graph whose samples also hold `views`, a `MetaPathViews`.

    Everything is drawn and computed here, once: masks do not change while training (as in the authors' code).

    Args:
        data: each split a sample with the same `graph`, a `HeteroData`.
        meta_paths: initials ("PAP"), node types or edge types each, by name if given as a mapping; the graph's own `meta_paths` by default.
        target: type of the nodes to embed; the graph's own `target_type` by default.
        top_k: neighbours that each node keeps by PathSim, itself included: one number, or one a path; none keeps all.
        feature_mask: fraction of the target's non-zero features that the masked copy lacks.
        edge_mask: fraction of the edges that masked adjacencies lack: one number, or one a path.
        normalise_features: whether rows of features are divided by their sum; those with a negative entry never are.
        layout: sparse matrices, or dense ones where adjacencies are nearly full.
        seed: of the masks.

    Raises:
        ValueError: if a number is out of range.
        DataError: if the splits hold no typed graph, or not the same one, or a meta-path does not fit it.
    """

    def __init__(
        self,
        data: Dataset,
        meta_paths: list[Spelling] | dict[str, Spelling] | None = None,
        target: str | None = None,
        top_k: TopK | list[TopK | None] | None = None,
        feature_mask: Share = 0.3,
        edge_mask: Share | list[Share] = 0.2,
        normalise_features: bool = True,
        layout: Layout = "sparse",
        seed: Annotated[int, Field(ge=0)] = 0,
    ):
        graph = _only_graph(data)
        target = target or getattr(graph, "target_type", None)
        if target is None:
            raise DataError(f"the graph does not say which nodes to embed: name target, one of {', '.join(graph.node_types)}")
        paths = meta_paths if meta_paths is not None else getattr(graph, "meta_paths", None)
        if paths is None:
            raise DataError("the graph has no meta_paths of its own: name meta_paths, such as [PAP, PSP]")
        self.data = data
        self.views = meta_path_views(graph, target, paths, top_k, feature_mask, edge_mask, normalise_features, layout, seed)
        splits = {name: _with_views(samples, self.views) for name, samples in data.items()}
        super().__init__(splits, data.info, self._join)

    def _join(self, samples: Any) -> Batch:
        batch = self.data.collate(samples)
        batch["views"] = self.views
        return batch


def _only_graph(data: Dataset) -> Any:
    graphs = {}
    for name, samples in data.items():
        for index in range(len(samples)):
            graph = samples[index].get("graph")
            if not hasattr(graph, "node_types"):
                raise DataError(f'split "{name}" holds no typed graph: a sample with a HeteroData under "graph" is expected')
            graphs[id(graph)] = graph
    if len(graphs) != 1:
        raise DataError(f"meta-path views are of one graph that all splits share; found {len(graphs)}")
    return next(iter(graphs.values()))


def _with_views(samples: Any, views: MetaPathViews) -> TensorSamples:
    keys = list(samples[0])
    columns = {key: [samples[index][key] for index in range(len(samples))] for key in keys}
    return TensorSamples(**columns, views=[views] * len(samples))
