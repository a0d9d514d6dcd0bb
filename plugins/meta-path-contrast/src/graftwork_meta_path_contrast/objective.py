"""The objectives: MEOW, AdaMEOW, and the prototype loss alone (Yu et al., arXiv:2212.13847, and the authors' code)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from graftwork import INPUTS, DataError, Dataset, InterfaceError, Loss, Objective
from graftwork.interfaces import embed
from graftwork.kinds.dataset import Batch
from graftwork_meta_path_contrast.clusterer import Clusterer
from graftwork_meta_path_contrast.clustering import Density
from graftwork_meta_path_contrast.contrast import WeightedInfoNCE, weighted_info_nce
from graftwork_meta_path_contrast.contrasted import Anchor, ContrastedEncoder, Projection, TwoViewEncoder
from graftwork_meta_path_contrast.models import views_of
from graftwork_meta_path_contrast.prototypes import prototype_loss
from graftwork_meta_path_contrast.weighting import ClusterWeighting, LearnedPairWeights, cluster_pair_weights

if TYPE_CHECKING:
    from graftwork.engine import Engine

__all__ = ["AdaMeow", "Meow", "PrototypeContrast"]

Temperature = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Clusters = Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)]
Seed = Annotated[int, Field(ge=0)]


class _Contrast(Objective):
    """What MEOW and AdaMEOW share: projection, sampled negatives, and stopping on the training loss."""

    keys = {"train": ("views",)}
    needs = TwoViewEncoder
    anchor: Anchor = "coarse"
    projection: Projection

    def __init__(
        self, temperature: float, projection_dim: int | None, patience: int | None, negatives: int | None, block_rows: int | None, seed: int
    ):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive; found {temperature}")
        for name, number in (
            ("projection_dim", projection_dim),
            ("patience", patience),
            ("negatives", negatives),
            ("block_rows", block_rows),
        ):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1; found {number}")
        self.temperature, self.projection_dim, self.patience = temperature, projection_dim, patience
        self.negatives, self.block_rows, self.seed = negatives, block_rows, seed
        self.steps, self.best, self.waited = 0, math.inf, 0

    def setup(self, model: Any, data: Dataset) -> None:
        """Build the projection."""
        nodes = views_of(data).num_nodes
        if self.negatives is not None and self.negatives > nodes:
            raise DataError(f"negatives are {self.negatives} of {nodes} nodes: ask for fewer, or leave negatives out")
        self.projection = Projection(model.embedding_dim, self.projection_dim or model.embedding_dim)

    def projected(self, model: Any, views: Any) -> tuple[Tensor, Tensor]:
        """Coarse and fine projections (N, projection_dim)."""
        coarse, fine = model.encode_views(views)
        return self.projection(coarse), self.projection(fine)

    def info_nce(self, anchors: Tensor, keys: Tensor, weights: Any, row_mean: bool = False) -> WeightedInfoNCE:
        """The weighted InfoNCE over all keys, or over as many as `negatives`, drawn anew each step."""
        columns = None
        if self.negatives is not None:
            generator = torch.Generator(keys.device).manual_seed((self.seed << 32) + self.steps)
            columns = torch.randperm(len(keys), generator=generator, device=keys.device)[: self.negatives]
        looks = keys.device.type == "cpu" or self.steps == 0
        found = weighted_info_nce(
            anchors, keys, weights, self.temperature, columns=columns, row_mean=row_mean, block_rows=self.block_rows, check=looks
        )
        self.steps += self.training
        return found

    def update(self, engine: Engine, batches: Mapping[str, Batch]) -> Loss:
        """One step; the last one if the loss has found no new minimum for `patience` steps (looking waits for the device)."""
        loss = super().update(engine, batches)
        if self.patience is not None:
            value = float(loss.total.detach())
            self.waited = 0 if value < self.best else self.waited + 1
            self.best = min(value, self.best)
            if self.waited >= self.patience:
                engine.stop()
        return loss

    def get_extra_state(self) -> Tensor:
        """Steps, least loss, and steps since: what sampling and stopping depend on."""
        return torch.tensor([self.steps, self.best, self.waited], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        steps, self.best, waited = state.tolist()
        self.steps, self.waited = int(steps), int(waited)

    def weighting(self) -> nn.Module | None:
        """The module that gives the weights after training; None where all are 1."""
        raise NotImplementedError

    def export(self, model: Any) -> ContrastedEncoder:
        """The encoder with its projection and weights; training it further goes on with the encoder alone."""
        encoder = model.encoder if isinstance(model, ContrastedEncoder) else model
        return ContrastedEncoder(encoder, self.projection, self.weighting(), self.anchor)


class Meow(_Contrast):
    """MEOW: contrast each node's coarse view (anchor) with the fine ones; a negative weighs as many clusterings as tell it from the anchor.

    loss = -mean_i log[ exp(c_i . f_i / tau) / sum_j w_ij exp(c_i . f_j / tau) ] + prototype_weight x prototype loss. At each step the fine
    projections are clustered by spherical k-means, once for each number of clusters; w_ij counts the clusterings in which i and j are
    apart, and is 0 for i itself, so the positive is not in the sum and the loss may be negative.

    Logs info, prototype and mean_weight.

    Args:
        temperature: tau; the authors' 0.4 on ACM, 0.9 on DBLP, Aminer and IMDB.
        clusters: numbers of clusters; the authors' 100 and 300 on ACM, up to 500 and 1200 on Aminer.
        prototype_weight: lambda; 0 leaves the prototypes out.
        weighted: whether negatives are weighed; without, the plain InfoNCE.
        density: what a cluster's concentration is made of: similarity as in the authors' code, or distance as in PCL.
        projection_dim: width of the projection; the embedding's by default.
        patience: stop when the training loss has found no new minimum for so many steps; none trains to the end.
        kmeans_iterations: of each start.
        kmeans_restarts: starts of k-means at each step.
        warm_start: start k-means once, from the last step's centroids, instead of anew.
        negatives: sum over so many keys, drawn anew each step, instead of over all: for graphs of more than about 20,000 nodes.
        block_rows: rows of the similarity matrix held at once; by default about 4 million entries.
        seed: of k-means and of the draws.

    Raises:
        ValueError: if a parameter is out of range.
        DataError: if there are more clusters or negatives than nodes, or, while training, all nodes share one cluster.
    """

    def __init__(
        self,
        temperature: Temperature = 0.4,
        clusters: Clusters = [100, 300],  # noqa: B006 - read only
        prototype_weight: Annotated[float, Field(ge=0)] = 1.0,
        weighted: bool = True,
        density: Density = "similarity",
        projection_dim: Count | None = None,
        patience: Count | None = 30,
        kmeans_iterations: Count = 20,
        kmeans_restarts: Count = 5,
        warm_start: bool = False,
        negatives: Count | None = None,
        block_rows: Count | None = None,
        seed: Seed = 0,
    ):
        super().__init__(temperature, projection_dim, patience, negatives, block_rows, seed)
        if prototype_weight < 0:
            raise ValueError(f"prototype_weight must be at least 0; found {prototype_weight}")
        self.prototype_weight, self.weighted, self.density = prototype_weight, weighted, density
        self.cluster = Clusterer(clusters, kmeans_iterations, kmeans_restarts, warm_start, seed)

    def setup(self, model: Any, data: Dataset) -> None:
        """Build the projection; there must be as many nodes as clusters."""
        super().setup(model, data)
        if self.weighted or self.prototype_weight:
            self.cluster.check(views_of(data).num_nodes)
            self.cluster.setup(self.projection.linear.out_features)

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The loss over all nodes of the graph."""
        coarse, fine = self.projected(model, batches["train"]["views"])
        clusterings = self.cluster(fine) if self.weighted or self.prototype_weight else []
        weights = cluster_pair_weights([one.assignments for one in clusterings]) if self.weighted else None
        info, mean_weight = self.info_nce(coarse, fine, weights)
        parts = {"info": info, "mean_weight": mean_weight}
        if not self.prototype_weight:
            return Loss(info, parts)
        prototype = prototype_loss(coarse, clusterings, self.temperature, self.density)
        return Loss(info + self.prototype_weight * prototype, {**parts, "prototype": prototype})

    def weighting(self) -> nn.Module | None:
        """k-means with these settings, or None."""
        if not self.weighted:
            return None
        return ClusterWeighting(self.cluster.clusters, self.cluster.iterations, self.cluster.restarts, self.seed)


