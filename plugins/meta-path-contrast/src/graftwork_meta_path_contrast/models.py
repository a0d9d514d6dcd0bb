"""What is registered as models: the encoder sized by a dataset, and two baselines to hold it against."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from graftwork import DataError, Dataset
from graftwork_meta_path_contrast.encoder import Embeddings, MetaPathEncoder, SharedGCN, TargetProjection, check_sizes, projected
from graftwork_meta_path_contrast.propagation import Propagation
from graftwork_meta_path_contrast.views import MetaPathViews

__all__ = ["CoarseGraphEncoder", "NodeFeatures", "coarse_graph_encoder", "meta_path_encoder", "views_of"]

Width = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


def views_of(data: Dataset) -> MetaPathViews:
    """The `MetaPathViews` that a dataset's samples hold.

    Raises:
        DataError: if they hold none.
    """
    sample: Any = next((samples[0] for samples in data.values() if len(samples)), {})
    if not isinstance(sample.get("views"), MetaPathViews):
        raise DataError(f"the samples have {', '.join(sample) or 'nothing'} and no views: wrap the dataset in meta-path-views")
    views: MetaPathViews = sample["views"]
    return views


def meta_path_encoder(
    data: Dataset,
    hidden: Width = 64,
    embedding_dim: Width = 64,
    dropout: Dropout = 0.2,
    target_projection: TargetProjection | None = None,
    context: bool = True,
    masked_dropout: bool = True,
) -> MetaPathEncoder:
    """A `MetaPathEncoder` for a dataset of meta-path views.

    Args:
        data: `meta-path-views`; says which types there are, how wide their features are, and which meta-paths.
        hidden: width of the projected features.
        embedding_dim: width of the embeddings.
        dropout: everywhere.
        target_projection: one projection of the target's features for all paths, or one a path; by default one a path where each path has
            target features of its own.
        context: whether what lies along meta-paths is added; without, only which nodes they join counts.
        masked_dropout: whether the masked features' projection has dropout (the authors' DBLP branch leaves it off).

    Raises:
        DataError: if the dataset has no views.
    """
    views = views_of(data)
    if target_projection is None:
        target_projection = "per-path" if views.features[views.target].ndim == 3 else "shared"
    paths = [path.types for path in views.paths]
    return MetaPathEncoder(views.target, views.widths, paths, hidden, embedding_dim, dropout, target_projection, context, masked_dropout)


def coarse_graph_encoder(data: Dataset, hidden: Width = 64, embedding_dim: Width = 64, dropout: Dropout = 0.2) -> CoarseGraphEncoder:
    """A `CoarseGraphEncoder` for a dataset of meta-path views.

    Args:
        data: `meta-path-views`.
        hidden: width of the projected features.
        embedding_dim: width of the embeddings.
        dropout: everywhere.

    Raises:
        DataError: if the dataset has no views.
    """
    views = views_of(data)
    return CoarseGraphEncoder(views.target, views.widths[views.target], hidden, embedding_dim, dropout)


class CoarseGraphEncoder(nn.Module):
    """A GCN on the mean of the meta-path graphs; its second view has masked features and masked edges.

    The baseline without contexts, attention, or paths apart: what is contrasted is a graph with its own corruption, as in graph
    contrastive learning on one type of node (Zhu et al., GRACE, https://arxiv.org/abs/2006.04131).

    Args:
        target: type of the nodes.
        width: of their features.
        hidden: width of the projected features.
        embedding_dim: width of the embeddings.
        dropout: everywhere, in [0, 1).

    Raises:
        ValueError: if a number is out of range.
    """

    inputs = ("views", "nodes")

    def __init__(self, target: str, width: int, hidden: int = 64, embedding_dim: int = 64, dropout: float = 0.2):
        super().__init__()
        check_sizes(hidden, embedding_dim, dropout)
        self.target, self.embedding_dim = target, embedding_dim
        self.projection, self.dropout = nn.Linear(width, hidden), nn.Dropout(dropout)
        self.gcn = SharedGCN(hidden, embedding_dim, dropout)

    def forward(self, views: MetaPathViews, nodes: Tensor | None = None) -> Embeddings:
        """Plain and masked embeddings (N, embedding_dim), or those of `nodes` (n,) long."""
        plain, masked = self.encode_views(views)
        return Embeddings(plain, masked) if nodes is None else Embeddings(plain[nodes], masked[nodes])

    def encode_views(self, views: MetaPathViews) -> Embeddings:
        """Plain and masked embeddings (N, embedding_dim) of every target node."""
        plain = self.gcn(self._projected(views.features[self.target]), views.coarse)
        return Embeddings(plain, self.gcn(self._projected(views.masked_features), views.masked_coarse))

    def embed(self, views: MetaPathViews, nodes: Tensor | None = None) -> Tensor:
        """The plain embedding (N, embedding_dim), or (n, embedding_dim) of `nodes`."""
        plain: Tensor = self.gcn(self._projected(views.features[self.target]), views.coarse)
        return plain if nodes is None else plain[nodes]

    def _projected(self, features: Tensor | Propagation) -> Tensor:
        flat = features.mean(dim=1) if isinstance(features, Tensor) and features.ndim == 3 else features
        return functional.elu(self.dropout(projected(flat, self.projection)))


class NodeFeatures(nn.Module):
    """The target's own features as they stand in the views: what the graph adds shows against it. Features of several paths are joined."""

    inputs = ("views", "nodes")

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.zeros(()), persistent=False)  # says which device it is on

    @property
    def embedding_dim(self) -> int:
        """Not known before the data are seen: 0."""
        return 0

    def embed(self, views: MetaPathViews, nodes: Tensor | None = None) -> Tensor:
        """(N, D), or (n, D) of `nodes`."""
        features = views.features[views.target]
        dense = features.to_dense() if isinstance(features, Propagation) else features.flatten(1)
        return dense if nodes is None else dense[nodes]

    forward = embed
