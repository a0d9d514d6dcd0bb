"""Saliency targets: what a map explains. Each is a named, serialisable object; any function of the output serves as well.

as_target("predicted")                               # the largest logit
as_target(3), as_target([3, 1, 4])                   # a class for all images, or one each
as_target({"name": "caption", "word": "dog"})        # as YAML writes it
as_target(lambda output: output.logits[:, 3])        # any callable from output to scalar
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from graftwork.errors import ConfigError, nearest
from graftwork_grad_cam.targets.classes import ClassTarget, QValueTarget
from graftwork_grad_cam.targets.contract import FunctionTarget, Target, score_matrix
from graftwork_grad_cam.targets.dense import DetectionTarget, SegmentationTarget
from graftwork_grad_cam.targets.embeddings import EmbeddingTarget, ImageTextTarget
from graftwork_grad_cam.targets.language import CaptionTarget, VQAAnswerTarget

__all__ = [
    "TARGETS",
    "CaptionTarget",
    "ClassTarget",
    "DetectionTarget",
    "EmbeddingTarget",
    "FunctionTarget",
    "ImageTextTarget",
    "QValueTarget",
    "SegmentationTarget",
    "Target",
    "VQAAnswerTarget",
    "as_target",
    "score_matrix",
    "target_from_dict",
]

TARGETS: dict[str, type[Target]] = {
    kind.name: kind
    for kind in (
        ClassTarget,
        CaptionTarget,
        VQAAnswerTarget,
        SegmentationTarget,
        DetectionTarget,
        ImageTextTarget,
        EmbeddingTarget,
        QValueTarget,
    )
}
"""Name -> target; those that can be written down."""


def target_from_dict(spec: Mapping[str, Any]) -> Target:
    """A target from plain data: its `name` and its parameters.

    Raises:
        ConfigError: if there is no such target, or a parameter is unknown, missing or out of range.
    """
    name = spec.get("name")
    if name not in TARGETS:
        raise ConfigError(f'no target "{name}"{nearest(str(name), TARGETS)}; there are {", ".join(TARGETS)}')
    values = {key: tuple(value) if key in ("each", "texts", "positions") else value for key, value in spec.items() if key != "name"}
    try:
        return TARGETS[name](**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f'the target "{name}" cannot be made of {values}: {error}') from None


def as_target(spec: Any) -> Target:
    """A target from what a person writes.

    Args:
        spec: a Target; a class index, or one a sample; "predicted", "label" or "top-N"; the name of a target; a mapping with `name`
            and parameters; or a function from the model's output to scores.

    Raises:
        ConfigError: if it is none of these.
    """
    if isinstance(spec, Target):
        return spec
    if isinstance(spec, Mapping):
        return target_from_dict(spec)
    if isinstance(spec, str):
        if spec in TARGETS:
            return target_from_dict({"name": spec})
        try:
            return ClassTarget(spec)
        except ValueError as error:
            near = nearest(spec, [*TARGETS, "predicted", "label"])
            raise ConfigError(f"{error}{near}, or a target: {', '.join(TARGETS)}") from None
    if isinstance(spec, (int, Sequence, Tensor)):
        return ClassTarget(spec)
    if callable(spec):
        return FunctionTarget(spec)
    raise ConfigError(f"a target is a class, a name, a mapping or a function; found {spec!r}")
