"""Sums and maxima over the neighbourhood that a convolution's kernel sees, of any size, stride, dilation and padding."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Window"]


@dataclass(frozen=True)
class Window:
    """What one output position of a convolution reads.

    Args:
        kernel: (height, width).
        stride: (vertical, horizontal).
        dilation: (vertical, horizontal).
        padding: left, right, top, bottom.
        mode: of the padding, as `torch.nn.functional.pad` names it; "constant" pads with zeros.
    """

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    mode: str = "constant"

    @classmethod
    def of(cls, convolution: nn.Conv2d) -> Window:
        """The window of a convolution's own kernel."""
        kernel, stride, dilation = (tuple(getattr(convolution, name)) for name in ("kernel_size", "stride", "dilation"))
        if convolution.padding == "same":
            spare = [step * (side - 1) for side, step in zip(kernel, dilation, strict=True)]
            vertical, horizontal = ((each // 2, each - each // 2) for each in spare)
        else:
            given = (0, 0) if isinstance(convolution.padding, str) else convolution.padding
            vertical, horizontal = ((int(each), int(each)) for each in given)
        mode = "constant" if convolution.padding_mode == "zeros" else convolution.padding_mode
        return cls(kernel, stride, dilation, (*horizontal, *vertical), mode)

    @property
    def is_point(self) -> bool:
        """Whether each position reads itself alone."""
        return self == Window()

    def padded(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) with its margin."""
        return functional.pad(maps, self.padding, mode=self.mode) if any(self.padding) else maps

    def total(self, maps: Tensor) -> Tensor:
        """The sum over each window: (N, C, H, W) to (N, C, h, w)."""
        if self.is_point:
            return maps
        rows = self.padded(maps)
        ones = maps.new_ones(1, 1, *self.kernel)
        summed = functional.conv2d(rows.reshape(-1, 1, *rows.shape[2:]), ones, stride=self.stride, dilation=self.dilation)
        return summed.reshape(*maps.shape[:2], *summed.shape[2:])

    def highest(self, maps: Tensor) -> Tensor:
        """The maximum over each window, padding included: (N, C, H, W) to (N, C, h, w)."""
        if self.is_point:
            return maps
        return functional.max_pool2d(self.padded(maps), self.kernel, self.stride, dilation=self.dilation)

    def patches(self, maps: Tensor) -> Tensor:
        """The values in each window: (N, C, H, W) to (N, C, kernel's size, h, w)."""
        if self.is_point:
            return maps.unsqueeze(2)
        rows = self.padded(maps)
        columns = functional.unfold(rows, self.kernel, dilation=self.dilation, stride=self.stride)
        height, width = (
            (side - step * (kernel - 1) - 1) // stride + 1
            for side, step, kernel, stride in zip(rows.shape[2:], self.dilation, self.kernel, self.stride, strict=True)
        )
        return columns.reshape(len(maps), maps.shape[1], -1, height, width)
