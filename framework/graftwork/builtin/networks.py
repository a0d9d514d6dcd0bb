"""Two small networks with the Backbone surface, for tabular features and small images."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

__all__ = ["MLP", "SmallCNN"]

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "silu": nn.SiLU}
Count = Annotated[int, Field(ge=1)]


class MLP(nn.Module):
    """Fully connected layers and a linear head.

    Args:
        in_features: width of the input, once flattened.
        hidden: width of each hidden layer; none makes the model linear.
        num_classes: outputs; 1 for a regression.
        activation: after each hidden layer.
        dropout: after each activation.
        input: the sample key that it takes; images are flattened.

    Attributes:
        num_features: width of the last hidden layer.
    """

    def __init__(
        self,
        in_features: Count,
        hidden: list[Count] = [128, 128],  # noqa: B006 - read only
        num_classes: Count = 10,
        activation: Literal["relu", "gelu", "tanh", "sigmoid", "silu"] = "relu",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        input: Literal["features", "image"] = "features",
    ):
        super().__init__()
        self.inputs, self.num_classes = (input,), num_classes
        self.trunk = nn.Sequential(nn.Flatten())
        for before, after in pairwise([in_features, *hidden]):
            self.trunk.extend([nn.Linear(before, after), ACTIVATIONS[activation](), nn.Dropout(dropout)])
        self.num_features = [in_features, *hidden][-1]
        self.head = nn.Linear(self.num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, ...) to (B, num_features)."""
        return self.trunk(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, num_features) to logits (B, num_classes), or as it is."""
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


class SmallCNN(nn.Module):
    """Blocks of 5x5 convolution, ReLU and 2x2 max pooling, and a linear head, for images of about 32x32.

    The head sees the last map averaged onto a `grid` x `grid` and flattened. A grid of 4 keeps where things are, which small
    drawings such as digits need, and takes images of any size; 1 is global average pooling.

    Args:
        in_channels: of the image.
        num_classes: outputs.
        width: channels of the first block; each further block has half as many again.
        depth: number of blocks; each halves the map.
        grid: side of the grid that the head sees.
        batch_norm: whether each convolution is followed by batch norm.

    Attributes:
        num_features: channels of the last map times grid^2.
    """

    def __init__(
        self,
        in_channels: Count = 3,
        num_classes: Count = 10,
        width: Count = 32,
        depth: Count = 2,
        grid: Count = 4,
        batch_norm: bool = False,
    ):
        super().__init__()
        self.num_classes = num_classes
        channels = [in_channels, *(round(width * 1.5**block) for block in range(depth))]
        self.trunk = nn.Sequential()
        for before, after in pairwise(channels):
            norm = [nn.BatchNorm2d(after)] if batch_norm else []
            self.trunk.extend([nn.Conv2d(before, after, 5, padding=2, bias=not batch_norm), *norm, nn.ReLU(), nn.MaxPool2d(2)])
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(grid), nn.Flatten())
        self.num_features = channels[-1] * grid**2
        self.head = nn.Linear(self.num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to the last map (B, C, H / 2^depth, W / 2^depth)."""
        return self.trunk(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The map to logits (B, num_classes), or pooled to (B, num_features)."""
        pooled: Tensor = self.pool(x)
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))
