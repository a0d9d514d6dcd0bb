"""A whole step of two passes, for anyone's loop: measure, climb, run the batch again, come back, step.

From "TRAM: Bridging Trust Regions and Sharpness Aware Minimization" (Sherborne et al., 2024), https://arxiv.org/abs/2310.03646.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from graftwork import DataError, Loss
from graftwork_tram.ascent import Ascent, Metric, ascended, check_metric
from graftwork_tram.divergence import Divergence
from graftwork_tram.regions import Region
from graftwork_tram.trust_region import TrustRegion
from graftwork_tram.two_pass import BatchNormMode, RandomState, frozen_batch_norm, preserved_buffers, trained_parameters

__all__ = ["Execution", "StepResult", "StepSettings", "TrustRegionStep", "TwoPasses"]


@dataclass(frozen=True)
class StepSettings:
    """How far to climb, and what the second pass shares with the first.

    Args:
        metric: of the ball: "euclidean" as in SAM, "adaptive" as in ASAM, "fisher" as in Fisher-SAM.
        rho: radius where no divergence gives it: without a region, and always with the fisher metric.
        eta: weight of the Fisher information.
        max_radius: cap on the radius; None is none.
        same_rng: repeat the first pass's dropout masks in the second.
        batch_norm: what batch norm normalises by in the second pass.
        cosine: whether to measure the cosine of the two gradients, which keeps the first one through the second pass.

    Raises:
        ValueError: if a value is out of range.
    """

    metric: Metric = "euclidean"
    rho: float = 0.05
    eta: float = 1.0
    max_radius: float | None = None
    same_rng: bool = False
    batch_norm: BatchNormMode = "batch"
    cosine: bool = True

    def __post_init__(self) -> None:
        check_metric(self.metric, self.eta)
        if not self.rho >= 0:
            raise ValueError(f"rho is at least 0; found {self.rho}")
        if self.max_radius is not None and not self.max_radius > 0:
            raise ValueError(f"max_radius is above 0; found {self.max_radius}")
        if self.batch_norm not in ("batch", "running"):
            raise ValueError(f'batch_norm is "batch" or "running"; found "{self.batch_norm}"')


@dataclass(frozen=True)
class Execution:
    """How passes are run where there is more than one process, precision or micro-batch.

    Args:
        backward: adds a loss's gradients to the parameters'.
        autocast: a context for forward passes that measure.
        no_sync: a context in which a backward pass keeps its gradients to its process.
        reduce: the mean over processes.
        scaler: of mixed precision in float16.
    """

    backward: Callable[[Tensor], None] = torch.autograd.backward
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext
    reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor
    scaler: torch.amp.GradScaler | None = None


@dataclass
class _First:
    """What is kept of a first pass."""

    forward: Callable[[], Loss]
    loss: Loss
    divergence: Tensor | None
    random: RandomState | None


class TwoPasses:
    """The passes of one optimiser step, one or several micro-batches of them.

    Args:
        model: whose predictions are compared, and whose batch norm is frozen in the second pass.
        settings: how far to climb.
        trust_region: what gives the radius; None: it is `settings.rho`.
        also: further modules whose buffers and extra state the second pass must not change.
    """

    def __init__(self, model: nn.Module, settings: StepSettings, trust_region: TrustRegion | None = None, also: Iterable[nn.Module] = ()):
        self.model, self.settings, self.trust_region, self.also = model, settings, trust_region, tuple(also)
        self._firsts: list[_First] = []
        self._information: dict[nn.Parameter, Tensor] = {}
        self._workspace: list[Tensor] = []
        self._steps = 0

    def forget(self) -> None:
        """Drop first passes that no second one followed."""
        self._firsts, self._information = [], {}

    @property
    def _fisher_of_divergence(self) -> bool:
        return self.trust_region is not None and self.settings.metric == "fisher"

    def first(
        self,
        forward: Callable[[], Loss],
        parameters: Iterable[Any],
        execution: Execution | None = None,
        predict: Callable[[], Any] | None = None,
    ) -> _First:
        """Run a micro-batch at w: its gradients are added, its divergence measured.

        Args:
            forward: gives the loss; called again by `second`.
            parameters: that are trained, or an optimiser's groups.
            execution: how.
            predict: calls the model on the batch, for losses that never call it as a whole.
        """
        execution = execution or Execution()
        random = RandomState.capture(_device(self.model)) if self.settings.same_rng else None
        if self.trust_region is None:
            loss = forward()
            execution.backward(loss.total)
            return self._keep(_First(forward, loss, None, random))
        graph = self._fisher_of_divergence
        with self.trust_region.record(self.model, detach=not graph) as recorded:
            loss = forward()
            if not recorded.calls and predict is not None:
                with frozen_batch_norm(self.model, self.settings.batch_norm), torch.set_grad_enabled(graph), execution.autocast():
                    predict()
        if not graph:
            execution.backward(loss.total)
        with torch.set_grad_enabled(graph), execution.autocast():
            divergence = self.trust_region.measure(self.model, recorded.calls)
        if graph:
            self._inform(divergence, parameters)
            execution.backward(loss.total)
        return self._keep(_First(forward, loss, divergence.detach(), random))

    def second(self, parameters: Iterable[Any], execution: Execution | None = None) -> Loss:
        """Run the same micro-batches at w + e. Afterwards the weights are w and the gradients those found there.

        Args:
            parameters: that are trained, or an optimiser's groups.
            execution: how.

        Returns:
            The loss at w, averaged over the micro-batches, with its parts and: `perturbed_loss`, `divergence` (with a region), `radius`,
            `gradient_norm`, `perturbation_norm`, `gradient_cosine`.

        Raises:
            ValueError: if no parameter received a gradient.
            DataError: if the first pass's gradient is not finite and no scaler will skip the step; looked for as divergences are.
        """
        execution, firsts = execution or Execution(), self._firsts
        self._firsts = []
        chosen = trained_parameters(parameters)
        if execution.scaler is not None and chosen:
            scale = execution.scaler.scale(torch.ones((), device=chosen[0].device))
            torch._foreach_mul_([parameter.grad for parameter in chosen if parameter.grad is not None], scale.reciprocal())
        radius, divergence = self._radius(firsts, execution)
        fisher = self._fisher(chosen, len(firsts), execution)
        losses = []
        with ExitStack() as stack:
            ball = {"fisher": fisher, "eta": self.settings.eta, "workspace": self._workspace}
            ascent = stack.enter_context(ascended(chosen, radius, self.settings.metric, **ball))  # type: ignore[arg-type]
            self._look(ascent, execution)
            stack.enter_context(preserved_buffers(self.model, *self.also))
            stack.enter_context(frozen_batch_norm(self.model, self.settings.batch_norm))
            if not self.settings.cosine:
                ascent.gradients = []
            for index, first in enumerate(firsts):
                with (
                    execution.no_sync() if index + 1 < len(firsts) else nullcontext(),
                    first.random.replayed() if first.random else nullcontext(),
                ):
                    loss = first.forward()
                    execution.backward(loss.total)
                losses.append(loss.total.detach())
        self._steps += 1
        figures = self._figures(ascent, torch.stack(losses).mean(), divergence)
        if execution.scaler is not None:
            self._void_if_not_finite(ascent)
        return _mean(firsts, figures)

    def _keep(self, first: _First) -> _First:
        """Keep what `second` needs, without the graphs that parts of the loss may hold."""
        total, parts = first.loss
        first.loss = Loss(total.detach(), {name: value.detach() for name, value in parts.items()})
        self._firsts.append(first)
        return first

    def _inform(self, divergence: Tensor, parameters: Iterable[Any]) -> None:
        """Add the divergence's gradients up, of which the square is the Fisher metric; the graph is kept for the loss."""
        flat = dict.fromkeys(inner for one in parameters for inner in (one["params"] if isinstance(one, dict) else [one]))
        wanted = [parameter for parameter in flat if parameter.requires_grad]
        found = torch.autograd.grad(divergence, wanted, retain_graph=True, allow_unused=True)
        for parameter, gradient in zip(wanted, found, strict=True):
            if gradient is not None:
                held = self._information.get(parameter)
                self._information[parameter] = gradient if held is None else held + gradient

    def _fisher(self, chosen: list[nn.Parameter], count: int, execution: Execution) -> list[Tensor] | None:
        if not self._fisher_of_divergence:
            return None
        information, self._information = self._information, {}
        means = [execution.reduce(information[one] / count) if one in information else torch.zeros_like(one) for one in chosen]
        return list(torch._foreach_mul(means, means))

    def _radius(self, firsts: list[_First], execution: Execution) -> tuple[Tensor | float, Tensor | None]:
        measured = [first.divergence for first in firsts if first.divergence is not None]
        if not measured:
            return self._capped(self.settings.rho), None
        divergence = execution.reduce(torch.stack(measured).mean())
        return (self.settings.rho if self._fisher_of_divergence else self._capped(divergence)), divergence

    def _capped(self, radius: Any) -> Any:
        if self.settings.max_radius is None:
            return radius
        return radius.clamp(max=self.settings.max_radius) if isinstance(radius, Tensor) else min(radius, self.settings.max_radius)

    def _look(self, ascent: Ascent, execution: Execution) -> None:
        norm = ascent.gradient_norm
        if execution.scaler is None and (not self._steps or norm.device.type == "cpu") and not bool(torch.isfinite(norm)):
            raise DataError("the gradient of the first pass is not finite")

    def _void_if_not_finite(self, ascent: Ascent) -> None:
        """Make the gradients NaN where the first pass or its divergence was not finite, so that the scaler skips the whole step."""
        sound = torch.isfinite(ascent.gradient_norm) & torch.isfinite(ascent.radius)
        factor = torch.where(sound, 1.0, torch.nan)
        gradients = [parameter.grad for parameter in ascent.parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, factor.to(gradients[0]))

    def _figures(self, ascent: Ascent, perturbed_loss: Tensor, divergence: Tensor | None) -> dict[str, Tensor]:
        found = {"perturbed_loss": perturbed_loss, "radius": ascent.radius, "gradient_norm": ascent.gradient_norm}
        found["perturbation_norm"] = ascent.perturbation_norm
        if divergence is not None:
            found["divergence"] = divergence
        if self.settings.cosine:
            found["gradient_cosine"] = ascent.cosine()
            ascent.gradients = []
        return found


