"""Text of others on the terminal: nothing in it is taken for a command of the terminal or for markup."""

from __future__ import annotations

__all__ = ["literal", "printable"]


def printable(text: object) -> str:
    """Text in which every character that a terminal may obey (escape, backspace, a change of direction) is written out, as "\\x1b" is.

    Line ends stay.
    """
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape", "surrogatepass").decode("ascii") for one in str(text)
    )


def literal(text: object) -> str:
    """Text for Rich that it prints as it stands: `printable`, and with no markup."""
    from rich.markup import escape

    return escape(printable(text))
