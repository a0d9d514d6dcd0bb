"""How far a model's predictions are from those of a region's target, measured on the calls of a pass."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from graftwork import DataError, InterfaceError
from graftwork_tram.calls import Call, RecordedCalls, logits_of
from graftwork_tram.divergence import Divergence, class_axis
from graftwork_tram.regions import InputNoise, NoiseType, ParameterHistory, Region, ShadowDtype
from graftwork_tram.two_pass import BatchNormMode, frozen_batch_norm

__all__ = ["PLAUSIBLE_EMA", "RegionName", "TrustRegion", "make_region"]

RegionName: TypeAlias = Literal["input-noise", "previous", "pretrained", "ema"]
DECAYS = {"previous": 0.0, "pretrained": 1.0}
PLAUSIBLE_EMA = 0.999
UNTRAINED = 0.95
"""Mean entropy of predictions, as a share of the largest, above which a model counts as untrained."""


class TrustRegion(nn.Module):
    """The distance d between predictions and their target: D(f_w(x + z), f_w(x)), or D(f_earlier(x), f_w(x)).

    Each recorded call is run again with the region's change, and the divergences of several calls are averaged.

    Args:
        region: `InputNoise`, `ParameterHistory`, or a `Region` of your own.
        divergence: D.
        logits_key: where the logits are in what the model gives; None: the tensor itself, or its `logits`.
        same_rng: repeat each call's dropout masks, so that noise alone tells the two apart.
        batch_norm: what batch norm normalises by in the target's pass: the "batch" or the "running" statistics. It records neither.
    """

    def __init__(
        self,
        region: Region,
        divergence: Divergence | None = None,
        *,
        logits_key: str | None = None,
        same_rng: bool = False,
        batch_norm: BatchNormMode = "batch",
    ):
        super().__init__()
        self.region, self.divergence = region, divergence or Divergence()
        self.logits_key, self.same_rng, self.batch_norm = logits_key, same_rng, batch_norm
        self._looked = False

    def record(self, model: nn.Module, detach: bool = True) -> RecordedCalls:
        """What `measure` needs of a pass: use it around the pass, with `with`."""
        return RecordedCalls(model, self.logits_key, random=self.same_rng, detach=detach)

    def measure(self, model: nn.Module, calls: Sequence[Call]) -> Tensor:
        """d, 0-d and not negative; with a graph where gradients are on and the calls were recorded with theirs.

        Args:
            model: which got the calls; a target's pass leaves batch-norm statistics alone.
            calls: of one pass.

        Raises:
            InterfaceError: if there is no call, or the target's logits have another shape than the model's.
            DataError: if a first look finds logits that are not finite; on an accelerator only the first measurement looks.
        """
        if not calls:
            raise InterfaceError(f"the loss was computed without calling {type(model).__name__} as a whole: there are no logits to compare")
        found = []
        for call in calls:
            with frozen_batch_norm(model, self.batch_norm), call.random.replayed() if call.random else nullcontext():
                target = logits_of(self.region(model, *call.args, **call.kwargs), self.logits_key, type(model).__name__)
            if target.shape != call.logits.shape:
                raise InterfaceError(
                    f"the logits to compare differ in shape: {tuple(target.shape)} of the {self.pass_name}, {tuple(call.logits.shape)} of "
                    "the first pass"
                )
            found.append(self.divergence(target, call.logits, call.mask))
            if not self._looked or target.device.type == "cpu":
                self._look(target, call.logits, found[-1])
        return torch.stack(found).mean()

    @property
    def pass_name(self) -> str:
        """What the target's pass is called in messages."""
        if isinstance(self.region, InputNoise):
            return "pass with noise at the input"
        return "pass with earlier weights" if isinstance(self.region, ParameterHistory) else f"{type(self.region).__name__}'s pass"

    def _look(self, target: Tensor, logits: Tensor, divergence: Tensor) -> None:
        for what, value in (("first pass", logits), (self.pass_name, target)):
            if not bool(torch.isfinite(divergence)) and not bool(torch.isfinite(value).all()):
                raise DataError(f"the divergence is not finite: the {what} gave logits that are not")
        if not bool(torch.isfinite(divergence)):
            raise DataError(f"the divergence is not finite, though the logits of the first pass and of the {self.pass_name} are")
        if not self._looked and isinstance(self.region, ParameterHistory) and self.region.decay == 1:
            _warn_if_untrained(target)
        self._looked = True


def make_region(
    name: RegionName,
    *,
    eps: float = 0.1,
    noise: NoiseType = "normal",
    at: str | None = None,
    decay: float | None = None,
    device: str | None = None,
    dtype: ShadowDtype | None = None,
) -> InputNoise | ParameterHistory:
    """A region by name: "input-noise", or a history of weights, "previous" (decay 0), "pretrained" (1) or "ema" (0.999 or `decay`).

    Args:
        name: which.
        eps: of noise, as `InputNoise` takes it.
        noise: "normal" or "uniform".
        at: where the noise goes.
        decay: of "ema".
        device: where a history lies between steps.
        dtype: of a history.

    Raises:
        ValueError: if the name is unknown, `decay` is given to another region, or that of "ema" is not between 0 and 1.
    """
    makers: dict[str, Callable[[], InputNoise | ParameterHistory]] = {
        "input-noise": lambda: InputNoise(eps, noise, at),
        **{each: lambda each=each: ParameterHistory(DECAYS[each], device, dtype) for each in DECAYS},  # type: ignore[misc]
        "ema": lambda: ParameterHistory(PLAUSIBLE_EMA if decay is None else decay, device, dtype),
    }
    if name not in makers:
        raise ValueError(f'region is one of {", ".join(makers)}; found "{name}"')
    if decay is not None and (name != "ema" or not 0 < decay < 1):
        raise ValueError(f"decay is of the region ema, between 0 and 1; found {decay} with {name}")
    return makers[name]()


def _warn_if_untrained(logits: Tensor) -> None:
    axis = class_axis(logits)
    log_p = logits.detach().float().log_softmax(dim=axis)
    entropy = -(log_p.exp() * log_p).sum(dim=axis).mean()
    share = float(entropy) / math.log(max(2, logits.shape[axis]))
    if share > UNTRAINED:
        warnings.warn(
            f"region pretrained holds the model to its weights at the start, whose predictions are all but uniform (entropy {share:.0%} of "
            "the largest): is it trained, and its head not new?",
            stacklevel=2,
        )
