"""A global descriptor: backbone, generalised-mean pooling, a linear layer, unit length; at one scale or at several."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from graftwork import Backbone, InterfaceError
from graftwork.interfaces import input_keys
from graftwork.kinds.evaluator import evaluating

__all__ = ["GeM", "LandmarkEmbedding", "gem"]

Count = Annotated[int, Field(ge=1)]


def gem(features: Tensor, power: float | Tensor = 3.0, eps: float = 1e-6) -> Tensor:
    """Generalised-mean pooling, f_c = (mean_x max(x_c, eps)^p)^(1/p) (Radenovic et al., 2018, https://arxiv.org/abs/1711.02512, eq. 3).

    p = 1 is the mean over positions, large p tends to the maximum. In float32, where powers of half-precision numbers would overflow.

    Args:
        features: (B, C, H, W).
        power: p > 0; a 0-d tensor may be learned.
        eps: below which features are raised.

    Returns:
        (B, C) float32.
    """
    with torch.autocast(features.device.type, enabled=False):
        return features.float().clamp(min=eps).pow(power).mean(dim=(2, 3)).pow(1 / power)


class GeM(nn.Module):
    """`gem` as a module.

    Args:
        power: p.
        learn: whether p is learned; DELG keeps it at 3.
        eps: below which features are raised.
    """

    def __init__(self, power: float = 3.0, learn: bool = False, eps: float = 1e-6):
        super().__init__()
        if power <= 0:
            raise ValueError(f"power is above 0; found {power}")
        self.power = nn.Parameter(torch.tensor(float(power)), requires_grad=learn)
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C)."""
        return gem(features, self.power, self.eps)


class LandmarkEmbedding(nn.Module):
    """Backbone, GeM, a linear layer with bias, unit length: DELG's global branch (Cao et al., 2020, https://arxiv.org/abs/2001.05027).

    The paper's baseline (Weyand et al., 2020) is a ResNet-101 trained so. In eval mode the image is seen at each of
    `scales`, and the linear layer's outputs are averaged before they are brought to unit length, as the 2019 winners do; in training
    at its own size only. It is an Embedder, and a Backbone whose head embeds.

    Args:
        backbone: gives a feature map (B, C, h, w).
        embedding_dim: width D of the descriptor.
        gem_power: p of GeM.
        learn_power: whether p is learned.
        batch_norm: batch norm after the linear layer, as the 2019 winners have.
        dropout: before the linear layer.
        scales: factors of the image's size in eval mode, such as [0.75, 1.0, 1.25].
        stride: scaled sizes are rounded down to multiples of it; the 2019 winners take 32.
        min_side: no scaled side is below it; the 2019 winners take 128.
        pixel_range: "delg" maps [0, 1] to (255 x - 128) / 128 first; "unit" leaves it, for backbones that normalise by themselves, as
            transformers-image-classifier does.
        channels: of the image.

    Attributes:
        embedding_dim: width of the descriptor.
        num_features: channels of the feature map.

    Raises:
        ValueError: if a parameter is out of range.
        InterfaceError: if the backbone gives no feature map.
    """

    def __init__(
        self,
        backbone: Backbone,
        embedding_dim: Count = 2048,
        gem_power: Annotated[float, Field(gt=0)] = 3.0,
        learn_power: bool = False,
        batch_norm: bool = False,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        scales: list[Annotated[float, Field(gt=0)]] = [1.0],  # noqa: B006 - read only
        stride: Count = 1,
        min_side: Count = 1,
        pixel_range: Literal["delg", "unit"] = "delg",
        channels: Count = 3,
    ):
        super().__init__()
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim is at least 1; found {embedding_dim}")
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales are one or more numbers above 0; found {scales}")
        if stride < 1 or min_side < 1:
            raise ValueError(f"stride and min_side are at least 1; found {stride} and {min_side}")
        if pixel_range not in ("delg", "unit"):
            raise ValueError(f'pixel_range is "delg" or "unit"; found "{pixel_range}"')
        if not isinstance(backbone, nn.Module):
            raise InterfaceError(f"landmark-embedding needs a backbone that is a torch module; {type(backbone).__name__} is none")
        self.backbone, self.embedding_dim = backbone, embedding_dim
        self.inputs = input_keys(backbone)
        self.scales, self.stride, self.min_side, self.pixel_range = list(scales), stride, min_side, pixel_range
        self.num_features = _map_channels(backbone, channels)
        self.pool = GeM(gem_power, learn_power)
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(self.num_features, embedding_dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.norm = nn.BatchNorm1d(embedding_dim) if batch_norm else nn.Identity()

    def forward_features(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to the feature map (B, C, h, w), at the image's own size."""
        ready = (image * 255 - 128) / 128 if self.pixel_range == "delg" else image
        return self.backbone.forward_features(ready)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The feature map to the descriptor (B, embedding_dim), or only pooled, (B, num_features)."""
        return self.pool(x) if pre_logits else self._unit(self._project(x))

    def embed(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to descriptors (B, embedding_dim) of unit length, float32."""
        scales = [1.0] if self.training else self.scales
        outputs = [self._project(self.forward_features(self._scaled(image, scale))) for scale in scales]
        return self._unit(outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(dim=0))

    def forward(self, image: Tensor) -> Tensor:
        """As `embed`."""
        return self.embed(image)

    def _project(self, features: Tensor) -> Tensor:
        pooled = self.dropout(self.pool(features))
        return self.norm(self.projection(pooled.to(self.projection.weight.dtype)))  # type: ignore[no-any-return]

    def _unit(self, output: Tensor) -> Tensor:
        with torch.autocast(output.device.type, enabled=False):
            return normalize(output.float(), dim=1)

    def _scaled(self, image: Tensor, scale: float) -> Tensor:
        size = [max(self.min_side, int(side * scale / self.stride) * self.stride, 1) for side in image.shape[-2:]]
        if size == list(image.shape[-2:]):
            return image
        return interpolate(image, size=size, mode="bilinear", align_corners=True)


def _map_channels(backbone: nn.Module, channels: int) -> int:
    """Channels of the backbone's feature map, found by showing it a grey image."""
    size = getattr(backbone, "size", None) or (64, 64)
    parameter = next(backbone.parameters(), torch.zeros(1))
    image = torch.full((1, channels, *size), 0.5, device=parameter.device, dtype=parameter.dtype)
    with evaluating(backbone):
        found = backbone.forward_features(image)  # type: ignore[operator]
    if not isinstance(found, Tensor) or found.ndim != 4:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InterfaceError(
            f"landmark-embedding pools a feature map (B, C, h, w); {type(backbone).__name__}.forward_features gives {shape}"
        )
    return int(found.shape[1])
