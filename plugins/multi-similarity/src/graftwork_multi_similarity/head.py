"""An embedding head on a backbone, the model that joins the two, and the objective that trains them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from graftwork import INPUTS, Batch, Dataset, InterfaceError, Loss, Objective
from graftwork.interfaces import Backbone, Embedder, embed, input_keys
from graftwork.kinds.objective import MakeOptimizer, parameter_groups
from graftwork_multi_similarity.pairs import unit_length

__all__ = ["BackboneRate", "EmbeddingDim", "EmbeddingHead", "EmbeddingModel", "EmbeddingObjective", "FreezeBatchNorm"]

EmbeddingDim = Annotated[int, Field(ge=1, description="width of the embedding head; a model that embeds already gets no head")]
FreezeBatchNorm = Annotated[bool, Field(description="keep batch norm on its stored statistics while training, as the authors do")]
BackboneRate = Annotated[float, Field(gt=0, description="the backbone's learning rate as a multiple of the head's")]


class EmbeddingHead(nn.Module):
    """One linear layer onto the unit sphere (Wang et al., 2019, section 5.1).

    The weights are Kaiming normal by fan-out, std sqrt(2 / embedding_dim), and the bias is 0, as in the authors' code.

    Args:
        in_features: width of the pooled features.
        embedding_dim: width of the embedding.
    """

    def __init__(self, in_features: int, embedding_dim: int):
        super().__init__()
        self.projection = nn.Linear(in_features, embedding_dim)
        nn.init.kaiming_normal_(self.projection.weight, mode="fan_out")
        nn.init.zeros_(self.projection.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_features) to (B, embedding_dim) of unit length, in at least float32."""
        projected = self.projection(features)
        with torch.autocast(projected.device.type, enabled=False):
            return unit_length(projected)


class EmbeddingModel(nn.Module):
    """A backbone with its embedding head: what training hands on. It is an Embedder, and a Backbone whose head embeds.

    Args:
        backbone: gives the pooled features.
        head: from these to the embedding.

    Attributes:
        embedding_dim: width of the embedding.
        num_features: width of the pooled features.
    """

    def __init__(self, backbone: nn.Module, head: EmbeddingHead):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.inputs = input_keys(backbone)
        self.embedding_dim = head.projection.out_features
        self.num_features = head.projection.in_features

    def forward_features(self, *inputs: Tensor) -> Tensor:
        """The backbone's unpooled features."""
        return self.backbone.forward_features(*inputs)  # type: ignore[operator, no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Unpooled features to the embedding (B, embedding_dim), or only pooled, (B, num_features)."""
        pooled = self.backbone.forward_head(x, pre_logits=True)  # type: ignore[operator]
        return pooled if pre_logits else self.head(pooled)

    def embed(self, *inputs: Tensor) -> Tensor:
        """The backbone's inputs to (B, embedding_dim) of unit length."""
        return self.forward_head(self.forward_features(*inputs))

    def forward(self, *inputs: Tensor) -> Tensor:
        """As `embed`."""
        return self.embed(*inputs)


class EmbeddingObjective(Objective):
    """Trains embeddings from labels. It owns the embedding head when its model is a Backbone; an Embedder needs none.

    Subclasses give `embedding_loss`.

    Args:
        embedding_dim: width of the head.
        freeze_batch_norm: whether batch norm stays in eval mode while training; its scale and shift are trained all the same.
        backbone_lr_mul: the backbone's learning rate as a multiple of the head's.

    Raises:
        ValueError: if a parameter is out of range.
        InterfaceError: in setup, if the model is neither a Backbone nor an Embedder, or a rate is asked for a backbone that is none.
    """

    keys = {"train": (INPUTS, "label")}
    needs = nn.Module

    def __init__(self, embedding_dim: int = 512, freeze_batch_norm: bool = True, backbone_lr_mul: float = 1.0):
        super().__init__()
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim is at least 1; found {embedding_dim}")
        if not backbone_lr_mul > 0:
            raise ValueError(f"backbone_lr_mul is above 0; found {backbone_lr_mul}: to freeze the backbone, turn off its requires_grad")
        self.embedding_dim, self.freeze_batch_norm, self.backbone_lr_mul = embedding_dim, freeze_batch_norm, backbone_lr_mul
        self.head: EmbeddingHead | None = None
        self._looked = False

    def setup(self, model: Any, data: Dataset) -> None:
        """Build the head, where the model needs one."""
        name = type(model).__name__
        if isinstance(model, Embedder):
            if self.backbone_lr_mul != 1:
                raise InterfaceError(
                    f"backbone_lr_mul sets a backbone's rate against its head's; {name} embeds by itself and gets no head: leave it at 1"
                )
            self.embedding_dim = model.embedding_dim
        elif isinstance(model, Backbone):
            self.head = EmbeddingHead(model.num_features, self.embedding_dim)
        else:
            raise InterfaceError(f"{type(self).__name__} needs a model that offers Backbone or Embedder; {name} offers neither")

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """Embed the batch and weigh its pairs."""
        if self.freeze_batch_norm and self.training:
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.training = False
        features = embed(model, batches["train"])
        return self.embedding_loss(features if self.head is None else self.head(features), batches["train"]["label"])

    def embedding_loss(self, embeddings: Tensor, labels: Tensor) -> Loss:
        """The loss of embeddings (m, d) with labels (m,)."""
        raise NotImplementedError(f"{type(self).__name__} defines no embedding_loss")

    def optimizers(self, model: Any, make: MakeOptimizer) -> Optimizer:
        """One over the model, its rates times `backbone_lr_mul`, and the head."""
        groups = parameter_groups(model, make)
        if self.backbone_lr_mul != 1:
            rate = make.lr  # type: ignore[attr-defined]
            groups = [{**group, "lr": group.get("lr", rate) * self.backbone_lr_mul} for group in groups]
        return make([*groups, *parameter_groups(self, make)])

    def export(self, model: Any) -> Any:
        """The backbone joined with its head; a model that embeds by itself as it is."""
        return model if self.head is None else EmbeddingModel(model, self.head)

    def looks(self, embeddings: Tensor) -> bool:
        """Whether to look at the values of this batch: always on the CPU, where that is free; elsewhere, where it stalls, only once."""
        first, self._looked = not self._looked, True
        return first or embeddings.device.type == "cpu"
