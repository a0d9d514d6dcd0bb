"""Long curves in few points, and axes that can be read."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.report.charts import charts
from graftwork.report.reading import Series
from graftwork.report.scales import linear_axis, log_axis, number
from graftwork.report.thinning import means, thin

FINITE = st.floats(-1e6, 1e6)
CURVES = st.lists(st.tuples(st.integers(0, 5000), st.none() | FINITE), min_size=1, max_size=300).map(
    lambda points: sorted(points, key=lambda p: p[0])
)


@given(CURVES, st.integers(1, 20))
def test_thinning_keeps_ends_and_extremes_of_every_span_and_their_order(points: list[tuple[int, float | None]], spans: int) -> None:
    steps, values = [step for step, _ in points], [value for _, value in points]
    kept = thin(steps, values, spans)
    assert kept == sorted(set(kept))
    assert len(kept) <= 4 * spans
    known, left = [v for v in values if v is not None], [values[i] for i in kept if values[i] is not None]
    assert (min(known), max(known)) == (min(left), max(left)) if known else not left
    if known:
        first, last = next(i for i, v in enumerate(values) if v is not None), max(i for i, v in enumerate(values) if v is not None)
        assert {first, last} <= set(kept)


def test_a_single_spike_in_ten_thousand_points_survives() -> None:
    values = [1.0] * 10_000
    values[6789], values[1234] = 99.0, -99.0
    kept = thin(range(10_000), values, 100)
    assert {6789, 1234} <= set(kept)
    assert len(kept) <= 400


def test_a_stretch_that_is_not_finite_breaks_the_line() -> None:
    values = [None if 4000 <= step < 6000 else 1.0 for step in range(10_000)]
    chart = charts([("a", 0, Series("a", "loss", range(10_000), values))])[0]
    assert chart.path(chart.lines[0], "linear").count("M") == 2
    assert chart.lines[0].unusable == 2000


def test_the_trend_of_a_noisy_ramp_is_the_ramp() -> None:
    steps = range(1000)
    noisy = [step + (50.0 if step % 2 else -50.0) for step in steps]
    assert all(abs(value - step) < 1e-9 for step, value in means(steps, noisy, 10))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_any_finite_values_have_a_linear_axis_with_every_pixel_in_the_plot(values: list[float]) -> None:
    axis = linear_axis(values, 186, 10)
    inside = [value for value in values if axis.low <= value <= axis.high]
    assert all(10 <= axis.at(value) <= 186 for value in inside)
    assert len(inside) == len(values) or max(map(abs, values)) > 1e299
    assert len(axis.ticks) <= 8


@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=20))
def test_positive_values_have_a_logarithmic_axis_with_ticks(values: list[float]) -> None:
    axis = log_axis(values, 186, 10)
    assert axis is not None
    assert all(9.9 <= axis.at(value) <= 186.1 for value in values)
    assert 1 <= len(axis.ticks) <= 12
    assert all(tick > 0 for tick in axis.ticks)


def test_equal_ratios_are_equal_lengths_on_a_logarithmic_axis() -> None:
    axis = log_axis([1e-4, 1.0], 186, 10)
    assert axis is not None
    assert axis.ticks == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    assert axis.at(1e-2) == pytest.approx((186 + 10) / 2)


@pytest.mark.parametrize("values", [[0.0, 1.0], [-1.0, 2.0], []])
def test_what_is_not_positive_has_no_logarithmic_axis(values: list[float]) -> None:
    assert log_axis(values, 186, 10) is None


@pytest.mark.parametrize(
    ("low", "high", "ticks"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3, 47, [10, 20, 30, 40]), (-1e-5, 1e-5, [-1e-5, -5e-6, 0, 5e-6, 1e-5])]
)
def test_ticks_are_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    assert linear_axis([low, high], 0, 100).ticks == pytest.approx(ticks, abs=1e-12)


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (20_000, "20k"), (1_500_000, "1.5M"), (1e-6, "1e-06"), (0, "0"), (-12_000, "-12k")]
)
def test_numbers_beside_an_axis_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_the_values_for_the_readout_are_the_logged_ones() -> None:
    series = Series("a", "loss", range(5000), [math.sin(step) + 2 for step in range(5000)])
    line = charts([("a", 0, series)])[0].data["lines"][0]
    assert all(value == pytest.approx(math.sin(step) + 2, rel=1e-5) for step, value in zip(line["s"], line["v"], strict=True))


def test_a_page_of_many_curves_has_no_more_points_than_one_of_few() -> None:
    series = [("a", 0, Series("a", f"metric {index}", range(3000), [float(step % 97) for step in range(3000)])) for index in range(150)]
    drawn = charts(series)
    drawn_bytes = sum(len(json.dumps(c.data)) + len(c.path(c.lines[0], "linear")) for c in drawn)
    assert drawn_bytes < 1.5e6


def test_validation_is_drawn_after_training() -> None:
    series = [("a", 0, Series("a", name, [0, 1], [1.0, 2.0])) for name in ("validate/accuracy", "loss")]
    assert [chart.title for chart in charts(series)] == ["loss", "validate/accuracy"]
