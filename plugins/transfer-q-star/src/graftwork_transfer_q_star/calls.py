"""What a guided decoding spent: forwards, rollout tokens and rewards for each token that it emitted."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CallCount"]


@dataclass
class CallCount:
    """Counts that a processor adds to while it works; the reference's own forwards are those of `generate` and not among them.

    Args:
        tokens: emitted by rows that were not finished.
        lm_forwards: calls of the baseline, one for a whole batch.
        lm_tokens: tokens that went through the baseline, those of prefixes included and padding not.
        rollout_tokens: of them, those of rollouts.
        reward_calls: calls of the rewards, one for a whole batch.
        rewards: texts that were scored.
    """

    tokens: int = 0
    lm_forwards: int = 0
    lm_tokens: int = 0
    rollout_tokens: int = 0
    reward_calls: int = 0
    rewards: int = 0

    def per_token(self) -> dict[str, float]:
        """Each count by emitted token; zeros where none was emitted."""
        names = ("lm_forwards", "lm_tokens", "rollout_tokens", "reward_calls", "rewards")
        return {name.replace("_", "-"): getattr(self, name) / max(self.tokens, 1) for name in names}
