"""Optimal couplings of two samples: exact (POT), entropic (log domain, batched) and quadratically regularised (POT)."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from graftwork import GraftworkError

__all__ = [
    "Solver",
    "Transport",
    "exact_coupling",
    "frobenius_coupling",
    "precise",
    "round_to_marginals",
    "sinkhorn",
    "squared_distances",
]

Solver: TypeAlias = Literal["emd", "sinkhorn", "frobenius"]
Positive = Annotated[float, Field(gt=0)]
BUDGET = 2**27
"""Entries of cost matrices that are solved at once: 1 GiB in float64."""
NOTICEABLE = 1e-3
"""L1 error of the marginals, which is the share of mass that rounding moves, that is worth a warning."""
UNFINISHED = "marginals are off by {:.1e} after max_iterations = {}; they are rounded"
CHECK = 5
"""Steps of Sinkhorn between two looks at the error, each of which waits for the device."""
WARM, FALL = 20, 4
"""Steps at each regularisation on the way down to the one asked for, and by what it falls from one to the next."""


def precise(tensor: Tensor, device: torch.device | None = None) -> Tensor:
    """The tensor on its own or another device, in float64, or in float32 on a device that has no float64."""
    device = device or tensor.device
    return tensor.to(device, torch.float32 if device.type == "mps" else torch.float64)


def squared_distances(source: Tensor, target: Tensor) -> Tensor:
    """||x_i - y_j||^2, in float64 where the device has it.

    Both samples are shifted by one mean first, so that features far from the origin lose no digits.

    Args:
        source: (m, d).
        target: (n, d).

    Returns:
        (m, n), non-negative.

    Raises:
        ValueError: if the two are not matrices of one width.
    """
    if source.dim() != 2 or target.dim() != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(f"source is (m, d) and target (n, d); found {tuple(source.shape)} and {tuple(target.shape)}")
    centre = precise(source).mean(dim=0)
    x, y = precise(source) - centre, precise(target) - centre
    return (x.square().sum(dim=1)[:, None] + y.square().sum(dim=1) - 2 * x @ y.T).clamp(min=0)


def exact_coupling(cost: Tensor, max_iterations: int = 1_000_000) -> Tensor:
    """The coupling of uniform marginals with the least cost, by POT's network simplex on the CPU (`ot.emd`).

    O(n^3 log n) at worst.

    Args:
        cost: (m, n).
        max_iterations: of the simplex.

    Returns:
        (m, n), rows summing to 1/m and columns to 1/n; float64 where the device has it.

    Raises:
        ValueError: if the cost is no finite matrix, or the simplex is not done after `max_iterations`.
    """
    matrix = _matrix(cost)
    marginals = [torch.full((count,), 1 / count, dtype=torch.float64).numpy() for count in matrix.shape]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what POT warns of is raised below
        coupling, log = _pot("ot").emd(*marginals, matrix.numpy(), numItermax=max_iterations, log=True)
    if log["warning"] is not None:
        raise ValueError(f"the exact coupling of {tuple(cost.shape)} was not found in max_iterations = {max_iterations}: {log['warning']}")
    return precise(torch.from_numpy(coupling), cost.device)


def frobenius_coupling(cost: Tensor, gamma: float = 0.1, max_iterations: int = 5000, tolerance: float = 1e-12) -> Tensor:
    """min <pi, C> + G ||pi||_F^2 over couplings of uniform marginals (Blondel et al., 2018), by POT's smooth dual on the CPU.

    G is `gamma` * mean(C) * m * n, which makes `gamma` free of the size and the scale of the problem: at 0 the coupling is the exact
    one, without limit the outer product of the marginals.

    Args:
        cost: (m, n).
        gamma: strength of the regulariser; OSBORN does not say which, 0.1 is ours.
        max_iterations: of L-BFGS.
        tolerance: of the dual's relative change and of its gradient, at which L-BFGS stops.

    Returns:
        (m, n), rows summing to 1/m and columns to 1/n; float64 where the device has it.

    Raises:
        ValueError: if gamma is not positive or the cost is no finite matrix.
    """
    if not gamma > 0:
        raise ValueError(f"gamma is above 0; found {gamma}")
    matrix = _matrix(cost)
    m, n = matrix.shape
    scale = matrix.mean().clamp(min=torch.finfo(torch.float64).tiny)
    weights = [torch.full((m,), float(n), dtype=torch.float64), torch.full((n,), float(m), dtype=torch.float64)]  # entries of order 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of an option of scipy's solver that POT still gives
        found = torch.from_numpy(
            _pot("ot.smooth").smooth_ot_dual(
                *(one.numpy() for one in weights),
                (matrix / scale).numpy(),
                reg=2 * gamma,
                reg_type="l2",
                numItermax=max_iterations,
                stopThr=tolerance,
            )
        )
    error = float((found.sum(dim=1) - weights[0]).abs().sum() + (found.sum(dim=0) - weights[1]).abs().sum()) / (m * n)
    if error > NOTICEABLE:
        warnings.warn(f"frobenius: {UNFINISHED.format(error, max_iterations)}", stacklevel=2)
    coupling = round_to_marginals(found, *weights) / (m * n)
    return precise(coupling, cost.device)


def sinkhorn(
    cost: Tensor,
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
    epsilon: float = 0.01,
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
    budget: int = BUDGET,
) -> Tensor:
    """min <pi, C> - E H(pi) over couplings (Cuturi, 2013), stable as in the log domain, for many problems at once on their device.

    E is `epsilon` times the problem's mean cost. Where its exponentials leave the range of the numbers, it comes down to that from the
    mean cost. What is left of the marginals' error is removed by rounding (Altschuler et al., 2017, algorithm 2), so that <pi, C> is
    never below the exact optimum.

    Args:
        cost: (..., m, n); in at least float32.
        source_weights: (..., m), summing to 1; uniform by default. Weight 0 marks padding.
        target_weights: (..., n), summing to 1; uniform by default.
        epsilon: regularisation as a share of the mean cost.
        max_iterations: at the last regularisation.
        tolerance: L1 error of the marginals at which to stop.
        budget: entries of `cost` that are worked on at once.

    Returns:
        (..., m, n), with the marginals asked for.

    Raises:
        ValueError: if a parameter is out of range or shapes do not fit.
    """
    for name, value in (("epsilon", epsilon), ("max_iterations", max_iterations), ("tolerance", tolerance), ("budget", budget)):
        if not value > 0:
            raise ValueError(f"{name} is above 0; found {value}")
    if cost.dim() < 2 or 0 in cost.shape:
        raise ValueError(f"cost is (..., m, n) with no empty side; found {tuple(cost.shape)}")
    cost = cost.to(torch.promote_types(cost.dtype, torch.float32))
    *batch, m, n = cost.shape
    a = _weights(source_weights, (*batch, m), cost).reshape(-1, m)
    b = _weights(target_weights, (*batch, n), cost).reshape(-1, n)
    flat = cost.reshape(-1, m, n)
    size = max(1, budget // (m * n))
    found = []
    for at in range(0, len(flat), size):
        found.append(_sinkhorn(flat[at : at + size], a[at : at + size], b[at : at + size], epsilon, max_iterations, tolerance))
    return (found[0] if len(found) == 1 else torch.cat(found)).view(cost.shape)


def _sinkhorn(cost: Tensor, a: Tensor, b: Tensor, epsilon: float, max_iterations: int, tolerance: float) -> Tensor:
    """`sinkhorn` of (B, m, n) with marginals (B, m) and (B, n)."""
    mean = torch.einsum("bm,bmn,bn->b", a, cost, b)[:, None, None]
    cost = cost / mean.clamp(min=torch.finfo(cost.dtype).tiny)
    f, g, plan, error, done = _scaled(cost, a, b, torch.zeros_like(a), torch.zeros_like(b), epsilon, max_iterations, tolerance)
    if done == 0:  # exponentials of -cost / epsilon leave the range of the numbers
        f, g = _descended(cost, a, b, epsilon)
    while done < max_iterations and not error <= tolerance:
        f, g, plan, error, steps = _scaled(cost, a, b, f, g, epsilon, max_iterations - done, tolerance)
        if steps == 0:
            steps = min(CHECK, max_iterations - done)
            f, g = _logarithmic(cost, a, b, g, epsilon, steps)
            plan = _plan(cost, f, g, epsilon)
            error = float((plan.sum(dim=-1) - a).abs().sum(dim=-1).max())
        done += steps
    if not error <= max(tolerance, NOTICEABLE):
        warnings.warn(f"sinkhorn: {UNFINISHED.format(error, max_iterations)}", stacklevel=3)
    return _round(plan, a, b)


def _descended(cost: Tensor, a: Tensor, b: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Potentials to start from at `epsilon`, found on the way down to it from the mean cost."""
    f, g, level = torch.zeros_like(a), torch.zeros_like(b), max(1.0, epsilon)
    while level > epsilon:
        f, g = _logarithmic(cost, a, b, g, level, 1)
        f, g, _, _, _ = _scaled(cost, a, b, f, g, level, WARM, 0.0)
        level = max(level / FALL, epsilon)
    return _logarithmic(cost, a, b, g, epsilon, 1)


