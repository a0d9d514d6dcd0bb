"""Which layers to combine: the last one at each resolution, or blocks spread over a network of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from graftwork.errors import InterfaceError
from graftwork_grad_cam.layers import find_layer, map_layers
from graftwork_grad_cam.targets import Target

__all__ = ["combination_layers"]

TOKEN_LAYERS = 4
"""How many blocks of a network of tokens are combined."""


def combination_layers(model: nn.Module, batch: Mapping[str, Any], target: Target) -> list[str]:
    """The layers that are combined, first to last.

    For convolutional networks, the last layer before each change of resolution, pooling left out: VGG-16's `features.3`, 8, 15, 22, 29. A
    ResNet's are `layer1` to `layer4`, as in the authors' tables, so that its stem is left out; so it is for networks that call their
    parts `stages`. For networks of tokens, four blocks spread evenly, the last one as `find_layer` gives it.

    One sample is traced. In a loop, call it once and pass the names on.

    Args:
        model: in which layers are sought.
        batch: with the target's choices bound to it.
        target: from output to score.

    Raises:
        InterfaceError: if no layer keeps positions.
    """
    stages = _named_stages(model)
    if stages:
        return stages
    last = find_layer(model, batch, target)
    maps = dict(map_layers(model, batch, target))
    if last in maps:
        by_size = {size: name for name, size in maps.items()}  # the last of each size stays
        by_size[maps[last]] = last
        found = [name for name in maps if name in by_size.values()]
        return found[: found.index(last) + 1]
    return _blocks(model, last)


def _named_stages(model: nn.Module) -> list[str]:
    """`layer1` ... of torchvision's and timm's ResNets, `stages.0` ... of transformers', wherever they stand in the model."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        numbered = [f"layer{number}" for number in range(1, 9) if hasattr(module, f"layer{number}")]
        if len(numbered) > 1:
            return [prefix + each for each in numbered]
        stages = getattr(module, "stages", None)
        if isinstance(stages, (nn.ModuleList, nn.Sequential)) and len(stages) > 1:
            return [f"{prefix}stages.{index}" for index in range(len(stages))]
    return []


def _blocks(model: nn.Module, last: str) -> list[str]:
    """Four blocks of the list to which the last layer belongs; that layer stands for its block."""
    for parent_name, parent in model.named_modules():
        prefix = f"{parent_name}." if parent_name else ""
        children = [name for name, _ in parent.named_children()]
        inside = next((child for child in children if last == f"{prefix}{child}" or last.startswith(f"{prefix}{child}.")), None)
        if inside is not None and inside.isdigit() and len(children) > 1:
            step = len(children) / TOKEN_LAYERS
            chosen = sorted({max(1, round(step * (index + 1))) - 1 for index in range(TOKEN_LAYERS)})
            return [*(f"{prefix}{children[index]}" for index in chosen if children[index] != inside), last]
    raise InterfaceError(f'no layers to combine are found beside "{last}": name them')
