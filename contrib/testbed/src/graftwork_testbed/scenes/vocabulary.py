"""What a scene can hold, in words and numbers: digits, colours, relations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

__all__ = ["COLOURS", "COUNTS", "DIGITS", "INVERSE", "PLURALS", "RELATIONS", "Colour", "Relation"]

Colour: TypeAlias = Literal["red", "orange", "yellow", "green", "blue", "purple", "pink", "white"]
"""Name of a digit's colour."""

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (228, 32, 38),
    "orange": (250, 140, 16),
    "yellow": (248, 232, 40),
    "green": (42, 186, 58),
    "blue": (44, 96, 250),
    "purple": (150, 40, 214),
    "pink": (252, 138, 202),
    "white": (246, 246, 246),
}
"""Name -> red, green, blue in 0..255; a digit's own colour strays a little from it."""

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Word of each digit, at its own position."""

PLURALS = ("zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines")
"""Plural of each digit's word."""

COUNTS = ("no", "one", "two", "three", "four")
"""Word of each count of digits; "a" or "an" stands for one."""

Relation: TypeAlias = Literal["left of", "right of", "above", "below"]
"""How one digit lies from another."""

RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below")
"""The relations, in the order of their numbers in `relation`."""

INVERSE = (1, 0, 3, 2)
"""Number of each relation's opposite."""
