"""Objectives that most pipelines compare with: cross-entropy, least squares, distillation, InfoNCE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from graftwork.errors import DataError, InterfaceError
from graftwork.interfaces import DualEncoder, classify, device_of, input_keys
from graftwork.kinds.dataset import Batch, Dataset
from graftwork.kinds.evaluator import evaluating
from graftwork.kinds.objective import INPUTS, Loss, Objective
from graftwork.processes import count, gathered_rows

__all__ = ["CrossEntropy", "Distillation", "InfoNCE", "MeanSquaredError", "distillation_loss", "info_nce", "predict"]


Positive = Annotated[float, Field(gt=0)]


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), averaged over the batch (Hinton et al., 2015, section 2).

    Hinton's cross-entropy with soft targets differs from it by the teacher's entropy, which has no gradient. In float32.

    Args:
        student: (B, C) logits.
        teacher: (B, C) logits; no gradient flows into them.
        temperature: T > 0.

    Raises:
        ValueError: if the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape: they must share the classes")
    soft, target = ((logits.float() / temperature).log_softmax(dim=-1) for logits in (student, teacher.detach()))
    return temperature**2 * functional.kl_div(soft, target, reduction="batchmean", log_target=True)


def info_nce(queries: Tensor, keys: Tensor, temperature: float | Tensor = 0.07, first: int = 0) -> Tensor:
    """-log exp(s_ii / T) / sum_j exp(s_ij / T) over cosines s, averaged over i (van den Oord et al., 2018, eq. 4). In float32.

    Args:
        queries: (B, D).
        keys: (K, D), K >= B; row first + i is the positive of query i, the other rows its negatives.
        temperature: T > 0; a 0-d tensor may be learned.
        first: row of the first query's positive.

    Returns:
        0-d; log K when all similarities are equal.

    Raises:
        ValueError: if the shapes differ in width, or a query has no positive.
    """
    if queries.shape[1:] != keys.shape[1:] or not 0 <= first <= len(keys) - len(queries):
        raise ValueError(f"queries {tuple(queries.shape)} and keys {tuple(keys.shape)} differ in shape")
    with torch.autocast(queries.device.type, enabled=False):
        similarity = functional.normalize(queries.float(), dim=-1) @ functional.normalize(keys.float(), dim=-1).T
        return functional.cross_entropy(similarity / temperature, first + torch.arange(len(queries), device=queries.device))


def predict(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """A regression's output for a batch and its `target`, both float32 (B, D).

    Raises:
        DataError: if the two differ in shape.
    """
    output, target = (value.float().reshape(len(value), -1) for value in (classify(model, batch), batch["target"]))
    if output.shape != target.shape:
        raise DataError(f"{type(model).__name__} gives {tuple(output.shape)} where the targets are {tuple(target.shape)}")
    return output, target


class CrossEntropy(Objective):
    """Cross-entropy with the label, optionally smoothed (Szegedy et al., 2016, section 7).

    Args:
        label_smoothing: share of the target that is spread evenly over all classes.
    """

    keys = {"train": (INPUTS, "label")}
    needs = nn.Module

    def __init__(self, label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0):
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is in [0, 1); found {label_smoothing}")
        self.label_smoothing = label_smoothing

    def setup(self, model: Any, data: Dataset) -> None:
        """Raise InterfaceError if the dataset names more classes than the model has outputs."""
        known, offered = len(data.info.classes), getattr(model, "num_classes", None)
        if isinstance(offered, int) and known > offered:
            raise InterfaceError(f"the dataset has {known} classes, {type(model).__name__} only {offered} outputs: build it with {known}")

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The loss, and the batch's accuracy."""
        logits, label = classify(model, batches["train"]), batches["train"]["label"]
        loss = functional.cross_entropy(logits, label, label_smoothing=self.label_smoothing)
        return Loss(loss, {"accuracy": (logits.argmax(dim=-1) == label).float().mean()})


