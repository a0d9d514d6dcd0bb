"""Sheets of sample texts: what a data set of texts holds, at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from graftwork import DataError, Dataset
from graftwork_testbed.sheets.paper import GREY, Paper, colour, text_width, wrap
from graftwork_testbed.text.template_text import FACTORS

__all__ = ["draw_texts"]

TEXTS = ("text", "text_pair", "query", "passage", "negatives")
"""Keys that are shown as running text."""

WIDTH, MARGIN, GUTTER, GAP = 10.0, 0.25, 0.2, 0.12
"""Of a sheet, its margin, the space between columns and between rows, in inches."""

BODY, SMALL = 8.5, 7.5
"""Size of texts and of what is said beside them, in points."""

LINE = 11.5 / 72
"""From one line of a text to the next, in inches."""

LETTERS = 300
"""More than a line holds, whatever the letters."""

RULE = "#dddddd"


@dataclass(frozen=True)
class Row:
    """One sample of a sheet: the group it belongs to and its number, its texts, and what else is said of it."""

    group: str
    number: int
    texts: tuple[str, ...]
    details: tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """Where a column begins, how wide it is, in inches, and what stands above it."""

    left: float
    width: float
    name: str


def draw_texts(dataset: Dataset, split: str = "train", per_group: int = 3, max_lines: int = 4, title: str = "") -> Figure:
    """Draw samples of a split as a table of texts.

    With classes, some samples of each, evenly spaced over the split; with a `target`, samples from the lowest to the highest; otherwise
    any, evenly spaced. Beside the texts (`text`, `text_pair`, `query`, `passage`, the first of `negatives`; where there are none, tokens
    decoded by the data set's own tokenizer) stand names (`topic`, `module`) and the factors of the sentence grammar.

    Args:
        dataset: of texts.
        split: name of the split.
        per_group: samples of each class; six times as many where there are no classes.
        max_lines: lines of a text, after which it is cut off.
        title: above the sheet; by default the data set's description and the split.

    Returns:
        A matplotlib figure that pyplot does not know, ten inches wide, to save with `savefig`.

    Raises:
        ValueError: if `per_group` or `max_lines` is not positive.
        DataError: if there is no such split, it is empty, or its samples hold no text.
    """
    if per_group < 1 or max_lines < 1:
        raise ValueError(f"per_group and max_lines must be positive; found {per_group} and {max_lines}")
    if not len(dataset[split]):
        raise DataError(f"nothing to draw: {split} is empty")
    first = dataset[split][0]
    keys = [key for key in TEXTS if key in first] or ["input_ids"] * ("input_ids" in first and hasattr(dataset, "tokenizer"))
    if not keys:
        raise DataError(f"a sheet draws {', '.join(TEXTS)}, or tokens with their tokenizer; {split} has {', '.join(first)}")
    by = _grouping(dataset, first)
    details = [key for key in ("sentiment", "formality", "topic", "module") if key in first and not _is_label(dataset, first, key)]
    rows = [_row(dataset, dataset[split][index], keys, details, by) for index in _chosen(dataset, split, per_group, by)]
    columns = _columns(rows, [*keys, *details], len(keys), {"label": "class"}.get(by, by))
    most = max_lines * LETTERS  # a long text is measured as far as it is shown
    wrapped = [
        [wrap(text[:most], column.width, BODY, max_lines) for text, column in zip(row.texts, columns[1:], strict=False)] for row in rows
    ]
    return _draw(rows, columns, wrapped, title or f"{dataset.info.description or 'Texts'}: {split}")


def _grouping(dataset: Dataset, sample: Any) -> str:
    """What rows are grouped by: the label, where classes have names; a target that is one number; or nothing."""
    if "label" in sample and dataset.info.classes:
        return "label"
    return "target" if "target" in sample and torch.as_tensor(sample["target"]).numel() == 1 else ""


def _is_label(dataset: Dataset, sample: Any, key: str) -> bool:
    return key in FACTORS and dataset.info.classes == FACTORS[key] and not isinstance(sample[key], str)


def _chosen(dataset: Dataset, split: str, per_group: int, by: str) -> list[int]:
    """Which samples are drawn, in the order of the sheet."""
    samples: Any = dataset[split]
    if by == "label":
        labels = _column(samples, "label")
        return [index for number in labels.unique().tolist() for index in _spread((labels == number).nonzero()[:, 0], per_group)]
    if by == "target":
        return _spread(_column(samples, "target").sort(stable=True).indices, 6 * per_group)
    return _spread(torch.arange(len(samples)), 6 * per_group)


def _column(samples: Any, key: str) -> Tensor:
    held = getattr(samples, "columns", {}).get(key)
    return held if isinstance(held, Tensor) else torch.tensor([float(samples[index][key]) for index in range(len(samples))])


def _spread(positions: Tensor, count: int) -> list[int]:
    if len(positions) > count:
        positions = positions[torch.linspace(0, len(positions) - 1, count).round().long()]
    return positions.tolist()  # type: ignore[no-any-return]


def _row(dataset: Any, sample: Any, keys: Sequence[str], details: Sequence[str], by: str) -> Row:
    number = int(sample["label"]) if by == "label" else 0
    group = _name(dataset.info.classes, number) if by == "label" else f"{float(sample['target']):.2g}" if by == "target" else ""
    values = [dataset.tokenizer.decode(sample[key]) if key == "input_ids" else sample[key] for key in keys]
    texts = (value if isinstance(value, str) else value[0] for value in values)
    said = (sample[key] if isinstance(sample[key], str) else _name(FACTORS.get(key, ()), int(sample[key])) for key in details)
    return Row(group, number, tuple(" ".join(text.split()) for text in texts), tuple(said))


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if 0 <= number < len(names) else str(number)


def _columns(rows: Sequence[Row], names: Sequence[str], texts: int, group: str) -> list[Column]:
    """The group's column, one for each text, and one for each detail. Short texts take what they need, long ones share the rest."""
    first = max(text_width(each, BODY, "bold") for each in (group, *(row.group for row in rows))) if group else -GUTTER
    said = zip(*(row.details for row in rows), strict=True)
    narrow = [max(text_width(each, SMALL) for each in (name, *column)) for name, column in zip(names[texts:], said, strict=True)]
    room = WIDTH - 2 * MARGIN - first - sum(narrow) - GUTTER * (len(narrow) + texts)
    needed = [max(text_width(row.texts[place][:200], BODY) for row in rows) for place in range(texts)]
    wide = dict.fromkeys(range(texts), 0.0)
    for rank, place in enumerate(sorted(wide, key=needed.__getitem__)):
        last = rank == texts - 1
        wide[place] = room if last else min(needed[place], room / (texts - rank))
        room -= wide[place]
    left, columns = MARGIN, []
    for name, width in zip((group, *names), (first, *wide.values(), *narrow), strict=True):
        columns.append(Column(left, width, name.replace("_", " ")))
        left += width + GUTTER
    return columns


def _draw(rows: Sequence[Row], columns: Sequence[Column], wrapped: Sequence[Sequence[Sequence[str]]], title: str) -> Figure:
    heights = [max(map(len, texts)) * LINE + GAP for texts in wrapped]
    top = MARGIN + 0.5
    paper = Paper(WIDTH, top + sum(heights) + MARGIN)
    grouped = bool(columns[0].name)
    paper.write(title, MARGIN, MARGIN, 11, weight="bold")
    for column in columns:
        paper.write(column.name, column.left, top - 0.17, SMALL, shade=GREY)
    y, before = top, None
    for row, texts, tall in zip(rows, wrapped, heights, strict=True):
        fresh = not grouped or row.group != before
        _rule(paper, MARGIN if fresh else columns[1].left, y, GREY if fresh and grouped else RULE)
        if grouped:
            paper.axes.add_patch(Rectangle((MARGIN - 0.09, y + 0.01), 0.04, tall - 0.02, color=colour(row.number), linewidth=0))
        if fresh:
            paper.write(row.group, columns[0].left, y + GAP / 2, BODY, weight="bold", shade=colour(row.number) if grouped else "black")
        for column, lines in zip(columns[1:], texts, strict=False):
            for place, line in enumerate(lines):
                paper.write(line, column.left, y + GAP / 2 + place * LINE, BODY)
        for column, said in zip(columns[1 + len(texts) :], row.details, strict=True):
            paper.write(said, column.left, y + GAP / 2, SMALL, shade=GREY)
        y, before = y + tall, row.group
    _rule(paper, MARGIN, y, GREY)
    return paper.figure


def _rule(paper: Paper, left: float, y: float, shade: str) -> None:
    paper.axes.plot([left, WIDTH - MARGIN], [y, y], color=shade, linewidth=0.6)
