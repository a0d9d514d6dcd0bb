"""How alike the two predictions of classifier-free guidance are, and how they combine."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from graftwork import InterfaceError

__all__ = ["Space", "denoised", "guidance_cosine", "guide", "without_variance"]

Space: TypeAlias = Literal["prediction", "x0"]
"""Where predictions are compared: as the network gives them, or turned into the sample without noise."""


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans, 2022): u + s (c - u), in diffusers' order of operations; at s = 1 exactly c.

    Args:
        conditional: c, (B, ...).
        unconditional: u, of the same shape; of the negative or the empty prompt.
        scale: s.
    """
    return conditional if scale == 1 else unconditional + scale * (conditional - unconditional)


def guidance_cosine(conditional: Tensor, unconditional: Tensor) -> Tensor:
    """gamma_t = <c, u> / (||c|| ||u||) over all but the batch dimension (Castillo et al., 2025), summed in float32 or finer.

    Args:
        conditional: c, (B, ...), of any floating type.
        unconditional: u, of the same shape.

    Returns:
        (B,) in [-1, 1]; not a number where one of the two is all zero.

    Raises:
        ValueError: if the shapes differ.
    """
    if conditional.shape != unconditional.shape:
        raise ValueError(f"conditional {tuple(conditional.shape)} and unconditional {tuple(unconditional.shape)} differ in shape")
    dtype = torch.promote_types(conditional.dtype, torch.float32)
    c, u = conditional.flatten(1).to(dtype), unconditional.flatten(1).to(dtype)
    products = torch.stack([(c * u).sum(1), (c * c).sum(1), (u * u).sum(1)])
    return (products[0] / (products[1].sqrt() * products[2].sqrt())).clamp(-1, 1)


def without_variance(prediction: Tensor, sample: Tensor) -> Tensor:
    """The channels that predict the sample, where a network predicts variances in as many further ones (PixArt).

    Args:
        prediction: (B, C, H, W) or (B, 2 C, H, W).
        sample: (B, C, H, W) what the network was shown.
    """
    learned = sample.ndim == 4 and prediction.shape[1] == 2 * sample.shape[1]
    return prediction[:, : sample.shape[1]] if learned else prediction


def denoised(scheduler: Any, prediction: Tensor, sample: Tensor, timestep: Tensor | float, index: int) -> Tensor:
    """The sample without noise, x0, that a prediction implies, by the scheduler's own parametrisation.

    A scheduler with `alphas_cumprod` shows its network alpha_t x0 + sigma_t e with alpha_t^2 + sigma_t^2 = 1, also where it counts
    in sigmas (Euler, Heun), because it scales the input; one of flows shows (1 - sigma_t) x0 + sigma_t e.

    Args:
        scheduler: of diffusers, with its timesteps set.
        prediction: (B, ...) noise, sample, velocity or flow, as its `prediction_type` says.
        sample: (B, ...) what the network was shown.
        timestep: what the network was told, a number or a tensor of one or B; may be fractional.
        index: of the evaluation in the scheduler's timesteps, for flows.

    Raises:
        InterfaceError: if the scheduler has neither, or an unknown `prediction_type`.
    """
    config = scheduler.config
    kind = config.get("prediction_type", "flow_prediction")
    if kind == "sample":
        return prediction
    if kind == "flow_prediction" and hasattr(scheduler, "sigmas"):
        sigma: Tensor = scheduler.sigmas[index].to(sample)
        return sample - sigma * prediction
    cumulative = getattr(scheduler, "alphas_cumprod", None)
    if cumulative is None or kind not in ("epsilon", "v_prediction"):
        raise InterfaceError(f'space "x0" knows no way from the "{kind}" of {type(scheduler).__name__}: compare by space "prediction"')
    kept = _interpolated(cumulative.to(sample.device), torch.as_tensor(timestep, device=sample.device)).to(sample)
    kept = kept.view(-1, *[1] * (sample.ndim - 1)) if kept.ndim else kept
    alpha, spread = kept.sqrt(), (1 - kept).sqrt()
    return (sample - spread * prediction) / alpha if kind == "epsilon" else alpha * sample - spread * prediction


def _interpolated(table: Tensor, place: Tensor) -> Tensor:
    below = place.floor().long().clamp(0, len(table) - 1)
    above = (below + 1).clamp(max=len(table) - 1)
    return torch.lerp(table[below], table[above], (place - below).to(table.dtype).clamp(0, 1))
