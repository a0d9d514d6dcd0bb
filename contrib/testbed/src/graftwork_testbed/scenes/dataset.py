"""`digit-scenes`: handwritten digits in colour on photographs, with boxes, masks, captions and relations."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import PIL
import torch
from pydantic import Field
from torch import Tensor

from graftwork import DataError, Dataset, DatasetInfo
from graftwork.errors import nearest
from graftwork_testbed.cache import cached
from graftwork_testbed.handwriting import Digit
from graftwork_testbed.scenes.drawing import Recipe, background_names, draw_scenes
from graftwork_testbed.scenes.grammar import Thing, describe
from graftwork_testbed.scenes.layout import MOST, SIZES, Vocabulary
from graftwork_testbed.scenes.panorama import SHRINK, distortion
from graftwork_testbed.scenes.samples import SceneSamples
from graftwork_testbed.scenes.styles import DEGRADATIONS, STYLES, Look, render_view
from graftwork_testbed.scenes.vocabulary import COLOURS, COUNTS, RELATIONS, Colour
from graftwork_testbed.splits import SPLITS, Seed

__all__ = ["LABELS", "LabelOf", "digit_scenes"]

LabelOf: TypeAlias = Literal["digit", "colour", "digit-colour", "count", "background"]
"""What of a scene is its `label`."""

LABELS: tuple[LabelOf, ...] = ("digit", "colour", "digit-colour", "count", "background")

MOST_SCENES = 1_000_000
Count: TypeAlias = Annotated[int, Field(ge=1, le=MOST_SCENES)]
VERSION = 1
"""Of the pictures: raised when the same parameters would draw others."""

SMALLEST = 8
"""Least side of a digit's square in pixels: scikit-learn's digits have 8."""

LEAST_SIZE = 18
"""Pixels from which a scene can hold one digit."""

TEXTURE_ROOM = 77
"""Pixels across the narrowest region of the textures, val's."""


