"""Races: both run as often, in turns, and the slower is told to be."""

from __future__ import annotations

import time

import pytest

from graftwork.testing import Race, median_seconds, race


def test_both_run_in_turns_once_unmeasured() -> None:
    calls: list[str] = []
    race(lambda: calls.append("ours"), lambda: calls.append("theirs"), rounds=3)
    assert calls == ["ours", "theirs"] * 4


def test_the_first_call_is_not_counted_and_the_median_is_told() -> None:
    waits = iter([0.3, 0.01, 0.01, 0.2])
    found = race(lambda: time.sleep(next(waits)), lambda: None, rounds=3)
    assert 0.01 <= found.ours < 0.1
    assert found.theirs < 0.01


def test_any_number_is_timed_in_turns() -> None:
    calls: list[str] = []
    found = median_seconds([lambda: calls.append("a"), lambda: time.sleep(0.02), lambda: calls.append("c")], rounds=2)
    assert calls == ["a", "c"] * 3
    assert found[1] == max(found) >= 0.02


def test_processor_time_leaves_waiting_out() -> None:
    assert race(lambda: time.sleep(0.05), lambda: time.sleep(0.05), rounds=1, processor=True).ours < 0.03


def test_a_race_tells_times_and_ratio() -> None:
    assert str(Race(0.012, 0.048)) == "12 ms against 48 ms, ratio 0.25"


@pytest.mark.parametrize("rounds", [0, -1])
def test_a_race_without_rounds_is_refused(rounds: int) -> None:
    with pytest.raises(ValueError, match=f"rounds must be at least 1; found {rounds}"):
        race(lambda: None, lambda: None, rounds)
