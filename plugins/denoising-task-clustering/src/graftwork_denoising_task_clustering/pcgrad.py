"""PCGrad: gradients that conflict lose what opposes the others (Yu et al., 2020), https://arxiv.org/abs/2001.06782."""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork_denoising_task_clustering.balancer import Balancer
from graftwork_denoising_task_clustering.gradients import Backward, Losses, as_vector, check_losses, gram_matrix

__all__ = ["PCGrad", "pcgrad", "pcgrad_coefficients", "projection_orders"]


def projection_orders(tasks: int, generator: torch.Generator | None = None) -> Tensor:
    """(k, k) long, on the CPU: row i is the random order in which task i meets all tasks.

    Args:
        tasks: k.
        generator: on the CPU; None draws from torch's global one.
    """
    return torch.stack([torch.randperm(tasks, generator=generator) for _ in range(tasks)])


def pcgrad_coefficients(gram: Tensor, orders: Tensor) -> Tensor:
    """The surgery in the span of the gradients: row i holds p_i = sum_j C_ij g_j (Yu et al., 2020, algorithm 1).

    For each i, starting from p_i = g_i and for j in the order of row i: where <p_i, g_j> < 0, p_i loses its component along g_j. The
    projection is always against the original g_j. As in the authors' code of ANT, and in LibMTL, j may be i itself, whose product can
    turn negative by earlier projections. All inner products follow from the Gram matrix, so no gradient is touched.

    Args:
        gram: (k, k) inner products of the gradients.
        orders: (k, k) long, as `projection_orders` gives.

    Returns:
        (k, k), of the Gram matrix's type.

    Raises:
        ValueError: if there are fewer than two gradients, or the shapes do not fit.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or len(gram) < 2:
        raise ValueError(f"at least 2 losses are needed, as a square Gram matrix; found shape {tuple(gram.shape)}")
    if orders.shape != gram.shape:
        raise ValueError(f"orders has a row and a column for each of {len(gram)} tasks; found shape {tuple(orders.shape)}")
    coefficients = torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
    squares = gram.diagonal().clamp(min=torch.finfo(gram.dtype).tiny)
    for other in orders.to(gram.device).T:  # the tasks that rows 0 .. k - 1 meet at this turn
        products = (coefficients * gram[other]).sum(dim=1)  # <p_i, g_other(i)>
        surplus = products.clamp(max=0) / squares[other]
        coefficients = coefficients.scatter_add(1, other[:, None], -surplus[:, None])
    return coefficients


def pcgrad(gradients: Tensor, orders: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
    """The sum of the projected gradients, (P,).

    Args:
        gradients: (k, P).
        orders: (k, k) long; None draws them.
        generator: to draw them from, on the CPU.

    Raises:
        ValueError: if there are fewer than two gradients.
    """
    if gradients.ndim != 2 or len(gradients) < 2:
        raise ValueError(f"at least 2 losses are needed, as gradients (k, P); found shape {tuple(gradients.shape)}")
    orders = projection_orders(len(gradients), generator) if orders is None else orders
    weights = pcgrad_coefficients(gram_matrix(gradients), orders).sum(dim=0)
    return weights @ gradients.to(weights.dtype)


class PCGrad(Balancer):
    """Gradient surgery as a step: g_j = grad(l_j) / k, and the sum of the projected gradients goes into `.grad`.

    Gradients of micro-batches are averaged before they are projected. The generator of the random orders is in the state.

    Args:
        seed: of the random orders.
        chunks: None holds all k gradients, k P numbers. A number takes the coefficients from a Gram matrix that is made in so many chunks
            of layers, and then one backward pass of the weighted losses: memory is k P / chunks; each micro-batch is then projected
            by itself.

    Raises:
        ValueError: if chunks is below 1.
    """

    def __init__(self, seed: int = 0, chunks: int | None = None):
        super().__init__()
        if chunks is not None and chunks < 1:
            raise ValueError(f"chunks is at least 1, or none to hold all gradients; found {chunks}")
        self.chunks = chunks
        self.generator = torch.Generator().manual_seed(seed)
        self._pending: Tensor | None = None

    @property
    def needs_gradients(self) -> bool:
        """Always."""
        return True

    def descend(self, losses: Losses, backward: Backward) -> dict[str, Tensor]:
        """See `Balancer.descend`. `conflicts` is the share of pairs of losses whose gradients have a negative product.

        Raises:
            ValueError: if there are fewer than two losses.
        """
        check_losses(losses)
        count = len(losses)
        scaled = losses / count if isinstance(losses, Tensor) else [loss / count for loss in losses]
        if self.chunks is not None:
            gram = backward.gram(scaled, self.chunks)
            backward.add((self._weights(gram) * as_vector(scaled)).sum())
            return {"conflicts": _conflicts(gram)}
        found = backward.matrix(scaled) / backward.micro_batches
        self._pending = found if self._pending is None else self._pending + found
        gram = gram_matrix(self._pending)
        if backward.complete:
            backward.write(self._weights(gram) @ self._pending)
            self._pending = None
        return {"conflicts": _conflicts(gram)}

    def _weights(self, gram: Tensor) -> Tensor:
        return pcgrad_coefficients(gram, projection_orders(len(gram), self.generator)).sum(dim=0)

    def get_extra_state(self) -> Tensor:
        """The generator's state."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Take a generator's state."""
        self.generator.set_state(state.cpu())

    def __getstate__(self) -> dict[str, object]:
        """For copies and pickles, in which a generator cannot be held."""
        return {**self.__dict__, "generator": self.generator.get_state(), "_pending": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Make the generator again."""
        held = state.pop("generator")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.generator = torch.Generator()
        self.generator.set_state(held)  # type: ignore[arg-type]


def _conflicts(gram: Tensor) -> Tensor:
    pairs = len(gram) * (len(gram) - 1)
    return (gram < 0).sum() / pairs