def digit_scenes(
    size: Annotated[int, Field(ge=LEAST_SIZE, le=256)] = 64,
    min_digits: Annotated[int, Field(ge=1, le=MOST)] = 1,
    max_digits: Annotated[int, Field(ge=1, le=MOST)] = MOST,
    weights: list[Annotated[float, Field(ge=0)]] | None = None,
    classes: list[Digit] | None = None,
    colours: list[Colour] | None = None,
    label: LabelOf = "digit",
    styles: Annotated[list[Look], Field(min_length=1)] | None = None,
    backgrounds: Literal["photos", "textures"] = "photos",
    scale: Annotated[float, Field(ge=0.5, le=1)] = 1.0,
    spread: Annotated[float, Field(ge=0, le=1)] = 1.0,
    muting: Annotated[float, Field(ge=0, le=1)] = 0.5,
    frames: Annotated[int, Field(ge=1, le=64)] = 1,
    panorama: bool = False,
    train: Count = 8000,
    val: Count = 1000,
    test: Count = 1000,
    seed: Seed = 0,
) -> Dataset:
    """Scenes of one to four handwritten digits, coloured, turned, scaled and placed apart on photographs or textures.

    Train, val and test share no handwritten digit and no place of a photograph. The pictures are drawn once, in each style, and kept
    in the cache (`graftwork_testbed.cache`); a sample is then taken in tens of microseconds.

    Samples, for a scene of n digits: `image` (3, H, W) float32 in [0, 1]; `label`, as asked for; `labels` (n,) positions of the
    digits in `classes`; `colours` (n,) positions in `scenes.vocabulary.COLOURS`; `boxes` (n, 4) xyxy in pixels, tight around the
    visible strokes; `mask` (H, W) long, 0 background and 1 + the digit's position in `classes`; `instances` (H, W) long, 0
    background and k the k-th digit; `caption`, of the grammar in `scenes.grammar`; `relation` (n (n - 1) / 2, 3) long, triples
    (first, number in `scenes.vocabulary.RELATIONS`, second) of the pairs 0-1, 0-2, 1-2, ..., by the larger of the offsets of the
    digits' centres across and down, as shares of the frame's width and height; `background`, which photograph or texture; `domain`,
    position in `styles`; `sources` (n,) rows of scikit-learn's table; `index`, position in the split. H = W = size, and W = 2 size
    in a panorama.

    With `frames` above 1 the digits move, and a sample holds in addition `clip` (T, 3, H, W), `clip_mask` and `clip_instances`
    (T, H, W), `clip_boxes` (T, n, 4) and `velocity` (n, 2) in pixels a frame; `image` and its masks are the first frame's. In
    passing, a later digit covers an earlier one; boxes go around the whole digit, covered or not.

    With `panorama` the scene is all around: an equirectangular frame of digits on the planes that touch a sphere at their centres,
    in a room whose walls are six patches of one photograph; `distortion` (H, W) says how many times wider than high a small disc
    appears at each pixel.

    Args:
        size: height in pixels, and width but for panoramas.
        min_digits: fewest digits in a scene.
        max_digits: most digits in a scene.
        weights: how often each count from `min_digits` to `max_digits` occurs, relative to the others; equally often by default.
        classes: digits that occur, in the order of their labels; all ten by default.
        colours: colours that occur; all eight by default.
        label: what `label` is: the first digit's class or colour, both (in the order of classes, then colours), how many digits
            there are (0 for one), or which background.
        styles: looks of the same scenes, in the order of `domain`: of "photo", "sketch", "poster", "night", "watercolour" and the
            degradations "blur", "noise", "low-resolution", "grey", "hole"; "photo" alone by default. With one the splits are
            "train", "val", "test"; with several "photo/train", ..., where `index` pairs them. Captions name a style other than
            "photo".
        backgrounds: patches of nine photographs, of which train, val and test have different ones; or of the six surfaces of
            `textures`, each in every split, from regions apart, in scenes of at most 77 pixels; captions then name the surface.
        scale: factor on the digits' sizes.
        spread: how far a single digit's place, size and angle depart from the middle ones; at 0 it stands upright in the centre, as an
            easy start for what is trained from nothing. Below 1 it needs `max_digits` 1, and no panorama.
        muting: how far backgrounds are pulled to a dark grey, so that the digits stand out; 0 leaves them as they are.
        frames: T of a clip.
        panorama: whether the scene is drawn all around.
        train: scenes in "train".
        val: scenes in "val".
        test: scenes in "test".
        seed: of the split of the digits, and of all that is drawn. A split of another length has other scenes throughout.

    Raises:
        ValueError: if a parameter is out of range, a name stands twice, or the size cannot hold the digits.
        DataError: if there is no style or colour of a name.
    """
    chosen = tuple(range(10)) if classes is None else tuple(classes)
    hues = tuple(COLOURS) if colours is None else tuple(colours)
    looks = ("photo",) if styles is None else tuple(styles)
    _check_names(chosen, hues, looks)
    _check_numbers(size, min_digits, max_digits, scale, spread, muting, frames, seed)
    _check_choices(label, backgrounds, size, frames, panorama, spread)
    _check_digits_fit(size * (SHRINK if panorama else 1) * scale, max_digits, size)
    _check_counts(train, val, test)
    _check_weights(weights, min_digits, max_digits)
    numbers = tuple(list(COLOURS).index(hue) for hue in hues)
    vocabulary = Vocabulary(chosen, numbers, min_digits, max_digits, scale, tuple(weights or ()), spread)
    recipe = Recipe(size, vocabulary, backgrounds, muting, frames, panorama, seed)
    named = background_names(backgrounds)
    splits = {}
    for split, count in zip(SPLITS, (train, val, test), strict=True):
        key = _key(recipe, split, count)
        drawn = cached("digit-scenes", key, functools.partial(draw_scenes, recipe, split, count))
        columns = _columns(drawn, chosen, _labels(label, drawn, chosen, hues))
        constant = {"distortion": distortion(size)} if panorama else {}
        for position, look in enumerate(looks):
            shown = columns | {"domain": torch.full_like(columns["domain"], position)}
            if look != "photo":
                render = functools.partial(_render, columns, look, split, seed)
                shown |= cached("digit-scenes", {**key, "look": look}, render)
            captions = _captions(drawn, named if backgrounds == "textures" else (), look)
            splits[split if len(looks) == 1 else f"{look}/{split}"] = SceneSamples(shown, drawn["counts"], captions, constant)
    names, shape = _label_names(label, chosen, hues, named), (size, 2 * size if panorama else size)
    domains = looks if len(looks) > 1 else ()
    ordered = [f"{look}/{split}" for look in domains for split in SPLITS] or SPLITS
    info = DatasetInfo(names, 3, shape, domains, description=f"Handwritten digits in colour on {backgrounds}")
    return Dataset({split: splits[split] for split in ordered}, info)


