"""Clips as film strips: a row a clip, time from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from graftwork import Dataset
from graftwork_testbed.sheets import pixels
from graftwork_testbed.sheets.annotated import CAPTION_POINTS, caption_of
from graftwork_testbed.sheets.choice import held, rows, spread
from graftwork_testbed.sheets.paper import DPI, FONT, GREY, WIDEST, Paper, line_height, text_width, whole_pixels, wrap

__all__ = ["draw_clips", "film_strip", "is_clip"]

BORDER = 0.09
"""Height of the strip above and below the frames, as a share of a frame's height."""

GAP = 0.04
"""Width of the strip between two frames, as a share of a frame's height."""

LARGEST = 160
"""Pixels of a frame's longer side at most."""


def is_clip(value: Any) -> bool:
    """Whether this is (T, C, H, W) with 1 or 3 channels."""
    return isinstance(value, Tensor) and value.ndim == 4 and len(value) > 0 and pixels.is_image(value[0])


def film_strip(frames: Tensor) -> Tensor:
    """Frames side by side on a dark strip.

    Args:
        frames: (T, 3, H, W) in [0, 1].

    Returns:
        (3, H + 2 b, T (W + g) + g), with b and g by `BORDER` and `GAP`, at least one pixel.
    """
    count, _, height, width = frames.shape
    border, gap = max(1, round(BORDER * height)), max(1, round(GAP * height))
    strip = torch.full((3, height + 2 * border, count * (width + gap) + gap), 0.12)
    for number, frame in enumerate(frames):
        left = gap + number * (width + gap)
        strip[:, border : border + height, left : left + width] = frame
    return strip


def draw_clips(dataset: Dataset, splits: Sequence[str], columns: int, title: str) -> Figure:
    """A strip for each class or split, or for some clips over the split; at most `columns` frames of each, evenly spaced."""
    chosen = rows(dataset, splits, 1, depth=8)
    shown = [(row, dataset[row.split][int(row.positions[0])]) for row in chosen]
    strips, times = zip(*(_strip(sample["clip"], columns) for _, sample in shown), strict=True)
    margin = max(text_width(row.name) for row in chosen) + 0.3
    widest, frame = max(strip.shape[2] for strip in strips), max(strip.shape[1] for strip in strips)
    aim = min(max(0.7, 0.014 * frame), 1.3, max(0.6, 9 / len(chosen)))  # inches of a strip's height
    scale = min(whole_pixels(frame, aim) / frame, (WIDEST - margin) / widest)
    captions = [wrap(caption_of(sample), widest * scale, CAPTION_POINTS, lines=2) for _, sample in shown]
    heights = [
        strip.shape[1] * scale + len(lines) * line_height(CAPTION_POINTS) + 0.14 for strip, lines in zip(strips, captions, strict=True)
    ]
    paper = Paper(max(margin + widest * scale, text_width(title, 10, "bold") + 0.15, 2.5) + 0.15, 0.6 + sum(heights) + 0.05)
    paper.heading(title, _note(dataset, splits, times))
    top = 0.6
    for (row, _), strip, lines, height in zip(shown, strips, captions, heights, strict=True):
        tall = strip.shape[1] * scale
        paper.picture(strip.permute(1, 2, 0).numpy(), round(margin * DPI) / DPI, round(top * DPI) / DPI, strip.shape[2] * scale, tall)
        paper.write(row.name, margin - 0.1, top + tall / 2, FONT, align="right", middle=True)
        for line, text in enumerate(lines):
            paper.write(text, margin, top + tall + 0.03 + line * line_height(CAPTION_POINTS), CAPTION_POINTS, shade=GREY)
        top += height
    return paper.figure


def _strip(clip: Tensor, columns: int) -> tuple[Tensor, list[int]]:
    """A film strip of some frames, and which they are."""
    times = spread(torch.arange(len(clip)), columns)
    frames = torch.stack([pixels.rgb(frame) for frame in clip[times]])
    smaller = min(1.0, LARGEST / max(frames.shape[2:]))
    height, width = (max(1, round(side * smaller)) for side in frames.shape[2:])
    return film_strip(torch.stack([pixels.fit(frame, height, width) for frame in frames])), times.tolist()


def _note(dataset: Dataset, splits: Sequence[str], times: Sequence[Sequence[int]]) -> str:
    """How many clips there are, and which of their frames are shown."""
    count = [held(dataset, splits[0], "clip")] if len(splits) == 1 else []
    longest = max(times, key=len)
    return "; ".join([*count, ("frames " if len(longest) > 1 else "frame ") + ", ".join(map(str, longest))])
