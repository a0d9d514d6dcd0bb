"""The target of TorchRay's pointing game, for classifiers that give a map of logits: a class where the network sees it most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from graftwork.errors import ConfigError, InterfaceError
from graftwork.kinds.dataset import Batch
from graftwork_grad_cam.forward import logits_of
from graftwork_grad_cam.targets import ClassTarget, Target, as_target
from graftwork_grad_cam.targets.classes import Indices, pick

__all__ = ["PointingTarget", "class_logits", "class_target", "resolve_target", "with_choice"]


def class_logits(output: Any) -> Tensor:
    """(B, C) logits of a classifier's output; those of a fully convolutional one, (B, C, h, w), averaged over positions.

    Raises:
        InterfaceError: if there are none.
    """
    logits = logits_of(output)
    if logits.dim() not in (2, 4):
        raise InterfaceError(f"class logits are (batch, class), or (batch, class, h, w); the model gives {tuple(logits.shape)}")
    return logits.mean(dim=(2, 3)) if logits.dim() == 4 else logits


@dataclass(frozen=True)
class PointingTarget(Target):
    """A class of a fully convolutional classifier, its logits weighed over positions by their softmax.

    The weights are held fixed, so that what goes backward is exp(logit), normalised to sum 1 for each class, as in TorchRay's pointing
    game. On (B, C) logits it is the class's logit.

    Args:
        classes: "predicted" (by the mean logit), "label", an index, or indices (B,) or (B, T).
    """

    name: ClassVar[str] = "pointing"
    classes: str | Indices = "predicted"

    def __post_init__(self) -> None:
        ClassTarget(self.classes)

    @property
    def keys(self) -> tuple[str, ...]:  # type: ignore[override]
        """("label",) when that is what it asks for."""
        return ClassTarget(self.classes).keys

    def prepare(self, model: nn.Module, batch: Mapping[str, Any]) -> Batch:
        """Bind what does not depend on the output."""
        return ClassTarget(self.classes).prepare(model, batch)

    def choice(self, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """(B, T) classes."""
        return ClassTarget(self.classes).choice(class_logits(output), batch)

    def score(self, output: Any, batch: Mapping[str, Any]) -> Tensor:
        """(B, T) weighted logits."""
        logits, chosen = logits_of(output), self.choice(output, batch)
        flat = logits.flatten(2) if logits.dim() == 4 else logits.unsqueeze(2)
        weights = flat.detach().softmax(dim=2)
        return pick((weights * flat).sum(dim=2), chosen, "class")


def class_target(output: Any, indices: Tensor) -> Target:
    """The target of classes (B, T) that fits what the model gives: (B, C) logits, or a map of them."""
    return PointingTarget(indices) if logits_of(output).dim() == 4 else ClassTarget(indices)


def with_choice(target: Target, indices: Tensor) -> Target:
    """A target of the same kind that asks for given indices (B, T), whatever it chose by itself.

    Raises:
        InterfaceError: if it is no target of one of a numbered few.
    """
    held = {field.name for field in fields(target)}  # type: ignore[arg-type]
    name = next((each for each in ("classes", "action") if each in held), None)
    if name is None:
        raise InterfaceError(f'the target "{target.name}" chooses no class')
    return replace(target, **{name: indices}, **({"each": None} if "each" in held else {}))  # type: ignore[type-var]


def resolve_target(spec: Any) -> Target:
    """What `graftwork_grad_cam.targets.as_target` takes, and the target `pointing`.

    Raises:
        ConfigError: if it is none of these.
    """
    if spec == PointingTarget.name if isinstance(spec, str) else isinstance(spec, Mapping) and spec.get("name") == PointingTarget.name:
        settings = {} if isinstance(spec, str) else {key: value for key, value in spec.items() if key != "name"}
        try:
            return PointingTarget(**settings)
        except (TypeError, ValueError) as error:
            raise ConfigError(f'the target "pointing" cannot be made of {settings}: {error}') from None
    return as_target(spec)