class MeanSquaredError(Objective):
    """Mean squared error of the model's output, (B,) or (B, D), against `target`."""

    keys = {"train": (INPUTS, "target")}
    needs = nn.Module

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The loss."""
        return Loss(functional.mse_loss(*predict(model, batches["train"])))


class Distillation(Objective):
    """alpha T^2 KL(teacher || student) + (1 - alpha) cross-entropy (Hinton et al., 2015).

    The teacher is asked in eval mode and without gradients and is left as it was. It is no submodule: neither the optimiser nor the
    state that is saved holds it. With alpha = 1 no label is read.

    Args:
        teacher: a model with the student's classes; it may take other inputs of the same samples.
        temperature: T, by which both logits are divided.
        alpha: weight of the teacher; the labels have the rest.
    """

    keys = {"train": (INPUTS,)}
    needs = nn.Module

    def __init__(self, teacher: nn.Module, temperature: Positive = 4.0, alpha: Annotated[float, Field(gt=0, le=1)] = 0.9):
        super().__init__()
        if temperature <= 0 or not 0 < alpha <= 1:
            raise ValueError(f"temperature is above 0 and alpha in (0, 1]; found {temperature} and {alpha}")
        self._teacher = (teacher,)  # in a tuple, so that it is no submodule
        self.temperature, self.alpha = temperature, alpha
        self.keys = {"train": (INPUTS, *input_keys(teacher), *(("label",) if alpha < 1 else ()))}

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The weighted loss, its terms, and how often student and teacher agree."""
        batch, (teacher,) = batches["train"], self._teacher
        student = classify(model, batch)
        if device_of(teacher) != student.device:
            teacher.to(student.device)
        with evaluating(teacher):
            target = classify(teacher, batch)
        soft = distillation_loss(student, target, self.temperature)
        parts = {"soft": soft, "agreement": (student.argmax(-1) == target.argmax(-1)).float().mean()}
        if self.alpha == 1:
            return Loss(soft, parts)
        hard = functional.cross_entropy(student, batch["label"])
        return Loss(self.alpha * soft + (1 - self.alpha) * hard, {**parts, "hard": hard})


class InfoNCE(Objective):
    """Mean of `info_nce` from image to text and back, with a learned temperature (Radford et al., 2021, figure 3).

    The negatives are the other pairs of the batch, of all processes' batches where there are several. A model's own `logit_scale`, as CLIP
    has it, is kept equal to the scale that is learned here.

    Args:
        temperature: at the start.
        learnable: whether log(1 / temperature) is learned, without weight decay.
        max_scale: bound on 1 / temperature, which is held there before each step; CLIP's is 100.
    """

    keys = {"train": ("image", "input_ids", "attention_mask")}
    needs = DualEncoder

    def __init__(self, temperature: Positive = 0.07, learnable: bool = True, max_scale: Positive = 100.0):
        super().__init__()
        if temperature <= 0 or temperature * max_scale < 1:
            raise ValueError(f"temperature is at least 1 / max_scale, {1 / max_scale:g}; found {temperature}")
        self.max_scale = max_scale
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learnable)

    def setup(self, model: Any, data: Dataset) -> None:
        """The model's own scale follows and is not trained itself."""
        scale = getattr(model, "logit_scale", None)
        if isinstance(scale, Tensor):
            scale.requires_grad_(False)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """The scale, if it is learned, without weight decay."""
        return [{"params": [self.log_scale], "weight_decay": 0.0}] if self.log_scale.requires_grad else []

    def forward(self, model: Any, batches: Mapping[str, Batch], progress: float) -> Loss:
        """The loss, and the temperature."""
        batch = batches["train"]
        if len(batch["image"]) * count() < 2:
            raise DataError("info-nce takes its negatives from the batch: batch_size must be at least 2")
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(self.max_scale))
            if isinstance(scale := getattr(model, "logit_scale", None), Tensor):
                scale.copy_(self.log_scale)
        images, texts = model.encode_image(batch["image"]), model.encode_text(batch["input_ids"], batch["attention_mask"])
        temperature = (-self.log_scale).exp()
        (all_images, first), (all_texts, _) = gathered_rows(images), gathered_rows(texts)
        loss = (info_nce(images, all_texts, temperature, first) + info_nce(texts, all_images, temperature, first)) / 2
        return Loss(loss, {"temperature": temperature})
