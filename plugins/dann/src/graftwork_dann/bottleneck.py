"""Any backbone in the form of the paper's Office experiments: a narrow bottleneck, and a new classifier on it.

From "Domain-Adversarial Training of Neural Networks" (Ganin et al., 2016), section 5.2.4, https://arxiv.org/abs/1505.07818.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from graftwork import Backbone
from graftwork.interfaces import device_of, input_keys

__all__ = ["BottleneckClassifier"]


class BottleneckClassifier(nn.Module):
    """A backbone's pooled features, a linear bottleneck, and a linear classifier; domain heads attach to the bottleneck.

    New layers are initialised as in the authors' Caffe networks: Gaussian weights of deviation 0.005 (bottleneck, bias 0.1) and
    0.01 (classifier, bias 0).

    Args:
        backbone: gives the features; a timm model fits. Its own classifier is not used.
        num_classes: outputs.
        bottleneck_dim: width of the bottleneck.
        lr_factor: factor on the learning rate of the new layers' weights.
        bias_lr_factor: factor on that of their biases, which have no weight decay.

    Attributes:
        num_features: width of the bottleneck.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: Annotated[int, Field(ge=1)],
        bottleneck_dim: Annotated[int, Field(ge=1)] = 256,
        lr_factor: Annotated[float, Field(gt=0)] = 10.0,
        bias_lr_factor: Annotated[float, Field(gt=0)] = 20.0,
    ):
        super().__init__()
        if min(num_classes, bottleneck_dim) < 1 or min(lr_factor, bias_lr_factor) <= 0:
            raise ValueError(
                "num_classes, bottleneck_dim and both factors are above 0; "
                f"found {num_classes}, {bottleneck_dim}, {lr_factor} and {bias_lr_factor}"
            )
        self.backbone: Any = backbone
        self.inputs = input_keys(backbone)
        self.num_classes, self.num_features = num_classes, bottleneck_dim
        self.lr_factor, self.bias_lr_factor = lr_factor, bias_lr_factor
        # timm's own name for the width of the pre-logits, where it is not num_features
        width = getattr(backbone, "head_hidden_size", None) or backbone.num_features
        device = device_of(backbone)
        self.bottleneck = nn.Linear(width, bottleneck_dim, device=device)
        self.head = nn.Linear(bottleneck_dim, num_classes, device=device)
        nn.init.normal_(self.bottleneck.weight, std=0.005)
        nn.init.constant_(self.bottleneck.bias, 0.1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward_features(self, *inputs: Tensor) -> Tensor:
        """The backbone's features, as it gives them."""
        features: Tensor = self.backbone.forward_features(*inputs)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The backbone's features to logits (B, num_classes), or to the bottleneck (B, bottleneck_dim)."""
        narrow: Tensor = self.bottleneck(self.backbone.forward_head(x, pre_logits=True))
        return narrow if pre_logits else self.head(narrow)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The backbone's inputs to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(*inputs))

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups: the backbone's at the base rate, new weights and new biases at theirs.

        Args:
            lr: base learning rate.
        """
        if hasattr(self.backbone, "param_groups"):
            groups: list[dict[str, Any]] = list(self.backbone.param_groups(lr))
        else:
            groups = [{"params": [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]}]
        new = (self.bottleneck, self.head)
        return [
            *(group for group in groups if group["params"]),
            {"params": [layer.weight for layer in new], "lr": lr * self.lr_factor},
            {"params": [layer.bias for layer in new], "lr": lr * self.bias_lr_factor, "weight_decay": 0.0},
        ]