def _key(recipe: Recipe, split: str, count: int) -> dict[str, Any]:
    drawn_by = {package.__name__: package.__version__ for package in (np, PIL, torch)}
    drawn_by |= {name: version(name) for name in ("scikit-image", "scikit-learn")}  # whose import takes seconds
    shown = {**vars(recipe), "vocabulary": vars(recipe.vocabulary)}
    return {"drawing": VERSION, **drawn_by, **shown, "split": split, "count": count}


def _columns(drawn: dict[str, Tensor], classes: Sequence[int], labels: Tensor) -> dict[str, Tensor]:
    """What samples hold, as columns, in the look "photo"."""
    positions = torch.zeros(10, dtype=torch.long)
    positions[torch.tensor(classes)] = torch.arange(len(classes))
    of_slot = torch.cat([torch.zeros(len(labels), 1, dtype=torch.long), positions[drawn["digits"]] + 1], 1).byte()
    columns = {"image": drawn["image"], "label": labels, "labels": positions[drawn["digits"]]}
    columns |= {key: drawn[key] for key in ("colours", "boxes")}
    columns |= {"mask": _semantic(of_slot, drawn["instances"]), "instances": drawn["instances"]}
    columns |= {key: drawn[key] for key in ("relation", "background", "sources")}
    columns |= {"domain": torch.zeros_like(labels), "index": torch.arange(len(labels))}
    if "clip" in drawn:
        columns |= {key: drawn[key] for key in ("clip", "clip_instances", "clip_boxes", "velocity")}
        columns["clip_mask"] = _semantic(of_slot, drawn["clip_instances"])
    return columns


def _render(columns: dict[str, Tensor], look: str, split: str, seed: int) -> dict[str, Tensor]:
    """The pictures of the same scenes in another look."""
    number = STYLES.index(look) if look in STYLES else 8 + DEGRADATIONS.index(look)
    generator = np.random.default_rng([seed, SPLITS.index(split), number])
    image = render_view(look, columns["image"], columns["mask"], generator)
    if "clip" not in columns:
        return {"image": image}
    clip = columns["clip"]
    shown = render_view(look, clip.flatten(0, 1), columns["clip_mask"].flatten(0, 1), generator).view(clip.shape)
    return {"image": shown[:, 0].clone(), "clip": shown}


def _semantic(of_slot: Tensor, instances: Tensor) -> Tensor:
    """Class masks of instance masks (N, ...), by a table (N, 5) from instance to class."""
    return torch.gather(of_slot, 1, instances.flatten(1).long()).view(instances.shape)


def _captions(drawn: dict[str, Tensor], surfaces: Sequence[str], look: str) -> list[str]:
    hues, style = tuple(COLOURS), None if look == "photo" else look
    found = []
    columns = (drawn[key].tolist() for key in ("counts", "digits", "colours", "relation", "background"))
    for count, digits, colours, related, background in zip(*columns, strict=True):
        things = [Thing(digit, hues[colour]) for digit, colour in zip(digits[:count], colours[:count], strict=True)]
        relation = RELATIONS[related[0][1]] if count > 1 and things[0] != things[1] else None
        found.append(describe(things, relation, surfaces[background] if surfaces else None, style))
    return found


def _labels(label: str, drawn: dict[str, Tensor], classes: Sequence[int], hues: Sequence[str]) -> Tensor:
    """Labels (N,)."""
    if label == "count":
        return drawn["counts"] - 1
    if label == "background":
        return drawn["background"]
    known = [list(COLOURS).index(hue) for hue in hues]
    digits = (drawn["digits"][:, :1] == torch.tensor(classes)).long().argmax(1)
    colours = (drawn["colours"][:, :1] == torch.tensor(known)).long().argmax(1)
    if label == "digit-colour":
        return digits * len(hues) + colours
    return digits if label == "digit" else colours


