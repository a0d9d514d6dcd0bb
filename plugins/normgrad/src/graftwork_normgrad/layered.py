"""One saliency at several layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from graftwork.errors import InterfaceError
from graftwork_grad_cam.evidence import IMAGE
from graftwork_grad_cam.maps import SaliencyMaps
from graftwork_grad_cam.saliency import SaliencyMethod
from graftwork_normgrad.extract_aggregate import ExtractAggregate

__all__ = ["at_layers", "innermost", "maps_at_layers"]


def innermost(saliency: SaliencyMethod) -> SaliencyMethod:
    """The saliency that a chain of wrappers comes down to."""
    inner = getattr(saliency, "saliency", None)
    return innermost(inner) if isinstance(inner, SaliencyMethod) else saliency


def at_layers(saliency: SaliencyMethod, layers: str | Sequence[str]) -> SaliencyMethod:
    """The same saliency at another layer, or several; one that wraps another passes them on to it.

    Raises:
        InterfaceError: if it has no layer to choose.
    """
    changed: Any = copy.copy(saliency)
    inner = getattr(saliency, "saliency", None)
    if isinstance(inner, SaliencyMethod):
        changed.saliency = at_layers(inner, layers)
    elif hasattr(saliency, "layer"):
        changed.layer = layers if isinstance(layers, str) else list(layers)
    else:
        raise InterfaceError(f'the saliency "{saliency.name}" has no layer to choose, so that there is nothing to combine')
    return changed  # type: ignore[no-any-return]


def maps_at_layers(
    saliency: SaliencyMethod, model: nn.Module, batch: Tensor | Mapping[str, Any], target: Any, layers: Sequence[str]
) -> tuple[list[Tensor], SaliencyMaps]:
    """A saliency's maps at each of several layers.

    Extract & aggregate and NormGrad, also inside other methods, see all layers in one forward and one backward pass; others run once a
    layer.

    Args:
        saliency: of which the layer can be chosen.
        model: left as it was.
        batch: images, or a batch.
        target: what is explained; None takes the saliency's own.
        layers: by name.

    Returns:
        (B, T, h, w) of each layer, and what else was found.
    """
    inner = innermost(saliency)
    if isinstance(inner, ExtractAggregate) and _one_pass(inner, layers):
        found = at_layers(saliency, layers).explain(model, batch, target)
        return list(found.raw.values()), found
    found = at_layers(saliency, layers[0]).explain(model, batch, target)
    maps = [found.maps]
    for layer in layers[1:]:
        maps.append(at_layers(saliency, layer).explain(model, found.batch, found.target).maps)
    return maps, found


def _one_pass(saliency: ExtractAggregate, layers: Sequence[str]) -> bool:
    """Whether `raw` holds a map for each layer; a map of the input is smoothed, which `raw` is not."""
    plain = saliency.cell.phase2 != "none" and saliency.surroundings.repeats != "each"
    return plain and len(set(layers)) == len(layers) and not {"", IMAGE} & set(layers)
