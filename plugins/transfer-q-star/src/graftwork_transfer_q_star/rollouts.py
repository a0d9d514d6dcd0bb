"""Finishing responses: each candidate token is continued by the baseline until its end of text or the horizon."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork_transfer_q_star.prefix_cache import PrefixCache

__all__ = ["RolloutPolicy", "pick_tokens", "roll_out"]


@dataclass(frozen=True)
class RolloutPolicy:
    """How the baseline picks the tokens of a rollout.

    Args:
        sample: draw them; else the likeliest is taken.
        temperature: that logits are divided by before a draw; 1 draws from the baseline itself.
        top_k: draw among so many likeliest tokens; 0 among all.
        top_p: draw among the likeliest tokens that make up so much probability; 1 among all.

    Raises:
        ValueError: if a number is out of range.
    """

    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature of rollouts is above 0; found {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k of rollouts is at least 0; found {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p of rollouts is above 0 and at most 1; found {self.top_p}")


def pick_tokens(logits: Tensor, policy: RolloutPolicy, noise: Tensor | None = None) -> Tensor:
    """The next token of each row.

    A draw inverts the distribution function at a uniform number that is given, so that a row's token depends on its own logits and
    number alone: not on what it is batched with.

    Args:
        logits: (N, V).
        policy: how.
        noise: (N,) in [0, 1); needed to draw.

    Returns:
        (N,) long.
    """
    if not policy.sample:
        return logits.argmax(dim=-1)
    assert noise is not None
    logits = logits / policy.temperature
    if policy.top_k and policy.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(policy.top_k, dim=-1).values[:, -1:], -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if policy.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        kept = (ordered.cumsum(dim=-1) - ordered) < policy.top_p  # the token that crosses the line stays
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered * kept)
    reached = probabilities.cumsum(dim=-1)
    total = reached[:, -1:].contiguous()
    drawn = torch.searchsorted(reached, noise[:, None].to(reached.dtype) * total, right=True)
    return torch.minimum(drawn, torch.searchsorted(reached, total))[:, 0]  # rounding may reach past the last possible token


def roll_out(
    prefixes: PrefixCache,
    rows: Tensor,
    first: Tensor,
    horizon: int,
    *,
    end: Tensor,
    padding: int,
    policy: RolloutPolicy,
    noise: Tensor | None = None,
    memory: int = 2**31,
) -> tuple[Tensor, Tensor]:
    """Continue prefixes by a given token and then by the model's own, all at once.

    Rollouts that have ended are dropped when half of those that are held have.

    Args:
        prefixes: of the batch, advanced to its present length.
        rows: (N,) long, the prefix of each rollout.
        first: (N,) long, the token that each starts with.
        horizon: tokens after the first, at most; 0 gives the first alone.
        end: (E,) long, tokens that end a text.
        padding: put behind an end.
        policy: how tokens are picked.
        noise: (N, horizon) in [0, 1), where they are drawn.
        memory: bytes that rollouts may take at once; more are rolled out one part after another, with the same result.

    Returns:
        Tokens (N, 1 + horizon) long, the first and the ends included; lengths (N,) long.
    """
    tokens = torch.full((len(first), 1 + horizon), padding, dtype=torch.long, device=first.device)
    tokens[:, 0] = first
    if horizon and len(first):
        model = prefixes.model
        vocabulary = int(getattr(getattr(model.config, "text_config", model.config), "vocab_size", 0))
        at_once = max(1, memory // max(prefixes.branch_bytes(1 + horizon, vocabulary), 1))
        for start in range(0, len(first), at_once):
            part = slice(start, start + at_once)
            tokens[part, 1:] = _continue(
                prefixes, rows[part], first[part], horizon, end, padding, policy, None if noise is None else noise[part]
            )
    ended = torch.isin(tokens, end)
    after = ended.long().cumsum(dim=1) - ended.long()  # ends before each token
    return tokens, (after == 0).sum(dim=1)


def _continue(
    prefixes: PrefixCache,
    rows: Tensor,
    current: Tensor,
    horizon: int,
    end: Tensor,
    padding: int,
    policy: RolloutPolicy,
    noise: Tensor | None,
) -> Tensor:
    """The tokens (N, horizon) that follow the current ones."""
    found = torch.full((len(rows), horizon), padding, dtype=torch.long, device=rows.device)
    branches = prefixes.branch(rows, horizon)
    held = torch.arange(len(rows), device=rows.device)  # which rollouts the branches are
    alive = torch.ones_like(held, dtype=torch.bool)
    for step in range(horizon):
        logits = branches.step(current)
        current = pick_tokens(logits, policy, None if noise is None else noise[held, step])
        found[held, step] = torch.where(alive, current, padding)
        alive = alive & ~torch.isin(current, end)
        left = int(alive.sum())
        if not left:
            break
        if 2 * left <= len(held) and step + 1 < horizon:
            index = alive.nonzero()[:, 0]
            branches.keep(index)
            held, current, alive = held[index], current[index], alive[index]
    return found