def _scaled(
    cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor, level: float, limit: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, float, int]:
    """Steps from the potentials f (B, m) and g (B, n), as scalings of the plan that they give (Schmitzer, 2019, section 3).

    A scaling costs two matrix-vector products where a step in the log domain costs two passes of exponentials. Scalings go into the
    potentials at the end, which comes after `limit` steps, at the tolerance, or when they grow large. Where one has left the range of
    the numbers by then, nothing was done.

    Returns:
        f, g, the plan, the L1 error of its rows, columns being exact, and how many steps were made.
    """
    plan, tiny, largest = _plan(cost, f, g, level), torch.finfo(cost.dtype).tiny, torch.finfo(cost.dtype).max
    a, b = a[:, None, :], b[:, None, :]
    u, v, rows = torch.ones_like(a), torch.ones_like(b), plan.sum(dim=-1)[:, None, :]
    error, size = math.inf, 1.0
    for step in range(1, limit + 1):
        u = a / rows.clamp(min=tiny)
        v = b / (u @ plan).clamp(min=tiny)
        rows = v @ plan.mT  # many times faster in a batch than the plan times a column
        if step % CHECK == 0 or step == limit:
            error, size = float((u * rows - a).abs().sum(dim=-1).max()), float(torch.maximum(u.max(), v.max()))
            if error <= tolerance or not size < largest**0.125:
                break
    if not size < largest**0.25 or not math.isfinite(error):
        return f, g, plan, math.inf, 0
    return f + level * u[:, 0].log(), g + level * v[:, 0].log(), plan.mul_(u.mT).mul_(v), error, step