@dataclass(frozen=True)
class StepResult:
    """What a step was; 0-d tensors on the device.

    Args:
        loss: at w.
        perturbed_loss: at w + e.
        radius: of the ball: the divergence, capped, or rho.
        gradient_norm: of the gradient at w, in the metric.
        perturbation_norm: ||e||_2.
        gradient_cosine: between the gradients at w and at w + e; None if it was not asked for.
        divergence: d; None without a region.
        parts: all of them by name.
    """

    loss: Tensor
    perturbed_loss: Tensor
    radius: Tensor
    gradient_norm: Tensor
    perturbation_norm: Tensor
    gradient_cosine: Tensor | None
    divergence: Tensor | None
    parts: dict[str, Tensor] = field(repr=False)


class TrustRegionStep:
    """One optimiser step of TRAM in any loop; without a region, of SAM, ASAM or Fisher-SAM.

        step = TrustRegionStep(model, torch.optim.AdamW(model.parameters()), InputNoise(0.1))
        for images, labels in loader:
            result = step(lambda: cross_entropy(model(images), labels))

    The closure is called twice and does no backward pass itself. Learning-rate schedules are the optimiser's.

    Args:
        model: it has to be called as a whole by the closure where there is a region.
        optimizer: the base optimiser, which steps at w with the gradient found at w + e.
        region: `InputNoise`, `ParameterHistory`, a `Region` of your own, or None for the fixed radius `rho`.
        divergence: how predictions are compared.
        logits_key: where the logits are in what the model gives.
        scaler: of mixed precision in float16; a step is skipped whole if either pass is not finite.
        settings: the fields of `StepSettings`.

    Raises:
        ValueError: if there is no base optimiser, or a setting is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        region: Region | None = None,
        *,
        divergence: Divergence | None = None,
        logits_key: str | None = None,
        scaler: torch.amp.GradScaler | None = None,
        **settings: Any,
    ):
        if not isinstance(optimizer, Optimizer):
            raise ValueError(f"optimizer is the base optimiser that takes the step, a torch.optim.Optimizer; found {optimizer!r}")
        self.model, self.optimizer, self.region, self.scaler = model, optimizer, region, scaler
        self.settings = StepSettings(**settings)
        trust = None
        if region is not None:
            again = {"same_rng": self.settings.same_rng, "batch_norm": self.settings.batch_norm}
            trust = TrustRegion(region, divergence, logits_key=logits_key, **again)  # type: ignore[arg-type]
            region.begin(model)
        self._passes = TwoPasses(model, self.settings, trust)

    def __call__(self, *closures: Callable[[], Tensor]) -> StepResult:
        """Step once.

        Args:
            closures: each gives the loss of a micro-batch, 0-d; several are averaged and perturbed for once.

        Raises:
            ValueError: if there is no closure, or no parameter received a gradient.
            InterfaceError: if a closure does not call the model, or the logits cannot be found or compared.
            DataError: if the divergence or the first gradient is not finite.
        """
        if not closures:
            raise ValueError("a step needs at least one closure that gives a loss")
        execution = Execution(backward=self._backward(len(closures)), scaler=self.scaler)
        groups = self.optimizer.param_groups
        self._passes.forget()
        self.optimizer.zero_grad()
        for closure in closures:
            self._passes.first(lambda closure=closure: Loss(closure()), groups, execution)  # type: ignore[misc]
        total, parts = self._passes.second(groups, execution)
        if self.region is not None:
            self.region.follow(self.model)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()
        return StepResult(
            total,
            parts["perturbed_loss"],
            parts["radius"],
            parts["gradient_norm"],
            parts["perturbation_norm"],
            parts.get("gradient_cosine"),
            parts.get("divergence"),
            parts,
        )

    def _backward(self, count: int) -> Callable[[Tensor], None]:
        return lambda loss: torch.autograd.backward((loss if self.scaler is None else self.scaler.scale(loss)) / count)


def _mean(firsts: list[_First], figures: dict[str, Tensor]) -> Loss:
    total = torch.stack([first.loss.total for first in firsts]).mean()
    parts = {name: torch.stack([first.loss.parts[name].float() for first in firsts]).mean() for name in firsts[0].loss.parts}
    return Loss(total, {**parts, **figures})


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
