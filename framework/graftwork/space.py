"""Search spaces: the settings that a sweep tries, drawn the same wherever its trials run."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from graftwork.document import Document
from graftwork.errors import ConfigError, GraftworkError, nearest
from graftwork.spec import SweepSpec

__all__ = ["Distribution", "assignment", "candidates", "count", "settings"]

CALL = re.compile(r"\s*(\w+)\s*\((.*)\)\s*", re.DOTALL)
NAMES = ("uniform", "loguniform", "randint", "choice")
DRAWS = 10
LARGEST = 1e300
MOST = 10_000
"""Settings of one sweep."""


@dataclass(frozen=True)
class Distribution:
    """What a setting is drawn from.

    Args:
        name: "uniform", "loguniform", "randint" (both ends included) or "choice".
        arguments: the two ends, or the options.
    """

    name: str
    arguments: Sequence[Any]

    @classmethod
    def parse(cls, text: str) -> Distribution:
        """Read one, such as "loguniform(1e-4, 1e-1)".

        Raises:
            ConfigError: if it is none; the message says what is expected.
        """
        found = CALL.fullmatch(text)
        if found is None or found[1] not in NAMES:
            hint = nearest(found[1], NAMES) if found else ""
            raise ConfigError(
                f"{text!r} is no distribution{hint}: write uniform(low, high), loguniform(low, high), "
                "randint(low, high) or choice(a, b, ...)"
            )
        try:
            arguments = Document.parse(f"values: [{found[2]}]").data["values"]
        except GraftworkError:
            raise ConfigError(f"{text!r}: what stands in the brackets is no list") from None
        return cls(found[1], arguments)._checked(text)

    def _checked(self, text: str) -> Distribution:
        if self.name == "choice":
            if not self.arguments:
                raise ConfigError(f"{text!r} has no options to choose from")
            return self
        kind, noun = (int, "integers") if self.name == "randint" else ((int, float), "numbers")
        if len(self.arguments) != 2 or not all(isinstance(one, kind) and not isinstance(one, bool) for one in self.arguments):
            raise ConfigError(f"{text!r}: {self.name} takes two {noun}, the low and the high end")
        low, high = self.arguments
        if not (abs(low) <= LARGEST and abs(high) <= LARGEST and low < high):  # which nan and infinity are not
            raise ConfigError(f"{text!r}: the low end is below the high end, and both are finite")
        if self.name == "loguniform" and low <= 0:
            raise ConfigError(f"{text!r}: the ends of loguniform are above 0")
        return self

    def draw(self, random: random.Random) -> Any:
        """A value; real ones have six significant digits, so that what is written is what was run."""
        if self.name == "choice":
            return random.choice(self.arguments)
        low, high = self.arguments
        if self.name == "randint":
            return random.randint(low, high)
        value = random.uniform(low, high) if self.name == "uniform" else math.exp(random.uniform(math.log(low), math.log(high)))
        return min(max(float(f"{value:.6g}"), low), high)


def assignment(key: str, value: Any) -> str:
    """A setting as an override of the pipeline: "stages.dann.train.optimizer.lr=0.1"."""
    return f"{key}={json.dumps(value)}"


def count(spec: SweepSpec) -> int:
    """How many settings a sweep tries."""
    return math.prod(len(values) for values in spec.grid.values()) * ((spec.trials or DRAWS) if spec.space else 1)


def settings(spec: SweepSpec, seed: int) -> list[dict[str, Any]]:
    """The settings that a sweep tries, each dotted key -> value; the same for the same seed, whatever runs them.

    Args:
        spec: of the sweep.
        seed: of the draws.

    Raises:
        ConfigError: if there are too many.
    """
    if (asked := count(spec)) > MOST:
        raise ConfigError(f"the sweep has {asked} settings; one has at most {MOST}")
    grid = [dict(zip(spec.grid, values, strict=True)) for values in itertools.product(*spec.grid.values())]
    space = {key: Distribution.parse(text) for key, text in spec.space.items()}
    generator = random.Random(seed)
    draws = [{key: one.draw(generator) for key, one in space.items()} for _ in range((spec.trials or DRAWS) if space else 1)]
    return [{**point, **drawn} for drawn in draws for point in grid]


def candidates(spec: SweepSpec) -> list[tuple[tuple[str | int, ...], str, Any]]:
    """(place below `sweep`, dotted key, value): every listed value, and the two ends of every range.

    Raises:
        ConfigError: if a space is none.
    """
    found: list[tuple[tuple[str | int, ...], str, Any]] = [
        (("grid", key, index), key, value) for key, values in spec.grid.items() for index, value in enumerate(values)
    ]
    return found + [(("space", key), key, value) for key, text in spec.space.items() for value in Distribution.parse(text).arguments]
