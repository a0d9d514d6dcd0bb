"""Task affinity of noise levels: cosines of their gradients, from sketches (Go et al., 2023, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["CountSketch", "affinity_gaps", "cosine_matrix", "gradient_sketches", "spearman"]


class CountSketch:
    """A linear map of flat gradients to a few thousand numbers that keeps inner products (Charikar et al., 2002).

    Each entry is added, with a random sign, to a random one of `width` bins. The product of two sketches is that of the vectors, with a
    deviation of at most sqrt(2 / width) of the product of their norms: 0.022 at 4096. Bins and signs are drawn anew for each
    gradient from one seed, a parameter at a time, so nothing of the size of the network is kept.

    Args:
        width: of the sketch.
        seed: of bins and signs.

    Raises:
        ValueError: if the width is below 1.
    """

    def __init__(self, width: int = 4096, seed: int = 0):
        if width < 1:
            raise ValueError(f"width is at least 1; found {width}")
        self.width, self.seed = width, seed

    def __call__(self, gradients: Iterable[Tensor]) -> Tensor:
        """(width,) float64 of a gradient in parts, which is the same for the same parts in the same order; on their device."""
        found: Tensor | None = None
        generator: torch.Generator | None = None
        for gradient in gradients:
            if found is None or generator is None:
                found = torch.zeros(self.width, device=gradient.device)
                generator = torch.Generator(gradient.device).manual_seed(self.seed)
            drawn = torch.randint(2 * self.width, (gradient.numel(),), generator=generator, device=gradient.device)
            signs = 1.0 - 2.0 * (drawn % 2)
            found.index_add_(0, drawn // 2, gradient.flatten().float() * signs)
        if found is None:
            raise ValueError("a sketch needs at least one gradient")
        return found


def flatten(gradients: Iterable[Tensor]) -> Tensor:
    """(P,) float32: a gradient whole, in place of a sketch."""
    return torch.cat([gradient.flatten().float() for gradient in gradients])


def gradient_sketches(
    network: nn.Module,
    losses: Callable[[int], Iterable[Tensor]],
    timesteps: Sequence[int],
    sketch: Callable[[Iterable[Tensor]], Tensor] = flatten,
) -> Tensor:
    """Gradients of each timestep's loss, sketched one after the other: memory is one gradient and the sketches.

    Args:
        network: whose parameters that require gradients count; an unused one counts as zero. Their `.grad` is left as it was.
        losses: timestep -> the losses whose sum is differentiated, one graph at a time.
        timesteps: which.
        sketch: of the gradient, such as `CountSketch()`; whole by default.

    Returns:
        (T', width).
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    rows = []
    for timestep in timesteps:
        total = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
        for loss in losses(timestep):
            for held, gradient in zip(total, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                if gradient is not None:
                    held.add_(gradient)
        rows.append(sketch(total))
    return torch.stack(rows)


def cosine_matrix(vectors: Tensor) -> Tensor:
    """(n, n) float64 cosines of the rows of (n, d): symmetric, diagonal 1, within [-1, 1].

    Raises:
        ValueError: if a row is zero or not finite.
    """
    wide = vectors.double()
    norms = wide.norm(dim=1)
    odd = ~(torch.isfinite(norms) & (norms > 0))
    if odd.any():
        first = int(odd.nonzero()[0])
        raise ValueError(f"a gradient must be finite and not zero; that of row {first} has the norm {float(norms[first])}")
    unit = wide / norms[:, None]
    cosines: Tensor = (unit @ unit.T).clamp(-1, 1)
    cosines = (cosines + cosines.T) / 2
    cosines.fill_diagonal_(1)
    return cosines


def affinity_gaps(affinity: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Every pair's distance and affinity, (n (n - 1) / 2,) each.

    Args:
        affinity: (n, n).
        positions: (n,), such as timesteps or log SNR.
    """
    rows, columns = torch.triu_indices(len(affinity), len(affinity), offset=1)
    return (positions[rows] - positions[columns]).abs(), affinity[rows, columns]


def spearman(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(first.numpy(), second.numpy()).statistic)
