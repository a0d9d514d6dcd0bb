"""Guidance policies: for each step of the solver, which predictions are evaluated and how they combine."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["Choice", "Pattern", "costs", "default_options", "expected_cost", "hard_policy", "parse_policy", "pattern_policy", "weights"]

Pattern: TypeAlias = Literal["first", "last", "alternate"]
"""Hand-made policies: CFG in the first or the last steps, or in every other one."""


@dataclass(frozen=True)
class Choice:
    """What one step does (zeta_t).

    Args:
        kind: only the unconditional prediction, only the conditional one, or classifier-free guidance.
        scale: of the guidance; None is the pipeline call's own.

    Raises:
        ValueError: if the kind is unknown, or a scale is not finite or does not go with the kind.
    """

    kind: Literal["uncond", "cond", "cfg"]
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("uncond", "cond", "cfg"):
            raise ValueError(f'a policy\'s entry is "uncond", "cond", "cfg" or "cfg(SCALE)"; found {self.kind!r}')
        if self.scale is not None and (self.kind != "cfg" or not math.isfinite(self.scale)):
            raise ValueError(f"only cfg has a scale, and it is finite; found {self.kind}({self.scale})")

    @classmethod
    def parse(cls, text: str) -> Choice:
        """Read "uncond", "cond", "cfg" or "cfg(7.5)".

        Raises:
            ValueError: for anything else.
        """
        match = re.fullmatch(r"\s*(uncond|cond|cfg)\s*(?:\(\s*([-+.\deE]+)\s*\))?\s*", str(text))
        try:
            if match is None:
                raise ValueError
            return cls(match[1], None if match[2] is None else float(match[2]))  # type: ignore[arg-type]
        except ValueError:
            raise ValueError(f'a policy\'s entry is "uncond", "cond", "cfg" or "cfg(SCALE)"; found {text!r}') from None

    @property
    def cost(self) -> int:
        """Rows through the denoiser for each sample and evaluation."""
        return 2 if self.kind == "cfg" else 1

    def __str__(self) -> str:
        return self.kind if self.scale is None else f"{self.kind}({self.scale!r})"


def parse_policy(entries: Sequence[str | Choice]) -> tuple[Choice, ...]:
    """A policy from its entries.

    Raises:
        ValueError: if it is empty or an entry is unknown; its place is named.
    """
    found = []
    for place, entry in enumerate(entries):
        try:
            found.append(entry if isinstance(entry, Choice) else Choice.parse(entry))
        except ValueError as error:
            raise ValueError(f"policy, step {place}: {error}") from None
    if not found:
        raise ValueError("policy has no entry; it needs one for each step")
    return tuple(found)


def pattern_policy(pattern: Pattern, steps: int, guided: int | None = None) -> tuple[Choice, ...]:
    """A hand-made policy of so many steps.

    Args:
        pattern: "first": CFG in the first `guided` steps; "last": in the last; "alternate": in steps 0, 2, 4, ..., of them the first
            `guided`. The other steps are conditional.
        steps: T.
        guided: k; by default half of the steps, and for "alternate" all even ones.

    Raises:
        ValueError: if the pattern is unknown, or k is not in 0..T.
    """
    if pattern not in ("first", "last", "alternate"):
        raise ValueError(f"pattern is first, last or alternate; found {pattern!r}")
    count = (steps if pattern == "alternate" else steps // 2) if guided is None else guided
    if not 0 <= count <= steps:
        raise ValueError(f"guided is between 0 and the {steps} steps; found {count}")
    chosen = {"first": range(count), "last": range(steps - count, steps), "alternate": range(0, steps, 2)[:count]}[pattern]
    return tuple(Choice("cfg" if step in chosen else "cond") for step in range(steps))


def default_options(scale: float) -> tuple[Choice, ...]:
    """The edges of the search: unconditional, conditional, and guidance at half, once and twice a scale."""
    return (Choice("uncond"), Choice("cond"), Choice("cfg", scale / 2), Choice("cfg", scale), Choice("cfg", 2 * scale))


def weights(options: Sequence[Choice], scale: float) -> Tensor:
    """(K,) w of each option, which is u + w (c - u): 0, 1 or a guidance scale, `scale` where an option names none."""
    return torch.tensor([{"uncond": 0.0, "cond": 1.0}.get(one.kind, scale if one.scale is None else one.scale) for one in options])


def costs(options: Sequence[Choice]) -> Tensor:
    """(K,) rows of each option."""
    return torch.tensor([float(one.cost) for one in options])


def expected_cost(logits: Tensor, cost: Tensor, temperature: float = 1.0) -> Tensor:
    """E_p[NFE] = sum_t sum_k p_tk cost_k with p_t = softmax(alpha_t / tau), a 0-d tensor.

    Args:
        logits: alpha, (T, K).
        cost: (K,).
        temperature: tau.
    """
    return ((logits / temperature).softmax(1) * cost.to(logits)).sum()


def hard_policy(logits: Tensor, options: Sequence[Choice]) -> tuple[Choice, ...]:
    """The likeliest option of each step; of several the first.

    Args:
        logits: alpha, (T, K).
        options: K.

    Raises:
        ValueError: if there are not K columns.
    """
    if logits.ndim != 2 or logits.shape[1] != len(options):
        raise ValueError(f"logits are (T, {len(options)}), a column an option; found {tuple(logits.shape)}")
    return tuple(options[index] for index in logits.argmax(1).tolist())
