"""NormGrad: the norm of what each position contributes to the gradient of a 1x1 convolution, |g_u| |x_u|.

Rebuffi et al., "There and Back Again: Revisiting Backpropagation Saliency Methods", CVPR 2020, https://arxiv.org/abs/2004.02866; first in
"NormGrad: Finding the Pixels that Matter for Training", 2019, https://arxiv.org/abs/1910.08823.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from graftwork.kinds.dataset import Split
from graftwork_grad_cam.evidence import Layers, Repeats
from graftwork_grad_cam.layers import LayoutName
from graftwork_grad_cam.maps import SaliencyMaps
from graftwork_grad_cam.saliency import Colormap, Columns, Count, Share, Spec
from graftwork_normgrad.cells import CELLS, Cell
from graftwork_normgrad.extract_aggregate import SMOOTH, ExtractAggregate, LayerReduce, extract_aggregate
from graftwork_normgrad.phases import contribution_map

__all__ = ["NormGrad", "normgrad", "normgrad_map", "selective_normgrad_map"]


def normgrad_map(activations: Tensor, gradients: Tensor) -> Tensor:
    """|g_u| |x_u|, the Frobenius norm of g_u x_u^T, which is not formed.

    Args:
        activations: (B, K, h, w).
        gradients: (B, K, h, w), or (B, T, K, h, w) of T scores a sample.

    Returns:
        (B, 1, h, w), or (B, T, h, w); not negative.

    Raises:
        ValueError: if the shapes do not go together.
    """
    return contribution_map(activations, gradients, "conv1x1", "norm")


def selective_normgrad_map(activations: Tensor, gradients: Tensor) -> Tensor:
    """The norm over channels of the positive part of x g: what speaks for the target. As `normgrad_map`."""
    return contribution_map(activations, gradients, "scaling", "filter-norm")


def _cell(virtual_identity: bool, selective: bool) -> Cell:
    if selective and not virtual_identity:
        raise ValueError("selective NormGrad scales channels, which is a virtual identity's work: leave virtual_identity true")
    return CELLS["selective-normgrad" if selective else "normgrad" if virtual_identity else "own-convolution"]


def normgrad(
    model: nn.Module,
    batch: Tensor | Mapping[str, Any],
    target: Any = "predicted",
    layer: Layers = "auto",
    *,
    virtual_identity: bool = True,
    selective: bool = False,
    **settings: Any,
) -> SaliencyMaps:
    """NormGrad of a batch, each sample for its own target, in one forward and one backward pass.

    Args:
        model: any torch module that takes images; left as it was.
        batch: images (B, C, H, W), or a batch.
        target: a class, "predicted", "label", "top-5", a Target, or a function from the output to scores.
        layer: a module, a dotted name, several of them, or "auto".
        virtual_identity: imagine a 1x1 identity behind the layer; without one the layer must be a Conv2d, whose weights are meant.
        selective: per channel, and only what speaks for the target.
        **settings: of `extract_aggregate`.

    Returns:
        maps (B, T, H, W) at the image's size, `raw` (B, T, h, w) by layer.

    Raises:
        ValueError: for selective maps without a virtual identity.
        InterfaceError: as `extract_aggregate` does.
    """
    cell = _cell(virtual_identity, selective)
    return extract_aggregate(model, batch, target, layer, cell.phase1, cell.phase2, **settings)


class NormGrad(ExtractAggregate):
    """NormGrad of a split's first samples: the figure, a table, and the maps for evaluators that take a saliency by reference.

    Args:
        split: whose samples are shown.
        limit: how many of them; none shows all.
        layer: a dotted name ("features.29", "layer4"), a list of them, or "auto" for the last that keeps positions.
        target: "label", "predicted", "top-N", a class index, or a target by name with its parameters.
        virtual_identity: imagine a 1x1 identity behind the layer; without one the layer must be a convolution, whose own weights are meant.
        selective: per channel, and only what speaks for the target.
        layer_reduce: how several layers' maps are joined.
        smooth: of a map of the input: deviation of a Gaussian filter, as a share of the image's larger side.
        layout: of the layer's output.
        grid: (h, w) of tokens, where it cannot be found.
        prefix_tokens: tokens before the patches, where it cannot be found.
        repeats: what to do with a layer that runs several times; sum adds the contributions, as the gradient of shared weights does.
        columns: samples in a row of the figure.
        overlay: share of the image in the overlay.
        colormap: of the overlay, as matplotlib names it.
        batch_size: samples at a time.

    Raises:
        ConfigError: if there is no such target.
        ValueError: for selective maps without a virtual identity.
    """

    name: ClassVar[str] = "normgrad"
    title: ClassVar[str] = "NormGrad"

    def __init__(
        self,
        split: Split = "test",
        limit: Count | None = 16,
        layer: str | list[str] = "auto",
        target: Spec = "label",
        virtual_identity: bool = True,
        selective: bool = False,
        layer_reduce: LayerReduce = "product",
        smooth: Annotated[float, Field(ge=0)] = SMOOTH,
        layout: LayoutName = "auto",
        grid: tuple[int, int] | None = None,
        prefix_tokens: Annotated[int | None, Field(ge=0)] = None,
        repeats: Repeats = "raise",
        columns: Columns = 4,
        overlay: Share = 0.5,
        colormap: Colormap = "jet",
        batch_size: Count = 32,
    ):
        cell = _cell(virtual_identity, selective)
        super().__init__(
            split,
            limit,
            cell.phase1,
            cell.phase2,
            layer,
            target,
            layer_reduce=layer_reduce,
            smooth=smooth,
            layout=layout,
            grid=grid,
            prefix_tokens=prefix_tokens,
            repeats=repeats,
            gallery=False,
            columns=columns,
            overlay=overlay,
            colormap=colormap,
            batch_size=batch_size,
        )
