"""What a scheduler's timesteps mean: signal-to-noise ratios, noised samples, targets and loss weights, for diffusion and for flows."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from graftwork import InterfaceError

__all__ = ["NoiseLevels", "Prediction", "Weighting", "flow_log_snr", "log_snr", "noise_levels"]

Prediction: TypeAlias = Literal["epsilon", "v_prediction", "sample", "flow"]
"""What a denoiser predicts: the noise, the velocity of Salimans & Ho (2022), the sample, or e - x_0 of a straight flow."""

Weighting: TypeAlias = Literal["none", "min-snr", "p2"]
"""Of the squared errors; weights other than "none" are those of the equivalent error of the noise."""

GAMMAS: dict[str, float] = {"none": 0.0, "min-snr": 5.0, "p2": 1.0}
"""Usual gamma of Hang et al. (2023) and of Choi et al. (2022)."""


def log_snr(alphas_cumprod: Tensor) -> Tensor:
    """log(abar / (1 - abar)), (T,) float64.

    Args:
        alphas_cumprod: (T,) abar, each between 0 and 1.

    Raises:
        ValueError: if a signal-to-noise ratio is not positive and finite, naming the first such timestep.
    """
    kept = alphas_cumprod.double()
    ratio = kept / (1 - kept)
    odd = ~((ratio > 0) & torch.isfinite(ratio))
    if odd.any():
        first = int(odd.nonzero()[0])
        raise ValueError(f"log SNR needs positive, finite signal-to-noise ratios; at timestep {first} it is {float(ratio[first])}")
    return ratio.log()


def flow_log_snr(sigmas: Tensor) -> Tensor:
    """2 log((1 - s) / s) of a straight flow x_s = (1 - s) x_0 + s e, float64.

    Args:
        sigmas: each between 0 and 1.

    Raises:
        ValueError: if a signal-to-noise ratio is not positive and finite.
    """
    levels = sigmas.double()
    return log_snr((1 - levels).square() / ((1 - levels).square() + levels.square()))


@dataclass(frozen=True)
class NoiseLevels:
    """The noise levels of a scheduler, T of them.

    Args:
        count: T, the training timesteps.
        prediction: what the denoiser predicts.
        alphas_cumprod: (T,) of a diffusion; None for a flow, whose timestep t stands for the noise levels s in [t, t + 1) / T.
    """

    count: int
    prediction: Prediction
    alphas_cumprod: Tensor | None = None

    @functools.cached_property
    def log_snr(self) -> Tensor:
        """(T,) float64; of a flow at the middle of each timestep.

        Raises:
            ValueError: if a ratio is not positive and finite, as at the end of a schedule with zero terminal SNR.
        """
        if self.alphas_cumprod is None:
            return flow_log_snr((torch.arange(self.count, dtype=torch.float64) + 0.5) / self.count)
        return log_snr(self.alphas_cumprod)

    def spread(self, timesteps: Tensor) -> Tensor:
        """Times of whole timesteps (B,): themselves, or for a flow s uniform in [t, t + 1) / T, drawn from torch's global generator."""
        if self.alphas_cumprod is not None:
            return timesteps
        return (timesteps + torch.rand(timesteps.shape, device=timesteps.device)) / self.count

    def timestep_of(self, time: Tensor | float) -> int:
        """The whole timestep that a sampler's time is in: itself, or for a flow the one that holds s in [0, 1]."""
        return int(time) if self.alphas_cumprod is not None else min(self.count - 1, int(float(time) * self.count))

    def signal_and_noise(self, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of sample and noise, shaped to broadcast over `like` (B, ...), in float32."""
        if self.alphas_cumprod is None:
            signal, noise = 1 - times, times
        else:
            kept = self.alphas_cumprod.to(times.device, torch.float32)[times]
            signal, noise = kept.sqrt(), (1 - kept).sqrt()
        shape = (-1, *(1,) * (like.ndim - 1))
        return signal.view(shape).float(), noise.view(shape).float()

    def noised(self, samples: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """x_t (B, ...) of samples and noise of that shape."""
        keep, add = self.signal_and_noise(times, samples)
        return (keep * samples + add * noise).to(samples.dtype)

    def target(self, samples: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the denoiser is to predict, (B, ...)."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return samples
        if self.prediction == "flow":
            return noise - samples
        keep, add = self.signal_and_noise(times, samples)
        return (keep * noise - add * samples).to(samples.dtype)

    def weights(self, times: Tensor, weighting: Weighting, gamma: float | None = None) -> Tensor:
        """(B,) float32 weights of the squared errors of the prediction.

        The error of the noise is c times that of the prediction, with c = 1 (epsilon), SNR / (1 + SNR) (v), SNR (sample) and
        (1 - s)^2 (flow). "min-snr" weights it by min(SNR, gamma) / SNR (Hang et al., 2023, eq. 6), "p2" by 1 / (1 + SNR)^gamma (Choi
        et al., 2022, eq. 8); "none" is 1 for every prediction.

        Args:
            times: (B,), as `spread` gives.
            weighting: which.
            gamma: None is 5 for "min-snr" and 1 for "p2".
        """
        if weighting == "none":
            return torch.ones(times.shape, device=times.device)
        gamma = GAMMAS[weighting] if gamma is None else gamma
        keep, add = self.signal_and_noise(times, times)
        signal, noise = keep.square(), add.square().clamp(min=torch.finfo(torch.float32).tiny)
        ratio = signal / noise
        # min(SNR, gamma) / SNR is min(1, gamma / SNR), which a ratio of zero leaves finite
        shared = (gamma / ratio).clamp(max=1) if weighting == "min-snr" else (1 + ratio).pow(-gamma)
        return shared * {"epsilon": torch.ones_like(ratio), "v_prediction": signal, "sample": ratio, "flow": signal}[self.prediction]


def noise_levels(scheduler: Any) -> NoiseLevels:
    """The noise levels that a diffusers scheduler trains with: by its `alphas_cumprod`, or as a flow by its sigmas.

    Args:
        scheduler: of diffusers, DDPM and its kin or flow matching.

    Raises:
        InterfaceError: if it is neither.
    """
    settings = getattr(scheduler, "config", None)
    count = getattr(settings, "num_train_timesteps", None)
    kept = getattr(scheduler, "alphas_cumprod", None)
    if count and isinstance(kept, Tensor):
        kind: Any = getattr(settings, "prediction_type", "epsilon")
        if kind not in get_args(Prediction):
            raise InterfaceError(f'{type(scheduler).__name__} predicts "{kind}"; one of {", ".join(get_args(Prediction))} is needed')
        return NoiseLevels(count, kind, kept.detach().cpu())
    if count and "FlowMatch" in type(scheduler).__name__:
        return NoiseLevels(count, "flow")
    raise InterfaceError(
        f"{type(scheduler).__name__} has no `alphas_cumprod` and is no flow-matching one: take a DDPM, DDIM or FlowMatch scheduler"
    )
