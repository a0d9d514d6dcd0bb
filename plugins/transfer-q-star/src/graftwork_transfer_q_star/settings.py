"""What a guided decoding is told: checked once, when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from graftwork_transfer_q_star.rollouts import RolloutPolicy
from graftwork_transfer_q_star.tilt import Normalize

__all__ = ["HORIZONS", "Mode", "TransferSettings"]

Mode = Literal["direct", "indirect"]
"""Whether the baseline was aligned to the reward itself, or to another."""

HORIZONS: Mapping[Mode, int] = {"direct": 20, "indirect": 5}
"""Tokens of a rollout in the authors' code."""


@dataclass(frozen=True)
class TransferSettings:
    """Numbers of the method; what is None is filled in from the mode.

    Args:
        alpha: strength of the pull to the reference, above 0; the authors' weight is 1 / alpha.
        top_k: likeliest tokens that are rolled out; all others become impossible.
        mode: "direct": the baseline was aligned to the reward itself; "indirect": to another, for which weights correct.
        horizon: most tokens of a rollout after the candidate; 0 scores the candidate as it is. By default 20 direct, 5 indirect.
        rollouts: of each candidate. By default 1; 4 for the self-normalised indirect estimate.
        beta: strength that the baseline was aligned with; for the indirect mode, which needs it. The authors have 2.
        normalize: weights of the indirect mode, "self" or "none".
        policy: how the baseline picks the tokens of rollouts. By default a single one takes the likeliest, and several are drawn from
            the baseline itself.
        keep_special_tokens: whether rewards see the tokens that begin, end and pad a text.
        reuse_prefix: keep the baseline's cache of the text so far; without, each rollout reads it again.
        memory: MiB that the caches of rollouts may take at once.
        reward_batch_size: texts that a reward sees at once.

    Raises:
        ValueError: if one is out of range, or two do not go together.
    """

    alpha: float = 1.0
    top_k: int = 10
    mode: Mode = "direct"
    horizon: int | None = None
    rollouts: int | None = None
    beta: float | None = None
    normalize: Normalize = "self"
    policy: RolloutPolicy | None = None
    keep_special_tokens: bool = False
    reuse_prefix: bool = True
    memory: float = 2048.0
    reward_batch_size: int = 64

    def __post_init__(self) -> None:
        for name, options in (("mode", get_args(Mode)), ("normalize", get_args(Normalize))):
            if getattr(self, name) not in options:
                raise ValueError(f'{name} is one of {", ".join(options)}; found "{getattr(self, name)}"')
        self._fill_in()
        for name, least in (("top_k", 1), ("reward_batch_size", 1), ("horizon", 0), ("rollouts", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is at least {least}; found {getattr(self, name)}")
        for name in ("alpha", "memory"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is above 0; found {getattr(self, name)}")
        if self.samples > 1 and not self.picks.sample:
            raise ValueError(f"{self.samples} greedy rollouts would be copies of one: set policy.sample, or rollouts to 1")
        if self.mode == "indirect":
            self._check_indirect()
        elif self.beta is not None:
            raise ValueError(f"beta goes with mode indirect; found {self.beta} with mode {self.mode}")

    def _fill_in(self) -> None:
        several = 4 if self.mode == "indirect" and self.normalize == "self" else 1
        rollouts = several if self.rollouts is None else self.rollouts
        chosen = {
            "horizon": HORIZONS[self.mode] if self.horizon is None else self.horizon,
            "rollouts": rollouts,
            "policy": RolloutPolicy(sample=rollouts > 1) if self.policy is None else self.policy,
        }
        for name, value in chosen.items():
            object.__setattr__(self, name, value)

    def _check_indirect(self) -> None:
        if self.beta is None:
            raise ValueError("mode indirect needs beta, the strength that the baseline was aligned with (the authors have 2)")
        if not self.beta > 0:
            raise ValueError(f"beta is above 0; found {self.beta}")
        if not self.length:
            raise ValueError("mode indirect weighs rollouts: horizon is at least 1; found 0")
        if self.normalize == "self" and self.samples < 2:
            raise ValueError(f'rollouts is at least 2 with normalize "self", as the weight of one cancels; found {self.samples}')

    @property
    def length(self) -> int:
        """The horizon, filled in."""
        assert self.horizon is not None
        return self.horizon

    @property
    def samples(self) -> int:
        """The rollouts of each candidate, filled in; one where there is nothing to roll out."""
        assert self.rollouts is not None
        return self.rollouts

    @property
    def picks(self) -> RolloutPolicy:
        """The policy, filled in."""
        assert self.policy is not None
        return self.policy

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> TransferSettings:
        """Settings out of a mapping that may hold more."""
        return cls(**{field.name: given[field.name] for field in fields(cls) if field.name in given})
