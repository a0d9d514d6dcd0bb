"""How the loss rises in a ball around the weights: up the gradient, and along random directions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwork import INPUTS, ConfigError, DataError, Dataset, Evaluator, Figure, Objective, Report, Split, Table
from graftwork.builtin.objectives import CrossEntropy
from graftwork.kinds.evaluator import evaluating, split_batches
from graftwork_tram.ascent import GUARD, gradient_norm
from graftwork_tram.figures import draw_rises
from graftwork_tram.two_pass import preserved_buffers, swapped_tensors

if TYPE_CHECKING:
    from graftwork.run import Run

__all__ = ["Losses", "Rises", "Sharpness", "loss_rises"]

Losses = Callable[[], Iterable[tuple[Tensor, int]]]
"""Gives, batch by batch, a mean loss and over how many samples it is the mean."""

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Rises:
    """What `loss_rises` found.

    Args:
        loss: at the weights as they are.
        radii: R of them.
        ascent: (R,) largest rise on the climb, float64 on the CPU.
        random: (R, K) rise along each random direction, float64 on the CPU.
    """

    loss: float
    radii: Sequence[float]
    ascent: Tensor
    random: Tensor

    @property
    def largest(self) -> Tensor:
        """(R,) the most that was found at each radius."""
        return torch.cat([self.ascent[:, None], self.random], dim=1).amax(dim=1)


def loss_rises(
    parameters: Iterable[nn.Parameter],
    losses: Losses,
    radii: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2),
    *,
    adaptive: bool = False,
    steps: int = 1,
    directions: int = 10,
    seed: int = 0,
) -> Rises:
    """max and mean of L(w + e) - L(w) over a ball ||e|| <= radius; adaptive: || e / |w| || <= radius (Kwon et al., 2021, eq. 3).

    The maximum is sought by `steps` gradient steps of the radius's length, each drawn back onto the ball, and the largest loss met
    counts; one step is SAM's. Random directions are normal and of the ball's full length. Losses are taken over all batches, so the
    batch size does not matter. Weights and their `.grad` are left as they are.

    Args:
        parameters: what moves; those that require no gradient are left out.
        losses: gives the batches' losses anew at each call.
        radii: each above 0.
        adaptive: scale each coordinate by its weight.
        steps: of the climb.
        directions: random ones, K; 0 is none.
        seed: of the directions, which are the same at every radius.

    Raises:
        ValueError: if a radius is not above 0, there are no steps, or nothing requires a gradient.
    """
    moving = [parameter for parameter in dict.fromkeys(parameters) if parameter.requires_grad]
    if not moving:
        raise ValueError("no parameter requires a gradient: there is nothing to perturb")
    if not radii or min(radii) <= 0:
        raise ValueError(f"radii are one or more numbers above 0; found {list(radii)}")
    if steps < 1 or directions < 0:
        raise ValueError(f"steps is at least 1 and directions at least 0; found {steps} and {directions}")
    scales = [parameter.detach().abs() for parameter in moving] if adaptive else None
    start = _mean_loss(losses)
    first = _direction(moving, losses, scales)
    climbed = [_climb(moving, losses, radius, steps, first, scales) - start for radius in radii]
    found = torch.zeros(len(radii), directions, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for column in range(directions):
        drawn = [torch.randn(p.shape, generator=generator).to(p) for p in moving]
        unit = torch._foreach_mul(drawn, gradient_norm(drawn).add(GUARD).reciprocal().to(drawn[0]))
        for row, radius in enumerate(radii):
            found[row, column] = _loss_at(moving, losses, torch._foreach_mul(unit, radius), scales) - start
    return Rises(start, list(radii), torch.tensor(climbed, dtype=torch.float64), found)


def _climb(
    moving: list[nn.Parameter], losses: Losses, radius: float, steps: int, first: list[Tensor], scales: list[Tensor] | None
) -> float:
    """The largest loss that the climb meets; it goes in the ball's own coordinates."""
    place = torch._foreach_mul(first, radius)
    largest = _loss_at(moving, losses, place, scales)
    for _ in range(steps - 1):
        with swapped_tensors(moving, _moved(moving, place, scales)):
            direction = _direction(moving, losses, scales)
        place = torch._foreach_add(place, torch._foreach_mul(direction, radius))
        place = torch._foreach_mul(place, (radius / gradient_norm(place).add(GUARD)).clamp(max=1.0).to(place[0]))
        largest = max(largest, _loss_at(moving, losses, place, scales))
    return largest


def _direction(moving: list[nn.Parameter], losses: Losses, scales: list[Tensor] | None) -> list[Tensor]:
    """The unit vector up the loss, in the ball's coordinates."""
    total = [torch.zeros_like(parameter) for parameter in moving]
    count = 0
    with torch.enable_grad():
        for loss, size in losses():
            gradients = torch.autograd.grad(loss * size, moving, allow_unused=True)
            total = [held if gradient is None else held + gradient for held, gradient in zip(total, gradients, strict=True)]
            count += size
    total = list(torch._foreach_div(total, max(1, count)))
    scaled = total if scales is None else list(torch._foreach_mul(total, scales))
    return list(torch._foreach_mul(scaled, gradient_norm(scaled).add(GUARD).reciprocal().to(scaled[0])))


