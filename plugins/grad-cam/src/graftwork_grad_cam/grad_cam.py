"""Grad-CAM: where in an image a network finds its evidence for a target.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017,
https://arxiv.org/abs/1610.02391. With A the K channels of a layer and y the target's score,

    alpha_k = mean over positions of dy/dA_k          (eq. 1)
    L = ReLU(sum_k alpha_k A_k)                       (eq. 2)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork.kinds.dataset import Split
from graftwork_grad_cam.evidence import Evidence, Layers, Observation, Repeats, Surroundings, layer_names, observe_prepared, prepared
from graftwork_grad_cam.forward import image_key
from graftwork_grad_cam.layers import LayoutName
from graftwork_grad_cam.maps import LayerReduce, Normalization, SaliencyMaps, join_layers, normalize_maps, principal_maps, weighted_sum
from graftwork_grad_cam.saliency import Colormap, Columns, Count, SaliencyMethod, Share, Spec
from graftwork_grad_cam.targets import as_target

__all__ = ["GradCAM", "channel_weights", "grad_cam", "grad_cam_map"]

BRIGHTNESS = (0.9, 1.0, 1.1)
"""Factors of the images over which augmentation averages, as in pytorch-grad-cam."""


def channel_weights(gradients: Tensor) -> Tensor:
    """alpha, the spatial mean of a score's gradient (eq. 1): (..., K, h, w) to (..., K).

    The official code sums where the paper averages; after normalisation there is no difference.
    """
    return gradients.mean(dim=(-2, -1))


def grad_cam_map(activations: Tensor, gradients: Tensor, *, counterfactual: bool = False, rectify: bool = True) -> Tensor:
    """The map of eq. 2 in the layer's own resolution, not normalised.

    Args:
        activations: (B, K, h, w) of the layer.
        gradients: (B, T, K, h, w) of T scores a sample, or (B, K, h, w) of one.
        counterfactual: negate the gradient before it is pooled: regions that would lower the score (section 3.4).
        rectify: whether negative values become 0.

    Returns:
        (B, T, h, w), non-negative if rectified.

    Raises:
        ValueError: if the shapes do not go together.
    """
    if gradients.dim() == 4:
        gradients = gradients.unsqueeze(1)
    if activations.shape != gradients[:, 0].shape:
        raise ValueError(f"activations {tuple(activations.shape)} and gradients {tuple(gradients.shape)} do not go together")
    weights = channel_weights(-gradients if counterfactual else gradients)
    found = weighted_sum(weights, activations)
    return found.relu() if rectify else found


def grad_cam(
    model: nn.Module,
    batch: Tensor | Mapping[str, Any],
    target: Any = "predicted",
    layer: Layers = "auto",
    *,
    counterfactual: bool = False,
    normalize: Normalization = "none",
    layer_reduce: LayerReduce = "mean",
    layout: LayoutName = "auto",
    grid: tuple[int, int] | None = None,
    prefix_tokens: int | None = None,
    repeats: Repeats = "raise",
    eigen_smooth: bool = False,
    augment_smooth: bool = False,
) -> SaliencyMaps:
    """Grad-CAM of a batch, each sample for its own target, in one forward and one backward pass.

    Args:
        model: any torch module that takes images; left as it was.
        batch: images (B, C, H, W), or a batch with the keys that model and target read.
        target: a class, "predicted", "label", "top-5", a Target, or a function from the output to scores.
        layer: a module, a dotted name ("layer4", "blocks.-1.norm1"), several of them, or "auto".
        counterfactual: regions that would lower the score.
        normalize: of the resized map; "none" keeps its values.
        layer_reduce: how several layers' maps are joined, each in [0, 1].
        layout: of the layer's output; "auto" finds it.
        grid: (h, w) of tokens, where it cannot be found.
        prefix_tokens: tokens before the patches, where it cannot be found.
        repeats: for a layer that runs several times: raise; add the runs' maps before the ReLU (sum); take each as a layer of its
            own; the first; the last.
        eigen_smooth: project the weighted activations on their first principal direction, in place of summing the channels.
        augment_smooth: average over the image mirrored and not, times 0.9, 1 and 1.1, each map in [0, 1]: six times the cost.
            Regions and boxes of a target are not mirrored along.

    Returns:
        maps (B, T, H, W) at the image's size, `raw` ones by layer, scores, the output.

    Raises:
        InterfaceError: as `observe` does.
        DataError: as `observe` does.
    """
    where = Surroundings(layout, grid, prefix_tokens, repeats)
    ready, asked = prepared(model, batch, target)
    found = observe_prepared(model, ready, asked, layer_names(model, ready, asked, layer), where)
    raw = _raw_maps(found, counterfactual, eigen_smooth, repeats)
    maps = join_layers(list(raw.values()), found.size, layer_reduce)
    if augment_smooth:
        key, total = image_key(model, found.batch), normalize_maps(maps, "minmax")
        variants = [(mirrored, factor) for mirrored in (False, True) for factor in BRIGHTNESS if mirrored or factor != 1.0]
        for mirrored, factor in variants:
            image = found.batch[key] * factor
            varied = {**found.batch, key: image.flip(-1) if mirrored else image}
            observed = observe_prepared(model, varied, found.target, list(found.layers), where)
            again = _raw_maps(observed, counterfactual, eigen_smooth, repeats)
            joined = normalize_maps(join_layers(list(again.values()), found.size, layer_reduce), "minmax")
            total = total + (joined.flip(-1) if mirrored else joined)
        maps = total / (1 + len(variants))
    return SaliencyMaps(normalize_maps(maps, normalize), raw, found.scores, found.output, found.batch, found.target)


def _raw_maps(found: Observation[list[Evidence]], counterfactual: bool, eigen_smooth: bool, repeats: Repeats) -> dict[str, Tensor]:
    """A map for each layer; with `each`, for each run of a layer, "name[0]", "name[1]"."""
    maps: dict[str, Tensor] = {}
    for name, runs in found.layers.items():
        plain = [_unrectified(evidence, counterfactual, eigen_smooth) for evidence in runs]
        if repeats == "sum":
            maps[name] = torch.stack(plain).sum(dim=0).relu()
        else:
            maps.update({f"{name}[{run}]" if len(plain) > 1 else name: each.relu() for run, each in enumerate(plain)})
    return maps


def _unrectified(evidence: Evidence, counterfactual: bool, eigen_smooth: bool) -> Tensor:
    if not eigen_smooth:
        return grad_cam_map(evidence.activations, evidence.gradients, counterfactual=counterfactual, rectify=False)
    weights = channel_weights(-evidence.gradients if counterfactual else evidence.gradients)
    return principal_maps(weights[..., None, None] * evidence.activations.unsqueeze(1))


class GradCAM(SaliencyMethod):
    """Grad-CAM of a split's first samples: the figure, a table, and the maps for evaluators that take a saliency by reference.

    Args:
        split: whose samples are shown.
        limit: how many of them; none shows all.
        layer: a dotted name ("trunk.4", "blocks.-1.norm1"), a list of them, or "auto" for the last one that keeps positions.
        target: "label", "predicted", "top-N", a class index, or a target by name with its parameters.
        counterfactual: regions that would lower the score.
        normalize: how the maps that go to other evaluators are scaled; pictures always go up to the maximum.
        layer_reduce: how several layers' maps are joined.
        layout: of the layer's output.
        grid: (h, w) of tokens, where it cannot be found.
        prefix_tokens: tokens before the patches, where it cannot be found.
        repeats: what to do with a layer that runs several times.
        eigen_smooth: take the first principal direction of the weighted activations.
        augment_smooth: average over mirrored, brighter and darker images.
        columns: samples in a row of the figure.
        overlay: share of the image in the overlay.
        colormap: of the overlay, as matplotlib names it.
        batch_size: samples at a time.

    Raises:
        ConfigError: if there is no such target.
        ValueError: if there is no such colour map.
    """

    name: ClassVar[str] = "grad-cam"
    title: ClassVar[str] = "Grad-CAM"
    caption: ClassVar[str] = "Beside each image, where the network finds evidence for the class (from blue, none, to red, most)."

    def __init__(
        self,
        split: Split = "test",
        limit: Count | None = 16,
        layer: str | list[str] = "auto",
        target: Spec = "label",
        counterfactual: bool = False,
        normalize: Normalization = "none",
        layer_reduce: LayerReduce = "mean",
        layout: LayoutName = "auto",
        grid: tuple[int, int] | None = None,
        prefix_tokens: Annotated[int | None, Field(ge=0)] = None,
        repeats: Repeats = "raise",
        eigen_smooth: bool = False,
        augment_smooth: bool = False,
        columns: Columns = 4,
        overlay: Share = 0.5,
        colormap: Colormap = "jet",
        batch_size: Count = 32,
    ):
        super().__init__(split, limit, target, columns, batch_size, overlay, colormap)
        self.layer = layer
        self.settings: dict[str, Any] = {
            "counterfactual": counterfactual,
            "normalize": normalize,
            "layer_reduce": layer_reduce,
            "layout": layout,
            "grid": None if grid is None else tuple(grid),
            "prefix_tokens": prefix_tokens,
            "repeats": repeats,
            "eigen_smooth": eigen_smooth,
            "augment_smooth": augment_smooth,
        }

    def explain(self, model: nn.Module, batch: Tensor | Mapping[str, Any], target: Any = None) -> SaliencyMaps:
        """Grad-CAM maps of a batch."""
        asked = self.target if target is None else as_target(target)
        return grad_cam(model, batch, asked, self.layer, **self.settings)
