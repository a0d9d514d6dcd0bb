"""What training hands on: the encoder with its projection and the weights of its negatives."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork_meta_path_contrast.contrast import PairWeights
from graftwork_meta_path_contrast.views import MetaPathViews

__all__ = ["Anchor", "ContrastedEncoder", "Projection", "TwoViewEncoder"]

Anchor: TypeAlias = Literal["coarse", "fine"]


@runtime_checkable
class TwoViewEncoder(Protocol):
    """A model of two views of the same nodes: `encode_views(views)` gives both, each (N, embedding_dim)."""

    embedding_dim: int

    def encode_views(self, views: Any, /) -> tuple[Tensor, Tensor]:
        """Both views of every node, (N, embedding_dim)."""
        ...

    def embed(self, *inputs: Any) -> Tensor:
        """What is handed on."""
        ...


class Projection(nn.Module):
    """z -> tanh(W z + b) at unit length; the space in which views are contrasted.

    Args:
        in_features: width of z.
        out_features: width of the projection.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, z: Tensor) -> Tensor:
        """(N, in_features) to (N, out_features), rows of unit length."""
        return functional.normalize(self.linear(z).tanh(), dim=1)


class ContrastedEncoder(nn.Module):
    """An encoder after contrastive training. It embeds as the encoder does, without the projection, and knows how it weighed negatives.

    Args:
        encoder: gives two views.
        projection: into the space of the contrast.
        weighting: a module whose `bind(anchors, keys)` gives `PairWeights`; None weighs all pairs 1.
        anchor: the view that the anchors are of; keys are of the other.
    """

    def __init__(self, encoder: Any, projection: Projection, weighting: Any = None, anchor: Anchor = "coarse"):
        super().__init__()
        self.encoder, self.projection, self.weighting, self.anchor = encoder, projection, weighting, anchor

    @property
    def inputs(self) -> tuple[str, ...]:
        """The encoder's."""
        return tuple(self.encoder.inputs)

    @property
    def embedding_dim(self) -> int:
        """The encoder's."""
        return int(self.encoder.embedding_dim)

    def forward(self, *inputs: Any) -> Tensor:
        """As `embed`."""
        return self.embed(*inputs)

    def embed(self, *inputs: Any) -> Tensor:
        """The encoder's embedding."""
        embedded: Tensor = self.encoder.embed(*inputs)
        return embedded

    def encode_views(self, views: MetaPathViews) -> tuple[Tensor, Tensor]:
        """The encoder's two views."""
        found: tuple[Tensor, Tensor] = self.encoder.encode_views(views)
        return found

    def pair_weights(self, views: MetaPathViews) -> PairWeights | None:
        """The weights of pairs of an anchor and a key among all N nodes; None where all are 1."""
        coarse, fine = (self.projection(z) for z in self.encode_views(views))
        if self.weighting is None:
            return None
        bound: PairWeights = self.weighting.bind(*((coarse, fine) if self.anchor == "coarse" else (fine, coarse)))
        return bound

    def negative_weights(self, views: MetaPathViews, nodes: Tensor) -> Tensor:
        """The weights (n, n) of pairs of `nodes` (n,) long, anchors in rows."""
        weights = self.pair_weights(views)
        if weights is None:
            return torch.ones(len(nodes), len(nodes), device=nodes.device)
        return weights.log_weights(nodes, nodes).exp()
