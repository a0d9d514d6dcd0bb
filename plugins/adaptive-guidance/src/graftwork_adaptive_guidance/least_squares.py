"""Ordinary least squares from a stream: only the Gram matrix and the right side are kept, in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Solution", "StreamedLeastSquares"]


class Solution(NamedTuple):
    """A fit and its errors on the rows that it was fitted to.

    Args:
        coefficients: (n,) float64, on the CPU.
        r2: share of the target's variance that is explained; not a number for a constant target.
        relative_error: ||y - y^|| / ||y||.
    """

    coefficients: Tensor
    r2: float
    relative_error: float


class StreamedLeastSquares:
    """Least squares of a target on n columns, given in blocks of rows.

    Memory is n^2 numbers whatever the number of rows. Where the device has no float64, blocks go to the CPU.

    Args:
        columns: n.

    Raises:
        ValueError: if n is below 1.
    """

    def __init__(self, columns: int):
        if columns < 1:
            raise ValueError(f"columns is at least 1; found {columns}")
        self.columns, self.rows = columns, 0
        self._products = torch.zeros(columns + 1, columns + 1, dtype=torch.float64)
        self._sum = 0.0

    def add(self, columns: Tensor, target: Tensor) -> None:
        """Add a block of rows.

        Args:
            columns: (n, rows); each of the n may have any shape.
            target: as many values as a column has.

        Raises:
            ValueError: if the sizes differ.
        """
        device = torch.device("cpu") if columns.device.type == "mps" else columns.device
        block = torch.cat([columns.flatten(1).to(device), target.flatten()[None].to(device)]).double()
        if len(columns) != self.columns:
            raise ValueError(f"{self.columns} columns are fitted; found {len(columns)}")
        self._products += (block @ block.T).cpu()
        self._sum += float(block[-1].sum())
        self.rows += block.shape[1]

    def solve(self, ridge: float = 1e-8) -> Solution:
        """The coefficients with a ridge of `ridge` times the mean diagonal of the Gram matrix.

        Raises:
            ValueError: if nothing was added, or the ridge is negative.
        """
        if not self.rows or ridge < 0:
            raise ValueError(f"a fit needs rows and a ridge that is not negative; found {self.rows} rows, ridge {ridge}")
        gram, moments, square = self._products[:-1, :-1], self._products[:-1, -1], float(self._products[-1, -1])
        damped = gram + ridge * gram.diagonal().mean() * torch.eye(self.columns, dtype=torch.float64)
        found = torch.linalg.lstsq(damped, moments[:, None], driver="gelsd").solution[:, 0]
        residual = max(0.0, float(square - 2 * found @ moments + found @ gram @ found))
        spread = square - self._sum**2 / self.rows
        r2 = 1 - residual / spread if spread > 0 else float("nan")
        return Solution(found, r2, (residual / square) ** 0.5 if square else 0.0)
