"""The entry: looks at a sample and draws its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from graftwork import DataError, Dataset
from graftwork_testbed.sheets.annotated import draw_annotated, is_annotated
from graftwork_testbed.sheets.clips import draw_clips, is_clip
from graftwork_testbed.sheets.features import draw_features
from graftwork_testbed.sheets.images import draw_images
from graftwork_testbed.sheets.pixels import is_image
from graftwork_testbed.sheets.points import draw_points

__all__ = ["contact_sheet"]

TEXTS = ("text", "query", "passage", "input_ids")
"""Keys of samples that are texts."""


def contact_sheet(dataset: Dataset, split: str | Sequence[str], columns: int = 12, title: str = "") -> Figure:
    """Draw samples of one split, or of several below one another.

    What is drawn follows from the first sample's keys; the first of these that fits is taken:

    - `graph`, or a text (`TEXTS`) without an image: by `graftwork_testbed.graphs` and `graftwork_testbed.text`, one split at a time.
    - `clip` (T, C, H, W): a film strip a clip, with its `caption`.
    - `image` (C, H, W), C 1 or 3, with something beside it: the image with `boxes` (n, 4) xyxy and the names of their `labels`; a
      second image (`view` or `target`); `mask` and `instances` (H, W) as colours over the image; a field such as `distortion` (H,
      W); `caption`, `text` or `prompt` below. Panels of wide images stand below one another.
    - `image` alone: a mosaic.
    - `features`: points where there are two, else lines over parallel axes or a heat map, coloured by `target` or `label`.

    Images come in rows: of one split, a row a class (where there are no classes, or boxes or captions, samples spread over the
    split); of several, a row a split with the same positions of each, so that paired domains show the same objects.

    Args:
        dataset: its samples are mappings with some of the keys above.
        split: name of a split, or several names.
        columns: images, panels or frames in a row at most.
        title: above the sheet; by default the data set's description, and the name of the split if there is one.

    Returns:
        A matplotlib figure that pyplot does not know, to save with `savefig`, at 200 pixels to the inch by default.

    Raises:
        ValueError: if `columns` is not positive, or no split is named.
        DataError: if there is no such split, it is empty, or its samples can be drawn in none of these ways.
    """
    names = [split] if isinstance(split, str) else list(split)
    if columns < 1 or not names:
        raise ValueError(f"a sheet wants at least one column and one split; found {columns} and {names}")
    empty = [name for name in names if not len(dataset[name])]
    if empty:
        raise DataError(f"nothing to draw: {', '.join(empty)} is empty")
    sample = dataset[names[0]][0]
    if not isinstance(sample, Mapping):
        raise DataError(f"a sheet draws samples that are mappings; {names[0]} has {type(sample).__name__}")
    heading = title or ": ".join(part for part in (dataset.info.description, names[0] if len(names) == 1 else "") if part)
    if "graph" in sample or (any(key in sample for key in TEXTS) and "image" not in sample and "clip" not in sample):
        return _delegated(dataset, names, heading, "graph" in sample)
    if is_clip(sample.get("clip")):
        return draw_clips(dataset, names, columns, heading)
    if is_image(sample.get("image")):
        return (draw_annotated if is_annotated(sample) else draw_images)(dataset, names, columns, heading)
    features = sample.get("features")
    if isinstance(features, Tensor) and features.ndim == 1 and len(features):
        return (draw_points if len(features) == 2 else draw_features)(dataset, names, heading)
    raise DataError(f"a sheet draws `image` of 1 or 3 channels, `clip`, `features`, `text` or `graph`; {names[0]} has {_described(sample)}")


def _delegated(dataset: Dataset, names: Sequence[str], title: str, graph: bool) -> Figure:
    if len(names) > 1:
        raise DataError(f"{'graphs' if graph else 'texts'} are drawn one split at a time; found {', '.join(names)}")
    if graph:
        from graftwork_testbed.graphs.figure import draw_graphs

        return draw_graphs(dataset, names[0], title=title)
    from graftwork_testbed.text.figure import draw_texts

    return draw_texts(dataset, names[0], title=title)


def _described(sample: Mapping[str, Any]) -> str:
    """The keys of a sample, with the shapes of tensors."""
    parts = [f"`{key}`" + (f" {tuple(value.shape)}" if isinstance(value, Tensor) else "") for key, value in sample.items()]
    return ", ".join(parts) or "no keys"
