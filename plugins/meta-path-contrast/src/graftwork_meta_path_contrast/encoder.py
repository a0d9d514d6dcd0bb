"""The encoder: type projections, meta-path contexts, a shared GCN, attention over views (Yu et al., 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork_meta_path_contrast.propagation import Matrix, Propagation
from graftwork_meta_path_contrast.views import MetaPathViews

__all__ = [
    "Embeddings",
    "GraphConvolution",
    "MetaPathEncoder",
    "SharedGCN",
    "TargetProjection",
    "ViewAttention",
    "layer_norm_whole",
    "projected",
]

TargetProjection = Literal["shared", "per-path"]


class Embeddings(NamedTuple):
    """The two views of the target nodes.

    Args:
        coarse: (N, D), from which nodes meta-paths join alone.
        fine: (N, D), from what lies along them too.
    """

    coarse: Tensor
    fine: Tensor


def layer_norm_whole(z: Tensor, eps: float = 1e-5) -> Tensor:
    """Mean 0 and variance 1 over the whole matrix, one mean and one variance for all nodes, without affine parameters.

    Args:
        z: (N, D).
        eps: added to the variance.
    """
    return functional.layer_norm(z, z.shape, eps=eps)


class GraphConvolution(nn.Module):
    """adjacency @ Dropout(x W), without a bias; W uniform within 1 / sqrt(out_features).

    Args:
        in_features: width of x.
        out_features: width of the output.
        dropout: of x W, in [0, 1).
    """

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.0):
        super().__init__()
        bound = 1 / math.sqrt(out_features)
        self.weight = nn.Parameter(torch.empty(in_features, out_features).uniform_(-bound, bound))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, adjacency: Matrix) -> Tensor:
        """(N, in_features) and (N, N) to (N, out_features)."""
        hidden: Tensor = self.dropout(x @ self.weight)
        return adjacency @ hidden


class SharedGCN(nn.Module):
    """Two graph convolutions, PReLU after the first, then `layer_norm_whole`; one for all views.

    Args:
        in_features: width of the input.
        out_features: width of the hidden layer and of the output.
        dropout: in both layers.
    """

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.0):
        super().__init__()
        self.first = GraphConvolution(in_features, out_features, dropout)
        self.activation = nn.PReLU()
        self.second = GraphConvolution(out_features, out_features, dropout)

    def forward(self, x: Tensor, adjacency: Matrix) -> Tensor:
        """(N, in_features) and (N, N) to (N, out_features)."""
        hidden = self.activation(self.first(x, adjacency))
        return layer_norm_whole(self.second(hidden, adjacency))


class ViewAttention(nn.Module):
    """softmax over views of a . mean_i tanh(W z_i + b), and the views' sum by these weights.

    Args:
        features: width of the embeddings.
        dropout: of a.
    """

    def __init__(self, features: int, dropout: float = 0.0):
        super().__init__()
        self.transform = nn.Linear(features, features)
        self.query = nn.Parameter(torch.empty(1, features))
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_normal_(self.transform.weight, gain=1.414)
        nn.init.xavier_normal_(self.query, gain=1.414)

    def weights(self, views: Sequence[Tensor]) -> Tensor:
        """(V,) weights, which sum to 1, of V views (N, features)."""
        summaries = torch.stack([torch.tanh(self.transform(view)).mean(dim=0) for view in views])
        query: Tensor = self.dropout(self.query).squeeze(0)
        return (summaries @ query).softmax(dim=0)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """V views (N, features) to one."""
        return torch.einsum("v,vnd->nd", self.weights(views), torch.stack(list(views)))


class MetaPathEncoder(nn.Module):
    """Coarse and fine embeddings of the target nodes of a typed graph.

    h_t = ELU(Dropout(W_t x)) of every type t; along path p, h_p = ELU(h_target + sum over the nodes between its ends of
    Dropout(W mean(h of those reached))), one W without bias for each node between the ends of each path. The coarse embedding is
    GCN(h_target, mean adjacency). The fine one attends to 2P views with rows of unit length: GCN(h_p, A_p) and, of the masked target
    features, GCN(h'_p, masked A_p).

    Args:
        target: type of the nodes that are embedded.
        widths: node type -> width of its features, of the target and of every type between a path's ends.
        paths: node types along each meta-path.
        hidden: width of the projected features.
        embedding_dim: width of the embeddings.
        dropout: everywhere, in [0, 1).
        target_projection: one projection of the target's features for all paths, or "per-path" (the authors' Aminer), which (N, P, D)
            features ask for; the coarse embedding then takes the mean of the P.
        context: whether h_p has the contexts; without, h_p = ELU(h_target).
        masked_dropout: whether the masked features' projection has dropout, and contexts a draw of their own there; the authors' DBLP
            branch has neither.

    Attributes:
        inputs: the sample keys that it takes.

    Raises:
        ValueError: if a number is out of range, or a type has no width.
    """

    inputs = ("views", "nodes")

    def __init__(
        self,
        target: str,
        widths: Mapping[str, int],
        paths: Sequence[Sequence[str]],
        hidden: int = 64,
        embedding_dim: int = 64,
        dropout: float = 0.2,
        target_projection: TargetProjection = "shared",
        context: bool = True,
        masked_dropout: bool = True,
    ):
        super().__init__()
        check_sizes(hidden, embedding_dim, dropout)
        if target_projection not in ("shared", "per-path"):
            raise ValueError(f'target_projection is "shared" or "per-path"; found "{target_projection}"')
        if not paths:
            raise ValueError("paths has at least one meta-path")
        self.target, self.embedding_dim, self.context, self.masked_dropout = target, embedding_dim, context, masked_dropout
        self.paths = tuple(tuple(path) for path in paths)
        between = [kind for path in self.paths for kind in path[1:-1]] if context else []
        absent = [kind for kind in (target, *between) if kind not in widths]
        if absent:
            raise ValueError(f"widths has no entry for {', '.join(dict.fromkeys(absent))}; it has {', '.join(widths)}")
        self.types = tuple(kind for kind in dict.fromkeys(between) if kind != target)
        self.per_path = target_projection == "per-path"
        copies = len(self.paths) if self.per_path else 1
        self.target_projections = nn.ModuleList(nn.Linear(widths[target], hidden) for _ in range(copies))
        self.projections = nn.ModuleList(nn.Linear(widths[kind], hidden) for kind in self.types)
        self.aggregations = nn.ModuleList(nn.Linear(hidden, hidden, bias=False) for _ in between)
        self.dropout = nn.Dropout(dropout)
        self.gcn = SharedGCN(hidden, embedding_dim, dropout)
        self.attention = ViewAttention(embedding_dim, dropout)

    def forward(self, views: MetaPathViews, nodes: Tensor | None = None) -> Embeddings:
        """Coarse and fine embeddings (N, embedding_dim), or those of `nodes` (n,) long."""
        coarse, fine = self.encode_views(views)
        return Embeddings(coarse, fine) if nodes is None else Embeddings(coarse[nodes], fine[nodes])

    def encode_views(self, views: MetaPathViews) -> Embeddings:
        """Coarse and fine embeddings (N, embedding_dim) of every target node."""
        hidden = self._target(views.features[self.target], self.dropout)
        coarse = self.gcn(torch.stack(hidden).mean(dim=0) if self.per_path else hidden[0], views.coarse)
        return Embeddings(coarse, self.attention(self._fine_views(views, hidden)))

    def embed(self, views: MetaPathViews, nodes: Tensor | None = None) -> Tensor:
        """The fine embedding z, which is what the method hands on: (N, embedding_dim), or (n, embedding_dim) of `nodes`."""
        fine: Tensor = self.attention(self._fine_views(views, self._target(views.features[self.target], self.dropout)))
        return fine if nodes is None else fine[nodes]

    def view_weights(self, views: MetaPathViews) -> dict[str, float]:
        """How much attention each view gets; "NAME" is a path's plain view, "NAME masked" its masked one."""
        fine = self._fine_views(views, self._target(views.features[self.target], self.dropout))
        names = [name for path in views.paths for name in (path.name, f"{path.name} masked")]
        return dict(zip(names, self.attention.weights(fine).tolist(), strict=True))

    def _target(self, features: Matrix, dropout: nn.Module) -> list[Tensor]:
        """Projected target features, one for all paths or one a path."""
        parts = features.unbind(dim=1) if isinstance(features, Tensor) and features.ndim == 3 else [features] * len(self.target_projections)
        if len(parts) != len(self.target_projections):
            raise ValueError(
                f"features of {self.target} are {tuple(features.shape)}, {len(parts)} a node; set target_projection to per-path and give "
                f"as many as the {len(self.paths)} meta-paths"
            )
        return [functional.elu(dropout(projected(part, layer))) for part, layer in zip(parts, self.target_projections, strict=True)]

    def _fine_views(self, views: MetaPathViews, hidden: list[Tensor]) -> list[Tensor]:
        """2P views (N, embedding_dim) with rows of unit length: plain and masked of each path in turn."""
        found = tuple(path.types for path in views.paths)
        if found != self.paths:
            raise ValueError(f"the encoder was made for the meta-paths {self.paths}; the views are of {found}")
        masked = self._target(views.masked_features, self.dropout if self.masked_dropout else nn.Identity())
        context = self._contexts(views, hidden) if self.context else [[] for _ in views.paths]
        fine = []
        for number, path in enumerate(views.paths):
            own = number if self.per_path else 0
            drawn = [self.dropout(term) for term in context[number]]
            again = [self.dropout(term) for term in context[number]] if self.masked_dropout else drawn
            for base, terms, adjacency in ((hidden[own], drawn, path.adjacency), (masked[own], again, path.masked)):
                h = functional.elu(sum(terms, base))
                fine.append(functional.normalize(self.gcn(h, adjacency), dim=1))
        return fine

    def _contexts(self, views: MetaPathViews, hidden: list[Tensor]) -> list[list[Tensor]]:
        """Each path's context terms (N, hidden), one for each node between its ends, before dropout."""
        reached = {
            kind: functional.elu(self.dropout(projected(views.features[kind], layer)))
            for kind, layer in zip(self.types, self.projections, strict=True)
        }
        reached[self.target] = torch.stack(hidden).mean(dim=0) if self.per_path else hidden[0]
        layers = iter(self.aggregations)
        return [[next(layers)(table @ reached[kind]) for kind, table in path.contexts] for path in views.paths]


def projected(x: Matrix, layer: nn.Module) -> Tensor:
    """A linear layer's output, for sparse x too."""
    if isinstance(x, Propagation):
        return x @ layer.weight.T + layer.bias  # type: ignore[operator]
    found: Tensor = layer(x)
    return found


def check_sizes(hidden: int, embedding_dim: int, dropout: float) -> None:
    """Raise ValueError for sizes below 1, or dropout out of [0, 1)."""
    for name, size in (("hidden", hidden), ("embedding_dim", embedding_dim)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1; found {size}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1; found {dropout}")
