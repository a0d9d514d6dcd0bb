"""Guided Grad-CAM: guided backprop where Grad-CAM finds the target (Selvaraju et al., 2017, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from graftwork.kinds.dataset import Split
from graftwork_grad_cam.evidence import Layers, Repeats
from graftwork_grad_cam.figures import Picture, signed_picture
from graftwork_grad_cam.grad_cam import grad_cam
from graftwork_grad_cam.guided_backprop import input_gradients
from graftwork_grad_cam.layers import LayoutName
from graftwork_grad_cam.maps import SaliencyMaps
from graftwork_grad_cam.saliency import Columns, Count, SaliencyMethod, Spec

__all__ = ["GuidedGradCAM", "guided_grad_cam"]


def guided_grad_cam(
    model: nn.Module, batch: Tensor | Mapping[str, Any], target: Any = "predicted", layer: Layers = "auto", **settings: Any
) -> SaliencyMaps:
    """The guided map of the input times the Grad-CAM map at the image's size, broadcast over channels.

    Args:
        model: any torch module that takes images; left as it was.
        batch: images (B, C, H, W), or a batch.
        target: a class, "predicted", "label", "top-5", a Target, or a function from the output to scores.
        layer: of Grad-CAM.
        **settings: of `grad_cam`.

    Returns:
        maps (B, T, H, W) of the largest magnitude over channels; `raw["image"]` is the signed product (B, T, C, H, W), and the
        Grad-CAM maps stand beside it by layer.
    """
    coarse = grad_cam(model, batch, target, layer, **settings)
    fine, _, _ = input_gradients(model, coarse.batch, coarse.target, "guided")
    product = fine * coarse.maps.unsqueeze(2)
    raw = {**coarse.raw, "image": product}
    return SaliencyMaps(product.abs().amax(dim=2), raw, coarse.scores, coarse.output, coarse.batch, coarse.target)


class GuidedGradCAM(SaliencyMethod):
    """Guided Grad-CAM of a split's first samples. As a saliency: the largest magnitude over channels.

    Args:
        split: whose samples are shown.
        limit: how many of them; none shows all.
        layer: of Grad-CAM: a dotted name, a list of them, or "auto".
        target: "label", "predicted", "top-N", a class index, or a target by name with its parameters.
        layout: of the layer's output.
        grid: (h, w) of tokens, where it cannot be found.
        prefix_tokens: tokens before the patches, where it cannot be found.
        repeats: what to do with a layer that runs several times.
        columns: samples in a row of the figure.
        batch_size: samples at a time.
    """

    name: ClassVar[str] = "guided-grad-cam"
    title: ClassVar[str] = "Guided Grad-CAM"
    legend: ClassVar[str] = ""
    caption: ClassVar[str] = "Beside each image, which pixels excite the network where it finds the class; grey is not at all."

    def __init__(
        self,
        split: Split = "test",
        limit: Count | None = 16,
        layer: str | list[str] = "auto",
        target: Spec = "label",
        layout: LayoutName = "auto",
        grid: tuple[int, int] | None = None,
        prefix_tokens: Annotated[int | None, Field(ge=0)] = None,
        repeats: Repeats = "raise",
        columns: Columns = 4,
        batch_size: Count = 32,
    ):
        super().__init__(split, limit, target, columns, batch_size)
        self.layer = layer
        where = None if grid is None else tuple(grid)
        self.settings: dict[str, Any] = {"layout": layout, "grid": where, "prefix_tokens": prefix_tokens, "repeats": repeats}

    def explain(self, model: nn.Module, batch: Tensor | Mapping[str, Any], target: Any = None) -> SaliencyMaps:
        """Maps (B, T, H, W) of magnitudes; the signed products (B, T, C, H, W) are `raw["image"]`."""
        return guided_grad_cam(model, batch, self.target if target is None else target, self.layer, **self.settings)

    def panels(self, image: Tensor, found: SaliencyMaps, index: int) -> list[Picture]:
        """The signed products as pictures."""
        return [signed_picture(each) for each in found.raw["image"][index]]