def _logarithmic(cost: Tensor, a: Tensor, b: Tensor, g: Tensor, level: float, steps: int) -> tuple[Tensor, Tensor]:
    """Some steps from g in the log domain: f and g."""
    f, log_a, log_b = torch.zeros_like(a), a.log(), b.log()
    for _ in range(steps):
        f = _updated(log_a, g[:, None, :], cost, level, -1)
        g = _updated(log_b, f[:, :, None], cost, level, -2)
    return f, g


def _plan(cost: Tensor, f: Tensor, g: Tensor, level: float) -> Tensor:
    return torch.sub(f[:, :, None], cost).add_(g[:, None, :]).mul_(1 / level).exp_()


def _updated(log_weights: Tensor, potential: Tensor, cost: Tensor, level: float, dim: int) -> Tensor:
    return level * (log_weights - ((potential - cost) / level).logsumexp(dim=dim))


def round_to_marginals(coupling: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The nearest coupling in the sense of Altschuler et al. (2017, algorithm 2): rows and columns shrunk, what is missing spread.

    Args:
        coupling: (..., m, n), non-negative.
        a: (..., m), what rows are to sum to.
        b: (..., n), what columns are to sum to; the two have one sum.
    """
    return _round(coupling.clone(), a, b)


def _round(coupling: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`round_to_marginals` in place."""
    tiny = torch.finfo(coupling.dtype).tiny
    x = (a / coupling.sum(dim=-1).clamp(min=tiny)).clamp(max=1)
    y = (b / torch.einsum("...m,...mn->...n", x, coupling).clamp(min=tiny)).clamp(max=1)
    coupling.mul_(x[..., :, None]).mul_(y[..., None, :])
    rows, columns = (a - coupling.sum(dim=-1)).clamp(min=0), (b - coupling.sum(dim=-2)).clamp(min=0)
    columns = columns / rows.sum(dim=-1, keepdim=True).clamp(min=tiny)
    return coupling.addcmul_(rows[..., :, None], columns[..., None, :])


@dataclass(frozen=True)
class Transport:
    """How a coupling is found.

    Args:
        solver: "emd", exact, which the paper's supervised pools use; "sinkhorn", entropic, which its method section names; "frobenius",
            quadratically regularised, which its self-supervised pools use.
        epsilon: of "sinkhorn", a share of the mean cost.
        gamma: of "frobenius", times mean cost, m and n.
        max_iterations: of the solver; by default 1,000,000, 1000 and 5000.

    Raises:
        ValueError: if one is out of range.
    """

    solver: Solver = "emd"
    epsilon: Positive = 0.01
    gamma: Positive = 0.1
    max_iterations: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        if self.solver not in ("emd", "sinkhorn", "frobenius"):
            raise ValueError(f"solver is emd, sinkhorn or frobenius; found {self.solver!r}")
        for name, value in (("epsilon", self.epsilon), ("gamma", self.gamma), ("max_iterations", self.max_iterations)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} is above 0; found {value}")

    def couplings(self, costs: Sequence[Tensor]) -> list[Tensor]:
        """Couplings of uniform marginals; Sinkhorn solves all problems at once, padded to the largest.

        Args:
            costs: matrices (m_r, n_r) on one device.
        """
        limit: dict[str, int] = {} if self.max_iterations is None else {"max_iterations": self.max_iterations}
        if self.solver == "emd":
            return [exact_coupling(cost, **limit) for cost in costs]
        if self.solver == "frobenius":
            return [frobenius_coupling(cost, self.gamma, **limit) for cost in costs]
        m, n = (max(cost.shape[side] for cost in costs) for side in (0, 1))
        padded, a, b = (costs[0].new_zeros(len(costs), *shape) for shape in ((m, n), (m,), (n,)))
        for row, cost in enumerate(costs):
            height, width = cost.shape
            padded[row, :height, :width], a[row, :height], b[row, :width] = cost, 1 / height, 1 / width
        found = sinkhorn(padded, a, b, self.epsilon, **limit)
        return [coupling[: cost.shape[0], : cost.shape[1]] for coupling, cost in zip(found, costs, strict=True)]


def _weights(given: Tensor | None, shape: tuple[int, ...], cost: Tensor) -> Tensor:
    if given is None:
        return cost.new_full(shape, 1 / shape[-1])
    if given.shape != shape:
        raise ValueError(f"the weights of a cost {tuple(cost.shape)} are {shape}; found {tuple(given.shape)}")
    return given.to(cost)


def _matrix(cost: Tensor) -> Tensor:
    matrix = cost.detach().to("cpu", torch.float64).contiguous()
    if matrix.dim() != 2 or not matrix.numel() or not matrix.isfinite().all():
        raise ValueError(f"cost is a finite matrix (m, n) with no empty side; found {tuple(cost.shape)}")
    return matrix


def _pot(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise GraftworkError(f"{module} cannot be imported ({error}): pip install POT") from error
