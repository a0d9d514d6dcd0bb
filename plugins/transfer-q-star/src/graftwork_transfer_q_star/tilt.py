"""The arithmetic of the method: values of candidate tokens from rewards of rollouts, and the reference tilted by them.

Everything here is a plain function of tensors; nothing knows of a language model.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Normalize", "direct_values", "indirect_values", "tilt", "transfer_log_weights"]

Normalize = Literal["self", "none"]
"""How importance weights are normalised: by their own sum over a candidate's rollouts, or not at all."""


def tilt(log_probs: Tensor, candidates: Tensor, values: Tensor, alpha: float) -> Tensor:
    """log pi(z|s) up to a constant, for pi = argmax E_pi[Q] - alpha KL(pi || pi_ref) over the candidates.

    The solution is pi(z|s) proportional to pi_ref(z|s) exp(Q(s, z) / alpha) (Chakraborty et al., 2024, section 3). A row's values are
    taken less their greatest, which changes no probability and lets alpha go to 0.

    Args:
        log_probs: (B, V) of the reference; -inf where a token is ruled out.
        candidates: (B, K) long, tokens that stay possible; all others become -inf. K = V gives the exact tilt.
        values: (B, K), Q of each candidate; -inf rules it out.
        alpha: strength of the pull to the reference, above 0. The authors' weight is 1 / alpha.

    Returns:
        (B, V), in the dtype of `log_probs`.

    Raises:
        ValueError: if alpha is not above 0, or the shapes do not fit.
    """
    if not alpha > 0:
        raise ValueError(f"alpha is above 0; found {alpha}")
    if candidates.shape != values.shape or candidates.shape[:-1] != log_probs.shape[:-1]:
        shapes = ", ".join(str(tuple(each.shape)) for each in (log_probs, candidates, values))
        raise ValueError(f"log_probs (B, V), candidates (B, K) and values (B, K) do not fit: found {shapes}")
    precise = values.to(torch.promote_types(values.dtype, torch.float32))
    greatest = precise.amax(dim=-1, keepdim=True)
    gains = torch.where(greatest.isfinite(), precise - greatest, precise) / alpha
    tilted = log_probs.gather(-1, candidates) + gains.to(log_probs.dtype)
    return torch.full_like(log_probs, -torch.inf).scatter(-1, candidates, tilted)


def transfer_log_weights(rewards: Tensor, baseline_rewards: Tensor, beta: float) -> Tensor:
    """log of rho_r(tau|s, z) / rho_BL(tau|s, z) up to a constant of the candidate: (r - r_BL) / beta.

    Both follow the closed form of RLHF, rho proportional to rho_sft exp(reward / beta), so that the reference cancels.

    Args:
        rewards: r of rollouts, of any shape.
        baseline_rewards: r_BL of the same rollouts.
        beta: the strength that the baseline was aligned with, above 0.

    Returns:
        Of the same shape, at least in float32.

    Raises:
        ValueError: if beta is not above 0 or the shapes differ.
    """
    if not beta > 0:
        raise ValueError(f"beta is above 0; found {beta}")
    if rewards.shape != baseline_rewards.shape:
        raise ValueError(f"rewards {tuple(rewards.shape)} and baseline_rewards {tuple(baseline_rewards.shape)} differ in shape")
    precise = torch.promote_types(rewards.dtype, torch.float32)
    return (rewards.to(precise) - baseline_rewards.to(precise)) / beta


def direct_values(rewards: Tensor, log_probabilities: Tensor | None = None) -> Tensor:
    """TQ(s, z) = E_{tau ~ rho_BL(.|s, z)} r([s, z, tau]), for a baseline aligned to the same reward.

    Args:
        rewards: (..., M), of the M rollouts of each candidate.
        log_probabilities: (..., M), of the rollouts under the baseline, where they are all that there are; None where they were drawn
            from it, and count alike.

    Returns:
        (...), at least in float32.
    """
    precise = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    return precise.mean(dim=-1) if log_probabilities is None else _weighed(precise, log_probabilities.to(precise.dtype).exp())


def indirect_values(
    rewards: Tensor, baseline_rewards: Tensor, beta: float, normalize: Normalize = "self", log_probabilities: Tensor | None = None
) -> Tensor:
    """TQ(s, z) from rollouts of a baseline that was aligned to another reward r_BL, weighed by exp((r - r_BL) / beta).

    Args:
        rewards: r, (..., M).
        baseline_rewards: r_BL, (..., M).
        beta: the strength that the baseline was aligned with, above 0.
        normalize: "self": weights are divided by their sum over the M rollouts; exact as M grows, and shifted by a constant reward as
            it should be. "none": the mean of weight times reward, as in the authors' code; its scale differs from candidate to
            candidate.
        log_probabilities: as in `direct_values`.

    Returns:
        (...), at least in float32.

    Raises:
        ValueError: if beta is not above 0, the shapes differ, or M is below 2 with "self", where the one weight cancels.
    """
    log_weights = transfer_log_weights(rewards, baseline_rewards, beta)
    if log_probabilities is not None:
        log_weights = log_weights + log_probabilities.to(log_weights.dtype)
    precise = rewards.to(log_weights.dtype)
    if normalize == "none":
        weighed = _weighed(precise, log_weights.exp())
        return weighed if log_probabilities is not None else weighed / rewards.shape[-1]
    if rewards.shape[-1] < 2:
        raise ValueError(f'normalize "self" needs at least 2 rollouts, as the weight of one cancels; found {rewards.shape[-1]}')
    return _weighed(precise, log_weights.softmax(dim=-1))  # softmax is shifted by the greatest


def _weighed(rewards: Tensor, weights: Tensor) -> Tensor:
    """The sum of weight times reward, rollouts without weight counting nothing whatever their reward."""
    return torch.where(weights == 0, torch.zeros_like(rewards), weights * rewards).sum(dim=-1)
