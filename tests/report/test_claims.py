"""One run's numbers against its claim."""

from __future__ import annotations

import pytest

from graftwork import GraftworkError
from graftwork.metrics import metric_of
from graftwork.report.claims import comparisons, judge

METRICS = {"a/accuracy": 0.75, "b/accuracy": 0.5, "a/test/loss": 0.25, "b/clean/loss": 0.5, "b/photo/loss": 1.0}


def claim(**compare: object) -> dict[str, object]:
    return {"compare": {"method": "a/accuracy", "baseline": "b/accuracy", **compare}}


@pytest.mark.parametrize(
    ("compare", "verdict"),
    [
        ({}, "for the claim"),
        ({"direction": "lower"}, "against it"),
        ({"method": "b/accuracy", "baseline": "a/accuracy"}, "against it"),
        ({"method": "b/accuracy", "baseline": "a/accuracy", "direction": "lower"}, "for the claim"),
        ({"baseline": "a/accuracy"}, "against it"),  # equal is not better
        ({"baseline": "a/accuracy", "margin": 0.01}, "for the claim"),
        ({"method": "b/accuracy", "baseline": "a/accuracy", "margin": 0.25}, "against it"),  # worse by just what is allowed
        ({"method": "b/accuracy", "baseline": "a/accuracy", "margin": 0.26}, "for the claim"),
        ({"direction": "lower", "margin": 0.3}, "for the claim"),
        ({"margin": "wide"}, "for the claim"),
        ({"baseline": "c/accuracy"}, "not measured"),
        ({"method": "a/f1"}, "not measured"),
    ],
)
def test_the_verdict_follows_direction_and_margin(compare: dict[str, object], verdict: str) -> None:
    assert [one.verdict for one in judge(claim(**compare), METRICS)] == [verdict]


def test_the_difference_is_method_less_baseline_whichever_is_better() -> None:
    for direction in ("higher", "lower"):
        assert judge(claim(direction=direction), METRICS)[0].difference == 0.25
    assert judge(claim(method="a/f1"), METRICS)[0].difference is None


def test_each_of_several_comparisons_is_judged_and_those_of_no_two_numbers_are_left_out() -> None:
    two = [{"method": "a/accuracy", "baseline": "b/accuracy"}, {"method": "b/accuracy", "baseline": "a/accuracy"}]
    assert [one.verdict for one in judge({"compare": two}, METRICS)] == ["for the claim", "against it"]
    assert comparisons({"compare": [{"method": "a/x"}, "a/x", None, *two]}) == two
    assert comparisons({}) == comparisons({"compare": "a/x"}) == []


def test_an_evaluators_label_may_be_left_out_where_that_leaves_no_doubt() -> None:
    assert metric_of(METRICS, "a/loss") == metric_of(METRICS, "a/test/loss") == 0.25
    with pytest.raises(GraftworkError, match=r'several "b/loss"; it measured b/clean/loss, b/photo/loss$'):
        metric_of(METRICS, "b/loss")
    with pytest.raises(GraftworkError, match=r'no "c/loss"; it measured a/accuracy, b/accuracy'):
        metric_of(METRICS, "c/loss")
    with pytest.raises(GraftworkError, match=r'no "a/loss"; it measured nothing$'):
        metric_of({}, "a/loss")
    assert judge(claim(method="a/loss", baseline="b/loss"), METRICS)[0].verdict == "not measured"
