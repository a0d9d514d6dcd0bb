"""Where the digits of many scenes lie: drawn at once, none over another, and no relation in doubt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["MOST", "SIZES", "Layout", "Vocabulary", "draw_layout", "relations"]

MOST = 4
"""Most digits in a scene: slots of a layout."""

SIZES = {1: (0.45, 0.75), 2: (0.32, 0.45), 3: (0.28, 0.38), 4: (0.25, 0.34)}
"""Digits in the scene -> least and most side of a digit's square, as a share of the scene's."""

DOUBT = 0.08
"""Of two digits' offsets across and down, one is larger by at least this share of the scene: "left of" or "above" is then plain."""

REPEAT = 0.15
"""Chance that a digit is of the same class and colour as the one before it, so that captions count."""

CANDIDATES = 48
"""Layouts that are drawn at once for a scene; the first that fits is taken."""

AT_ONCE = 1024
"""Scenes whose candidates are held in memory together."""


@dataclass(frozen=True)
class Vocabulary:
    """What a scene may be made of.

    Args:
        classes: digits that occur.
        colours: numbers of the colours that occur.
        least: fewest digits in a scene.
        most: most digits in a scene, at most 4.
        scale: factor on the digits' sizes.
        weights: how often each count from `least` to `most` occurs, relative to the others; () for equally often.
        spread: how far places, sizes and angles depart from the middle ones, 0 to 1; below 1 scenes have one digit.
    """

    classes: tuple[int, ...] = tuple(range(10))
    colours: tuple[int, ...] = tuple(range(8))
    least: int = 1
    most: int = MOST
    scale: float = 1.0
    weights: tuple[float, ...] = ()
    spread: float = 1.0


@dataclass(frozen=True)
class Layout:
    """N scenes of up to four digits; what lies beyond a scene's count is 0.

    Args:
        counts: (N,) long.
        digits: (N, 4) long, classes.
        colours: (N, 4) long.
        centres: (N, 4, 2) float in [0, 1], across and down.
        sizes: (N, 4) float, side of each digit's square as a share of the scene's.
        angles: (N, 4) float, degrees by which each digit is turned.
    """

    counts: Tensor
    digits: Tensor
    colours: Tensor
    centres: Tensor
    sizes: Tensor
    angles: Tensor


def draw_layout(count: int, vocabulary: Vocabulary, generator: np.random.Generator, turn: float = 10.0) -> Layout:
    """Draw scenes whose digits' squares lie inside the frame and apart.

    A digit repeats the one before it with a chance of 0.15. The first two digits of a scene never
    lie so that neither relation is plain.

    Args:
        count: N.
        vocabulary: what the scenes are made of.
        generator: draws everything.
        turn: digits are turned by up to this many degrees to either side.
    """
    weights = np.asarray(vocabulary.weights or [1.0] * (vocabulary.most - vocabulary.least + 1))
    counts = generator.choice(np.arange(vocabulary.least, vocabulary.most + 1), count, p=weights / weights.sum())
    digits = np.asarray(vocabulary.classes)[generator.integers(0, len(vocabulary.classes), (count, MOST))]
    colours = np.asarray(vocabulary.colours)[generator.integers(0, len(vocabulary.colours), (count, MOST))]
    repeats = generator.random((count, MOST)) < REPEAT
    for slot in range(1, MOST):
        digits[:, slot] = np.where(repeats[:, slot], digits[:, slot - 1], digits[:, slot])
        colours[:, slot] = np.where(repeats[:, slot], colours[:, slot - 1], colours[:, slot])
    present = np.arange(MOST) < counts[:, None]
    low, high = (np.array([0.0, *(SIZES[n][end] for n in range(1, MOST + 1))])[counts][:, None] for end in (0, 1))
    sizes = vocabulary.scale * generator.uniform(low, high, (count, MOST)) * present
    centres = _place(sizes, present, generator)
    angles = vocabulary.spread * generator.uniform(-turn, turn, (count, MOST))
    if vocabulary.spread < 1:
        centres = 0.5 + vocabulary.spread * (centres - 0.5)
        middle = vocabulary.scale * (low + high) / 2
        sizes = middle + vocabulary.spread * (sizes - middle)
    kept = [torch.from_numpy(np.where(present, values, 0)) for values in (digits, colours, sizes, angles)]
    return Layout(
        torch.from_numpy(counts), kept[0], kept[1], torch.from_numpy(centres * present[..., None]).float(), kept[2].float(), kept[3].float()
    )


def _place(sizes: Any, present: Any, generator: np.random.Generator) -> Any:
    """Centres (N, 4, 2) by rejection: for each scene the first of many candidates that fits; a grid, jittered, where none did."""
    centres = np.zeros((*sizes.shape, 2))
    waiting = np.arange(len(sizes))
    for _ in range(20):
        left = []
        for part in np.split(waiting, range(AT_ONCE, len(waiting), AT_ONCE)):
            size = sizes[part, None, :, None]  # (W, 1, 4, 1)
            tried = generator.uniform(0, 1, (len(part), CANDIDATES, MOST, 2)) * (1 - size) + size / 2
            fits = _fits(tried, size[..., 0], present[part])
            first, found = fits.argmax(1), fits.any(1)
            centres[part[found]] = tried[np.arange(len(part)), first][found]
            left.append(part[~found])
        waiting = np.concatenate(left)
        if not len(waiting):
            break
    if len(waiting):  # rare, and of three or four digits only: these fit between the corners
        corners = np.array([[0.27, 0.25], [0.75, 0.23], [0.25, 0.77], [0.73, 0.75]])
        room = np.clip(0.25 - sizes[waiting] / 2, 0, 0.02)[..., None]
        centres[waiting] = corners + generator.uniform(-1, 1, (len(waiting), MOST, 2)) * room
    return centres


def _fits(centres: Any, sizes: Any, present: Any) -> Any:
    """Whether candidates (W, K, 4, 2) keep the digits' squares apart and the first relation plain: (W, K)."""
    offset = np.abs(centres[:, :, :, None] - centres[:, :, None])  # (W, K, 4, 4, 2)
    reach = (sizes[:, :, :, None] + sizes[:, :, None]) / 2
    apart = (offset > reach[..., None]).any(-1)
    pairs = present[:, None, :, None] & present[:, None, None] & ~np.eye(MOST, dtype=bool)
    plain = np.abs(offset[:, :, 0, 1, 0] - offset[:, :, 0, 1, 1]) > DOUBT
    return (apart | ~pairs).all((2, 3)) & (plain | ~present[:, None, 1])


def relations(counts: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """How the digits of each scene lie from one another: by the larger of the offsets across and down.

    Args:
        counts: (N,) long.
        centres: (N, 4, 2), across and down.

    Returns:
        (N, 6, 3) long triples (first slot, relation, second slot) for the pairs 0-1, 0-2, 1-2, 0-3, 1-3, 2-3, and (N,) how many of
        them a scene has. Relations are numbered as in `vocabulary.RELATIONS`.
    """
    pairs = [(first, second) for second in range(MOST) for first in range(second)]
    first, second = (torch.tensor(ends) for ends in zip(*pairs, strict=True))
    across, down = (centres[:, first] - centres[:, second]).unbind(-1)  # (N, 6) each
    number = torch.where(across.abs() > down.abs(), (across > 0).long(), 2 + (down > 0).long())
    triples = torch.stack([first.expand_as(number), number, second.expand_as(number)], dim=-1)
    return triples, counts * (counts - 1) // 2