class AdaMeow(_Contrast):
    """AdaMEOW: contrast each node's fine view (anchor) with the coarse ones; a small network learns what each pair weighs.

    loss = -mean_i log[ exp(f_i . c_i / tau) / sum_j w_ij exp(f_i . c_j / tau) ], w_ij = sigmoid(MLP(f_i + c_j)), where the sum is over all
    j, i too. Nothing in it holds the weights up: shrinking all of them lowers it. The authors count on a small step, weight decay and a
    fixed number of epochs; watch mean_weight, which is logged, or set `weight_norm`.

    Args:
        temperature: tau; the authors' 1 on ACM, 0.9 on DBLP, Aminer and IMDB.
        weighted: whether the network weighs pairs; without, the plain InfoNCE.
        weight_norm: "row-mean" divides each anchor's weights by their mean, so that shrinking all of them gains nothing. An addition of
            this project.
        hidden: units of the network.
        projection_dim: width of the projection; the embedding's by default, and 16 for the authors' Aminer.
        patience: stop when the training loss has found no new minimum for so many steps; the authors train AdaMEOW to the end.
        negatives: sum over so many keys, drawn anew each step, instead of over all.
        block_rows: rows of pairs held at once; by default about 4 million numbers.
        seed: of the draws.

    Raises:
        ValueError: if a parameter is out of range.
        DataError: if there are more negatives than nodes.
    """

    anchor = "fine"

    def __init__(
        self,
        temperature: Temperature = 1.0,
        weighted: bool = True,
        weight_norm: Literal["none", "row-mean"] = "none",
        hidden: Count = 16,
        projection_dim: Count | None = None,
        patience: Count | None = None,
        negatives: Count | None = None,
        block_rows: Count | None = None,
        seed: Seed = 0,
    ):
        super().__init__(temperature, projection_dim, patience, negatives, block_rows, seed)
        if weight_norm not in ("none", "row-mean"):
            raise ValueError(f'weight_norm is "none" or "row-mean"; found "{weight_norm}"')
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1; found {hidden}")
        self.weighted, self.row_mean, self.hidden = weighted, weight_norm == "row-mean", hidden

    def setup(self, model: Any, data: Dataset) -> None:
        """Build the projection and the network."""
        super().setup(model, data)
        self.pair_network = LearnedPairWeights(self.projection.linear.out_features, self.hidden) if self.weighted else None

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The loss over all nodes of the graph."""
        coarse, fine = self.projected(model, batches["train"]["views"])
        weights = self.pair_network.bind(fine, coarse) if self.pair_network is not None else None
        loss, mean_weight = self.info_nce(fine, coarse, weights, self.row_mean and self.weighted)
        return Loss(loss, {"mean_weight": mean_weight})

    def weighting(self) -> nn.Module | None:
        """The network, or None."""
        return self.pair_network


class PrototypeContrast(Objective):
    """The prototype loss alone, for any embeddings: draw each to the centre of its cluster and from the other centres (PCL, 2021).

    A model with two views (`TwoViewEncoder`) has its fine projections clustered and its coarse ones drawn; any other model that embeds has
    its embeddings clustered and drawn, batch by batch, so that batches must be large against the numbers of clusters.

    Args:
        temperature: the mean of the clusters' temperatures.
        clusters: numbers of clusters.
        density: what a cluster's concentration is made of: similarity as in MEOW's code, or distance as in PCL.
        projection_dim: width of a projection before the loss; none takes embeddings as they are, at unit length.
        kmeans_iterations: of each start.
        kmeans_restarts: starts of k-means at each step.
        warm_start: start k-means once, from the last step's centroids, instead of anew.
        seed: of k-means.

    Raises:
        ValueError: if a parameter is out of range.
        DataError: while training, if there are more clusters than samples in a batch.
    """

    keys = {"train": (INPUTS,)}
    needs = nn.Module

    def __init__(
        self,
        temperature: Temperature = 0.4,
        clusters: Clusters = [10, 20],  # noqa: B006 - read only
        density: Density = "similarity",
        projection_dim: Count | None = None,
        kmeans_iterations: Count = 20,
        kmeans_restarts: Count = 5,
        warm_start: bool = False,
        seed: Seed = 0,
    ):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be positive; found {temperature}")
        if projection_dim is not None and projection_dim < 1:
            raise ValueError(f"projection_dim must be at least 1; found {projection_dim}")
        self.temperature, self.density, self.projection_dim = temperature, density, projection_dim
        self.cluster = Clusterer(clusters, kmeans_iterations, kmeans_restarts, warm_start, seed)
        self.projection: Projection | None = None

    def setup(self, model: Any, data: Dataset) -> None:
        """Build the projection, if there is to be one."""
        if self.projection_dim is None and not self.cluster.warm_start:
            return
        width = getattr(model, "embedding_dim", None) or getattr(model, "num_features", None)
        if width is None:
            raise InterfaceError(
                f"{type(model).__name__} says neither embedding_dim nor num_features: leave projection_dim and warm_start out"
            )
        if self.projection_dim is not None:
            self.projection = Projection(int(width), self.projection_dim)
        self.cluster.setup(self.projection_dim or int(width))

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The loss of a batch."""
        batch = batches["train"]
        views = model.encode_views(batch["views"]) if isinstance(model, TwoViewEncoder) else (embed(model, batch),) * 2
        anchors, points = (functional.normalize(z, dim=1) if self.projection is None else self.projection(z) for z in views)
        self.cluster.check(len(points))
        loss = prototype_loss(anchors, self.cluster(points), self.temperature, self.density)
        return Loss(loss, {"prototype": loss})
