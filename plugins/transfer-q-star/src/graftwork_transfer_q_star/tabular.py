"""Language models over a small vocabulary and a few steps, whole: every text of length T is written down, and every expectation exact.

A quantity of states at depth t is a tensor (V^t,), of states with their next token (V^t, V), texts in the order of their digits in base
V. In float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from graftwork_transfer_q_star.tilt import Normalize, direct_values, indirect_values, tilt

__all__ = ["TabularModel", "Tree", "enumerate_model", "optimum", "random_model", "sequences", "transfer_values"]

Tree: TypeAlias = list[Tensor]
"""One tensor (V^t, V) for each depth t = 0, ..., T - 1."""


@dataclass(frozen=True)
class TabularModel:
    """A distribution over the V^T texts of a tree.

    Args:
        log_probs: log pi(z|s), (V^t, V) at each depth; -inf where a token is impossible.
    """

    log_probs: Tree

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.log_probs[0].shape[1]

    @property
    def horizon(self) -> int:
        """T."""
        return len(self.log_probs)

    def trajectories(self, depth: int = 0) -> Tensor:
        """log rho of all that may follow each state at a depth: (V^depth, V^(T - depth))."""
        found = torch.zeros(self.vocabulary**depth, 1, dtype=self.log_probs[0].dtype)
        for level in self.log_probs[depth:]:
            found = (found.reshape(-1, 1) + level).reshape(self.vocabulary**depth, -1)
        return found

    def q_values(self, rewards: Tensor) -> Tree:
        """Q(s, z) = E[r([s, z, tau])], tau from this model.

        Args:
            rewards: (V^T,), of whole texts.
        """
        values, found = rewards, []
        for level in reversed(self.log_probs):
            found.append(values.view(-1, self.vocabulary))
            values = (level.exp() * found[-1]).sum(dim=1)
        return found[::-1]

    def value(self, rewards: Tensor) -> Tensor:
        """E[r], 0-d."""
        return (self.log_probs[0].exp() * self.q_values(rewards)[0]).sum()

    def token_divergence(self, other: TabularModel, weights: TabularModel | None = None) -> Tensor:
        """Sum over steps of the expected KL(self(.|s) || other(.|s)), 0-d.

        Args:
            other: of the same tree.
            weights: whose texts the states are drawn from; this model's own by default, which gives KL of the whole texts.
        """
        visited = (weights or self).log_probs
        reached, total = torch.zeros(1, dtype=visited[0].dtype), torch.zeros((), dtype=visited[0].dtype)
        for mine, theirs, step in zip(self.log_probs, other.log_probs, visited, strict=True):
            difference = torch.where(mine.isfinite(), mine.exp() * (mine - theirs), 0.0).sum(dim=1)
            total = total + torch.where(reached.isfinite(), reached.exp() * difference, 0.0).sum()
            reached = (reached[:, None] + step).flatten()
        return total

    def tilted(self, values: Tree, alpha: float) -> TabularModel:
        """The policy pi(z|s) proportional to this one's times exp(values / alpha)."""
        levels = []
        for level, value in zip(self.log_probs, values, strict=True):
            everything = torch.arange(self.vocabulary).expand_as(level)
            levels.append(tilt(level, everything, value, alpha).log_softmax(dim=1))
        return TabularModel(levels)


def random_model(vocabulary: int, horizon: int, generator: torch.Generator, scale: float = 1.0, end: int | None = None) -> TabularModel:
    """A model whose logits are normal.

    Args:
        vocabulary: V.
        horizon: T.
        generator: draws the logits, state by state.
        scale: standard deviation of the logits.
        end: a token that, once chosen, is the only one that follows: an end of text.
    """
    levels = [scale * torch.randn(vocabulary**depth, vocabulary, generator=generator, dtype=torch.float64) for depth in range(horizon)]
    return TabularModel([level.log_softmax(dim=1) for level in _absorbing(levels, end)])


def sequences(vocabulary: int, horizon: int) -> Tensor:
    """All texts, (V^T, T) long, in order."""
    return torch.cartesian_prod(*[torch.arange(vocabulary)] * horizon).view(-1, horizon)


def optimum(reference: TabularModel, rewards: Tensor, beta: float) -> TabularModel:
    """rho* proportional to rho_ref exp(r / beta) over whole texts, the closed form of RLHF, as a policy of tokens.

    Args:
        reference: rho_ref.
        rewards: (V^T,).
        beta: above 0.
    """
    ahead, levels = rewards / beta, []  # log E_ref[exp(r / beta) | s], from the last token backwards
    for level in reversed(reference.log_probs):
        scores = level + ahead.view(-1, reference.vocabulary)
        levels.append(scores.log_softmax(dim=1))
        ahead = scores.logsumexp(dim=1)
    return TabularModel(levels[::-1])


def transfer_values(
    baseline: TabularModel,
    rewards: Tensor,
    baseline_rewards: Tensor | None = None,
    beta: float | None = None,
    normalize: Normalize = "self",
) -> Tree:
    """TQ(s, z) with all continuations as rollouts, each with its exact probability under the baseline.

    Args:
        baseline: rho_BL.
        rewards: r, (V^T,).
        baseline_rewards: r_BL, (V^T,), for the indirect estimate; None is the direct one.
        beta: that the baseline was aligned with; goes with `baseline_rewards`.
        normalize: as in `indirect_values`.
    """
    found = []
    for depth in range(baseline.horizon):
        rows = (baseline.vocabulary**depth, baseline.vocabulary, -1)
        weights = baseline.trajectories(depth + 1).view(rows)
        if baseline_rewards is None:
            found.append(direct_values(rewards.view(rows), weights))
        elif weights.shape[-1] == 1:  # the last token: nothing is left to weigh
            found.append(rewards.view(rows)[..., 0])
        else:
            assert beta is not None
            found.append(indirect_values(rewards.view(rows), baseline_rewards.view(rows), beta, normalize, weights))
    return found


@torch.no_grad()
def enumerate_model(model: Any, prompt: Sequence[int], tokens: Sequence[int], horizon: int, end: int | None = None) -> TabularModel:
    """A language model restricted to a few tokens and steps after a prompt, its probabilities renormalised.

    Args:
        model: callable as `model(input_ids)`, giving logits (B, L, V) or an output that holds them.
        prompt: token ids, at least one.
        tokens: ids of the small vocabulary.
        horizon: steps.
        end: position in `tokens` of an end of text, after which only it follows.
    """
    small, device = torch.tensor(list(tokens)), next(model.parameters()).device
    levels = []
    for depth in range(horizon):
        texts = small[sequences(len(small), depth)] if depth else torch.empty(1, 0, dtype=torch.long)
        rows = torch.cat([torch.tensor(list(prompt)).expand(len(texts), -1), texts], dim=1).to(device)
        output = model(rows)
        levels.append(getattr(output, "logits", output)[:, -1].double().cpu()[:, small])
    return TabularModel([level.log_softmax(dim=1) for level in _absorbing(levels, end)])


def _absorbing(levels: Tree, end: int | None) -> Tree:
    """Logits after which only the end of text follows itself."""
    if end is None:
        return levels
    found, ends = [], torch.zeros(1, dtype=torch.bool)
    for level in levels:
        is_end = torch.arange(level.shape[1]) == end
        found.append(level.masked_fill(ends[:, None] & ~is_end, -torch.inf))
        ends = (ends[:, None] | is_end).flatten()
    return found
