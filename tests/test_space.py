"""Search spaces: what is drawn, and what is refused."""

from __future__ import annotations

import random
from typing import Any

import pytest

import graftwork as gw
from graftwork.space import Distribution, settings
from graftwork.spec import SweepSpec


def test_every_point_of_the_grid_is_tried_with_every_draw_of_the_space_and_the_seed_decides_the_draws() -> None:
    spec = SweepSpec(grid={"a": [1, 2], "b": ["x", "y"]}, space={"c": "loguniform(1e-4, 1e-1)"}, trials=3)
    found = settings(spec, 0)
    assert len(found) == 12
    assert [(one["a"], one["b"]) for one in found[:4]] == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    assert len({one["c"] for one in found}) == 3
    assert settings(spec, 0) == found != settings(spec, 1)


def test_draws_lie_in_their_ranges_and_follow_their_distributions() -> None:
    generator = random.Random(0)

    def draws(text: str) -> list[Any]:
        return [Distribution.parse(text).draw(generator) for _ in range(3000)]

    logs = draws("loguniform(1e-4, 1e-1)")
    assert 1e-4 <= min(logs) < max(logs) <= 1e-1
    assert 0.3 < sum(value < 1e-3 for value in logs) / 3000 < 0.37  # a third of the range of exponents
    assert 0.47 < sum(value < 0.5 for value in draws("uniform(0, 1)")) / 3000 < 0.53
    assert set(draws("randint(2, 5)")) == {2, 3, 4, 5}
    assert set(draws("choice(small, [1, 2], null)").__repr__().split(", ")) >= {"'small'", "None"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("loguniform(0, 1)", "above 0"),
        ("uniform(2, 1)", "below the high end"),
        ("uniform(0, .inf)", "finite"),
        ("uniform(1)", "takes two numbers"),
        ("randint(0.5, 2)", "two integers"),
        ("loguniforn(1, 2)", 'did you mean "loguniform"'),
        ("choice()", "no options"),
        ("3", "is no distribution"),
        ("uniform(1, [)", "is no list"),
    ],
)
def test_a_space_that_is_none_is_told_with_what_is_expected(text: str, said: str) -> None:
    with pytest.raises(gw.ConfigError, match=said):
        Distribution.parse(text)
