"""A constant sparse matrix that embeddings are multiplied by, with a backward pass as sparse as its forward pass."""

from __future__ import annotations

import warnings
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.autograd.function import FunctionCtx

__all__ = ["Matrix", "Propagation"]


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        ctx.transposed = transposed
        return table @ x

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transposed @ grads[0].contiguous()  # type: ignore[attr-defined]


class Propagation:
    """A constant (N, M) matrix, held in CSR with its transpose; `propagation @ x` for x (M, D) is differentiable in x.

    Autograd's own rule for a sparse product transposes at each backward pass; here that is done once.

    Args:
        table: sparse CSR (N, M).
        transposed: its transpose in sparse CSR; made where it is None.
    """

    def __init__(self, table: Tensor, transposed: Tensor | None = None):
        if table.layout != torch.sparse_csr:
            raise ValueError(f"a Propagation is made of a sparse CSR matrix; found layout {table.layout}")
        self.table = table
        self.transposed = table.to_sparse(layout=torch.sparse_coo).t().coalesce().to_sparse_csr() if transposed is None else transposed

    @classmethod
    def of(cls, matrix: csr_array) -> Propagation:
        """From a SciPy matrix, in float32."""
        return cls(_csr(matrix), _csr(matrix.T.tocsr()))

    def to_scipy(self) -> csr_array:
        """As a SciPy matrix, on the CPU."""
        table = self.table.cpu()
        parts = (table.values().numpy(), table.col_indices().numpy(), table.crow_indices().numpy())
        return csr_array(parts, shape=tuple(table.shape))

    def __matmul__(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # sparse kernels take one type, which autocast does not know
            product: Tensor = _Multiply.apply(self.table, self.transposed, x.to(self.table.dtype))  # type: ignore[no-untyped-call]
            return product.to(x.dtype)

    @property
    def shape(self) -> torch.Size:
        """(N, M)."""
        return self.table.shape

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.table.device

    @property
    def dtype(self) -> torch.dtype:
        """Its floating type."""
        return self.table.dtype

    def to(self, *args: Any, **kwargs: Any) -> Propagation:
        """On another device, or in another floating type."""
        return Propagation(self.table.to(*args, **kwargs), self.transposed.to(*args, **kwargs))

    def to_dense(self) -> Tensor:
        """(N, M) dense."""
        return self.table.to_dense()


Matrix: TypeAlias = Tensor | Propagation
"""A constant matrix that embeddings are multiplied by with `@`: dense, or sparse."""


def _csr(matrix: csr_array) -> Tensor:
    matrix.sort_indices()
    pointers, columns = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return torch.sparse_csr_tensor(
            pointers, columns, torch.from_numpy(matrix.data.astype(np.float32)), matrix.shape, check_invariants=True
        )
