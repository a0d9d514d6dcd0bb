"""The two bottlenecks: an adapter's, with a ReLU, and LoRA's, without."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from graftwork_unified_petl.modification import Init, LayerNormAt, Scale

__all__ = ["Adapter", "Bottleneck", "LowRank", "new_linear", "new_scale"]


def new_scale(scale: Scale) -> nn.Parameter | float:
    """s: a number, or a parameter of one element that starts at 1 (He et al., 2022, section 3.3)."""
    if scale == "learnable":
        return nn.Parameter(torch.ones(1))
    return float(scale)


def new_linear(in_width: int, out_width: int, bias: bool = True) -> nn.Linear:
    """A linear layer whose weights are yet to be drawn: torch's global generator is left alone."""
    made: nn.Linear = skip_init(nn.Linear, in_width, out_width, bias=bias)  # type: ignore[no-untyped-call]
    return made


def _initialise(down: nn.Linear, up: nn.Linear, init: Init, generator: torch.Generator | None) -> None:
    with torch.no_grad():
        if init == "bert":
            nn.init.normal_(down.weight, std=0.02, generator=generator)
            nn.init.normal_(up.weight, std=0.02, generator=generator)
        else:
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5), generator=generator)
            nn.init.zeros_(up.weight)
        for layer in (down, up):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Bottleneck(nn.Module):
    """What the two bottlenecks share: W_down, W_up, a scale and a LayerNorm (He et al., 2022, table 1).

    Args:
        in_width: of x.
        bottleneck: r.
        out_width: of the change; that of x by default.
        init: "lora" draws W_down Kaiming-uniform with a = sqrt 5 and W_up zero, "bert" both from N(0, 0.02); biases are zero.
        scale: s, or "learnable".
        layernorm: where a new LayerNorm is: on x, on the scaled change, or nowhere.
        dropout: of the hidden units of an adapter, of what LoRA reads.
        generator: what weights are drawn with; torch's global one by default.

    Raises:
        ValueError: if a width or the dropout is out of range.
    """

    biased: ClassVar[bool]

    def __init__(
        self,
        in_width: int,
        bottleneck: int,
        out_width: int | None = None,
        *,
        init: Init = "lora",
        scale: Scale = 1.0,
        layernorm: LayerNormAt = "none",
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if in_width < 1 or bottleneck < 1:
            raise ValueError(f"widths and bottleneck are at least 1; found {in_width} and {bottleneck}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is in [0, 1); found {dropout}")
        out_width = in_width if out_width is None else out_width
        self.down, self.up = (new_linear(*widths, self.biased) for widths in ((in_width, bottleneck), (bottleneck, out_width)))
        _initialise(self.down, self.up, init, generator)
        self.scale, self.layernorm, self.dropout = new_scale(scale), layernorm, dropout
        self.norm = None if layernorm == "none" else nn.LayerNorm(in_width if layernorm == "in" else out_width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_width) to the change (..., out_width), without a residual."""
        read = self.norm(x) if self.norm is not None and self.layernorm == "in" else x
        change: Tensor = self.up(self.hidden(read)) * self.scale
        return self.norm(change) if self.norm is not None and self.layernorm == "out" else change

    def hidden(self, x: Tensor) -> Tensor:
        """(..., in_width) to the hidden units (..., r)."""
        raise NotImplementedError


class Adapter(Bottleneck):
    """Delta-h = s (ReLU(LN(x) W_down + b_down) W_up + b_up) (Houlsby et al., 2019; He et al., 2022, table 1).

    Its parameters are those of `Bottleneck`.
    """

    biased = True

    def hidden(self, x: Tensor) -> Tensor:
        """(..., in_width) to the hidden units (..., r)."""
        return functional.dropout(functional.relu(self.down(x)), self.dropout, self.training)


class LowRank(Bottleneck):
    """Delta-h = s x W_down W_up, which merges into the matrix beside it (Hu et al., 2021; He et al., 2022, table 1).

    Its parameters are those of `Bottleneck`.
    """

    biased = False

    def hidden(self, x: Tensor) -> Tensor:
        """(..., in_width) to the hidden units (..., r)."""
        down: Tensor = self.down(functional.dropout(x, self.dropout, self.training))
        return down

    def delta(self) -> Tensor:
        """What a merge adds to the weight (out_width, in_width) of the matrix beside it.

        Raises:
            ValueError: if its scale is learnable or it has a LayerNorm: it is then not one fixed linear map.
        """
        if isinstance(self.scale, nn.Parameter):
            raise ValueError('scale "learnable" cannot be merged: merge LoRA with a constant alpha / r')
        if self.norm is not None:
            raise ValueError("LoRA with a layernorm is not linear and cannot be merged")
        return (self.up.weight @ self.down.weight) * self.scale
