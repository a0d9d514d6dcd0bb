"""The objective: classify landmarks by cosine with a margin, and so learn descriptors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from graftwork import INPUTS, Batch, DataError, Dataset, InterfaceError, Loss, Objective
from graftwork.interfaces import Backbone, Embedder, embed
from graftwork_google_landmarks.checks import at_least
from graftwork_google_landmarks.crops import random_crops
from graftwork_google_landmarks.margins import adacos_scale, arcface_cosines, cosface_cosines, cosines

__all__ = ["ArcFaceClassification"]

MARGINS = {"arcface": 0.1, "cosface": 0.4, "adacos": 0.0}
SCALES = {"arcface": math.sqrt(2048), "cosface": 30.0}


class ArcFaceClassification(Objective):
    """Cross-entropy over scaled cosines with a margin at the label: ArcFace (Deng et al., 2019, https://arxiv.org/abs/1801.07698).

    The class weights (C, D) belong to the objective and are trained with the model; what is handed on is the model alone. With the
    defaults it is DELG's loss, with which the paper's baseline was trained; the 2019 winners take margin 0.3 and scale 30. Logs the
    batch's accuracy without the margin, the mean cosine to the right class and the scale.

    Args:
        loss: "arcface" adds the margin to the angle, "cosface" takes it off the cosine, "adacos" has none and adapts the scale.
        margin: m; by default 0.1 radians for arcface, 0.4 for cosface.
        scale: s; by default sqrt(2048) for arcface, 30 for cosface. adacos starts at sqrt(2) log(C - 1).
        learn_scale: whether s is learned; DELG keeps it.
        label_smoothing: share of the target that is spread evenly over all classes.
        freeze_batch_norm: keep the model's batch norm on its stored statistics while training, as the 2019 winners do with a
            pretrained backbone.
        random_crop: side in pixels of a random crop that each image is replaced by while training, as DELG does with 321; none leaves
            images whole.
        num_classes: C; by default the number of the data set's classes.

    Raises:
        ValueError: if a parameter is out of range.
        InterfaceError: in setup, if the model is neither an Embedder nor a Backbone.
        DataError: in setup, if the number of classes is not known; while training, if a label has no class. On an accelerator only the
            first batch is looked at.
    """

    keys = {"train": (INPUTS, "label")}
    needs = nn.Module

    def __init__(
        self,
        loss: Literal["arcface", "cosface", "adacos"] = "arcface",
        margin: Annotated[float, Field(ge=0, lt=math.pi)] | None = None,
        scale: Annotated[float, Field(gt=0)] | None = None,
        learn_scale: bool = False,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        freeze_batch_norm: bool = False,
        random_crop: Annotated[int, Field(ge=1)] | None = None,
        num_classes: Annotated[int, Field(ge=2)] | None = None,
    ):
        super().__init__()
        if loss not in MARGINS:
            raise ValueError(f'loss is one of {", ".join(MARGINS)}; found "{loss}"')
        if margin is not None and not 0 <= margin < math.pi:
            raise ValueError(f"margin is at least 0 and below pi; found {margin}")
        if scale is not None and not scale > 0:
            raise ValueError(f"scale is above 0; found {scale}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is in [0, 1); found {label_smoothing}")
        at_least(1, random_crop=random_crop)
        at_least(2, num_classes=num_classes)
        if loss == "adacos" and (margin or scale is not None or learn_scale):
            raise ValueError("adacos has no margin and finds its scale by itself: leave out margin, scale and learn_scale")
        self.loss, self.margin = loss, MARGINS[loss] if margin is None else margin
        self.label_smoothing, self.freeze_batch_norm = label_smoothing, freeze_batch_norm
        self.random_crop, self.num_classes = random_crop, num_classes
        start = torch.tensor(float(scale if scale is not None else SCALES.get(loss, 1.0)))
        self.scale: Tensor
        if learn_scale:
            self.scale = nn.Parameter(start)
        else:
            self.register_buffer("scale", start)
        self.weight: nn.Parameter | None = None
        self._looked = False

    def setup(self, model: Any, data: Dataset) -> None:
        """Build the class weights, Glorot uniform."""
        if isinstance(model, Embedder):
            width = model.embedding_dim
        elif isinstance(model, Backbone):
            width = model.num_features
        else:
            raise InterfaceError(
                f"ArcFaceClassification needs a model that offers Embedder or Backbone; {type(model).__name__} offers neither"
            )
        classes = self.num_classes or len(data.info.classes)
        if classes < 2:
            raise DataError(f"the data set names {classes} classes: give num_classes")
        self.weight = nn.Parameter(torch.empty(classes, width))
        nn.init.xavier_uniform_(self.weight)
        if self.loss == "adacos":
            self.scale.fill_(math.sqrt(2) * math.log(max(classes - 1, 2)))

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """Embed the batch and classify it."""
        if self.freeze_batch_norm and self.training:
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.training = False
        batch = batches["train"]
        if self.random_crop is not None and self.training:
            batch = {**batch, "image": random_crops(batch["image"], self.random_crop)}
        return self.classification_loss(embed(model, batch), batch["label"])

    def classification_loss(self, embeddings: Tensor, labels: Tensor) -> Loss:
        """The loss of embeddings (B, D), of any length, with labels (B,)."""
        if self.weight is None:
            raise RuntimeError("setup has not been called: there are no class weights")
        self._check(labels)
        cosine = cosines(embeddings, self.weight)
        if self.loss == "adacos" and self.training:
            self.scale.copy_(adacos_scale(cosine, labels, self.scale))
        moved = {"arcface": arcface_cosines, "cosface": cosface_cosines}
        margined = moved[self.loss](cosine, labels, self.margin) if self.loss in moved else cosine
        scale = self.scale if self.scale.requires_grad else self.scale.clone()  # adacos writes into its own before the next step
        total = cross_entropy(scale * margined, labels, label_smoothing=self.label_smoothing)
        with torch.no_grad():
            parts = {
                "accuracy": (cosine.argmax(dim=1) == labels).float().mean(),
                "cosine": cosine.gather(1, labels[:, None]).mean(),
                "scale": self.scale.detach().clone(),
            }
        return Loss(total, parts)

    def _check(self, labels: Tensor) -> None:
        """Always on the CPU, where it is free; elsewhere, where it stalls, only once."""
        assert self.weight is not None
        first, self._looked = not self._looked, True
        if (first or labels.device.type == "cpu") and (int(labels.min()) < 0 or int(labels.max()) >= len(self.weight)):
            raise DataError(f"labels {int(labels.min())} to {int(labels.max())} do not fit {len(self.weight)} classes")