def _moved(moving: list[nn.Parameter], place: Sequence[Tensor], scales: list[Tensor] | None) -> list[Tensor]:
    step = place if scales is None else torch._foreach_mul(list(place), scales)
    return list(torch._foreach_add([parameter.detach() for parameter in moving], list(step)))


def _loss_at(moving: list[nn.Parameter], losses: Losses, place: Sequence[Tensor], scales: list[Tensor] | None) -> float:
    with swapped_tensors(moving, _moved(moving, place, scales)):
        return _mean_loss(losses)


@torch.no_grad()
def _mean_loss(losses: Losses) -> float:
    pairs = [(loss.detach().double(), size) for loss, size in losses()]
    if not pairs:
        raise ValueError("there is no batch to take a loss of")
    return float(torch.stack([loss * size for loss, size in pairs]).sum()) / sum(size for _, size in pairs)


class Sharpness(Evaluator):
    """How flat the loss is around a model's weights (Foret et al., 2021; measured as in Andriushchenko et al., 2023).

    The loss over the whole of a split (or its first samples) is taken at w and at w + e, in eval mode: e climbs the gradient or goes a
    random way, to the edge of a ball. `loss_rises` has the formulas.

    Args:
        split: where the loss is taken.
        objective: what the loss is, by reference; cross-entropy by default. It draws from one feed and has no parameters.
        radius: of the ball that the metrics are about.
        radii: further ones, for the curve.
        adaptive: || e / |w| || in place of ||e||, which does not change when a network's weights are rescaled; take a larger radius.
        steps: gradient steps of the climb; 1 is SAM's.
        directions: random ones.
        limit: take the first so many samples only.
        batch_size: samples that the model sees at once.
        seed: of the random directions.

    Raises:
        ValueError: if a value is out of range.
        ConfigError: if the objective draws from several feeds or has parameters.
    """

    needs = nn.Module

    def __init__(
        self,
        split: Split = "test",
        objective: Objective | None = None,
        radius: Positive = 0.05,
        radii: list[Positive] = [0.01, 0.02, 0.05, 0.1, 0.2],  # noqa: B006 - read only
        adaptive: bool = False,
        steps: Count = 1,
        directions: Annotated[int, Field(ge=0)] = 10,
        limit: Count | None = 256,
        batch_size: Count = 128,
        seed: int = 0,
    ):
        if not min([radius, *radii]) > 0:
            raise ValueError(f"radius and radii are above 0; found {radius} and {radii}")
        if steps < 1 or directions < 0:
            raise ValueError(f"steps is at least 1 and directions at least 0; found {steps} and {directions}")
        self.objective = objective if objective is not None else CrossEntropy()
        if len(self.objective.feeds) > 1 or any(True for _ in self.objective.parameters()):
            raise ConfigError(f"sharpness takes an objective of one feed without parameters; {type(self.objective).__name__} is none")
        self.feed = next(iter(self.objective.feeds), "train")
        self.keys = self.objective.keys.get(self.feed, (INPUTS,))
        self.split, self.radius, self.radii = split, radius, sorted({radius, *radii})
        self.adaptive, self.steps, self.directions = adaptive, steps, directions
        self.limit, self.batch_size, self.seed = limit, batch_size, seed

    def evaluate(self, model: Any, data: Dataset, run: Run | None = None) -> Report:
        """Metrics loss, ascent_rise, random_rise (mean), max_rise, all at `radius`; a table and a curve over the radii.

        Raises:
            DataError: if the split is empty.
        """

        def losses() -> Iterator[tuple[Tensor, int]]:
            for batch in split_batches(data, self.split, model, limit=self.limit, batch_size=self.batch_size):
                yield self.objective(model, {self.feed: batch}, 1.0).total, len(next(iter(batch.values())))

        if not len(data[self.split]):
            raise DataError(f'split "{self.split}" is empty')
        self.objective.eval()
        with evaluating(model, gradients=True), preserved_buffers(model):
            rises = loss_rises(
                model.parameters(),
                losses,
                self.radii,
                adaptive=self.adaptive,
                steps=self.steps,
                directions=self.directions,
                seed=self.seed,
            )
        at = self.radii.index(self.radius)
        metrics = {"loss": rises.loss, "ascent_rise": float(rises.ascent[at]), "max_rise": float(rises.largest[at])}
        if self.directions:
            metrics["random_rise"] = float(rises.random[at].mean())
        columns = ["radius", "ascent", *(["random, mean", "random, largest"] if self.directions else [])]
        rows = [
            [radius, float(rises.ascent[i]), *([float(rises.random[i].mean()), float(rises.random[i].max())] if self.directions else [])]
            for i, radius in enumerate(self.radii)
        ]
        ball = "||e / |w||| at most the radius" if self.adaptive else "||e|| at most the radius"
        caption = (
            f"Rise of the loss over {rises.loss:.4g} on {self.split}, {ball}: up the gradient, and along {self.directions} random ways."
        )
        return Report(metrics, {"rises": Table(columns, rows, caption)}, {"sharpness": Figure(draw_rises(rises, self.adaptive), caption)})
