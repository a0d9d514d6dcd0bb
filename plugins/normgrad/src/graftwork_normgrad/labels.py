"""Names of layers and modules, short enough to stand in a picture."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["short_names"]


def short_names(names: Sequence[str], longest: int = 22) -> list[str]:
    """Names without the parts that all begin with, and of those still too long the end: "model.encoder.stages.0" becomes "stages.0".

    Args:
        names: dotted.
        longest: characters.
    """
    parts = [name.split(".") for name in names]
    shared = 0
    while len(names) > 1 and all(len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts):
        shared += 1
    if shared and all(each[shared].isdigit() for each in parts):
        shared -= 1  # a number alone says little
    short = [".".join(each[shared:]) for each in parts]
    return [name if len(name) <= longest else f"…{name[1 - longest :]}" for name in short]