def _label_names(label: str, classes: Sequence[int], hues: Sequence[str], backgrounds: Sequence[str]) -> tuple[str, ...]:
    """The names of the labels' classes."""
    return {
        "digit": tuple(map(str, classes)),
        "colour": tuple(hues),
        "digit-colour": tuple(f"{hue} {digit}" for digit in classes for hue in hues),
        "count": tuple(COUNTS[1:]),
        "background": tuple(backgrounds),
    }[label]


def _check_names(classes: Sequence[int], hues: Sequence[str], looks: Sequence[str]) -> None:
    for name, given in (("classes", classes), ("colours", hues), ("styles", looks)):
        if not given or len(set(given)) != len(given):
            raise ValueError(f"{name} is empty or names one twice: {list(given)}")
    if outside := [digit for digit in classes if digit not in range(10)]:
        raise ValueError(f"classes are digits from 0 to 9; found {outside}")
    for what, given, known in (("colour", hues, tuple(COLOURS)), ("style", looks, (*STYLES, *DEGRADATIONS))):
        for name in given:
            if name not in known:
                raise DataError(f'no {what} "{name}"{nearest(name, known)}; there are {", ".join(known)}')


def _check_numbers(size: int, least: int, most: int, scale: float, spread: float, muting: float, frames: int, seed: int) -> None:
    if not 1 <= least <= most <= MOST:
        raise ValueError(f"min_digits and max_digits must be 1 to {MOST}, in order; found {least} and {most}")
    shares = (("scale", scale, 0.5, 1), ("spread", spread, 0, 1), ("muting", muting, 0, 1))
    for name, value, low, high in (("size", size, LEAST_SIZE, 256), *shares, ("frames", frames, 1, 64)):
        if not low <= value <= high:
            raise ValueError(f"{name} must be {low} to {high}; found {value}")
    if spread < 1 and most > 1:
        raise ValueError(f"spread below 1 keeps digits near the centre, where one has room: set max_digits to 1; found {spread} and {most}")
    if seed < 0:
        raise ValueError(f"the seed must not be negative; found {seed}")


def _check_choices(label: str, backgrounds: str, size: int, frames: int, panorama: bool, spread: float) -> None:
    if label not in LABELS:
        raise ValueError(f"label must be one of {', '.join(LABELS)}; found {label!r}")
    if backgrounds not in ("photos", "textures"):
        raise ValueError(f'backgrounds must be "photos" or "textures"; found {backgrounds!r}')
    if backgrounds == "textures" and size > TEXTURE_ROOM:
        raise ValueError(f"size must be at most {TEXTURE_ROOM} on textures, the width of their narrowest region; found {size}")
    if panorama and frames > 1:
        raise ValueError(f"a panorama does not move: found panorama and frames {frames}")
    if panorama and spread < 1:
        raise ValueError(f"a panorama has no centre to draw digits to: found panorama and spread {spread}")


def _check_digits_fit(full: float, most: int, size: int) -> None:
    """`full` is the side in pixels of a digit that takes the whole scene."""
    smallest = full * SIZES[most][0]
    if smallest < SMALLEST:
        digits, fewer = ("1 digit", "") if most == 1 else (f"{most} digits", ", or fewer digits (max_digits)")
        raise ValueError(
            f"size {size} cannot hold {digits}: the smallest would have {smallest:.1f} pixels, and a digit needs {SMALLEST}; "
            f"use a size of at least {math.ceil(SMALLEST / smallest * size)}{fewer}"
        )


def _check_counts(*counts: int) -> None:
    if not 1 <= min(counts) <= max(counts) <= MOST_SCENES:
        raise ValueError(f"train, val and test must each hold 1 to {MOST_SCENES:,} scenes; found {list(counts)}")


def _check_weights(weights: Sequence[float] | None, least: int, most: int) -> None:
    wanted = most - least + 1
    if weights is not None and (len(weights) != wanted or min(weights) < 0 or not 0 < sum(weights) < math.inf):
        raise ValueError(
            f"weights are {wanted} numbers, for {least} to {most} digits, none negative and not all zero; found {list(weights)}"
        )
