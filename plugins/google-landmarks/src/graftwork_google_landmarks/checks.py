"""Bounds of parameters, told with the parameter's name and what was found."""

from __future__ import annotations

__all__ = ["above", "at_least"]


def at_least(least: float, **values: float | None) -> None:
    """Raise ValueError for a value below `least`; None passes."""
    for name, value in values.items():
        if value is not None and not value >= least:
            raise ValueError(f"{name} is at least {least}; found {value}")


def above(bound: float, **values: float | None) -> None:
    """Raise ValueError for a value that is not above `bound`; None passes."""
    for name, value in values.items():
        if value is not None and not value > bound:
            raise ValueError(f"{name} is above {bound}; found {value}")
