"""Class activation mapping, for networks that end in global average pooling and one linear layer.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, https://arxiv.org/abs/1512.04150. On such a network
Grad-CAM before its ReLU is this map divided by the number of positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork.errors import InterfaceError
from graftwork.kinds.dataset import Split
from graftwork_grad_cam.capture import capturing, find_module
from graftwork_grad_cam.evidence import prepared
from graftwork_grad_cam.forward import detached, image_key, logits_of
from graftwork_grad_cam.layers import find_layer, find_layout
from graftwork_grad_cam.maps import SaliencyMaps, resize_maps, weighted_sum
from graftwork_grad_cam.saliency import Colormap, Columns, Count, SaliencyMethod, Share, Spec
from graftwork_grad_cam.targets import as_target

__all__ = ["CAM", "cam", "cam_map"]


def cam_map(activations: Tensor, weights: Tensor) -> Tensor:
    """L^c = sum_k W_ck A_k, not rectified.

    Args:
        activations: (B, K, h, w), whose spatial mean the linear layer reads.
        weights: (B, T, K) rows of the linear layer for T classes a sample.

    Returns:
        (B, T, h, w).
    """
    return weighted_sum(weights, activations)


def cam(
    model: nn.Module, batch: Tensor | Mapping[str, Any], target: Any = "predicted", layer: str | nn.Module = "auto", head: str = "auto"
) -> SaliencyMaps:
    """Class activation maps.

    Args:
        model: ends in global average pooling and one linear layer; left as it was.
        batch: images (B, C, H, W), or a batch.
        target: that chooses classes: an index, "predicted", "label", "top-5".
        layer: whose output is averaged, or "auto".
        head: name of the linear layer, or "auto" for the last one with as many outputs as there are classes.

    Returns:
        maps (B, T, H, W) and `raw` (B, T, h, w), neither rectified.

    Raises:
        InterfaceError: if the target chooses no class, or the logits are not a linear layer of the layer's spatial mean.
    """
    ready, asked = prepared(model, batch, target)
    name = find_module(model, find_layer(model, ready, asked, before_pooling=False) if layer == "auto" else layer)[0]
    with capturing(model, [name]) as seen, torch.no_grad():
        output = detached(asked.forward(model, ready))
    if name not in seen.activations:
        raise InterfaceError(f"did not run in the forward pass: layer {name}")
    activations = seen.activations[name][-1].detach()
    image = tuple(ready[image_key(model, ready)].shape[-2:])
    layout = find_layout(activations.shape, image, seen.patches, layer=f'layer "{name}"')
    spatial, logits = layout.spatial(activations).float(), logits_of(output).float()
    linear = _linear_head(model, head, logits.shape[-1])
    if not _is_linear_in_the_mean(spatial, linear, logits):
        raise InterfaceError(
            f'CAM needs logits that are a linear layer of a spatial mean; those of {type(model).__name__} are not that of layer "{name}": '
            "use grad-cam, which has no such need"
        )
    chosen = asked.choice(output, ready)
    if chosen is None:
        raise InterfaceError(f'CAM explains classes; the target "{asked.name}" chooses none')
    scores = asked.score(output, ready)  # which refuses a class out of range
    raw = cam_map(spatial, linear.weight.detach().float()[chosen])
    return SaliencyMaps(resize_maps(raw, image), {name: raw}, scores, output, asked.pin(output, ready), asked)


def _is_linear_in_the_mean(spatial: Tensor, linear: nn.Linear, logits: Tensor) -> bool:
    if spatial.shape[1] != linear.in_features or linear.out_features != logits.shape[-1]:
        return False
    with torch.no_grad():
        expected = functional.linear(spatial.mean(dim=(2, 3)), linear.weight.float(), None if linear.bias is None else linear.bias.float())
    return torch.allclose(expected, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))


def _linear_head(model: nn.Module, head: str, classes: int) -> nn.Linear:
    if head != "auto":
        module = find_module(model, head)[1]
        if not isinstance(module, nn.Linear):
            raise InterfaceError(f'the head "{head}" is a {type(module).__name__}, not a linear layer')
        return module
    fitting = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == classes]
    if not fitting:
        raise InterfaceError(f"CAM needs a linear layer with {classes} outputs, one a class; the {type(model).__name__} has none")
    return fitting[-1]


class CAM(SaliencyMethod):
    """Class activation maps of a split's first samples, for networks that end in average pooling and one linear layer.

    Args:
        split: whose samples are shown.
        limit: how many of them; none shows all.
        layer: whose output is averaged, by dotted name, or "auto".
        head: the linear layer, by dotted name, or "auto".
        target: "label", "predicted", "top-N", or a class index.
        columns: samples in a row of the figure.
        overlay: share of the image in the overlay.
        colormap: of the overlay, as matplotlib names it.
        batch_size: samples at a time.
    """

    name: ClassVar[str] = "cam"
    title: ClassVar[str] = "Class activation mapping"
    caption: ClassVar[str] = (
        "Beside each image, how much each place adds to the class's logit; what takes away from it is shown as nothing."
    )

    def __init__(
        self,
        split: Split = "test",
        limit: Count | None = 16,
        layer: str = "auto",
        head: str = "auto",
        target: Spec = "label",
        columns: Columns = 4,
        overlay: Share = 0.5,
        colormap: Colormap = "jet",
        batch_size: Count = 32,
    ):
        super().__init__(split, limit, target, columns, batch_size, overlay, colormap)
        self.layer, self.head = layer, head

    def explain(self, model: nn.Module, batch: Tensor | Mapping[str, Any], target: Any = None) -> SaliencyMaps:
        """Maps (B, T, H, W), negative where a place speaks against the class."""
        return cam(model, batch, self.target if target is None else as_target(target), self.layer, self.head)
