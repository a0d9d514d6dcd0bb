"""The convolutional networks of the paper's image experiments.

From "Domain-Adversarial Training of Neural Networks" (Ganin et al., 2016), figure 6, https://arxiv.org/abs/1505.07818.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork import InterfaceError

__all__ = ["ARCHITECTURES", "Architecture", "DannConvNet"]


@dataclass(frozen=True)
class Architecture:
    """One of the paper's networks.

    Args:
        convolutions: (channels, kernel) of each.
        pools: kernel of the max pooling with stride 2 after each convolution; 0 for none.
        padded: whether convolutions keep the size of the map.
        label_hidden: widths of the label head's hidden layers.
        domain_hidden: widths of the domain head's hidden layers.
        classes: outputs.
        size: height and width of the images.
        dropout: in the label head.
        domain_dropout: in the domain head.
    """

    convolutions: tuple[tuple[int, int], ...]
    pools: tuple[int, ...]
    padded: bool
    label_hidden: tuple[int, ...]
    domain_hidden: tuple[int, ...]
    classes: int
    size: int
    dropout: float
    domain_dropout: float


ARCHITECTURES: Mapping[str, Architecture] = {
    "mnist": Architecture(((32, 5), (48, 5)), (2, 2), False, (100, 100), (100,), 10, 28, 0.0, 0.0),
    "svhn": Architecture(((64, 5), (64, 5), (128, 5)), (3, 3, 0), True, (3072, 2048), (1024, 1024), 10, 32, 0.5, 0.5),
    "gtsrb": Architecture(((96, 5), (144, 3), (256, 5)), (2, 2, 2), True, (512,), (1024, 1024), 43, 40, 0.0, 0.5),
}
"""Preset -> network. The paper's figure gives channels, kernels, pools and widths; padding is not told and chosen here."""


class DannConvNet(nn.Module):
    """Convolutions with ReLU and max pooling, and a label head of several layers, by preset (Ganin et al., 2016, figure 6).

    mnist: conv 32, pool 2, conv 48, pool 2; label head 100-100-10. svhn: conv 64, pool 3, conv 64, pool 3, conv 128; label head
    3072-2048-10 with dropout. gtsrb: conv 96, pool 2, conv 3x3 144, pool 2, conv 256, pool 2; label head 512-43. The other
    convolutions are 5x5, pooling has stride 2. Domain heads attach to the flattened last map, before the label head's hidden layers.

    Args:
        preset: which network.
        in_channels: of the image.
        num_classes: outputs; the preset's data set by default.
        size: height and width of the images; 28, 32 or 40 by default, as the data set of the preset has them.
        dropout: after the label head's hidden layers; the preset's by default.

    Attributes:
        num_features: entries of the last map.
        domain_hidden: widths of the hidden layers of the domain head that goes with it.
        domain_dropout: dropout of that head.

    Raises:
        ValueError: if the images are too small for the preset.
    """

    def __init__(
        self,
        preset: Literal["mnist", "svhn", "gtsrb"] = "mnist",
        in_channels: Annotated[int, Field(ge=1)] = 3,
        num_classes: Annotated[int, Field(ge=1)] | None = None,
        size: Annotated[int, Field(ge=8, le=512)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] | None = None,
    ):
        super().__init__()
        chosen = ARCHITECTURES[preset]
        self.size = chosen.size if size is None else size
        self.num_classes = chosen.classes if num_classes is None else num_classes
        self.domain_hidden, self.domain_dropout = chosen.domain_hidden, chosen.domain_dropout
        self.trunk = _trunk(chosen, in_channels)
        self.num_features = self._flat_size(preset, in_channels)
        layers: list[nn.Module] = []
        widths = [self.num_features, *chosen.label_hidden]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(chosen.dropout if dropout is None else dropout)]
        self.head = nn.Sequential(*layers, nn.Linear(widths[-1], self.num_classes))

    def _flat_size(self, preset: str, channels: int) -> int:
        image = torch.empty(1, channels, self.size, self.size, device="meta")
        try:
            return int(_trunk(ARCHITECTURES[preset], channels).to("meta")(image).numel())
        except RuntimeError:
            raise ValueError(f"images of {self.size}x{self.size} are too small for the preset {preset}") from None

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_channels, size, size) to the last map (B, C, h, w).

        Raises:
            InterfaceError: if the images are of another size.
        """
        if x.shape[-2:] != (self.size, self.size):
            height, width = x.shape[-2:]
            raise InterfaceError(f"dann-convnet was built for images of {self.size}x{self.size} and got {height}x{width}: set `size`")
        features: Tensor = self.trunk(x)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The map to logits (B, num_classes), or flattened to (B, num_features)."""
        flat = x.flatten(1)
        return flat if pre_logits else self.head(flat)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, size, size) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _trunk(chosen: Architecture, in_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    before = in_channels
    for (channels, kernel), pool in zip(chosen.convolutions, chosen.pools, strict=True):
        layers += [nn.Conv2d(before, channels, kernel, padding=kernel // 2 if chosen.padded else 0), nn.ReLU()]
        if pool:
            layers.append(nn.MaxPool2d(pool, stride=2, ceil_mode=True))
        before = channels
    return nn.Sequential(*layers)
