"""Fewer points of a long curve, none of its peaks lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["means", "thin"]


def thin(steps: Sequence[int], values: Sequence[float | None], spans: int) -> list[int]:
    """Indices to draw: of each of `spans` equal spans of steps the first, the least, the greatest and the last point (M4).

    A line through them covers the same pixels as one through all points, as long as a span is no wider than a pixel. Points that are None
    are kept only where there are few points altogether; a span of nothing else keeps one, so that the line breaks there.

    Args:
        steps: in rising order.
        values: one a step; None for what was not finite.
        spans: how many, at least 1.
    """
    if len(steps) <= 4 * spans:
        return list(range(len(steps)))
    kept: list[int] = []
    for span in _spans(steps, spans):
        known = [index for index in span if values[index] is not None]
        if not known:
            kept.append(span[0])
            continue
        least = min(known, key=lambda index: values[index] or 0.0)
        greatest = max(known, key=lambda index: values[index] or 0.0)
        kept.extend(sorted({known[0], least, greatest, known[-1]}))
    return kept


def means(steps: Sequence[int], values: Sequence[float | None], spans: int) -> list[tuple[float, float]]:
    """(step, value) in the middle of each of `spans` equal spans of steps: the trend of a noisy curve.

    Args:
        steps: in rising order.
        values: one a step; None for what was not finite, which is left out.
        spans: how many, at least 1.
    """
    found = []
    for span in _spans(steps, spans):
        known = [(steps[index], value) for index in span if (value := values[index]) is not None]
        if known:
            found.append((sum(step for step, _ in known) / len(known), sum(value for _, value in known) / len(known)))
    return found


def _spans(steps: Sequence[int], count: int) -> Iterator[list[int]]:
    """Indices of the points in each span that has any."""
    first, width = steps[0], (steps[-1] - steps[0]) / count or 1.0
    span: list[int] = []
    at = 0
    for index, step in enumerate(steps):
        here = min(count - 1, int((step - first) / width))
        if here != at and span:
            yield span
            span = []
        at = here
        span.append(index)
    if span:
        yield span
