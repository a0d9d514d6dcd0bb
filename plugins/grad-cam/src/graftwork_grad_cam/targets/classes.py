"""Targets that are one of a numbered few: a class of a classifier, an action of a Q-network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from graftwork.errors import DataError, InterfaceError
from graftwork.kinds.dataset import Batch
from graftwork_grad_cam.forward import batch_length, image_key, logits_of
from graftwork_grad_cam.targets.contract import CHOSEN, Target

__all__ = ["ClassTarget", "Indices", "QValueTarget", "bind_indices", "pick"]

Indices: TypeAlias = int | Sequence[int] | Sequence[Sequence[int]] | Tensor
"""One index for all samples, one a sample (B,), or several a sample (B, T)."""

TOP = re.compile(r"top-([1-9]\d*)")


def bind_indices(indices: Indices, length: int, device: torch.device, noun: str) -> Tensor:
    """Indices as (B, T).

    Raises:
        DataError: if they are not as many as the samples.
    """
    found = torch.as_tensor(indices, dtype=torch.long, device=device)
    if found.dim() == 0:
        found = found.expand(length)
    if len(found) != length or found.dim() > 2:
        raise DataError(f"{tuple(found.shape)} {noun} indices are given for {length} samples: give one for all, one a sample, or (B, T)")
    return found if found.dim() == 2 else found.unsqueeze(1)


def pick(values: Tensor, indices: Tensor, noun: str) -> Tensor:
    """Values (B, C) at indices (B, T).

    Raises:
        InterfaceError: if an index is out of range; the number of classes is given.
    """
    count = values.shape[1]
    low, high = torch.stack(torch.aminmax(indices)).tolist()
    if low < 0 or high >= count:
        plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
        raise InterfaceError(f"{noun} {low if low < 0 else high} is asked for, but the model has {count} {plural}, 0 to {count - 1}")
    return values.gather(1, indices)


def _rows(output: Any, noun: str) -> Tensor:
    """The (B, C) logits of an output."""
    logits = logits_of(output)
    if logits.dim() == 1:
        logits = logits.unsqueeze(1)
    if logits.dim() != 2:
        raise InterfaceError(
            f"a target that is a {noun} reads (batch, {noun}) scores; the model gives {tuple(logits.shape)}: "
            "for pixels, boxes or words take the target segmentation, detection or caption"
        )
    return logits


@dataclass(frozen=True)
class ClassTarget(Target):
    """The logit of a class.

    Args:
        classes: "predicted" (the largest logit), "top-N" (a map for each of the N largest), "label" (of each sample), an index,
            or indices (B,) or (B, T).
        each: indices of which every sample gets a map each, in place of `classes`.

    Raises:
        ValueError: if `classes` is a word that means nothing, or `each` is empty.
    """

    name: ClassVar[str] = "class"
    classes: str | Indices = "predicted"
    each: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.classes, str) and self.classes not in ("predicted", "label") and not TOP.fullmatch(self.classes):
            raise ValueError(f'a class is "predicted", "top-N", "label" or an index; found "{self.classes}"')
        if self.each is not None and not len(self.each):
            raise ValueError("each is empty: name at least one class")

    @property
    def keys(self) -> tuple[str, ...]:  # type: ignore[override]
        """("label",) when that is what it asks for."""
        return ("label",) if self.each is None and isinstance(self.classes, str) and self.classes == "label" else ()

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> Batch:
        """Bind what does not depend on the output."""
        image = batch[image_key(model, batch)]
        if self.each is not None:
            chosen = torch.tensor(self.each, device=image.device).expand(len(image), -1)
        elif not isinstance(self.classes, str):
            chosen = bind_indices(self.classes, len(image), image.device, "class")
        elif self.classes == "label":
            if "label" not in batch:
                raise DataError(f'the target "label" reads the key label; the batch has {", ".join(batch)}')
            chosen = bind_indices(batch["label"], len(image), image.device, "class")
        else:
            return dict(batch)
        return {**batch, CHOSEN: chosen}

    def choice(self, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """(B, T) classes."""
        if CHOSEN in batch:
            return batch[CHOSEN]  # type: ignore[no-any-return]
        logits = _rows(output, "class").detach()
        wanted = TOP.fullmatch(str(self.classes))
        return logits.topk(min(int(wanted[1]) if wanted else 1, logits.shape[1]), dim=1).indices

    def score(self, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """(B, T) logits.

        Raises:
            InterfaceError: if there is no such class, or the output is not (B, classes).
        """
        return pick(_rows(output, "class"), self.choice(output, batch), "class")


@dataclass(frozen=True)
class QValueTarget(Target):
    """The value of an action: an entry of a Q-network's output (B, actions), or of its `q_values`.

    Args:
        action: "greedy" for the best one, an index, or one a sample.

    Raises:
        ValueError: if `action` is a word other than "greedy".
    """

    name: ClassVar[str] = "q-value"
    action: str | Indices = "greedy"

    def __post_init__(self) -> None:
        if isinstance(self.action, str) and self.action != "greedy":
            raise ValueError(f'an action is "greedy" or an index; found "{self.action}"')

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> Batch:
        """Bind a given action."""
        if isinstance(self.action, str):
            return dict(batch)
        device = batch[image_key(model, batch)].device
        return {**batch, CHOSEN: bind_indices(self.action, batch_length(model, batch), device, "action")}

    def choice(self, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """(B, T) actions."""
        return batch[CHOSEN] if CHOSEN in batch else self._values(output).detach().argmax(dim=1, keepdim=True)

    def score(self, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """(B, T) values.

        Raises:
            InterfaceError: if there is no such action.
        """
        return pick(self._values(output), self.choice(output, batch), "action")

    @staticmethod
    def _values(output: Any) -> Tensor:
        values = output.get("q_values") if isinstance(output, Mapping) else getattr(output, "q_values", None)
        return _rows(output if values is None else values, "action")
